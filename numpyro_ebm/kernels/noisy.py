"""Noisy Langevin and Hamiltonian Monte Carlo: approximate posteriors without log Z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Key

from numpyro_ebm.kernels.auxiliary import Method
from numpyro_ebm.kernels.intractable import IntractableDensity
from numpyro_ebm.kernels.intractable_kernel import IntractableKernel
from numpyro_ebm.kernels.intractable_step import (
    IntractableStep,
    StepInfo,
    check_goal,
    stochastic_score,
)
from numpyro_ebm.kernels.langevin import check_count, check_positive
from numpyro_ebm.kernels.modes import Mode
from numpyro_ebm.kernels.proposals import TuningState, Vector


class NoisyState(NamedTuple):
    """State of one chain of a noisy kernel.

    Attributes:
        value: Unconstrained parameters u.
        energy: E(u) in nats: minus the log joint density without log Z.
        score: Estimate of the gradient of the log posterior at u.
        accept_prob: Estimated acceptance probability of the last step.
        step_size: Step size of the last step.
        rng_key: Random key for what must be drawn anew when other sites change.
        tuning: What adaptation has learnt.
    """

    value: Vector
    energy: Float[Array, ""]
    score: Vector
    accept_prob: Float[Array, ""]
    step_size: Float[Array, ""]
    rng_key: Key[Array, ""]
    tuning: TuningState


@dataclass(frozen=True)
class NoisyStep(IntractableStep):
    """Leapfrog steps along stochastic scores (see :class:`NoisyHMC`).

    Attributes:
        num_steps: Leapfrog steps.
        num_draws: Auxiliary draws for each score and each ratio of normalizers.
    """

    num_steps: int = 1
    num_draws: int = 10

    reports: ClassVar[tuple[str, ...]] = ("accept_prob",)

    def init(
        self,
        value: Vector,
        target: IntractableDensity,
        mode: Mode | None,
        rng_key: Key[Array, ""],
    ) -> NoisyState:
        """One chain at ``value``, with a mass matrix from the normal approximation at a mode."""
        tuning = self._tuning.init(value, mode)
        energy, score, _ = stochastic_score(rng_key, value, target, self.num_draws)
        zero, step_size = jnp.zeros((), value.dtype), tuning.step_size
        return NoisyState(value, energy, score, zero, step_size, rng_key, tuning)

    def step(
        self, rng_key: Key[Array, ""], state: NoisyState, target: IntractableDensity
    ) -> tuple[NoisyState, StepInfo]:
        """Follow stochastic scores, and accept with an estimated probability."""
        key_momentum, key_path, key_accept, key_next = jax.random.split(rng_key, 4)
        scale = self._tuning.scale(state.tuning)
        start = jax.random.normal(key_momentum, state.value.shape, state.value.dtype)

        def leap(carry: Any, i: Any) -> tuple[Any, None]:
            value, energy, score, momentum, log_ratio = carry
            momentum = momentum + scale.T @ score / 2
            here = value + scale @ momentum
            key = jax.random.fold_in(key_path, i)
            energy, score, drawn = stochastic_score(key, here, target, self.num_draws)
            log_ratio = log_ratio + _log_z_ratio(target, here, value, drawn.values)
            log_ratio = jnp.where(jnp.isfinite(energy), log_ratio, -jnp.inf)
            return (here, energy, score, momentum + scale.T @ score / 2, log_ratio), None

        carry = (state.value, state.energy, state.score, start, jnp.zeros_like(state.energy))
        (value, energy, score, momentum, log_ratio), _ = jax.lax.scan(
            leap, carry, jnp.arange(self.num_steps)
        )
        kinetic = (start**2 - momentum**2).sum() / 2
        log_accept = state.energy - energy + kinetic + log_ratio
        usable = ~jnp.isnan(log_accept)
        accept_prob = jnp.where(usable, jnp.exp(jnp.minimum(log_accept, 0)), 0.0)
        accept = jax.random.uniform(key_accept, (), accept_prob.dtype) < accept_prob
        value = jnp.where(accept, value, state.value)
        state = NoisyState(
            value,
            jnp.where(accept, energy, state.energy),
            jnp.where(accept, score, state.score),
            accept_prob,
            state.tuning.step_size,
            key_next,
            self._tuning.update(state.tuning, value, accept_prob),
        )
        return state, StepInfo(accept_prob, state.energy)

    def refresh(self, state: NoisyState, target: IntractableDensity) -> NoisyState:
        """Energy and score anew, after other sites of the model have changed."""
        key, rng_key = jax.random.split(state.rng_key)
        energy, score, _ = stochastic_score(key, state.value, target, self.num_draws)
        return state._replace(energy=energy, score=score, rng_key=rng_key)


def _log_z_ratio(
    target: IntractableDensity, here: Vector, there: Vector, values: Any
) -> Float[Array, ""]:
    """Log of the mean of f(w; there) / f(w; here) over draws here, summed over replicates."""
    new, old = target.log_terms(there, values), target.log_terms(here, values)
    means = (
        (logsumexp(a - b, axis=0) - jnp.log(len(a))).sum() for a, b in zip(new, old, strict=True)
    )
    return sum(means, jnp.zeros(()))


class NoisyHMC(IntractableKernel):
    r"""Noisy Hamiltonian Monte Carlo for energy-based sites whose log Z is unknown: approximate.

    Leapfrog steps follow a stochastic score, from m auxiliary draws at every step,

    .. math:: g(\theta) = \nabla \log p(\theta) f(y; \theta)
        - \frac1m \sum_{i=1}^m \nabla \log f(w_i; \theta), \qquad
        w_i \sim f(\cdot; \theta) / Z(\theta)

    and the ratio of normalizers in the acceptance probability is estimated by the product over the
    steps of :math:`\frac1m \sum_i f(w_i; \theta_{t-1}) / f(w_i; \theta_t)`. **Approximate** for
    every finite m, also with exact draws: the chain leaves a density near the posterior invariant,
    which tends to it as m grows. For an exact kernel see :class:`~numpyro_ebm.Exchange`, with
    ``proposal="langevin"`` where gradients are wanted.

    All latent sites move jointly in unconstrained space; step size and mass matrix adapt in the
    warm-up. ``extra_fields`` are ``"accept_prob"`` (estimated, always collected), ``"energy"`` and
    ``"step_size"``.

    Args:
        model: As for :class:`~numpyro_ebm.Exchange`.
        num_steps: Leapfrog steps.
        num_draws: m, auxiliary draws at each of them.
        auxiliary: How they are drawn, as for :class:`~numpyro_ebm.Exchange`.
        step_size: Leapfrog step in units of the standard deviation of the posterior; where
            adaptation starts.
        adapt_step_size: Whether it adapts in the warm-up.
        dense_mass: Whether the mass matrix is dense rather than diagonal.
        target_accept_prob: Acceptance probability to reach.

    Raises:
        TypeError: As for :class:`~numpyro_ebm.Exchange`.
        ValueError: As for :class:`~numpyro_ebm.Exchange`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC
        >>> def model(s):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 0.5))
        ...     numpyro.sample("s", ebm.Ising.lattice((3, 4), coupling), obs=s)
        >>> s = ebm.Ising.lattice((3, 4), 0.2).sample(jax.random.key(0))
        >>> mcmc = MCMC(ebm.NoisyHMC(model), num_warmup=100, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), s)
        >>> mcmc.get_samples()["coupling"].shape
        (100,)

    References:
        Stoehr, Benson & Friel (2019), "Noisy Hamiltonian Monte Carlo for doubly intractable
        distributions", Journal of Computational and Graphical Statistics 28.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_steps: int = 3,
        num_draws: int = 10,
        auxiliary: Method = None,
        step_size: float = 0.5,
        adapt_step_size: bool = True,
        dense_mass: bool = True,
        target_accept_prob: float | None = None,
    ) -> None:
        owner = type(self).__name__
        check_count(owner, "num_steps", num_steps, 1)
        check_count(owner, "num_draws", num_draws, 1)
        check_positive(owner, "step_size", step_size)
        goal = check_goal(owner, target_accept_prob, 0.8)
        goal = goal if adapt_step_size else None
        kernel = NoisyStep(
            float(step_size), goal, dense_mass, num_steps=num_steps, num_draws=num_draws
        )
        super().__init__(model, kernel, auxiliary)


class NoisyMALA(NoisyHMC):
    r"""Noisy Metropolis-adjusted Langevin algorithm for sites whose log Z is unknown: approximate.

    .. math:: \theta' = \theta + \tfrac{h}{2} M g(\theta) + \sqrt{h M}\, \xi

    with the stochastic score g of :class:`~numpyro_ebm.NoisyHMC`, accepted with an estimated
    probability. It is that kernel with one leapfrog step of size :math:`\sqrt h`, and as
    **approximate**. ``Exchange(model, proposal="langevin")`` is its exact sibling.

    Args:
        model: As for :class:`~numpyro_ebm.Exchange`.
        num_draws: m, auxiliary draws at each step.
        **options: As for :class:`~numpyro_ebm.NoisyHMC`, without ``num_steps``.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC
        >>> def model(s):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 0.5))
        ...     numpyro.sample("s", ebm.Ising.lattice((3, 4), coupling), obs=s)
        >>> s = ebm.Ising.lattice((3, 4), 0.2).sample(jax.random.key(0))
        >>> mcmc = MCMC(ebm.NoisyMALA(model), num_warmup=100, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), s)
        >>> mcmc.get_samples()["coupling"].shape
        (100,)

    References:
        Alquier, Friel, Everitt & Boland (2016), "Noisy Monte Carlo: convergence of Markov chains
        with approximate transition kernels", Statistics and Computing 26.
    """

    def __init__(self, model: Callable[..., Any], *, num_draws: int = 10, **options: Any) -> None:
        if "num_steps" in options:
            raise TypeError("NoisyMALA: expected no `num_steps`; use ebm.NoisyHMC for several.")
        options = {"target_accept_prob": 0.574, "step_size": 1.0} | options
        super().__init__(model, num_steps=1, num_draws=num_draws, **options)
