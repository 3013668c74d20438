"""Products of units' features and weights."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Num

from numpyro_ebm.units import Unit

_SMALLEST_SPLIT = 2**14
"""Smaller matrices are not worth the splitting."""
_FEWEST_ROWS = 256
"""Nor are fewer rows, unless the matrix is the same in many products."""


def dot(x: Float[Array, "*b f"], matrix: Float[Array, "*c f g"]) -> Float[Array, "*d g"]:
    """Product of row vectors and (a batch of) matrices in full precision."""
    if matrix.ndim == 2:
        return jnp.matmul(x, matrix, precision="highest")
    return jnp.einsum("...f,...fg->...g", x, matrix, precision="highest")


@jax.custom_jvp
def known_dot(
    x: Float[Array, "*b f"], matrix: Float[Array, "*c f g"], product: Float[Array, "*d g"]
) -> Float[Array, "*d g"]:
    """``dot(x, matrix)`` where the product is known already; its derivatives are the product's."""
    return product


@known_dot.defjvp
def _known_dot_jvp(primals: Any, tangents: Any) -> Any:
    (x, matrix, product), (x_dot, matrix_dot, _) = primals, tangents
    return product, dot(x_dot, matrix) + dot(x, matrix_dot)


def state_dot(
    unit: Unit, states: Num[Array, "*b n"], matrix: Float[Array, "*c f g"]
) -> Float[Array, "*d g"]:
    """Features of states that units can take, times weights, in full precision.

    Features of discrete units are 0, 1 or -1, which bfloat16 holds, and a float32 number is a sum
    of three bfloat16 numbers. Their products are exact, and summed in float32: as precise as a
    product in float32, and 1.4 times as fast on processors with matrix units for bfloat16. A few
    rows (the chains of a training run, whose weights change at every update) are multiplied as
    they are; a single one stands for chains that are mapped over.
    """
    features = unit.features(states)
    num_rows = math.prod(features.shape[:-1])
    is_split = unit.num_states is not None and matrix.ndim == 2 and matrix.dtype == jnp.float32
    is_large = matrix.size >= _SMALLEST_SPLIT and (num_rows == 1 or num_rows >= _FEWEST_ROWS)
    if is_split and is_large and _has_matrix_units():
        return _state_dot(features, matrix)
    return dot(features, matrix)


@functools.cache
def _has_matrix_units() -> bool:
    """Whether the processor multiplies matrices of bfloat16 (x86 with AMX, under Linux)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False


@jax.custom_jvp
def _state_dot(features: Float[Array, "*b f"], matrix: Float[Array, "f g"]) -> Float[Array, "*b g"]:
    return jax.lax.platform_dependent(features, matrix, cpu=split_dot, default=dot)


_state_dot.defjvps(
    lambda tangent, _, features, matrix: dot(tangent, matrix),
    lambda tangent, _, features, matrix: dot(features, tangent),
)


def split_dot(features: Float[Array, "*b f"], matrix: Float[Array, "f g"]) -> Float[Array, "*b g"]:
    """Product of what bfloat16 holds with a float32 matrix, by three products in bfloat16."""
    pieces, rest = [], matrix
    for _ in range(3):
        pieces.append(rest.astype(jnp.bfloat16))
        rest = rest - pieces[-1].astype(jnp.float32)
    out = bfloat16_dot(features, jnp.concatenate(pieces, axis=1))
    large, middle, small = jnp.split(out, 3, axis=-1)
    return large + (middle + small)


def bfloat16_dot(
    features: Float[Array, "*b f"], matrix: BFloat16[Array, "*c f g"]
) -> Float[Array, "*d g"]:
    """Product in bfloat16 with sums in float32."""
    features = features.astype(jnp.bfloat16)
    options: dict[str, Any] = {"preferred_element_type": jnp.float32}
    if matrix.ndim == 2:
        return jnp.matmul(features, matrix, **options)
    return jnp.einsum("...f,...fg->...g", features, matrix, **options)
