"""The classes and static parts of the models in a tree, to tell them apart and build them again."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr
from numpyro.distributions import Distribution

from numpyro_ebm.checkpoint.static import OPAQUE, class_name, find_class, from_json, to_json
from numpyro_ebm.couplings import Coupling
from numpyro_ebm.units import Unit

_SETTINGS = ("_validate_args",)
"""Static parts that are no part of the model."""
_LONGEST = 60


def is_distribution(node: Any) -> bool:
    """Whether a node is a NumPyro distribution, energy-based or not."""
    return isinstance(node, Distribution)


def to_plain(tree: Any) -> Any:
    """Replace every distribution by a dictionary of its arrays, by name.

    NumPyro itself lists them in an order that differs between processes.
    """

    def plain(node: Any) -> Any:
        if not is_distribution(node):
            return node
        names = sorted(type(node).gather_pytree_data_fields())
        return {name: to_plain(node.__dict__.get(name)) for name in names}

    return jax.tree.map(plain, tree, is_leaf=_ends)


def from_plain(like: Any, plain: Any) -> Any:
    """Undo :func:`to_plain`, with the classes and static parts of ``like``."""

    def put(node: Any, part: Any) -> Any:
        if not is_distribution(node):
            return part
        names = type(node).gather_pytree_data_fields()
        parts = tuple(from_plain(node.__dict__.get(name), part[name]) for name in names)
        return type(node).tree_unflatten(node.tree_flatten()[1], parts)

    return jax.tree.map(put, like, plain, is_leaf=_ends)


def _ends(node: Any) -> bool:
    return node is None or is_distribution(node)


def describe(node: Any, path: tuple[Any, ...] = ()) -> Any:
    """Containers, classes and static parts of a tree as JSON, with the paths of its leaves."""
    if isinstance(node, Distribution | Unit | Coupling):
        key = DictKey if is_distribution(node) else GetAttrKey
        fields, static = _parts(node)
        return {
            "class": class_name(type(node)),
            "fields": {name: describe(part, (*path, key(name))) for name, part in fields.items()},
            "static": {name: to_json(part) for name, part in static.items()},
        }
    if type(node) is dict and all(isinstance(name, str) for name in node):
        return {
            "dict": {name: describe(part, (*path, DictKey(name))) for name, part in node.items()}
        }
    if type(node) in (list, tuple):
        parts = [describe(part, (*path, SequenceKey(i))) for i, part in enumerate(node)]
        return {type(node).__name__: parts}
    if node is None or jax.tree_util.all_leaves([node]):
        return {"leaf": keystr(path)}
    names = _data_fields(node)
    if names:
        fields = {k: describe(getattr(node, k), (*path, GetAttrKey(k))) for k in names}
        rest = {f.name for f in dataclasses.fields(node)} - {*names}
        static = {k: to_json(getattr(node, k)) for k in sorted(rest)}
        return {"class": class_name(type(node)), "fields": fields, "static": static}
    if dataclasses.is_dataclass(node) and not jax.tree.leaves(node):
        return {"class": class_name(type(node)), "fields": {}, "static": {"self": to_json(node)}}
    return {OPAQUE: class_name(type(node))}


def _data_fields(node: Any) -> list[str]:
    """Fields of a dataclass that is a pytree of them; nothing for what else there is."""
    if not dataclasses.is_dataclass(node):
        return []
    pairs, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
    keys = [path[0] for path, _ in pairs if path]
    return [key.name for key in keys if isinstance(key, GetAttrKey)]


def _parts(node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts of a model that are trees and parts that are static, by name."""
    if isinstance(node, Distribution):
        names = type(node).gather_pytree_data_fields(), type(node).gather_pytree_aux_fields()
        fields, static = ({k: node.__dict__.get(k) for k in sorted(part)} for part in names)
        return fields, static
    if isinstance(node, Coupling):
        names = node.leaves, node.static
    else:
        names = node.fields, ()
    fields, static = ({k: getattr(node, k) for k in part} for part in names)
    return fields, static


def differences(found: Any, expected: Any, where: str = "the tree") -> list[str]:
    """What models a file has that ``like`` has not, in words."""
    if "class" not in found and "class" not in expected:
        return _in_containers(found, expected, where)
    classes = found.get("class"), expected.get("class")
    if classes[0] != classes[1]:
        names = [name or "no model" for name in classes]
        return [f"{where} is {names[0]} in the file and {names[1]} in `like`"]
    problems = []
    for name in sorted({*found["static"], *expected["static"]} - {*_SETTINGS}):
        values = [part["static"].get(name) for part in (found, expected)]
        if values[0] != values[1]:
            shown = " and ".join(_shown(v) for v in values)
            problems.append(f"{where} ({classes[0]}) has another `{name.lstrip('_')}`: {shown}")
    for name in sorted({*found["fields"]} & {*expected["fields"]}):
        inner = f"`{name}` of {where}"
        problems += differences(found["fields"][name], expected["fields"][name], inner)
    return problems


def _in_containers(found: Any, expected: Any, where: str) -> list[str]:
    problems = []
    for kind in ("dict", "list", "tuple"):
        parts = found.get(kind, {}), expected.get(kind, {})
        pairs = [part.items() if isinstance(part, dict) else enumerate(part) for part in parts]
        first, second = dict(pairs[0]), dict(pairs[1])
        for name in first:
            if name in second:
                problems += differences(first[name], second[name], f"`{name}` of {where}")
    return problems


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def build(entry: Any, leaves: dict[str, Any]) -> Any:
    """Build a tree from what :func:`describe` has written.

    Raises:
        ValueError: It has code or objects that no file holds, or a class is not found or has
            changed.
    """
    if "leaf" in entry:
        return leaves[entry["leaf"]]
    if "dict" in entry:
        return {name: build(part, leaves) for name, part in entry["dict"].items()}
    for kind in (list, tuple):
        if kind.__name__ in entry:
            return kind(build(part, leaves) for part in entry[kind.__name__])
    if OPAQUE in entry:
        return from_json(entry)
    cls, static = find_class(entry["class"]), entry["static"]
    if "self" in static:
        return from_json(static["self"])
    fields = {name: build(part, leaves) for name, part in entry["fields"].items()}
    return _instance(cls, fields, {name: from_json(part) for name, part in static.items()})


def _instance(cls: Any, fields: dict[str, Any], static: dict[str, Any]) -> Any:
    if issubclass(cls, Distribution):
        names = cls.gather_pytree_data_fields(), cls.gather_pytree_aux_fields()
        make = cls.tree_unflatten
    elif issubclass(cls, Coupling):
        names, make = (cls.leaves, cls.static), cls._unflatten
    elif issubclass(cls, Unit):
        names, make = (cls.fields, ()), cls._unflatten
    elif dataclasses.is_dataclass(cls):
        own = {f.name for f in dataclasses.fields(cls)}
        names = sorted(own & {*fields}), sorted(own - {*fields})

        def make(aux: tuple[Any, ...], children: tuple[Any, ...]) -> Any:
            return cls(**dict(zip((*names[0], *names[1]), (*children, *aux), strict=True)))

    else:
        raise ValueError(f"checkpoint.load: expected the class of a model; got {cls.__name__}.")
    if set(names[0]) != set(fields) or set(names[1]) != set(static):
        raise ValueError(
            f"checkpoint.load: expected {class_name(cls)} with the parts {sorted(names[0])} and "
            f"{sorted(names[1])}; the file, of another version, has {sorted(fields)} and "
            f"{sorted(static)}."
        )
    return make(tuple(static[k] for k in names[1]), tuple(fields[k] for k in names[0]))
