"""Steps of the exchange algorithm, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from numpyro_ebm.kernels.bridges import bridge
from numpyro_ebm.kernels.intractable import IntractableDensity, Values
from numpyro_ebm.kernels.intractable_step import IntractableStep, StepInfo, stochastic_score
from numpyro_ebm.kernels.modes import Mode
from numpyro_ebm.kernels.proposals import (
    TuningState,
    Vector,
    log_reverse_ratio,
    propose,
    screened,
)
from numpyro_ebm.protocols import Kernel


class ExchangeState(NamedTuple):
    """State of one exchange chain.

    Attributes:
        value: Unconstrained parameters u.
        energy: E(u) in nats: minus the log joint density without log Z.
        score: Estimate of the gradient of the log posterior at u; 0 for random walks.
        accept_prob: Acceptance probability of the last step.
        auxiliary_drift: Log ratio of the auxiliary data at the end of their chain, minus that
            halfway, in nats; 0 where they are drawn exactly.
        auxiliary_sweeps: Sweeps that the slowest exact draw took.
        step_size: Scale of the proposals of the last step.
        rng_key: Random key for what must be drawn anew when other sites change.
        tuning: What adaptation has learnt.
    """

    value: Vector
    energy: Float[Array, ""]
    score: Vector
    accept_prob: Float[Array, ""]
    auxiliary_drift: Float[Array, ""]
    auxiliary_sweeps: Int[Array, ""]
    step_size: Float[Array, ""]
    rng_key: Key[Array, ""]
    tuning: TuningState


@dataclass(frozen=True)
class ExchangeStep(IntractableStep):
    """Exchange steps over an ``IntractableDensity``, as pure functions (see :class:`Exchange`).

    Attributes:
        proposal: ``"random_walk"`` or ``"langevin"``.
        num_bridges: Models between the two parameters of a step.
        num_score_draws: Auxiliary draws that a Langevin score averages.
        bridge_kernel: Reversible moves between bridges; ``None`` for sweeps.
    """

    proposal: str = "random_walk"
    num_bridges: int = 0
    num_score_draws: int = 4
    bridge_kernel: Kernel | None = None

    reports: ClassVar[tuple[str, ...]] = ("accept_prob", "auxiliary_drift")

    # ----- base.Kernel ---------------------------------------------------------------------

    def init(
        self,
        value: Vector,
        target: IntractableDensity,
        mode: Mode | None,
        rng_key: Key[Array, ""],
    ) -> ExchangeState:
        """One chain at ``value``, with proposals shaped like the normal approximation at a mode."""
        zero, tuning = jnp.zeros((), value.dtype), self._tuning.init(value, mode)
        energy, score = self._evaluate(rng_key, value, target)
        none = jnp.zeros((), jnp.int32)
        step_size = tuning.step_size
        return ExchangeState(value, energy, score, zero, zero, none, step_size, rng_key, tuning)

    def step(
        self, rng_key: Key[Array, ""], state: ExchangeState, target: IntractableDensity
    ) -> tuple[ExchangeState, StepInfo]:
        """Propose parameters, draw data at them, and exchange them with some probability."""
        keys = jax.random.split(rng_key, 7)
        scale = self._tuning.scale(state.tuning)
        move = propose(keys[0], state.value, state.score, scale)
        screen = screened(keys[6], target.screen, state.value, move.value)
        there = jnp.where(screen.passed, move.value, state.value)
        energy, score = self._evaluate(keys[1], there, target)
        inside = screen.passed & jnp.isfinite(energy)
        there = jnp.where(inside, there, state.value)  # where models can be drawn from
        drawn = target.draw(keys[2], there)

        def log_exchange(values: Values) -> Float[Array, ""]:
            return bridge(
                keys[3],
                target,
                values,
                there,
                state.value,
                num_bridges=self.num_bridges,
                log_factor=target.log_factor,
                kernel=self.bridge_kernel,
            )[1]

        log_z_ratio = log_exchange(drawn.values)
        drift = jnp.zeros_like(energy)
        if not target.sampler.is_exact:
            drift = log_z_ratio - log_exchange(drawn.halfway)
        log_accept = state.energy - energy + log_z_ratio + log_reverse_ratio(move, score)
        log_accept = log_accept + screen.log_correction
        usable = inside & drawn.complete & ~jnp.isnan(log_accept)
        accept_prob = jnp.where(usable, jnp.exp(jnp.minimum(log_accept, 0)), 0.0)
        accept = jax.random.uniform(keys[4], (), accept_prob.dtype) < accept_prob
        value = jnp.where(accept, move.value, state.value)
        energy = jnp.where(accept, energy, state.energy)
        state = ExchangeState(
            value,
            energy,
            jnp.where(accept, score, state.score),
            accept_prob,
            jnp.where(inside, drift, 0.0),
            drawn.num_sweeps,
            state.tuning.step_size,
            keys[5],
            self._tuning.update(state.tuning, value, accept_prob),
        )
        return state, StepInfo(accept_prob, energy)

    def refresh(self, state: ExchangeState, target: IntractableDensity) -> ExchangeState:
        """Energy and score anew, after other sites of the model have changed."""
        key, rng_key = jax.random.split(state.rng_key)
        energy, score = self._evaluate(key, state.value, target)
        return state._replace(energy=energy, score=score, rng_key=rng_key)

    # ----- the score -----------------------------------------------------------------------

    def _evaluate(
        self, rng_key: Key[Array, ""], value: Vector, target: IntractableDensity
    ) -> tuple[Float[Array, ""], Vector]:
        """E(u), and an estimate of the score of the posterior there."""
        if self.proposal == "random_walk":
            energy = target.energy(value)
            return jnp.where(jnp.isnan(energy), jnp.inf, energy), jnp.zeros_like(value)
        energy, score, _ = stochastic_score(rng_key, value, target, self.num_score_draws)
        return energy, score
