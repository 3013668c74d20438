"""Pseudo-marginal steps, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, Key

from numpyro_ebm.kernels.bridges import bridge
from numpyro_ebm.kernels.intractable import IntractableDensity
from numpyro_ebm.kernels.intractable_step import IntractableStep, StepInfo
from numpyro_ebm.kernels.modes import Mode
from numpyro_ebm.kernels.proposals import TuningState, Vector, propose, screened
from numpyro_ebm.protocols import Kernel


class PseudoMarginalState(NamedTuple):
    """State of one pseudo-marginal chain.

    Attributes:
        value: Unconstrained parameters u.
        energy: E(u) in nats: minus the log joint density without log Z.
        log_weight: Log of the estimate of the inverse normalizers, relative to the reference.
        accept_prob: Acceptance probability of the last step.
        auxiliary_sweeps: Sweeps that the slowest exact draw took.
        step_size: Scale of the proposals of the last step.
        reference: Unconstrained reference parameters.
        tuning: What adaptation has learnt.
    """

    value: Vector
    energy: Float[Array, ""]
    log_weight: Float[Array, ""]
    accept_prob: Float[Array, ""]
    auxiliary_sweeps: Int[Array, ""]
    step_size: Float[Array, ""]
    reference: Vector
    tuning: TuningState


@dataclass(frozen=True)
class PseudoMarginalStep(IntractableStep):
    """Pseudo-marginal steps, as pure functions (see :class:`PseudoMarginal`).

    Attributes:
        num_particles: Estimates that are averaged, M.
        num_bridges: Models between the parameters and the reference, K.
        bridge_kernel: Reversible moves between bridges; ``None`` for sweeps.
    """

    num_particles: int = 5
    num_bridges: int = 5
    bridge_kernel: Kernel | None = None

    reports: ClassVar[tuple[str, ...]] = ("accept_prob",)

    def init(
        self,
        value: Vector,
        target: IntractableDensity,
        mode: Mode | None,
        rng_key: Key[Array, ""],
        reference: Vector | None = None,
    ) -> PseudoMarginalState:
        """One chain at ``value``; the reference is the mode where none is given."""
        if reference is None:
            reference = value if mode is None else mode.value
        tuning, energy = self._tuning.init(value, mode), target.energy(value)
        log_weight, num_sweeps, _ = self._log_weight(rng_key, value, reference, target)
        zero, step_size = jnp.zeros((), value.dtype), tuning.step_size
        return PseudoMarginalState(
            value, energy, log_weight, zero, num_sweeps, step_size, reference, tuning
        )

    def step(
        self, rng_key: Key[Array, ""], state: PseudoMarginalState, target: IntractableDensity
    ) -> tuple[PseudoMarginalState, StepInfo]:
        """Propose parameters with an estimate of their 1 / Z, and accept both or none."""
        key_move, key_weight, key_accept, key_screen = jax.random.split(rng_key, 4)
        scale = self._tuning.scale(state.tuning)
        move = propose(key_move, state.value, jnp.zeros_like(state.value), scale)
        screen = screened(key_screen, target.screen, state.value, move.value)
        energy = target.energy(move.value)
        inside = screen.passed & jnp.isfinite(energy)
        there = jnp.where(inside, move.value, state.value)
        log_weight, num_sweeps, complete = self._log_weight(
            key_weight, there, state.reference, target
        )
        log_accept = state.energy - energy + log_weight - state.log_weight
        log_accept = log_accept + screen.log_correction
        usable = inside & complete & ~jnp.isnan(log_accept)
        accept_prob = jnp.where(usable, jnp.exp(jnp.minimum(log_accept, 0)), 0.0)
        accept = jax.random.uniform(key_accept, (), accept_prob.dtype) < accept_prob
        value = jnp.where(accept, move.value, state.value)
        state = PseudoMarginalState(
            value,
            jnp.where(accept, energy, state.energy),
            jnp.where(accept, log_weight, state.log_weight),
            accept_prob,
            num_sweeps,
            state.tuning.step_size,
            state.reference,
            self._tuning.update(state.tuning, value, accept_prob),
        )
        return state, StepInfo(accept_prob, state.energy)

    def refresh(
        self, state: PseudoMarginalState, target: IntractableDensity
    ) -> PseudoMarginalState:
        """E(u) anew, after other sites have changed; log Z does not depend on those."""
        return state._replace(energy=target.energy(state.value))

    def _log_weight(
        self,
        rng_key: Key[Array, ""],
        value: Vector,
        reference: Vector,
        target: IntractableDensity,
    ) -> tuple[Float[Array, ""], Int[Array, ""], Bool[Array, ""]]:
        """Log estimate of Z(reference) / Z(u) in nats, summed over sites and their replicates."""
        key_draw, key_bridge = jax.random.split(rng_key)
        drawn = target.draw(key_draw, value, (self.num_particles,))
        _, log_ratios = bridge(
            key_bridge,
            target,
            drawn.values,
            value,
            reference,
            num_bridges=self.num_bridges,
            log_factor=lambda u, w: _Terms(target.log_terms(u, w)),
            kernel=self.bridge_kernel,
        )
        total = sum((logsumexp(term, axis=0).sum() for term in log_ratios), jnp.zeros(()))
        count = sum(int(np.prod(term.shape[1:])) for term in log_ratios)
        log_weight = (total - count * np.log(self.num_particles)).astype(value.dtype)
        return log_weight, drawn.num_sweeps, drawn.complete


@jax.tree_util.register_pytree_node_class
class _Terms(list):
    """Arrays that are added one by one."""

    def __add__(self, other: Any) -> _Terms:
        return _Terms(a + b for a, b in zip(self, other, strict=True))

    def __sub__(self, other: Any) -> _Terms:
        return _Terms(a - b for a, b in zip(self, other, strict=True))

    def tree_flatten(self) -> tuple[tuple[Array, ...], None]:
        """The arrays are leaves."""
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Any) -> _Terms:
        """From the leaves."""
        return cls(children)
