"""Sums over the joint states of hidden units, and draws of them, given the visible units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key, Num

from numpyro_ebm.random_bits import uniform_numbers
from numpyro_ebm.units.unit import digits

if TYPE_CHECKING:
    from numpyro_ebm.distributions.hidden import HiddenPairwiseModel

MAX_HIDDEN = 20
"""Most hidden units whose states are summed."""
_CHUNK_FLOATS = 2**22
"""Size of the arrays held at once while summing."""


def unit_field(model: HiddenPairwiseModel) -> Float[Array, "*batch n"]:
    """Field on every unit of a model, visible and hidden."""
    field = model._site_field
    return jnp.broadcast_to(field, (*field.shape[:-1], model.couplings.num_units))


def hidden_terms(
    model: HiddenPairwiseModel, visible: Num[Array, "*batch k"], index: Int[Array, " states"]
) -> Float[Array, "*batch states"]:
    """Log weights of numbered states of the hidden units given the visible, in nats.

    What depends on the visible units alone is left out.
    """
    return _terms(model, *_field_on_hidden(model, visible), index)


def _field_on_hidden(
    model: HiddenPairwiseModel, visible: Num[Array, "*batch k"]
) -> tuple[Float[Array, "*batch m"], Float[Array, "*batch m m"]]:
    """Field on the hidden units, and the couplings among them."""
    matrix, k = model.couplings.dense(), model.num_visible
    visible, across = visible.astype(matrix.dtype), matrix[..., :k, k:]
    if matrix.ndim == 2:
        field = jnp.matmul(visible, across, precision="highest")
    else:
        field = jnp.einsum("...i,...ij->...j", visible, across, precision="highest")
    return field + unit_field(model)[..., k:], matrix[..., k:, k:]


def _states(model: HiddenPairwiseModel, index: Int[Array, " states"]) -> Float[Array, "states m"]:
    values = jnp.asarray(model._alphabet.values, model.float_dtype)
    return values[digits(index, model.num_hidden, 2)]


def _terms(
    model: HiddenPairwiseModel,
    field: Float[Array, "*batch m"],
    within: Float[Array, "*batch m m"],
    index: Int[Array, " states"],
) -> Float[Array, "*batch states"]:
    states = _states(model, index)
    pairs = 0.5 * (jnp.matmul(states, within, precision="highest") * states).sum(-1)
    return jnp.matmul(field, states.T, precision="highest") + pairs


def log_sum_hidden(
    model: HiddenPairwiseModel, visible: Num[Array, "*batch k"]
) -> Float[Array, "*batch"]:
    """Log of the sum over hidden states, in nats, of what the energy says of them.

    Raises:
        ValueError: There are more than 20 hidden units.
    """
    if model.num_hidden > MAX_HIDDEN:
        raise ValueError(
            f"{type(model).__name__}: expected at most {MAX_HIDDEN} hidden units for `energy` and "
            f"`log_prob`, which sum over their states; got {model.num_hidden}. Use "
            "`joint_energy(value, hidden)` with chains clamped at the visible values "
            "(`sample_hidden`), or `variational_energy`; to train it, a contrastive loss with "
            'positive="clamped" or "mean_field".'
        )
    field, within = _field_on_hidden(model, visible)
    total = 2**model.num_hidden
    chunk = max(1, min(total, _CHUNK_FLOATS // max(1, field[..., 0].size)))
    chunk = 2 ** (chunk.bit_length() - 1)

    @jax.checkpoint
    def chunk_sum(start):
        return logsumexp(_terms(model, field, within, start + jnp.arange(chunk)), axis=-1)

    if chunk == total:
        return chunk_sum(jnp.asarray(0))
    return logsumexp(jax.lax.map(chunk_sum, jnp.arange(total // chunk) * chunk), axis=0)


def draw_hidden(
    model: HiddenPairwiseModel, rng_key: Key[Array, ""], visible: Num[Array, "*batch k"]
) -> Float[Array, "*batch m"]:
    """Draw all hidden units together, exactly: each given those before, the rest summed out.

    Where no couplings are frustrated, these conditionals are monotone, and so are the draws as
    functions of the visible units (Fortuin, Kasteleyn & Ginibre 1971).
    """
    terms = hidden_terms(model, visible, jnp.arange(2**model.num_hidden))
    uniform = uniform_numbers(rng_key, (*terms.shape[:-1], model.num_hidden), terms.dtype)
    units = []
    for unit in range(model.num_hidden):  # the last one first: its states are the two halves
        halves = terms.reshape(*terms.shape[:-1], 2, -1)
        low, high = jnp.moveaxis(logsumexp(halves, axis=-1), -1, 0)
        upper = uniform[..., unit] < jax.nn.sigmoid(high - low)
        terms = jnp.where(upper[..., None], halves[..., 1, :], halves[..., 0, :])
        units.append(model._alphabet.choose(upper))
    return jnp.stack(units[::-1], axis=-1)
