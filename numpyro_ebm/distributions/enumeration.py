"""Sums over numbered states in bounded memory, and draws of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key

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


def draw_numbers(
    log_weights: Float[Array, "states *batch"], rng_key: Key[Array, ""], shape: tuple[int, ...]
) -> Int[Array, "*shape members"]:
    """Numbers of independent states drawn by their weights, for each member of the batch."""
    total = len(log_weights)
    probs = jax.nn.softmax(log_weights, axis=0).reshape(total, -1)
    keys = jax.random.split(rng_key, probs.shape[1])

    def draw(key, probs):
        return jax.random.choice(key, total, shape, p=probs)

    return jax.vmap(draw, in_axes=(0, 1), out_axes=-1)(keys, probs)
