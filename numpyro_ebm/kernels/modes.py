"""The mode of a density, and the covariance of the normal approximation there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.optimize import minimize
from jaxtyping import Array, Bool, Float

_LARGEST_VARIANCE = 100.0
"""Of a direction in unconstrained space that the density does not bound."""


class Mode(NamedTuple):
    """A mode in unconstrained space.

    Attributes:
        value: Where it is.
        covariance: Inverse Hessian of the energy there, made positive definite.
        found: Whether everything there is finite.
    """

    value: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    found: Bool[Array, ""]


def find_mode(
    energy: Callable[[Float[Array, " n"]], Float[Array, ""]], start: Float[Array, " n"]
) -> Mode:
    """Minimize an energy from a starting point by BFGS.

    Args:
        energy: Negative log density in nats, twice differentiable.
        start: Where to start. Where no finite minimum is found the mode is this point.
    """
    value = minimize(energy, start, method="BFGS").x
    hessian = jax.hessian(energy)(value)
    found = jnp.isfinite(value).all() & jnp.isfinite(hessian).all()
    precision, vectors = jnp.linalg.eigh(jnp.where(found, hessian, jnp.eye(len(start))))
    variance = 1 / jnp.maximum(precision, 1 / _LARGEST_VARIANCE)
    return Mode(jnp.where(found, value, start), (vectors * variance) @ vectors.T, found)
