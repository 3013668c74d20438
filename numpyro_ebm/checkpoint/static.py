"""What is static in a model (shapes, graphs, settings), as JSON."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from typing import Any

import jax
import numpy as np
from numpyro.distributions import constraints

from numpyro_ebm.couplings.graph import Graph, Static
from numpyro_ebm.distributions.degrees import Degrees
from numpyro_ebm.distributions.static_support import StaticSupport

OPAQUE = "opaque"
"""Tag of what a file only names: functions, and classes that nothing here can build."""


def class_name(cls: type) -> str:
    """Name of a class by its top-level package, which survives a move between its modules."""
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"


def find_class(name: str) -> type:
    """Find a class by the name that :func:`class_name` gives it, among those imported.

    Raises:
        ValueError: There is none, or more than one.
    """
    top, _, qualname = name.partition(".")
    modules = [m for n, m in sys.modules.items() if n == top or n.startswith(f"{top}.")]
    found = {
        value
        for module in modules
        for value in list(vars(module).values())
        if isinstance(value, type) and class_name(value) == name
    }
    if len(found) != 1:
        what = "no class" if not found else f"{len(found)} classes"
        raise ValueError(
            f"checkpoint.load: expected to find the class `{name}` of the file; {what} of that "
            f"name in what is imported of `{top}`. Import it, use the version that wrote the file, "
            "or pass `like`."
        )
    return found.pop()


def to_json(value: Any) -> Any:
    """Write a static part; what cannot be built again is only named, under :data:`OPAQUE`."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, np.integer | np.floating | np.bool_):
        return to_json(value.item())
    if type(value) in (tuple, list):
        return {type(value).__name__: [to_json(part) for part in value]}
    if type(value) in (dict, OrderedDict):
        return {"mapping": [[to_json(k), to_json(v)] for k, v in value.items()]}
    if isinstance(value, np.ndarray | jax.Array):
        return _array(np.asarray(value))
    if isinstance(value, Static):
        return {"static": _array(value.array)}
    if isinstance(value, Graph):
        return {"graph": [value.num_units, _array(value.edges)]}
    if isinstance(value, Degrees):
        return {"degrees": [list(value.ordering), [list(layer) for layer in value.hidden]]}
    if isinstance(value, StaticSupport):
        return {"support": to_json(value.constraint)}
    if isinstance(value, constraints.Constraint):
        children, (names, rest) = value.tree_flatten()
        parts = [list(names), [to_json(c) for c in children], to_json(dict(rest))]
        return {"constraint": [class_name(type(value)), *parts]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        state = {name: to_json(getattr(value, name)) for name in fields}
        return {"dataclass": [class_name(type(value)), state]}
    named = value if hasattr(value, "__qualname__") else type(value)
    return {OPAQUE: f"{named.__module__}.{named.__qualname__}"}


def from_json(entry: Any) -> Any:
    """Build what :func:`to_json` has written.

    Raises:
        ValueError: It holds what is only named, or a class is not found.
    """
    if not isinstance(entry, dict):
        return entry
    ((tag, content),) = entry.items()
    if tag == OPAQUE:
        raise ValueError(
            f"checkpoint.load: expected `like`, since `{content}` of the model is code or an "
            "object that no file holds. Pass a model built with it."
        )
    return _READ[tag](content)


def _array(array: np.ndarray) -> dict[str, Any]:
    array = np.asarray(array)
    return {"array": [array.dtype.name, list(array.shape), array.ravel().tolist()]}


def _read_array(content: Any) -> np.ndarray:
    dtype, shape, values = content
    return np.array(values, dtype).reshape(shape)


def _read_constraint(content: Any) -> Any:
    name, names, children, rest = content
    cls: Any = find_class(name)
    _require(issubclass(cls, constraints.Constraint), name)
    built = [from_json(child) for child in children]
    return cls.tree_unflatten((tuple(names), from_json(rest)), built)


def _read_dataclass(content: Any) -> Any:
    name, fields = content
    cls = find_class(name)
    _require(dataclasses.is_dataclass(cls), name)
    return cls(**{key: from_json(value) for key, value in fields.items()})


def _require(fits: bool, name: str) -> None:
    if not fits:
        raise ValueError(f"checkpoint.load: expected no class such as `{name}` in a file.")


_READ = {
    "float": float.fromhex,
    "tuple": lambda parts: tuple(from_json(part) for part in parts),
    "list": lambda parts: [from_json(part) for part in parts],
    "mapping": lambda pairs: OrderedDict((from_json(k), from_json(v)) for k, v in pairs),
    "array": _read_array,
    "static": lambda entry: Static(from_json(entry)),
    "graph": lambda parts: Graph.of(parts[0], from_json(parts[1])),
    "degrees": lambda parts: Degrees(*parts),
    "support": lambda entry: StaticSupport(from_json(entry)),
    "constraint": _read_constraint,
    "dataclass": _read_dataclass,
}
