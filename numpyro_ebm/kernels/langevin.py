"""What the Langevin kernels share: proposals, energies, adaptation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num

from numpyro_ebm.kernels import adaptation, preconditioning
from numpyro_ebm.kernels.preconditioning import Warmup, per_event

Point = tuple[Float[Array, "*batch n"], Float[Array, "*batch"], Float[Array, "*batch n"]]
"""Positions, and the energy and its gradient there."""


class LangevinState(NamedTuple):
    """State of Langevin chains.

    Attributes:
        value: Positions, of shape ``batch + event``.
        energy: Energy of the target there, in nats; infinite where it is not a number.
        gradient: Gradient of the energy there, 0 in the components that are not finite.
        accept_prob: Mean acceptance probability of the last step; without Metropolis correction
            the share of moves that stayed inside the support.
        step_size: The step size h of the last step.
        warmup: What adaptation has learnt; ``None`` if nothing adapts.
    """

    value: Float[Array, "*batch n"]
    energy: Float[Array, "*batch"]
    gradient: Float[Array, "*batch n"]
    accept_prob: Float[Array, "*batch"]
    step_size: Float[Array, "*batch"]
    warmup: Warmup | None = None


class LangevinInfo(NamedTuple):
    """What a Langevin step reports.

    Attributes:
        accept_prob: Mean acceptance probability of its substeps.
        energy: Energy of the target at the new state, in nats.
        step_size: The step size h it used.
    """

    accept_prob: Float[Array, "*batch"]
    energy: Float[Array, "*batch"]
    step_size: Float[Array, "*batch"]


class Move(NamedTuple):
    """What the acceptance of a proposal depends on.

    Attributes:
        old: Energy and gradient at the start.
        new: Energy and gradient at the proposal.
        noise: The standard normal noise of the proposal.
        scale: Its standard deviation for each unit.
    """

    old: tuple[Float[Array, "*batch"], Float[Array, "*batch n"]]
    new: tuple[Float[Array, "*batch"], Float[Array, "*batch n"]]
    noise: Float[Array, "*batch n"]
    scale: Float[Array, "*batch n"]


@dataclass(frozen=True)
class LangevinStep:
    """What Langevin kernels share; a subclass says how likely a proposal is accepted.

    Attributes:
        step_size: The step size h, in squared units of x.
        num_steps: Substeps in one step.
        adapt_mass_matrix: Whether the diagonal preconditioner adapts.
        num_warmup: Number of first steps that adapt.
    """

    step_size: float = 0.1
    num_steps: int = 1
    adapt_mass_matrix: bool = False
    num_warmup: int = 0

    reports: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_positive(self._name, "step_size", self.step_size)
        object.__setattr__(self, "step_size", float(self.step_size))
        for name, least in (("num_steps", 1), ("num_warmup", 0)):
            check_count(self._name, name, getattr(self, name), least)

    @property
    def _name(self) -> str:
        return type(self).__name__.removesuffix("Step")

    @property
    def _adapts(self) -> bool:
        return self.num_warmup > 0 and (self._goal is not None or self.adapt_mass_matrix)

    # ----- base.Kernel ---------------------------------------------------------------------

    def init(self, value: Num[Array, "*batch n"], target: Any) -> LangevinState:
        """Chains at ``value``, with energy and gradient computed there.

        Raises:
            TypeError: The target has discrete units.
        """
        check_continuous(self._name, target)
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(jnp.result_type(float))
        num_event = len(target.event_shape)
        batch = jnp.broadcast_shapes(value.shape[: value.ndim - num_event], target.batch_shape)
        value = jnp.broadcast_to(value, batch + target.event_shape)
        energy, gradient = _evaluate(target, value)
        ones = jnp.ones(batch, value.dtype)
        warmup = None
        if self._adapts:
            num_lead = len(batch) - len(target.batch_shape)
            warmup = preconditioning.start(self.step_size, value, batch, num_lead)
        return LangevinState(value, energy, gradient, ones, self.step_size * ones, warmup)

    def step(
        self, rng_key: Key[Array, ""], state: LangevinState, target: Any
    ) -> tuple[LangevinState, LangevinInfo]:
        """Take ``num_steps`` Langevin steps, and adapt while the chains warm up."""
        step_size, variance = self._tuning(state)
        scale = jnp.sqrt(per_event(step_size, state.value) * variance)
        steps_taken = jnp.zeros_like(state.accept_prob)

        def substep(i: ArrayLike, carry: tuple[Point, Array]) -> tuple[Point, Array]:
            key = rng_key if self.num_steps == 1 else jax.random.fold_in(rng_key, i)
            point, accepted = self._substep(key, carry[0], scale, target, i)
            return point, carry[1] + accepted / self.num_steps

        carry = ((state.value, state.energy, state.gradient), steps_taken)
        if self.num_steps == 1:
            carry = substep(0, carry)
        else:
            carry = jax.lax.fori_loop(0, self.num_steps, substep, carry)
        (value, energy, gradient), accept_prob = carry
        warmup = state.warmup
        if warmup is not None:
            warmup = preconditioning.advance(
                warmup,
                value,
                accept_prob,
                self.num_warmup,
                target_accept_prob=self._goal,
                adapt_variance=self.adapt_mass_matrix,
            )
        state = LangevinState(value, energy, gradient, accept_prob, step_size, warmup)
        return state, LangevinInfo(accept_prob, energy, step_size)

    def value(self, state: LangevinState, target: Any) -> Float[Array, "*batch n"]:
        """Positions of the chains."""
        return state.value

    def refresh(self, state: LangevinState, target: Any) -> LangevinState:
        """Recompute energy and gradient for another target, keeping what was learnt."""
        energy, gradient = _evaluate(target, state.value)
        return state._replace(energy=energy, gradient=gradient)

    def energy(self, state: LangevinState, target: Any) -> Float[Array, "*batch"]:
        """Energy of a target at the positions of the chains, in nats."""
        return target.energy(state.value)

    # ----- one substep ---------------------------------------------------------------------

    def _tuning(self, state: LangevinState) -> tuple[Array, ArrayLike]:
        """Step size and preconditioner of the next step."""
        if state.warmup is None:
            return state.step_size, 1.0
        count = state.warmup.count
        step_size = adaptation.in_use(state.warmup.step_size, count, self.num_warmup)
        step_size = step_size.astype(state.step_size.dtype)
        return jnp.broadcast_to(step_size, state.step_size.shape), state.warmup.variance

    def _substep(
        self,
        rng_key: Key[Array, ""],
        point: Point,
        scale: Float[Array, "*batch n"],
        target: Any,
        index: ArrayLike,
    ) -> tuple[Point, Float[Array, "*batch"]]:
        """One proposal, and its acceptance probability."""
        value, energy, gradient = point
        key_noise, key_accept = jax.random.split(rng_key)
        noise = jax.random.normal(key_noise, value.shape, value.dtype)
        drift = -0.5 * scale**2 * gradient
        proposal = value + drift + scale * self._noise_factor(index) * noise
        proposal = proposal.astype(value.dtype)
        new = _evaluate(target, proposal, value)
        accept_prob = self._accept_prob(Move((energy, gradient), new, noise, scale))
        accept_prob = accept_prob.astype(value.dtype)
        uniform = jax.random.uniform(key_accept, accept_prob.shape, accept_prob.dtype)
        accept = uniform < accept_prob
        per_unit = per_event(accept, value)
        point = (
            jnp.where(per_unit, proposal, value),
            jnp.where(accept, new[0], energy),
            jnp.where(per_unit, new[1], gradient),
        )
        return point, accept_prob

    @property
    def _goal(self) -> float | None:
        """Acceptance probability that the step size adapts to; ``None`` if it does not."""
        return None

    def _noise_factor(self, index: ArrayLike) -> ArrayLike:
        """Factor of the noise in a substep."""
        return 1.0

    def _accept_prob(self, move: Move) -> Float[Array, "*batch"]:
        """Probability to accept a proposal."""
        raise NotImplementedError


# ----- energies and checks -----------------------------------------------------------------


def _evaluate(
    target: Any, value: Float[Array, "*batch n"], fallback: Array | None = None
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch n"]]:
    """Energy and gradient; infinite energy outside the support and where it is no number.

    The target is not asked about values outside its support, but about ``fallback`` there.
    """
    num_batch = value.ndim - len(target.event_shape)
    inside = jnp.isfinite(value)
    if target.support is not None:
        inside = inside & per_event(target.support(value), value)
    inside = inside.reshape(*value.shape[:num_batch], -1).all(-1)
    if fallback is not None:
        value = jnp.where(per_event(inside, value), value, fallback)
    energy, pull_back = jax.vjp(target.energy, value)
    (gradient,) = pull_back(jnp.ones_like(energy))
    energy = jnp.where(inside & jnp.isfinite(energy), energy, jnp.inf)
    return energy, jnp.where(jnp.isfinite(gradient), gradient, 0.0).astype(value.dtype)


def check_continuous(name: str, target: Any) -> None:
    """Refuse a target with discrete units.

    Raises:
        TypeError: Some of the target's units are discrete.
    """
    try:
        is_discrete = getattr(target, "unit_states", None) is not None
    except ValueError:  # some units are, or there are infinitely many states
        is_discrete = True
    if is_discrete:
        raise TypeError(
            f"{name}: expected a target with continuous units only; got {type(target).__name__} "
            f"with support {target.support}. Use ebm.GibbsWithGradients, ebm.DiscreteLangevin or "
            "ebm.BlockGibbs."
        )


def check_positive(name: str, argument: str, number: Any) -> None:
    """Refuse what is not a positive finite number."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(
            f"{name}: expected `{argument}` to be a Python number; got {type(number).__name__}."
        )
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"{name}: expected `{argument}` to be positive and finite; got {number!r}."
        )


def check_count(name: str, argument: str, number: Any, least: int) -> None:
    """Refuse what is not an integer of at least 0 or 1."""
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        kind = "a positive" if least else "a nonnegative"
        raise ValueError(f"{name}: expected `{argument}` to be {kind} integer; got {number!r}.")
