"""Random-walk and Langevin proposals whose scale and covariance adapt while a chain warms up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from numpyro_ebm.kernels.modes import Mode

Vector = Float[Array, " n"]


class TuningState(NamedTuple):
    """What the proposals of one chain have learnt.

    Attributes:
        count: Steps taken.
        step_size: Scale of the next proposal.
        mean: Running mean of the chain.
        covariance: Its running covariance, diagonal where it is not dense.
    """

    count: Int[Array, ""]
    step_size: Float[Array, ""]
    mean: Vector
    covariance: Float[Array, "n n"]


class Move(NamedTuple):
    """A proposal, and what its reverse probability depends on.

    Attributes:
        value: Where it leads.
        noise: Standard normal noise behind it.
        scale: Matrix that the noise was multiplied by.
        drift: Half the score in units of the noise.
    """

    value: Vector
    noise: Vector
    scale: Float[Array, "n n"]
    drift: Vector


@dataclass(frozen=True)
class Tuning:
    r"""Scale and covariance of proposals, learnt from the chain in the warm-up.

    .. math:: \log s \leftarrow \log s + (t + 10)^{-0.6} (a_t - a^*), \qquad
        \Sigma \leftarrow \Sigma + \frac{(u - \mu)(u - \mu)^T - \Sigma}{t + n_0}

    The first guess of the covariance counts as :math:`n_0 = 50 + 5 n` draws, so that it stays
    positive definite. Steps grow slowly: data at parameters far from the posterior can be very
    slow to draw.

    Attributes:
        step_size: Standard deviation s of proposals in units of that of the posterior; where
            adaptation starts, by default at :math:`2.38 / \sqrt n`.
        target_accept_prob: Acceptance probability a* that it adapts to; ``None`` not to adapt.
        dense_mass: Whether the covariance is dense.
        num_warmup: Number of first steps that adapt.

    References:
        Andrieu & Thoms (2008), "A tutorial on adaptive MCMC", Statistics and Computing 18,
        algorithm 4.
    """

    step_size: float | None
    target_accept_prob: float | None
    dense_mass: bool
    num_warmup: int

    def init(self, value: Vector, mode: Mode | None) -> TuningState:
        """Start from the normal approximation at a mode, or from the identity."""
        size, dtype = len(value), value.dtype
        mean = value if mode is None else mode.value
        covariance = jnp.eye(size, dtype=dtype) if mode is None else mode.covariance
        if not self.dense_mass:
            covariance = jnp.diag(jnp.diag(covariance))
        step_size = 2.38 / size**0.5 if self.step_size is None else self.step_size
        step_size = jnp.asarray(step_size, dtype)
        return TuningState(jnp.zeros((), jnp.int32), step_size, mean, covariance)

    def update(self, state: TuningState, value: Vector, accept_prob: Array) -> TuningState:
        """Learn from one step; nothing changes after ``num_warmup`` of them."""
        learning = state.count < self.num_warmup
        rate = jnp.where(learning, (state.count + 10.0) ** -0.6, 0).astype(value.dtype)
        weight = jnp.where(learning, 1 / (state.count + 50.0 + 5 * len(value)), 0)
        step_size = state.step_size
        if self.target_accept_prob is not None:
            step_size = step_size * jnp.exp(rate * (accept_prob - self.target_accept_prob))
        away = value - state.mean
        square = jnp.outer(away, away) if self.dense_mass else jnp.diag(away**2)
        covariance = state.covariance + weight * (square - state.covariance)
        mean = state.mean + weight * away
        return TuningState(
            state.count + 1,
            step_size,
            mean.astype(value.dtype),
            covariance.astype(value.dtype),
        )

    def scale(self, state: TuningState) -> Float[Array, "n n"]:
        """Matrix S of a proposal u + S xi with standard normal xi."""
        return state.step_size * jnp.linalg.cholesky(state.covariance)


def propose(
    rng_key: Key[Array, ""], value: Vector, score: Vector, scale: Float[Array, "n n"]
) -> Move:
    r"""Langevin proposal :math:`u' = u + \tfrac12 S S^T g + S \xi`; a random walk without score."""
    noise = jax.random.normal(rng_key, value.shape, value.dtype)
    drift = scale.T @ score / 2
    return Move(value + scale @ (drift + noise), noise, scale, drift)


class Screened(NamedTuple):
    """Whether a proposal has passed a first test by a stand-in for the posterior.

    Attributes:
        passed: Whether it has.
        log_correction: What the second test must add to its log ratio in nats.
    """

    passed: Bool[Array, ""]
    log_correction: Float[Array, ""]


def screened(
    rng_key: Key[Array, ""],
    energy: Callable[[Vector], Float[Array, ""]],
    old: Vector,
    new: Vector,
) -> Screened:
    r"""First stage of a delayed acceptance.

    A proposal passes with probability :math:`\min(1, e^{E(u) - E(u')})`; adding
    :math:`E(u') - E(u)` to the log ratio of the second stage keeps the target invariant, whatever
    the energy E is.

    References:
        Christen & Fox (2005), "Markov chain Monte Carlo using an approximation", Journal of
        Computational and Graphical Statistics 14.
    """
    change = energy(new) - energy(old)
    passed = jnp.log(jax.random.uniform(rng_key, (), change.dtype)) < -change
    return Screened(passed, jnp.where(passed, change, 0.0))


def log_reverse_ratio(move: Move, score: Vector) -> Float[Array, ""]:
    r"""Log q(u | u') - log q(u' | u) in nats, given the score at u'.

    The way back has noise :math:`-(\xi + d + d')` with :math:`d = S^T g / 2`.
    """
    both = move.drift + move.scale.T @ score / 2
    return -jnp.sum(both * (move.noise + both / 2))
