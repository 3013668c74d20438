"""Exact sums over all joint states of a pairwise model: log Z and independent draws."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from numpyro_ebm.base import MAX_TERMS, enumerable
from numpyro_ebm.distributions.enumeration import all_terms, draw_numbers, log_sum
from numpyro_ebm.distributions.transfer_matrix import (
    MAX_ROW_STATES,
    Cut,
    best_cut,
    transfer_log_z,
    transfer_sample,
)
from numpyro_ebm.normalizer import NormalizerError
from numpyro_ebm.units.unit import digits

if TYPE_CHECKING:
    from numpyro_ebm.distributions.pairwise import PairwiseModel

_CHUNK_FLOATS = 2**22
"""Size of the arrays held at once while summing."""


def joint_states(model: PairwiseModel, index: Int[Array, " states"]) -> Num[Array, "states *grid"]:
    """Joint states of all units by number."""
    alphabet, grid = model._alphabet, model.couplings.shape
    labels = digits(index, model.couplings.num_units, alphabet.num_states)
    return jnp.asarray(alphabet.values, jnp.int8 if alphabet.num_states < 128 else jnp.int32)[
        labels
    ].reshape(-1, *grid)


def _log_weights(model: PairwiseModel, index: Array) -> Float[Array, "states *batch"]:
    """Minus the energy of joint states, for every member of the batch."""
    states = joint_states(model, index)
    grid, batch = model.couplings.shape, _batch(model)
    return -model.units_energy(states.reshape(-1, *[1] * len(batch), *grid))


def _batch(model: PairwiseModel) -> tuple[int, ...]:
    return model._batch_of(model.couplings, model._site_field)


def exact_log_z(model: PairwiseModel) -> Float[Array, "*batch"]:
    """Log Z in nats, differentiable in every parameter.

    Raises:
        NormalizerError: There are more than 2^20 joint states, and no narrow lattice.
    """
    total, cut = model.num_joint_states, best_cut(model)
    if cut is not None and _is_cheaper(cut, model):
        return transfer_log_z(model, cut)
    if total > MAX_TERMS:
        q, n = model._alphabet.num_states, model.couplings.num_units
        raise NormalizerError(
            f"{type(model).__name__}: expected at most {MAX_TERMS} joint states for "
            f'normalizer="exact" and evidence.exact; {n} units have {q}^{n}. Only a narrow lattice '
            f"can be larger: one whose sites across some axis have at most {MAX_ROW_STATES} joint "
            "states. Estimate log Z with ebm.evidence.ais and pass the array, or keep the default "
            "guard."
        )
    return log_sum(partial(_log_weights, model), total, _chunk(model))


def _is_cheaper(cut: Cut, model: PairwiseModel) -> bool:
    """Whether a lattice is summed faster row by row than state by state."""
    return cut.num_terms * model.couplings.num_units < model.num_joint_states


def exact_terms(model: PairwiseModel) -> dict[str, int]:
    """Terms that each way to draw exactly sums at a time, for all members; cheapest first."""
    ways, cut = enumerable(model.num_joint_states, model.batch_shape), best_cut(model)
    if cut is None:
        return ways
    narrow = {"transfer_matrix": cut.num_terms * max(1, math.prod(model.batch_shape))}
    return narrow | ways if _is_cheaper(cut, model) else ways | narrow


def _chunk(model: PairwiseModel) -> int:
    """Number of states whose energies fit in memory together."""
    width = model.couplings.num_units * max(1, math.prod(_batch(model)))
    width *= model._alphabet.num_states if model._alphabet.label_axis else 1
    return max(1, min(model.num_joint_states, _CHUNK_FLOATS // width))


def exact_sample(
    model: PairwiseModel, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
) -> Num[Array, "*shape"]:
    """Independent exact chains, of shape ``shape + batch_shape``."""
    cut = best_cut(model)
    if method == "transfer_matrix" and cut is not None:
        return transfer_sample(model, cut, rng_key, shape)
    batch, grid = _batch(model), model.couplings.shape
    total = model.num_joint_states
    log_weights = all_terms(partial(_log_weights, model), total, _chunk(model))
    index = draw_numbers(log_weights, rng_key, shape)
    states = joint_states(model, index.ravel()).astype(model._alphabet.dtype)
    return model.as_chain(states.reshape(*shape, *batch, *grid))
