"""Machines as the layers of a deterministic network: the means of each layer given the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, ArrayLike, Float, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.distributions import DBN, RBM
from numpyro_ebm.distributions.products import dot
from numpyro_ebm.units import Bernoulli, Unit


def machines_of(layers: Sequence[RBM], owner: str) -> tuple[RBM, ...]:
    """Return a stack of machines that fit, without batch dimensions.

    Raises:
        TypeError: A layer is no RBM.
        ValueError: They do not fit.
    """
    stack = DBN(layers)
    if stack.batch_shape:
        raise ValueError(
            f"{owner}: expected `layers` without batch dimensions; got batch shape "
            f"{stack.batch_shape}."
        )
    return stack.layers


def upward(
    machines: Sequence[RBM],
    value: Num[ArrayLike, "*batch n"],
    noise: Float[ArrayLike, "*batch f"] | float = 0.0,
) -> Float[Array, "*batch f"]:
    """Features of visible values, passed on as the mean features of each hidden layer.

    Args:
        machines: Machines from the visible units up.
        value: Visible values.
        noise: What is added to the input of the last layer.
    """
    features = machines[0].visible_units.features(jnp.asarray(value))
    for rbm in machines[:-1]:
        features = rbm.hidden_units.mean(dot(features, rbm.weight_matrix))
    field = dot(features, machines[-1].weight_matrix)
    return machines[-1].hidden_units.mean(field + noise)


def downward(
    machines: Sequence[RBM], features: Float[ArrayLike, "*batch f"]
) -> Float[Array, "*batch g"]:
    """Input to the visible units, from mean features of the topmost layer.

    Args:
        machines: Machines from the visible units up.
        features: Features of the hidden units of the last one.
    """
    field = dot(jnp.asarray(features), machines[-1].weight_matrix.mT)
    for above, rbm in zip(machines[:0:-1], machines[-2::-1], strict=True):
        field = dot(above.visible_units.mean(field), rbm.weight_matrix.mT)
    return field


def trained(name: str, start: Any) -> Any:
    """Declare a pytree of machines as a parameter; scales of units stay as they are."""
    tree = numpyro.param(name, lambda rng_key: start)

    def held(path: Any, leaf: Array) -> Array:
        is_scale = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        return jax.lax.stop_gradient(leaf) if is_scale else leaf

    return jax.tree_util.tree_map_with_path(held, tree)


def check_rows(owner: str, unit: Unit, data: Any, name: str = "data") -> Array:
    """Return rows of visible values; Bernoulli units may also have probabilities.

    Raises:
        ValueError: They do not fit the units.
    """
    shape = np.shape(data)
    if shape[-1:] != unit.shape:
        raise ValueError(
            f"{owner}: expected `{name}` of shape (..., {unit.shape[0]}); got {shape}."
        )
    if not_jax_tracer(data):
        array = np.asarray(data)
        fits = (array >= 0) & (array <= 1) if isinstance(unit, Bernoulli) else unit.support(array)
        if not np.all(fits):
            kind = "from 0 to 1" if isinstance(unit, Bernoulli) else f"in {unit.support}"
            raise ValueError(f"{owner}: expected `{name}` {kind}; got other values.")
    return jnp.asarray(data)
