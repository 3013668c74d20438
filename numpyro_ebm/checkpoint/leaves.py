"""The leaves of a tree: arrays, random keys, numbers and strings, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STORED = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
"""Types of numbers that go into the file as they are; others go as bytes."""


def is_none(leaf: Any) -> bool:
    """Whether a leaf is ``None``, which JAX itself counts as an empty tree."""
    return leaf is None


def _is_key(leaf: Any) -> bool:
    is_jax = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    return is_jax and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def label(name: str) -> str:
    """What an error calls a leaf."""
    return f"`{name}`" if name else "the tree itself"


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their paths, ``None`` among them."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in pairs}
    if len(named) < len(pairs):
        raise ValueError("checkpoint: expected leaves with distinct paths; two have the same one.")
    return named


def kind_of(name: str, leaf: Any) -> dict[str, Any]:
    """What a leaf is, apart from its value."""
    if leaf is None or type(leaf) in (bool, int, float, str):
        return {"kind": type(leaf).__name__}
    if _is_key(leaf):  # of a ShapeDtypeStruct too
        impl = str(jax.random.key_impl(leaf)) if isinstance(leaf, jax.Array) else leaf.dtype.name
        return {"kind": "key", "impl": impl, "shape": list(leaf.shape)}
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None or np.dtype(dtype).hasobject or np.dtype(dtype).kind in "SUm":
        raise TypeError(
            f"checkpoint: expected leaves that are arrays, numbers, strings or None; got "
            f"{type(leaf).__name__} at {label(name)}."
        )
    return {"kind": "array", "dtype": np.dtype(dtype).name, "shape": list(shape)}


def encode(name: str, leaf: Any) -> tuple[dict[str, Any], np.ndarray | None]:
    """The entry of a leaf in the header, and the array that goes into the file."""
    entry = kind_of(name, leaf)
    if entry["kind"] == "array":
        entry["library"] = _library(leaf)
    if entry["kind"] == "float":
        return {**entry, "value": leaf.hex()}, None
    if entry["kind"] not in ("key", "array"):
        return {**entry, "value": leaf}, None
    array = np.asarray(jax.random.key_data(leaf) if entry["kind"] == "key" else leaf, order="C")
    if array.dtype.name in _STORED:
        return entry, array.astype(array.dtype.newbyteorder("="), copy=False)
    return entry, np.frombuffer(array.tobytes(), np.uint8)


def _library(leaf: Any) -> str:
    if isinstance(leaf, np.generic):
        return "scalar"
    return "numpy" if isinstance(leaf, np.ndarray) else "jax"


def decode(entry: dict[str, Any], stored: np.ndarray | None, like: Any = None) -> Any:
    """The leaf of an entry, of the kind of ``like``, or as it was."""
    if stored is None:
        return float.fromhex(entry["value"]) if entry["kind"] == "float" else entry["value"]
    if entry["kind"] == "key":
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=entry["impl"])
    dtype, shape = jnp.dtype(entry["dtype"]), tuple(entry["shape"])
    array = stored if dtype.name in _STORED else np.frombuffer(stored.tobytes(), dtype)
    array = np.array(array).reshape(shape)
    library = entry["library"] if like is None else _library(like)
    if library != "jax":
        return array[()] if library == "scalar" else array
    sharding = getattr(like, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        return jax.device_put(array, sharding)
    found = jnp.asarray(array)
    if found.dtype != dtype:
        raise ValueError(
            f"checkpoint.load: expected 64-bit numbers to be enabled, since the file has {dtype} "
            'arrays; call jax.config.update("jax_enable_x64", True) first.'
        )
    return found


def differences(name: str, found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What an entry has that a leaf has not, in words."""
    kinds = found["kind"], expected["kind"]
    if kinds[0] != kinds[1]:
        return [f"{label(name)} is {kinds[0]} in the file and {kinds[1]} in `like`"]
    names = ("shape", "dtype", "impl")
    return [
        f"{label(name)} has {key} {found[key]} in the file and {expected[key]} in `like`"
        for key in names
        if key in expected and found[key] != expected[key] and "key<" not in str(expected[key])
    ]
