"""The mode of a pseudo-posterior."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize

from numpyro_ebm.evidence.model import ModelTarget
from numpyro_ebm.evidence.posterior import evaluate

_LARGEST_DECREMENT = 1e-3
"""Squared distance from the mode, in posterior standard deviations."""


class Mode(NamedTuple):
    """A mode of the pseudo-posterior.

    Attributes:
        vector: Where it is.
        hessian: Of minus the log density there.
        prior_hessian: The part of the prior.
        decrement: Newton decrement: its squared distance from the minimum of the quadratic there.
    """

    vector: Float64[np.ndarray, " n"]
    hessian: Float64[np.ndarray, "n n"]
    prior_hessian: Float64[np.ndarray, "n n"]
    decrement: float

    def doubts(self) -> list[str]:
        """Why it may be none."""
        if self.decrement < _LARGEST_DECREMENT:
            return []
        return [
            "the mode of the pseudo-posterior was not found (it seems "
            f"{max(self.decrement, 0.0) ** 0.5:.2g} standard deviations away): the matrix belongs "
            "to another point. Look at the draws: a posterior without an interior mode cannot be "
            "adjusted; numpyro.enable_x64() helps where float32 is not enough."
        ]


def find_mode(target: ModelTarget, draws: Float64[np.ndarray, "m n"]) -> Mode:
    """Maximize the density from the best of draws."""
    dtype = jnp.result_type(float)
    energy = jax.jit(lambda vector: target.energy(vector))
    gradient, hessian = jax.jit(jax.grad(energy)), jax.jit(jax.hessian(energy))
    prior = jax.jit(jax.hessian(lambda vector: -jnp.sum(target.parts(vector).log_prior)))

    def of(function: Any, vector: np.ndarray) -> np.ndarray:
        return np.asarray(function(jnp.asarray(vector, dtype)), np.float64)

    start = draws[int(np.nanargmin(evaluate(target, draws)))]
    found = minimize(
        lambda v: float(of(energy, v)),
        start,
        jac=partial(of, gradient),
        hess=partial(of, hessian),
        method="trust-exact",
        options={"gtol": 1e-6},
    )
    curvature = of(hessian, found.x)
    slope = of(gradient, found.x)
    smallest = np.linalg.eigvalsh(curvature)[0]
    decrement = slope @ np.linalg.solve(curvature, slope) if smallest > 0 else np.inf
    return Mode(found.x, curvature, of(prior, found.x), float(decrement))
