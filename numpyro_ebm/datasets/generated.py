"""Data sets that need no download: handwritten digits from scikit-learn, bars and stripes."""

import numpy as np
from jaxtyping import UInt8

from numpyro_ebm.datasets.dataset import Dataset


def load_digits(threshold: float = 8.0, seed: int = 0) -> Dataset:
    """Load scikit-learn's 8x8 handwritten digits, binarized and split at random.

    A pixel, an integer 0..16, becomes 1 where it is at least `threshold`. The 1797 images are
    split into 1257 for training, 270 for validation and 270 for test, stratified by label, by two
    calls of `sklearn.model_selection.train_test_split` with `random_state=seed`: the same
    arguments always give the same split.

    Args:
        threshold: Least intensity, in (0, 16), of a pixel that is on.
        seed: Seed of the split.

    Returns:
        The uint8 {0, 1} rows of 64 pixels with their labels 0..9.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If `threshold` is not inside (0, 16).

    Example:
        >>> digits = load_digits()
        >>> digits.train.shape, digits.valid.shape, digits.test.shape
        ((1257, 64), (270, 64), (270, 64))

    References:
        E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository.
    """
    if not 0 < threshold < 16:
        raise ValueError(f"load_digits: expected `threshold` in (0, 16); got {threshold}.")
    try:
        from sklearn import datasets as sources
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "load_digits: scikit-learn is not installed; it comes with the `examples` extra: "
            "pip install 'numpyro-ebm[examples]'."
        ) from error
    pixels, labels = sources.load_digits(return_X_y=True)
    rows, labels = (pixels >= threshold).astype(np.uint8), labels.astype(np.uint8)
    train, rest, train_y, rest_y = train_test_split(
        rows, labels, test_size=540, stratify=labels, random_state=seed
    )
    valid, test, valid_y, test_y = train_test_split(
        rest, rest_y, test_size=270, stratify=rest_y, random_state=seed
    )
    return Dataset(
        name="digits",
        train=train,
        valid=valid,
        test=test,
        train_y=train_y,
        valid_y=valid_y,
        test_y=test_y,
        image_shape=(8, 8),
        description=f"scikit-learn's 8x8 digits, a pixel on where its value is >= {threshold:g}",
    )


def bars_and_stripes(size: int) -> UInt8[np.ndarray, "num_patterns num_pixels"]:
    """List every bars-and-stripes pattern on a square grid once.

    In a pattern either each row is all on or all off, or each column is; the empty and the full
    grid are both, so there are 2^(size + 1) - 2 distinct patterns.

    Args:
        size: Side of the grid, 1..16.

    Returns:
        The patterns as rows of size^2 pixels in {0, 1}: those of whole grid rows first, then those
        of whole grid columns without the empty and the full grid.

    Raises:
        ValueError: If `size` is not an integer in 1..16.

    Example:
        >>> bars_and_stripes(2).tolist()
        [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]]

    References:
        D. J. C. MacKay (2003), "Information Theory, Inference, and Learning Algorithms", ch. 43.
    """
    if not isinstance(size, int | np.integer) or not 1 <= size <= 16:
        raise ValueError(f"bars_and_stripes: expected an integer `size` in 1..16; got {size!r}.")
    codes = np.arange(2**size)[:, None]
    lines = ((codes >> np.arange(size)) & 1).astype(np.uint8)
    in_rows = np.repeat(lines, size, axis=1)
    in_columns = np.tile(lines[1:-1], (1, size))
    return np.concatenate([in_rows, in_columns])
