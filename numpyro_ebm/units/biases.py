"""The parameters of units that learning moves freely."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from numpyro_ebm.units.unit import Unit


def _named(unit: Unit) -> tuple[dict[str, Array], Any]:
    pairs, treedef = jax.tree_util.tree_flatten_with_path(unit)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in pairs]
    return dict(zip(names, (leaf for _, leaf in pairs), strict=True)), treedef


def biases(unit: Unit) -> dict[str, Array]:
    """Parameters of a unit by name: all but scales, which are positive and stay as they are."""
    named, _ = _named(unit)
    return {name: leaf for name, leaf in named.items() if not name.endswith("scale")}


def with_biases(unit: Unit, values: dict[str, Array]) -> Unit:
    """Return the unit with other parameters, named as by :func:`biases`."""
    named, treedef = _named(unit)
    return jax.tree.unflatten(treedef, (named | values).values())
