"""The exchange algorithm: posteriors of parameters without log Z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from numpyro_ebm.kernels.auxiliary import AuxiliaryChain
from numpyro_ebm.kernels.bridges import bridge, check_bridge_kernel
from numpyro_ebm.kernels.intractable import IntractableDensity, Values
from numpyro_ebm.kernels.intractable_kernel import IntractableKernel
from numpyro_ebm.kernels.langevin import check_count, check_positive
from numpyro_ebm.kernels.modes import Mode
from numpyro_ebm.kernels.perfect import CouplingFromThePast, ExactDraws
from numpyro_ebm.kernels.proposals import Tuning, TuningState, log_reverse_ratio, propose, screened
from numpyro_ebm.protocols import Kernel

Vector = Float[Array, " n"]
Method = ExactDraws | CouplingFromThePast | AuxiliaryChain | None
PROPOSALS = ("random_walk", "langevin")
_GOALS = {"random_walk": 0.35, "langevin": 0.574}


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


class ExchangeInfo(NamedTuple):
    """What an exchange step reports.

    Attributes:
        accept_prob: Acceptance probability.
        energy: E(u) at the new state, in nats.
    """

    accept_prob: Float[Array, ""]
    energy: Float[Array, ""]


@dataclass(frozen=True)
class ExchangeStep:
    """Exchange steps over an ``IntractableDensity``, as pure functions (see :class:`Exchange`).

    Attributes:
        proposal: ``"random_walk"`` or ``"langevin"``.
        step_size: Standard deviation of proposals in units of that of the posterior.
        num_bridges: Models between the two parameters of a step.
        num_score_draws: Auxiliary draws that a Langevin score averages.
        target_accept_prob: Acceptance probability that the step size adapts to; ``None`` to keep
            the step size.
        dense_mass: Whether the covariance of proposals is dense.
        bridge_kernel: Reversible moves between bridges; ``None`` for sweeps.
        num_warmup: Number of first steps that adapt.
    """

    proposal: str = "random_walk"
    step_size: float | None = None
    num_bridges: int = 0
    num_score_draws: int = 4
    target_accept_prob: float | None = 0.35
    dense_mass: bool = True
    bridge_kernel: Kernel | None = None
    num_warmup: int = 0

    reports: ClassVar[tuple[str, ...]] = ("accept_prob", "auxiliary_drift")

    @property
    def _tuning(self) -> Tuning:
        return Tuning(self.step_size, self.target_accept_prob, self.dense_mass, self.num_warmup)

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
    ) -> tuple[ExchangeState, ExchangeInfo]:
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
        return state, ExchangeInfo(accept_prob, energy)

    def value(self, state: ExchangeState, target: IntractableDensity) -> Vector:
        """Unconstrained parameters of the chain."""
        return state.value

    def refresh(self, state: ExchangeState, target: IntractableDensity) -> ExchangeState:
        """Energy and score anew, after other sites of the model have changed."""
        key, rng_key = jax.random.split(state.rng_key)
        energy, score = self._evaluate(key, state.value, target)
        return state._replace(energy=energy, score=score, rng_key=rng_key)

    def energy(self, state: ExchangeState, target: IntractableDensity) -> Float[Array, ""]:
        """E(u) in nats, as cached."""
        return state.energy

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


class Exchange(IntractableKernel):
    r"""Exchange algorithm for the parameters of energy-based sites whose log Z is unknown.

    The posterior :math:`p(\theta \mid y) \propto p(\theta) f(y; \theta) / Z(\theta)` cannot be
    evaluated. A step proposes :math:`\theta'`, draws data :math:`w \sim f(\cdot; \theta') /
    Z(\theta')` of the shape of y, and accepts with probability

    .. math:: \min\Big\{1, \frac{p(\theta') f(y; \theta') q(\theta \mid \theta')}
        {p(\theta) f(y; \theta) q(\theta' \mid \theta)} \cdot
        \frac{f(w; \theta)}{f(w; \theta')}\Big\}

    in which Z cancels. **Exact** where w is an exact draw: by enumeration, by transfer matrix on
    narrow lattices, or by coupling from the past for unfrustrated Ising models and Boltzmann
    machines, in this order. Elsewhere w is the end of a chain of 100 Gibbs sweeps that starts at
    the data (double Metropolis-Hastings), and the posterior is **approximate**;
    :func:`~numpyro_ebm.auxiliary_drift` says whether the length matters.

    Coupling from the past may take forever far from the posterior. There, proposals pass a first
    test by the square root of the pseudo-posterior before data are drawn, which the second corrects
    for (delayed acceptance).

    All latent sites move jointly in unconstrained space, with a covariance and scale that adapt
    in the warm-up. ``proposal="langevin"`` follows an unbiased estimate of the score,
    :math:`\nabla \log p(\theta) f(y; \theta) - \frac1m \sum_i \nabla \log f(w_i; \theta)`; the
    draws :math:`w_i` belong to the state of the chain, which leaves the joint density of
    :math:`\theta` and all :math:`w_i` invariant, so that nothing is lost by their noise. With
    ``num_bridges`` K > 0 the data w are moved through K models between :math:`\theta'` and
    :math:`\theta`, which raises the acceptance rate where w has many units.

    Observed sites may be in plates (one w for each replicate) and masked; other likelihoods and
    latent sites beside them are free. As a block of ``numpyro.infer.Gibbs`` the sites of the other
    blocks are held: a latent or partly observed energy-based site is drawn by
    ``(BlockGibbs(model), ebm.energy_sites)``, its parameters by ``(Exchange(model), None)``.

    ``extra_fields`` are ``"accept_prob"`` and ``"auxiliary_drift"`` (both always collected),
    ``"energy"``, ``"step_size"`` and ``"auxiliary_sweeps"``.

    Args:
        model: A NumPyro model with an observed energy-based site whose parameters depend on
            continuous latent sites, with the default ``normalizer``.
        auxiliary: How w is drawn: ``None`` as above, or ``kernels.ExactDraws()``,
            ``kernels.CouplingFromThePast(max_sweeps)``, ``kernels.AuxiliaryChain(num_steps,
            kernel)``.
        proposal: ``"random_walk"`` or ``"langevin"``.
        step_size: Standard deviation of proposals in units of that of the posterior; where
            adaptation starts, by default at 2.38 over the root of their number.
        num_bridges: K, models between the two parameters.
        num_score_draws: m, for Langevin proposals.
        adapt_step_size: Whether the step size adapts in the warm-up.
        dense_mass: Whether the covariance of the proposals is dense rather than diagonal.
        target_accept_prob: Acceptance probability to reach; 0.35 for random walks and 0.574 for
            Langevin proposals by default.
        bridge_kernel: Reversible kernel for the moves between bridges; by default Gibbs sweeps, in
            an order or, as likely, its reverse.

    Raises:
        TypeError: ``model`` is no model, or ``auxiliary`` no method.
        ValueError: No energy-based site is observed or has parameters that depend on a latent
            site; a latent site is discrete or an energy-based model; the observed site is scaled;
            coupling from the past is asked for frustrated couplings; an option is out of range.
        NormalizerError: ``normalizer`` is a number although the parameters are latent.
        CoalescenceError: During the run, as a ``JaxRuntimeError`` with its message: coupling from
            the past has not ended within its budget.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC
        >>> def model(s):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 0.5))
        ...     numpyro.sample("s", ebm.Ising.lattice((4, 4), coupling), obs=s)
        >>> s = ebm.Ising.lattice((4, 4), 0.2).sample(jax.random.key(0))
        >>> mcmc = MCMC(ebm.Exchange(model), num_warmup=100, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), s)
        >>> mcmc.get_samples()["coupling"].shape
        (100,)

    References:
        Murray, Ghahramani & MacKay (2006), "MCMC for doubly-intractable distributions", UAI,
        sections 3 and 4; Christen & Fox (2005), "Markov chain Monte Carlo using an approximation"
        (delayed acceptance); Liang (2010), "A double Metropolis-Hastings sampler for spatial models
        with intractable normalizing constants".
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        auxiliary: Method = None,
        proposal: str = "random_walk",
        step_size: float | None = None,
        num_bridges: int = 0,
        num_score_draws: int = 4,
        adapt_step_size: bool = True,
        dense_mass: bool = True,
        target_accept_prob: float | None = None,
        bridge_kernel: Kernel | None = None,
    ) -> None:
        if proposal not in PROPOSALS:
            raise ValueError(
                f"Exchange: expected `proposal` to be one of {PROPOSALS}; got {proposal!r}."
            )
        goal = check_goal("Exchange", target_accept_prob, _GOALS[proposal])
        if step_size is not None:
            check_positive("Exchange", "step_size", step_size)
        check_count("Exchange", "num_bridges", num_bridges, 0)
        check_count("Exchange", "num_score_draws", num_score_draws, 1)
        kernel = ExchangeStep(
            proposal,
            step_size,
            num_bridges,
            num_score_draws,
            goal if adapt_step_size else None,
            dense_mass,
            check_bridge_kernel("Exchange", bridge_kernel),
        )
        super().__init__(model, kernel, auxiliary)


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
