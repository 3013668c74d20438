"""Independent hidden units closest to those of a deep Boltzmann machine, given visible ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_ebm.distributions.dbm_sum import HiddenLayers
from numpyro_ebm.distributions.mean_field_updates import entropy, expected_energy
from numpyro_ebm.distributions.products import dot

if TYPE_CHECKING:
    from numpyro_ebm.distributions.dbm import DBM


class MeanField(NamedTuple):
    """Mean-field approximation to the hidden layers given visible values.

    Attributes:
        means: Means of the features of each hidden layer, from the one above the visible units up.
        converged: Whether the last iteration moved no mean of a row by more than the tolerance.
        num_iterations: Iterations that were made.
    """

    means: tuple[Array, ...]
    converged: Bool[Array, "*batch"]
    num_iterations: Int[Array, ""]


@partial(jax.jit, static_argnames=("num_iterations", "tolerance"))
def fit_means(
    dbm: DBM, value: Num[Array, "*batch n"], num_iterations: int, tolerance: float
) -> MeanField:
    """Fixed point by turns: all odd layers given the even ones, and back.

    No turn raises the variational energy. Rows that have converged wait for the others.
    """
    layers = HiddenLayers(dbm, value)
    odd, lead = layers.odd, layers.field.shape[:-1]
    if layers.even is None:
        return MeanField((odd.mean(layers.field),), jnp.ones(lead, bool), jnp.asarray(1))
    even = layers.even

    def means_of_odd(even_means):
        return odd.mean(layers.field + dot(even_means, layers.matrix))

    def turn(state):
        number, old, _ = state
        new_odd = means_of_odd(old[0])
        new = even.mean(dot(new_odd, layers.matrix.mT)), new_odd
        moved = [jnp.abs(a - b).max(-1) for a, b in zip(new, old, strict=True)]
        return number + 1, new, jnp.maximum(*moved)

    def goes_on(state):
        number, _, moved = state
        return (number < num_iterations) & (moved > tolerance).any()

    start = even.mean(jnp.zeros((*lead, even.num_features), layers.field.dtype))
    moved = jnp.full(lead, jnp.inf, layers.field.dtype)
    state = jnp.asarray(0), (start, means_of_odd(start)), moved
    number, (even_means, odd_means), moved = jax.lax.while_loop(goes_on, turn, state)
    return MeanField(_apart(dbm, even_means, odd_means), moved <= tolerance, number)


def _apart(dbm: DBM, even: Array, odd: Array) -> tuple[Array, ...]:
    """Means of each hidden layer from those of even hidden and odd layers."""
    means: list[Array] = [odd] * (len(dbm.units) - 1)
    for first, joint in ((0, odd), (1, even)):
        stop = 0
        for number in range(first, len(means), 2):
            start, stop = stop, stop + dbm.units[number + 1].num_features
            means[number] = joint[..., start:stop]
    return tuple(means)


def variational_energy(
    dbm: DBM, value: Num[Array, "*batch n"], means: Sequence[Array]
) -> Float[Array, "*batch"]:
    """Mean energy less entropy of independent hidden units, in nats."""
    rbm, visible = dbm.bipartite, dbm.units[0]
    features = visible.features(value)
    lead = jnp.broadcast_shapes(features.shape[:-1], *(m.shape[:-1] for m in means))
    every = [jnp.broadcast_to(x, lead + x.shape[-1:]) for x in (features, *means)]
    coupled = rbm._coupled(dot(jnp.concatenate(every[::2], -1), rbm.weight_matrix))
    energy = visible.energy(value) - (coupled * jnp.concatenate(every[1::2], -1)).sum(-1)
    for unit, mean in zip(dbm.units[1:], means, strict=True):
        energy = energy + expected_energy(unit, mean) - entropy(unit, mean)
    return energy
