"""Sums over the hidden layers of a deep Boltzmann machine, given its visible units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from numpyro_ebm.distributions.enumeration import log_sum
from numpyro_ebm.distributions.products import dot
from numpyro_ebm.distributions.summation import MAX_STATES
from numpyro_ebm.units import Concatenate, Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.dbm import DBM

_CHUNK_FLOATS = 2**22
"""Size of the arrays held at once while summing."""


class HiddenLayers:
    """The hidden layers given visible values: an RBM whose odd layers have a field on them.

    Attributes:
        even: Hidden layers 2, 4, ... side by side; ``None`` if there are none.
        odd: Hidden layers 1, 3, ...
        matrix: Weights between the two, ``batch + (even features, odd features)``.
        field: Input from the visible units to the odd layers.
    """

    def __init__(self, dbm: DBM, value: Num[Array, "*batch n"]) -> None:
        rbm, visible = dbm.bipartite, dbm.units[0]
        matrix = rbm.weight_matrix if rbm._coupling is None else rbm._coupling * rbm.weight_matrix
        layers = dbm.units[2::2]
        self.even: Unit | None = Concatenate(layers) if layers else None
        self.odd: Unit = rbm.hidden_units
        self.matrix = matrix[..., visible.num_features :, :]
        field = dot(visible.features(value), matrix[..., : visible.num_features, :])
        lead = jnp.broadcast_shapes(field.shape[:-1], dbm.batch_shape)
        self.field = jnp.broadcast_to(field, lead + field.shape[-1:])


def log_sum_hidden(dbm: DBM, value: Num[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Log of the sum over hidden states, in nats, of what the energy says of them.

    States of the even hidden layers, or of the odd ones, are summed one by one, whichever has
    fewer; the others have a closed cumulant function.

    Raises:
        ValueError: Either has more than 2^20 states, or infinitely many.
    """
    layers = HiddenLayers(dbm, value)
    even = layers.even
    if even is None:
        return layers.odd.log_partition(layers.field)
    counts = [unit.num_states or math.inf for unit in (even, layers.odd)]
    total = min(counts)
    if total > MAX_STATES:
        raise ValueError(
            f"DBM: expected at most {MAX_STATES} joint states of the hidden layers 2, 4, ... or of "
            "the hidden layers 1, 3, ... for `energy` and `log_prob`, which sum over them; got "
            f"{' and '.join(_shown(count) for count in counts)}. For bounds use `mean_field` and "
            "`variational_energy`, or evidence.variational_bound; for training "
            'PersistentContrastiveDivergence(positive="mean_field") or "clamped".'
        )
    terms = _over_even if counts[0] <= counts[1] else _over_odd
    chunk = max(1, min(int(total), _CHUNK_FLOATS // max(1, layers.field.size)))
    return log_sum(lambda index: terms(layers, even, index), int(total), chunk)


def _shown(count: float) -> str:
    if count == math.inf:
        return "infinitely many"
    return str(count) if count < 10**6 else f"about 10^{math.log10(count):.0f}"


def _over_even(
    layers: HiddenLayers, even: Unit, index: Int[Array, " states"]
) -> Float[Array, "states *batch"]:
    """Log weights of states of the even hidden layers, the odd ones summed out."""
    states, log_weight = _states(even, index, layers.field.ndim - 1)
    field = layers.field + dot(even.features(states), layers.matrix)
    return log_weight - even.energy(states) + layers.odd.log_partition(field)


def _over_odd(
    layers: HiddenLayers, even: Unit, index: Int[Array, " states"]
) -> Float[Array, "states *batch"]:
    """Log weights of states of the odd layers, the even hidden ones summed out."""
    odd = layers.odd
    states, log_weight = _states(odd, index, layers.field.ndim - 1)
    features = odd.features(states)
    flat = features.reshape(len(index), -1)
    own = jnp.einsum("...f,sf->s...", layers.field, flat, precision="highest")
    back = even.log_partition(dot(features, layers.matrix.mT))
    return log_weight - odd.energy(states) + own + back


def _states(unit: Unit, index: Int[Array, " states"], rank: int) -> tuple[Array, Array]:
    """States by number in front of ``rank`` batch dimensions, and their log weights."""
    states, log_weight = unit.states(index)
    ones = (1,) * rank
    return states.reshape(len(index), *ones, -1), log_weight.reshape(len(index), *ones)
