"""Sums over numbered states in bounded memory, and draws of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key

_ONE_STEP = 2**14
"""Up to this many states are drawn by one uniform number."""
_ROW = 2**10
"""More of them are drawn in rows of this many."""

LogTerms = Callable[[Int[Array, " states"]], Float[Array, "states *batch"]]


def log_sum(log_terms: LogTerms, total: int, chunk: int) -> Float[Array, "*batch"]:
    """Log of the sum of the terms of all states, in nats; differentiable, chunk by chunk.

    Args:
        log_terms: Logs of the terms of states by number.
        total: Number of states.
        chunk: Number of states at a time.
    """
    num_chunks = -(-total // chunk)

    @jax.checkpoint
    def chunk_sum(start):
        index = start + jnp.arange(chunk)
        terms = log_terms(jnp.minimum(index, total - 1))
        real = (index < total).reshape(-1, *[1] * (terms.ndim - 1))
        return logsumexp(jnp.where(real, terms, -jnp.inf), axis=0)

    if num_chunks == 1:
        return chunk_sum(jnp.asarray(0))
    return logsumexp(jax.lax.map(chunk_sum, jnp.arange(num_chunks) * chunk), axis=0)


def all_terms(log_terms: LogTerms, total: int, chunk: int) -> Float[Array, "states *batch"]:
    """Logs of the terms of all states, computed chunk by chunk."""
    if chunk >= total:
        return log_terms(jnp.arange(total))
    starts = jnp.arange(-(-total // chunk)) * chunk

    def one_chunk(start):
        return log_terms(jnp.minimum(start + jnp.arange(chunk), total - 1))

    terms = jax.lax.map(one_chunk, starts)
    return terms.reshape(-1, *terms.shape[2:])[:total]


def draw_numbers(
    log_weights: Float[Array, "states *batch"], rng_key: Key[Array, ""], shape: tuple[int, ...]
) -> Int[Array, "*shape members"]:
    """Numbers of independent states drawn by their weights, for each member of the batch."""
    total = len(log_weights)
    members = log_weights.reshape(total, -1)
    keys = jax.random.split(rng_key, members.shape[1])
    return jax.vmap(partial(draw_number, shape=shape), in_axes=(0, 1), out_axes=-1)(keys, members)


def draw_number(
    rng_key: Key[Array, ""], log_weights: Float[Array, " states"], shape: tuple[int, ...]
) -> Int[Array, "*shape"]:
    """Draw states by number; many states in two steps, the row and the place in it.

    A single uniform number in single precision has too few digits to tell rare states apart.
    """
    total = len(log_weights)
    if total <= _ONE_STEP:
        return jax.random.choice(rng_key, total, shape, p=jax.nn.softmax(log_weights))
    num_rows = -(-total // _ROW)
    fill = num_rows * _ROW - total
    rows = jnp.pad(log_weights, (0, fill), constant_values=-jnp.inf).reshape(num_rows, _ROW)
    key_row, key_place = jax.random.split(rng_key)
    row = jax.random.choice(key_row, num_rows, shape, p=jax.nn.softmax(logsumexp(rows, axis=1)))

    def place(inputs):
        key, row = inputs
        return jax.random.choice(key, _ROW, p=jax.nn.softmax(rows[row]))

    keys = jax.random.split(key_place, row.size)
    within = jax.lax.map(place, (keys, row.ravel()), batch_size=_ROW)
    return row * _ROW + within.reshape(shape)
