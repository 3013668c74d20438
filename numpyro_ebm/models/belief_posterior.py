"""The hidden units of a sigmoid belief network given the visible ones, and Gibbs sweeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, softplus
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num
from numpyro.distributions import constraints

from numpyro_ebm.distributions.generic import GenericEnergy


class BeliefPosterior(GenericEnergy):
    r"""Posterior of the hidden units of a sigmoid belief network, an energy-based distribution.

    .. math:: p(h \mid x) \propto e^{-E(h)}, \qquad E(h) = -\log p(x, h), \qquad
        \log Z = \log p(x)

    so that ``evidence.exact`` and ``evidence.ais`` give the log-likelihood of each row. A sweep of
    ``gibbs_step`` draws every unit once given all others, its parents above and its children
    below: with :math:`f` the fields of the layer below without unit j,

    .. math:: \log \frac{p(h_j = 1 \mid \text{rest})}{p(h_j = 0 \mid \text{rest})} = f^{above}_j
        + \sum_i \big[x_i W_{ij} - \log(1 + e^{f_i + W_{ij}}) + \log(1 + e^{f_i})\big]

    exactly, at the cost of one product with the weights for a whole sweep.

    Args:
        weights: Weights of the network, from the visible layer upwards.
        biases: Biases of all layers, from the visible layer upwards.
        data: Rows of visible units, of shape ``batch + (num_visible,)``.
        validate_args: Whether values are checked.

    References:
        Neal (1992), "Connectionist Learning of Belief Networks", Artificial Intelligence 56,
        section 3 (the conditional of one unit).
    """

    pytree_data_fields = ("weights", "biases", "data")
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self,
        weights: Sequence[Float[ArrayLike, "below above"]],
        biases: Sequence[Float[ArrayLike, " units"]],
        data: Num[ArrayLike, "*batch num_visible"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.weights = tuple(jnp.asarray(w) for w in weights)
        self.biases = tuple(jnp.asarray(b) for b in biases)
        self.data = jnp.asarray(data)
        num_hidden = sum(w.shape[1] for w in self.weights)
        super().__init__(self.data.shape[:-1], (num_hidden,), validate_args=validate_args)

    def split(self, value: Num[Array, "*batch h"]) -> list[Num[Array, "*batch units"]]:
        """Hidden layers of a value, from the one next to the visible units upwards."""
        stops = np.cumsum([w.shape[1] for w in self.weights])[:-1].tolist()
        return jnp.split(value, stops, axis=-1)

    def energy(self, value: Num[ArrayLike, "*batch h"]) -> Float[Array, "*batch"]:
        """Minus log p(x, h) in nats.

        Args:
            value: Hidden units of all layers, of shape ``batch + (num_hidden,)``.
        """
        inside = self.check_value(value)
        layers = [self.data, *self.split(self.as_input(value))]
        fields = [
            _product(above, w.T) + b
            for w, b, above in zip(self.weights, self.biases, layers[1:], strict=False)
        ]
        fields.append(jnp.broadcast_to(self.biases[-1], layers[-1].shape))
        energy: Any = 0.0
        for layer, field in zip(layers, fields, strict=True):
            energy = energy - jnp.where(layer, log_sigmoid(field), log_sigmoid(-field)).sum(-1)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: Num[Array, "*batch h"],
        *,
        mask: Bool[Array, "*batch h"] | None = None,
        values: Num[Array, "*batch h"] | None = None,
    ) -> Num[Array, "*batch h"]:
        """Draw every hidden unit once given all others, layer by layer upwards.

        Args:
            rng_key: Random key.
            chain: Hidden units of all layers.
            mask: True where a unit is clamped.
            values: What the clamped units are held at.
        """
        held = jnp.zeros(chain.shape, bool) if mask is None else jnp.broadcast_to(mask, chain.shape)
        if values is not None:
            chain = jnp.where(
                held, jnp.broadcast_to(values, chain.shape).astype(chain.dtype), chain
            )
        layers, fixed = self.split(chain), self.split(held)
        for k, key in enumerate(jax.random.split(rng_key, len(layers))):
            below = self.data if k == 0 else layers[k - 1]
            prior = self.biases[k + 1]
            if k + 1 < len(layers):
                prior = _product(layers[k + 1], self.weights[k + 1].T) + prior
            layers[k] = _sweep(
                key, layers[k], below, self.weights[k], self.biases[k], prior, fixed[k]
            )
        return jnp.concatenate(layers, axis=-1)


def _product(layer: Num[Array, "*batch units"], weights: Array) -> Float[Array, "*batch other"]:
    return jnp.matmul(layer.astype(weights.dtype), weights, precision="highest")


def _sweep(
    rng_key: Key[Array, ""],
    hidden: Num[Array, "*batch n"],
    below: Num[Array, "*batch m"],
    weights: Float[Array, "m n"],
    bias: Float[Array, " m"],
    prior: Float[Array, "*batch n"],
    held: Bool[Array, "*batch n"],
) -> Num[Array, "*batch n"]:
    """Draw the units of a layer one by one, the fields of the layer below kept up to date."""
    uniform = jax.random.uniform(rng_key, (hidden.shape[-1], *hidden.shape[:-1]), weights.dtype)
    children = below.astype(weights.dtype)

    def unit(field: Any, inputs: Any) -> Any:
        column, u, own, before, fixed = inputs
        without = field - before[..., None] * column
        child_terms = children * column - softplus(without + column) + softplus(without)
        drawn = u < jax.nn.sigmoid(own + child_terms.sum(-1))
        after = jnp.where(fixed, before, drawn.astype(before.dtype))
        return without + after[..., None] * column, after

    parts = (jnp.broadcast_to(prior, hidden.shape), hidden.astype(weights.dtype), held)
    own, before, fixed = (jnp.moveaxis(part, -1, 0) for part in parts)
    field = _product(hidden, weights.T) + bias
    after = jax.lax.scan(unit, field, (weights.T, uniform, own, before, fixed))[1]
    return jnp.moveaxis(after, 0, -1).astype(hidden.dtype)


def check_sizes(owner: str, params: Any, sizes: tuple[int, ...]) -> None:
    """Refuse parameters of another network.

    Raises:
        ValueError: A parameter is missing or has another shape.
    """
    shapes: dict[str, tuple[int, ...]] = {f"bias_{k}": (n,) for k, n in enumerate(sizes)}
    shapes |= {f"weights_{k}": pair for k, pair in enumerate(pairwise(sizes), start=1)}
    found = {name: np.shape(params[name]) for name in shapes if name in params}
    if found != shapes:
        raise ValueError(f"{owner}: expected `params` with the shapes {shapes}; got {found}.")
