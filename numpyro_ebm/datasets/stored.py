"""Data sets and published models read from a directory of `.npz` files.

The environment variable `NUMPYRO_EBM_DATA` names the directory. A *binary set* is a file with an
integer `width` and, for each split it has (`train`, `valid`, `test`, or a single `all`), the rows
packed eight bits to a byte along axis 1 (`numpy.packbits(x, axis=1)`), their number `<split>_n`
and, where known, the labels `<split>_y`. Any other file holds plain arrays.
"""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from numpyro_ebm.datasets.dataset import Dataset
from numpyro_ebm.datasets.sources import DESCRIPTIONS, IMAGE_ORDERS, IMAGE_SHAPES

# For each split of a `Dataset`, the arrays a file may hold it in.
_STORED_AS = {
    "train": ("train", "train_x", "all", "X"),
    "valid": ("valid",),
    "test": ("test", "test_x"),
}


def _folder(directory: str | os.PathLike[str] | None, caller: str) -> Path:
    """Directory of the data files: `directory`, else the one the environment names."""
    chosen = directory or os.environ.get("NUMPYRO_EBM_DATA")
    if not chosen:
        raise FileNotFoundError(
            f"{caller}: the environment variable NUMPYRO_EBM_DATA is not set; set it to the "
            "directory that holds the data files, or pass `directory`. Names known: "
            f"{', '.join(sorted(DESCRIPTIONS))}."
        )
    if not Path(chosen).is_dir():
        raise FileNotFoundError(
            f"{caller}: {str(chosen)!r} is not a directory; set NUMPYRO_EBM_DATA (or pass "
            "`directory`) to the directory that holds the data files."
        )
    return Path(chosen)


def available(directory: str | os.PathLike[str] | None = None) -> list[str]:
    """List the names of the data files, sorted.

    Args:
        directory: Directory of the files; by default that of `NUMPYRO_EBM_DATA`.

    Returns:
        The names `load`, `load_arrays` and `load_rbm` choose from.

    Raises:
        FileNotFoundError: If there is no such directory.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/tiny.npz", width=3)
        ...     available(folder)
        ['tiny']
    """
    return sorted(path.stem for path in _folder(directory, "available").glob("*.npz"))


def _read(
    name: str, directory: str | os.PathLike[str] | None, caller: str
) -> dict[str, np.ndarray]:
    """All arrays of one file, as stored."""
    folder = _folder(directory, caller)
    names = available(folder)
    if name not in names:
        raise FileNotFoundError(
            f"{caller}: there is no {name}.npz in {str(folder)!r}; available there: "
            f"{', '.join(names) or 'nothing'}."
        )
    with np.load(folder / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def load_arrays(
    name: str, directory: str | os.PathLike[str] | None = None
) -> dict[str, np.ndarray]:
    """Load the arrays of a data file as they are stored, bit-packed splits included.

    Args:
        name: A name of `available`.
        directory: Directory of the files; by default that of `NUMPYRO_EBM_DATA`.

    Returns:
        The arrays by their names in the file.

    Raises:
        FileNotFoundError: If there is no such directory or file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/turtles.npz", y=[1, 0], x=[0.5, -0.5])
        ...     load_arrays("turtles", folder)["x"]
        array([ 0.5, -0.5])
    """
    return _read(name, directory, "load_arrays")


def _take_examples(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Move the examples of every split out of `arrays`, one unpacked or flattened row each."""
    width = arrays.pop("width", None)
    splits = {}
    for split, keys in _STORED_AS.items():
        found = next((key for key in keys if key in arrays), None)
        if found is None:
            continue
        rows = arrays.pop(found)
        if width is not None:
            count, stored = int(arrays.pop(f"{found}_n")), rows.shape
            rows = np.unpackbits(rows, axis=1)[:, : int(width)]
            if rows.shape != (count, int(width)):
                raise ValueError(
                    f"load: {name}.npz is damaged: {count} rows of {int(width)} bits are "
                    f"announced for {found!r}, which is packed in shape {stored}."
                )
        splits[split] = rows.reshape(len(rows), -1)
        if f"{found}_y" in arrays:
            splits[f"{split}_y"] = arrays.pop(f"{found}_y")
        elif f"{split}_y" in arrays:
            splits[f"{split}_y"] = arrays.pop(f"{split}_y")
    return splits


def load(name: str, directory: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a set of examples from the data files.

    Nothing is changed on the way: `caltech101_silhouettes_28` keeps its polarity (0 the object, 1
    the background) and its column-by-column pixels, which `Dataset.images` puts upright. A source
    without splits is all `train`; `description` says what is peculiar to each set.

    Args:
        name: A name of `available`.
        directory: Directory of the files; by default that of `NUMPYRO_EBM_DATA`.

    Returns:
        The rows: uint8 {0, 1} for a binary set, flattened as stored for another.

    Raises:
        FileNotFoundError: If there is no such directory or file.
        ValueError: If the file holds no set of examples, or is damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> rows = np.eye(3, dtype=np.uint8)
        >>> with TemporaryDirectory() as folder:
        ...     packed = np.packbits(rows, axis=1)
        ...     np.savez(f"{folder}/tiny.npz", train=packed, train_n=3, width=3)
        ...     load("tiny", folder).train.tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    arrays = _read(name, directory, "load")
    splits = _take_examples(arrays, name)
    if "train" not in splits:
        reader = "load_rbm" if name.startswith("rbm_") else "load_arrays"
        raise ValueError(f"load: {name!r} is not a set of examples; read it with `{reader}`.")
    for split in ("valid", "test"):
        splits.setdefault(split, splits["train"][:0])
    return Dataset(
        name=name,
        **splits,
        image_shape=IMAGE_SHAPES.get(name),
        image_order=IMAGE_ORDERS.get(name, "C"),
        description=DESCRIPTIONS.get(name, ""),
        extras=arrays,
    )


def load_rbm(
    name: str, directory: str | os.PathLike[str] | None = None
) -> dict[str, Float64[np.ndarray, "..."]]:
    """Load one of two RBMs of the binarized MNIST digits by R. Salakhutdinov and I. Murray.

    p(v, h) is proportional to exp(v^T weights h + visible^T v + hidden^T h), v and h in {0, 1}.
    They are `rbm_salakhutdinov_murray_cd25_500` (500 hidden units, trained with CD-25, published)
    and `rbm_salakhutdinov_murray_toy_15` (15 hidden units, trained with the same programs). The
    programs and their models carry this notice:

        Code provided by Ruslan Salakhutdinov. Permission is granted for anyone to copy, use,
        modify, or distribute this program and accompanying programs and documents for any
        purpose, provided this copyright notice is retained and prominently displayed, along with
        a note saying that the original programs are available from our web page. The programs and
        documents are distributed without any warranty, express or implied.

    The original programs are available from the web page of Ruslan Salakhutdinov.

    Args:
        name: A name of `available` that starts with `rbm_`.
        directory: Directory of the files; by default that of `NUMPYRO_EBM_DATA`.

    Returns:
        float64 arrays `weights` (784, num_hidden), `visible` (784,) and `hidden` (num_hidden,).

    Raises:
        FileNotFoundError: If there is no such directory or file.
        ValueError: If the file holds no RBM.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/rbm.npz", W=np.ones((3, 2)), b_vis=np.ones(3), b_hid=np.ones(2))
        ...     sorted(load_rbm("rbm", folder))
        ['hidden', 'visible', 'weights']

    References:
        R. Salakhutdinov and I. Murray (2008), "On the quantitative analysis of deep belief
        networks", ICML.
    """
    arrays = _read(name, directory, "load_rbm")
    if not arrays.keys() >= {"W", "b_vis", "b_hid"}:
        raise ValueError(
            f"load_rbm: expected arrays W, b_vis and b_hid in {name}.npz; got {sorted(arrays)}."
        )
    stored = {"weights": "W", "visible": "b_vis", "hidden": "b_hid"}
    return {key: arrays[at].astype(np.float64) for key, at in stored.items()}
