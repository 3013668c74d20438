"""What the kernels over parameters with an intractable likelihood share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from numpyro_ebm.kernels.intractable import IntractableDensity
from numpyro_ebm.kernels.proposals import Tuning, Vector


class StepInfo(NamedTuple):
    """What a step reports.

    Attributes:
        accept_prob: Acceptance probability.
        energy: E(u) at the new state, in nats.
    """

    accept_prob: Float[Array, ""]
    energy: Float[Array, ""]


@dataclass(frozen=True)
class IntractableStep:
    """What kernels over an ``IntractableDensity`` share; one chain at a time.

    Attributes:
        step_size: Standard deviation of proposals in units of that of the posterior, or the
            leapfrog step.
        target_accept_prob: Acceptance probability that it adapts to; ``None`` to keep it.
        dense_mass: Whether the covariance of proposals is dense.
        num_warmup: Number of first steps that adapt.
    """

    step_size: float | None = None
    target_accept_prob: float | None = 0.35
    dense_mass: bool = True
    num_warmup: int = 0

    @property
    def _tuning(self) -> Tuning:
        return Tuning(self.step_size, self.target_accept_prob, self.dense_mass, self.num_warmup)

    def value(self, state: Any, target: IntractableDensity) -> Vector:
        """Unconstrained parameters of the chain."""
        return state.value

    def energy(self, state: Any, target: IntractableDensity) -> Float[Array, ""]:
        """E(u) in nats, as cached."""
        return state.energy


def stochastic_score(
    rng_key: Key[Array, ""], value: Vector, target: IntractableDensity, num_draws: int
) -> tuple[Float[Array, ""], Vector, Any]:
    r"""E(u), an unbiased estimate of the score of the posterior, and the auxiliary draws.

    .. math:: g(u) = -\nabla E(u) - \frac1m \sum_{i=1}^m \nabla_u \log f(w_i; \theta(u)), \qquad
        w_i \sim f(\cdot; \theta(u)) / Z(\theta(u))

    The energy is infinite and the score 0 where they are no finite numbers.
    """
    energy, slope = jax.value_and_grad(target.energy)(value)
    inside = jnp.isfinite(energy) & jnp.isfinite(slope).all()
    there = jnp.where(inside, value, jnp.zeros_like(value))
    drawn = target.draw(rng_key, there, (num_draws,))
    pull = jax.grad(target.log_factor)(there, drawn.values) / num_draws
    score = -slope - pull
    usable = inside & drawn.complete & jnp.isfinite(score).all()
    return jnp.where(usable, energy, jnp.inf), jnp.where(usable, score, 0.0), drawn


def check_goal(owner: str, goal: float | None, default: float) -> float:
    """The acceptance probability to reach.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if goal is None:
        return default
    if not isinstance(goal, int | float) or not 0 < goal < 1:
        raise ValueError(f"{owner}: expected `target_accept_prob` between 0 and 1; got {goal!r}.")
    return float(goal)
