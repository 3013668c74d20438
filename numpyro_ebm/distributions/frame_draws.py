"""Draws of sequences of frames: one after another, filled in, and moved by Metropolis steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import widen
from numpyro_ebm.distributions.conditional import ConditionalRBM
from numpyro_ebm.distributions.summation import can_sum, exact_sample, num_terms

if TYPE_CHECKING:
    from numpyro_ebm.distributions.sequence import FrameSequence

_EXACT_SAMPLE_TERMS = 2**14
"""Frames are drawn exactly from RBMs whose smaller layer has at most this many states."""


def exact_frame_terms(frame: Any) -> dict[str, int]:
    """What ``exact_terms`` is of a sequence with such frames."""
    if can_sum(frame) and num_terms(frame) <= _EXACT_SAMPLE_TERMS:
        return {"enumeration": num_terms(frame)}
    return {}


def sweep_frames(
    rng_key: Key[Array, ""],
    frames: Num[Array, "*batch t n"],
    propose: Callable[..., Num[Array, "*batch t n"]],
    at: Callable[[Array], tuple[Any, Float[Array, "*batch t"]]],
) -> Num[Array, "*batch t n"]:
    """Move the frames one after another, each by a Metropolis step.

    Args:
        rng_key: Random key.
        frames: The current frames.
        propose: Maps a key, the conditional models and the frames to proposals for every frame,
            by a kernel that is reversible for the density of the frame given those before it.
        at: Maps frames to the conditional models and minus the log density of each frame.
    """
    number = jnp.arange(frames.shape[-2])

    def move(t, carry):
        frames, rbm, terms = carry
        key_propose, key_accept = jax.random.split(jax.random.fold_in(rng_key, t))
        moved = jnp.where((number == t)[:, None], propose(key_propose, rbm, frames), frames)
        rbm_moved, terms_moved = at(moved)
        gain = jnp.where(number == t, 0, terms - terms_moved).sum(-1)
        log_u = jnp.log(jax.random.uniform(key_accept, gain.shape, gain.dtype))
        accept = log_u < gain

        def choose(new, old):
            return jnp.where(accept.reshape(accept.shape + (1,) * (new.ndim - gain.ndim)), new, old)

        frames, terms = choose(moved, frames), choose(terms_moved, terms)
        rbm = rbm.given(choose(rbm_moved.condition, rbm.condition))
        return frames, rbm, terms

    return jax.lax.fori_loop(0, frames.shape[-2], move, (frames, *at(frames)))[0]


@partial(jax.jit, static_argnums=(3, 4))
def draw_on(
    sequence: FrameSequence,
    rng_key: Key[Array, ""],
    condition: Float[Array, "*batch c"],
    num_frames: int,
    num_sweeps: int,
) -> Num[Array, "*batch t n"]:
    """Draw frames one after another from a condition on."""

    def step(condition, key):
        key_frame, key_next = jax.random.split(key)
        rbm = sequence.frame_given(condition)
        if exact_frame_terms(rbm):
            frame = exact_sample(rbm, key_frame, ())
        else:
            frame = _sweeps(rbm, key_frame, num_sweeps)
        return sequence.next_condition(condition, frame, key_next), frame

    keys = jax.random.split(rng_key, num_frames)
    return widen(jnp.moveaxis(jax.lax.scan(step, condition, keys)[1], 0, -2))


def _sweeps(rbm: ConditionalRBM, rng_key: Key[Array, ""], num_sweeps: int, **clamp: Any) -> Array:
    """Visible units after Gibbs sweeps from an independent start."""
    key_init, key_run = jax.random.split(rng_key)

    def sweep(i, chain):
        return rbm.gibbs_step(jax.random.fold_in(key_run, i), chain, **clamp)

    start = rbm.init_chain(key_init)
    if clamp:
        start = rbm.chain_at(jnp.where(clamp["mask"], clamp["values"], start.visible))
    return jax.lax.fori_loop(0, num_sweeps, sweep, start).visible


@partial(jax.jit, static_argnums=4)
def filtered(
    sequence: FrameSequence, rng_key: Key[Array, ""], frames: Array, mask: Array, num_sweeps: int
) -> Num[Array, "*batch t n"]:
    """Draw unknown units frame by frame, given what is before."""

    def step(condition, inputs):
        key, frame, known = inputs
        key_frame, key_next = jax.random.split(key)
        rbm = sequence.frame_given(condition)
        frame = _sweeps(rbm, key_frame, num_sweeps, mask=known, values=frame)
        return sequence.next_condition(condition, frame, key_next), frame

    keys = jax.random.split(rng_key, frames.shape[-2])
    inputs = keys, jnp.moveaxis(frames, -2, 0), jnp.moveaxis(mask, -2, 0)
    _, filled = jax.lax.scan(step, sequence.first_condition(frames.shape[:-2]), inputs)
    return jnp.moveaxis(filled, 0, -2)


@partial(jax.jit, static_argnums=5)
def smoothed(
    sequence: FrameSequence,
    rng_key: Key[Array, ""],
    start: Array,
    frames: Array,
    mask: Array,
    num_sweeps: int,
) -> Num[Array, "*batch t n"]:
    """Run chains with the known units clamped."""

    def sweep(i, chain):
        key = jax.random.fold_in(rng_key, i)
        return sequence.gibbs_step(key, chain, mask=mask, values=frames)

    chain = jax.lax.fori_loop(0, num_sweeps, sweep, sequence.chain_at(start))
    return sequence.visible(chain)
