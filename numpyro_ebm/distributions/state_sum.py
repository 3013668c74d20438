"""Exact sums over all joint states of a model that is known by its energy alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from numpyro_ebm.distributions.enumeration import all_terms, draw_numbers, log_sum
from numpyro_ebm.normalizer import NormalizerError

MAX_STATES = 2**20
"""Most joint states that are summed."""
_CHUNK_ROWS = 2**12
"""Most values whose energies are computed at once."""


def _num_of_each(model: Any) -> np.ndarray:
    return model.unit_states.allowed.reshape(-1, model.unit_states.allowed.shape[-1]).sum(-1)


def num_joint_states(model: Any) -> int:
    """Number of joint states of all units."""
    return math.prod(int(n) for n in _num_of_each(model))


def joint_states(model: Any, index: Int[Array, " states"]) -> Num[Array, "states *event"]:
    """Joint states of all units by number, the first unit fastest."""
    sizes = _num_of_each(model)
    powers = np.concatenate([[1], np.cumprod(sizes[:-1])]).astype(np.int32)
    labels = (index[:, None] // powers) % sizes
    table = jnp.asarray(model.unit_states.values.reshape(len(sizes), -1), model.chain_dtype)
    return table[np.arange(len(sizes)), labels].reshape(-1, *model.event_shape)


def _log_weights(model: Any, index: Int[Array, " states"]) -> Float[Array, "states *batch"]:
    """Minus the energy of joint states, for every member of the batch."""
    states = joint_states(model, index)
    ones = [1] * len(model.batch_shape)
    return -model.energy(states.reshape(-1, *ones, *model.event_shape))


@jax.jit
def exact_log_z(model: Any) -> Float[Array, "*batch"]:
    """Log Z in nats, differentiable in every parameter.

    Raises:
        NormalizerError: There are more than 2^20 joint states.
    """
    total, name = num_joint_states(model), type(model).__name__
    if total > MAX_STATES:
        raise NormalizerError(
            f'{name}: expected at most {MAX_STATES} joint states for normalizer="exact" and '
            f"evidence.exact; {math.prod(model.event_shape)} units have {total:.3g}. Estimate "
            "log Z with ebm.evidence.ais and pass the array, or keep the default guard."
        )
    return log_sum(partial(_log_weights, model), total, _chunk(model))


def _chunk(model: Any) -> int:
    """Number of states whose energies are computed at once."""
    members = max(1, math.prod(model.batch_shape))
    return max(1, min(num_joint_states(model), _CHUNK_ROWS // members))


def exact_sample(
    model: Any, rng_key: Key[Array, ""], shape: tuple[int, ...]
) -> Num[Array, "*shape"]:
    """Independent exact draws, of shape ``shape + batch_shape + event_shape``."""
    total, batch = num_joint_states(model), model.batch_shape
    log_weights = all_terms(partial(_log_weights, model), total, _chunk(model))
    index = draw_numbers(log_weights, rng_key, shape)
    return joint_states(model, index.ravel()).reshape(*shape, *batch, *model.event_shape)
