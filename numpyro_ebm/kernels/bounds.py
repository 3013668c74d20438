"""How large the integers of a program can be: a sum of integers that may wrap is not a sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KEEPS = {
    "abs", "broadcast_in_dim", "clamp", "concatenate", "copy", "copy_p", "expand_dims", "max",
    "min", "neg", "pad", "reduce_max", "reduce_min", "reshape", "rev",
    "slice", "split", "squeeze", "stack", "stop_gradient", "tile", "transpose", "unstack",
}  # fmt: skip


def type_bound(dtype: Any) -> float:
    """Largest absolute value of a type: infinite unless it is an integer or boolean type."""
    if dtype == jnp.bool_:
        return 1.0
    return float(jnp.iinfo(dtype).max) if jnp.issubdtype(dtype, jnp.integer) else math.inf


def value_bound(value: Any) -> float:
    """Largest absolute value of a concrete array of integers; that of its type for others."""
    dtype = getattr(value, "dtype", None) or jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.integer) or np.size(value) == 0:
        return type_bound(dtype)
    return float(np.abs(np.asarray(value, np.float64)).max())


def output_bound(equation: Any, bounds: Sequence[float]) -> float:
    """Bound on the absolute value that an equation would give if no integer wrapped.

    Args:
        equation: A JAX equation.
        bounds: Bounds of its inputs.
    """
    if not bounds:
        return math.inf
    name = equation.primitive.name
    source, out = equation.invars[0].aval, equation.outvars[0].aval
    unsigned = jnp.issubdtype(out.dtype, jnp.unsignedinteger)
    if unsigned and name in ("sub", "neg"):
        return math.inf
    if name in ("add", "add_any", "sub"):
        return sum(bounds)
    if name == "mul":
        return math.prod(bounds)
    if name == "reduce_sum":
        return bounds[0] * math.prod(source.shape[i] for i in equation.params["axes"])
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(bounds) * math.prod(source.shape[i] for i in contracted)
    if name == "convert_element_type":
        kept = not unsigned or not jnp.issubdtype(source.dtype, jnp.signedinteger)
        return bounds[0] if kept else math.inf
    if name == "select_n":
        return max(bounds[1:])
    if name in ("gather", "dynamic_slice"):
        fills = equation.params.get("mode") == jax.lax.GatherScatterMode.FILL_OR_DROP
        return math.inf if fills else bounds[0]
    return max(bounds) if name in _KEEPS else math.inf
