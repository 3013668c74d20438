"""Exact sums over the hidden layers of a deep belief network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from numpyro_ebm.distributions.enumeration import log_sum
from numpyro_ebm.distributions.rbm import RBM
from numpyro_ebm.normalizer import NormalizerError
from numpyro_ebm.units import Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.dbn import DBN

MAX_STATES = 2**20
"""Most joint states of the hidden layers below the top one that are summed."""
_CHUNK_FLOATS = 2**22
"""Size of the arrays held at once while summing."""


def log_prob_given(
    unit: Unit, value: Num[Array, "*batch n"], field: Float[Array, "*batch f"]
) -> Float[Array, "*batch"]:
    """Log density of values under ``unit.conditional(field)``, in nats."""
    own = (field * unit.features(value)).sum(-1) - unit.energy(value)
    return own - unit.log_partition(field)


def has_sum(layers: Sequence[RBM]) -> bool:
    """Whether the hidden layers below the top one have few enough joint states."""
    sizes = [layer.hidden_units.num_states for layer in layers[:-1]]
    finite = [size for size in sizes if size is not None]
    return len(finite) == len(sizes) and math.prod(finite) <= MAX_STATES


def check_sum(layers: Sequence[RBM]) -> None:
    """Refuse a network whose hidden layers have too many joint states.

    Raises:
        NormalizerError: There are more than 2^20, or some units are continuous.
    """
    if has_sum(layers):
        return
    kinds = ", ".join(repr(layer.hidden_units) for layer in layers[:-1])
    raise NormalizerError(
        f"DBN: expected hidden layers below the top one of discrete units with at most "
        f"{MAX_STATES} joint states, which `energy` and `log_prob` sum; got {kinds}. Use "
        "ebm.evidence.variational_bound(rng_key, dbn, data) for a lower bound of the "
        "log-likelihood."
    )


def marginal_energy(dbn: DBN, value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
    """Energy of values with all hidden layers summed out, in nats; differentiable.

    Raises:
        NormalizerError: The hidden layers have too many joint states.
    """
    check_sum(dbn.layers)
    batch, event = dbn.batch_shape, dbn.event_shape
    lead = jnp.broadcast_shapes(value.shape[: value.ndim - 1], batch)
    lead = lead[: len(lead) - len(batch)]
    value = jnp.broadcast_to(value, lead + batch + event)
    if not batch:
        rows = value.reshape(-1, *event)
        return -_log_marginal(dbn.layers, rows).reshape(lead)
    members = [_members(layer, batch) for layer in dbn.layers]
    rows = jnp.moveaxis(value.reshape(-1, math.prod(batch), *event), 1, 0)
    energy = jax.lax.map(_member_energy, (members, rows))
    return jnp.moveaxis(energy, 0, 1).reshape(lead + batch)


def _members(layer: RBM, batch: tuple[int, ...]) -> tuple[Array, Unit, Unit]:
    """Parameters of a machine, with one leading axis for the members of the batch."""
    event = layer.visible_units.feature_shape + layer.hidden_units.feature_shape
    weights = layer.weights if layer._coupling is None else layer._coupling * layer.weights
    parts = (
        jnp.broadcast_to(weights, batch + event),
        layer.visible_units.expand(batch),
        layer.hidden_units.expand(batch),
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), parts)


def _member_energy(member: tuple[Sequence[tuple], Array]) -> Float[Array, " rows"]:
    parts, rows = member
    return -_log_marginal([RBM(*part, validate_args=False) for part in parts], rows)


def _log_marginal(layers: Sequence[RBM], rows: Num[Array, "rows n"]) -> Float[Array, " rows"]:
    """Log of the sum over all hidden layers above ``rows``, the visible ones of the first."""
    bottom = layers[0]
    if len(layers) == 1:
        return -bottom._energy_from(rows, bottom.input_to_hidden(rows))
    features = bottom.visible_units.features(rows)
    total = bottom.hidden_units.num_states or 0  # `check_sum` has refused continuous units
    chunk = max(1, min(total, _CHUNK_FLOATS // sum(features.shape)))
    terms = partial(_log_terms, layers, features)
    return log_sum(terms, total, chunk) - bottom.visible_units.energy(rows)


def _log_terms(
    layers: Sequence[RBM], features: Float[Array, "rows f"], index: Int[Array, " states"]
) -> Float[Array, "states rows"]:
    """Terms of the states of the first hidden layer, without the energy of the rows themselves."""
    bottom = layers[0]
    states, _ = bottom.hidden_units.states(index)
    field = bottom._coupled(bottom.input_to_visible(states))
    own = _log_marginal(layers[1:], states) - bottom.visible_units.log_partition(field)
    return own[:, None] + jnp.matmul(field, features.T, precision="highest")
