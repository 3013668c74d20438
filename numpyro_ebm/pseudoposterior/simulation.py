"""Scores of data simulated from a model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Key
from numpyro.handlers import condition, seed, substitute, trace, uncondition

from numpyro_ebm.evidence.model import ModelTarget

_CHUNK = 2**18
"""Numbers of data that are simulated at once."""


def simulated_scores(
    target: ModelTarget,
    rng_key: Key[Array, ""],
    vector: Float[Array, " n"],
    observed: Mapping[str, tuple[int, ...]],
    num_simulations: int,
) -> Float64[np.ndarray, "num_simulations n"]:
    """Gradients of the log (pseudo)likelihood at the parameters that data are simulated from.

    Args:
        target: The model.
        rng_key: Random key.
        vector: Unconstrained values of the latent sites.
        observed: Shapes of the observed sites' values.
        num_simulations: Number of data sets.
    """
    size = sum(int(np.prod(shape)) for shape in observed.values())
    batch = max(1, min(num_simulations, _CHUNK // max(1, size)))
    keys = jax.random.split(rng_key, num_simulations)
    run = jax.jit(partial(_scores, target, tuple(observed), batch))
    return np.asarray(run(keys, vector), np.float64)


def _scores(
    target: ModelTarget,
    observed: tuple[str, ...],
    batch: int,
    keys: Key[Array, " num_simulations"],
    vector: Float[Array, " n"],
) -> Float[Array, "num_simulations n"]:
    values = target.constrain(vector)

    def one(key: Key[Array, ""]) -> Float[Array, " n"]:
        program: Callable[..., Any] = substitute(uncondition(seed(target.model, key)), data=values)
        drawn = trace(program).get_trace(*target.args, **target.kwargs)
        data = {name: drawn[name]["value"] for name in observed}
        moved = copy(target)
        moved.model = condition(target.model, data=data)
        return jax.grad(lambda vector: jnp.sum(moved.parts(vector).log_likelihood))(vector)

    return jax.lax.map(one, keys, batch_size=batch)
