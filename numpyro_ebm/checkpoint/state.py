"""Save and load models, and any other pytree of arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, TypeVar, overload

import jax

from numpyro_ebm.checkpoint import file, leaves, structure

_Tree = TypeVar("_Tree")
_SHOWN = 8  # differences that an error lists


def save(
    path: str | os.PathLike[str], tree: Any, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a model, or any pytree, in place of what is there, all of it or nothing.

    Distributions, energy-based or not, their units and couplings, and the models of
    ``ebm.models`` are stored with their class and what is static in them, and the arrays by name.
    Leaves may be JAX and NumPy arrays of any type of number (bfloat16 too), typed random keys,
    NumPy and Python numbers, strings and ``None``: parameters, optimizer states, an ``SVIState``
    with its mutable state. Each is stored under its path in the tree. The file is written beside
    the old one and flushed to disk before it takes its name, so an interruption at any time leaves
    either the old file or the new one. A process killed while it writes may leave a hidden
    ``.tmp`` file behind, which can be deleted.

    Args:
        path: The file. Its folder must exist.
        tree: Any pytree of such leaves, fully addressable from this process.
        metadata: What else to keep, of the kinds that JSON has; see :func:`load_metadata`.

    Raises:
        TypeError: A leaf is something else, such as a function, or ``metadata`` is not JSON.

    Example:
        >>> import tempfile, jax.numpy as jnp, numpyro_ebm as ebm
        >>> from numpyro_ebm import checkpoint
        >>> rbm = ebm.RBM(jnp.ones((3, 2)), jnp.zeros(3), jnp.zeros(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint.save(f"{folder}/rbm.safetensors", rbm)
        ...     restored = checkpoint.load(f"{folder}/rbm.safetensors")
        >>> type(restored).__name__, restored.weights.shape
        ('RBM', (3, 2))
    """
    arrays, entries = {}, {}
    for name, leaf in leaves.named_leaves(structure.to_plain(tree)).items():
        entries[name], array = leaves.encode(name, leaf)
        if array is not None:
            arrays[name] = array
    header = {
        "numpyro_ebm": version("numpyro_ebm"),
        "structure": structure.describe(tree),
        "leaves": entries,
        "metadata": dict(metadata or {}),
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"checkpoint.save: expected `metadata` of what JSON has; {error}."
        ) from error
    file.write(path, text, arrays)


@overload
def load(path: str | os.PathLike[str]) -> Any: ...
@overload
def load(path: str | os.PathLike[str], like: _Tree) -> _Tree: ...
def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Read a model or a pytree that :func:`save` has written, bit for bit.

    Without ``like`` a model is built from the file alone, as is a dictionary, list or tuple of
    models and arrays: of classes that are imported, without running any code of the file. What
    holds functions (a neural energy) or other containers (an ``SVIState``) needs ``like``.

    Args:
        path: The file.
        like: A tree of the same structure, classes, shapes and types, whose leaves say what to
            return: JAX arrays (or ``jax.ShapeDtypeStruct``) for JAX arrays, NumPy for NumPy.
            Values of its leaves do not matter. A leaf sharded over several devices gives its
            sharding.

    Returns:
        The model or tree.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, damaged, of another version, or none of :func:`save`; it
            holds another model or tree than ``like``, whose differences are listed; or it needs
            ``like``.
    """
    header, arrays = file.read(path)
    entries = header["leaves"]
    if like is None:
        decoded = {name: leaves.decode(entry, arrays.get(name)) for name, entry in entries.items()}
        return structure.build(header["structure"], decoded)
    plain = structure.to_plain(like)
    expected = leaves.named_leaves(plain)
    problems = structure.differences(header["structure"], structure.describe(like))
    problems += _leaf_problems(entries, expected)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(
            f"checkpoint.load: expected `{path}` to hold a tree like `like`; it differs: "
            f"{'; '.join(problems[:_SHOWN])}{more}. Build `like` by the same code and settings "
            "that built what was saved."
        )
    found = [
        leaves.decode(entries[name], arrays.get(name), leaf) for name, leaf in expected.items()
    ]
    shape = jax.tree.structure(plain, is_leaf=leaves.is_none)
    return structure.from_plain(like, jax.tree.unflatten(shape, found))


def _leaf_problems(entries: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What leaves a file has that a tree has not, in words."""
    found, wanted = set(entries), set(expected)
    problems = [f"missing in the file: {leaves.label(name)}" for name in sorted(wanted - found)]
    problems += [f"only in the file: {leaves.label(name)}" for name in sorted(found - wanted)]
    for name, leaf in expected.items():
        if name in found:
            problems += leaves.differences(name, entries[name], leaves.kind_of(name, leaf))
    return problems


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save` was given as ``metadata``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, damaged, or none of :func:`save`.
    """
    return file.read(path)[0]["metadata"]
