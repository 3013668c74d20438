"""The hidden layer that a NADE carries from unit to unit, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Callable[[Array], Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recursion(
    activation: Activation,
    weights_in: Float[Array, "d p h"],
    weights_out: Float[Array, "d k h"],
    hidden_bias: Float[Array, " h"],
    inputs: Float[Array, "d rows p"],
) -> Float[Array, "d rows k"]:
    """What the hidden layer says of each unit, given the inputs of those before it.

    The gradient keeps the layer at about the square root of the units and computes it again in
    between, so that its memory grows as h sqrt(d) for one row.
    """
    return _forward(activation, weights_in, weights_out, hidden_bias, inputs)[0]


def _forward(activation: Activation, *arguments: Array) -> tuple[Array, Any]:
    weights_in, weights_out, hidden_bias, inputs = arguments
    field = jnp.broadcast_to(hidden_bias, (inputs.shape[1], *hidden_bias.shape))

    def unit(field, step):
        w_in, w_out, x = step
        return add_input(field, w_in, x), read_out(activation(field), w_out)

    def block(field, steps):
        after, outputs = jax.lax.scan(unit, field, steps)
        return after, (field, outputs)

    steps = jax.tree.map(_blocks, (weights_in, weights_out, inputs))
    starts, outputs = jax.lax.scan(block, field, steps)[1]
    return _flat(outputs, len(inputs)), (arguments, starts)


def _backward(activation: Activation, saved: Any, cotangent: Array) -> tuple[Array, ...]:
    (weights_in, weights_out, _, inputs), starts = saved

    def unit(pull, step):
        field, w_in, w_out, x, g = step
        layer, derivative = jax.vjp(activation, field)
        gradients = (
            jnp.einsum("rp,rh->ph", x, pull),
            jnp.einsum("rk,rh->kh", g, layer),
            jnp.einsum("rh,ph->rp", pull, w_in),
        )
        return pull + derivative(add_input(jnp.zeros_like(field), w_out, g))[0], gradients

    def block(pull, steps):
        start, (w_in, w_out, x, g) = steps
        again = jax.lax.scan(lambda field, s: (add_input(field, *s), field), start, (w_in, x))[1]
        return jax.lax.scan(unit, pull, (again, w_in, w_out, x, g), reverse=True)

    steps = jax.tree.map(_blocks, (weights_in, weights_out, inputs, cotangent))
    zero = jnp.zeros_like(starts[0])
    pull, gradients = jax.lax.scan(block, zero, (starts, steps), reverse=True)
    into, out, of_inputs = (_flat(gradient, len(inputs)) for gradient in gradients)
    return into, out, pull.sum(0), of_inputs


recursion.defvjp(_forward, _backward)


def add_input(
    field: Float[Array, "rows h"], weights: Float[Array, "p h"], x: Float[Array, "rows p"]
) -> Float[Array, "rows h"]:
    """Input of the hidden layer after one more unit."""
    if weights.shape[0] == 1:
        return field + x * weights
    return field + jnp.matmul(x, weights, precision="highest")


def read_out(layer: Float[Array, "rows h"], weights: Float[Array, "k h"]) -> Float[Array, "rows k"]:
    """What a hidden layer says of one unit."""
    return jnp.matmul(layer, weights.T, precision="highest")


def _blocks(x: Array) -> Array:
    """Steps in blocks of about the square root of their number, the last filled up with zeros."""
    size = math.isqrt(len(x))
    missing = -len(x) % size
    padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape(-1, size, *x.shape[1:])


def _flat(x: Array, length: int) -> Array:
    return x.reshape(-1, *x.shape[2:])[:length]
