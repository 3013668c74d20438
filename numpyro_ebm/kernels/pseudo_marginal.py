"""Pseudo-marginal posteriors of parameters, by unbiased estimates of 1 / Z."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key
from numpyro.infer.gibbs import GIBBS_SITES_KWARG

from numpyro_ebm.kernels.bridges import bridge, check_bridge_kernel
from numpyro_ebm.kernels.exchange import ExchangeInfo, Method, Vector, check_goal
from numpyro_ebm.kernels.intractable import IntractableDensity, causes_of
from numpyro_ebm.kernels.intractable_kernel import IntractableKernel
from numpyro_ebm.kernels.langevin import check_count, check_positive
from numpyro_ebm.kernels.modes import Mode
from numpyro_ebm.kernels.proposals import Tuning, TuningState, propose, screened
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
class PseudoMarginalStep:
    """Pseudo-marginal steps, as pure functions (see :class:`PseudoMarginal`).

    Attributes:
        num_particles: Estimates that are averaged, M.
        num_bridges: Models between the parameters and the reference, K.
        step_size: Standard deviation of proposals in units of that of the posterior.
        target_accept_prob: Acceptance probability that it adapts to; ``None`` to keep it.
        dense_mass: Whether the covariance of proposals is dense.
        bridge_kernel: Reversible moves between bridges; ``None`` for sweeps.
        num_warmup: Number of first steps that adapt.
    """

    num_particles: int = 5
    num_bridges: int = 5
    step_size: float | None = None
    target_accept_prob: float | None = 0.25
    dense_mass: bool = True
    bridge_kernel: Kernel | None = None
    num_warmup: int = 0

    reports: ClassVar[tuple[str, ...]] = ("accept_prob",)

    @property
    def _tuning(self) -> Tuning:
        return Tuning(self.step_size, self.target_accept_prob, self.dense_mass, self.num_warmup)

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
    ) -> tuple[PseudoMarginalState, ExchangeInfo]:
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
        return state, ExchangeInfo(accept_prob, state.energy)

    def value(self, state: PseudoMarginalState, target: IntractableDensity) -> Vector:
        """Unconstrained parameters of the chain."""
        return state.value

    def refresh(
        self, state: PseudoMarginalState, target: IntractableDensity
    ) -> PseudoMarginalState:
        """E(u) anew, after other sites have changed; log Z does not depend on those."""
        return state._replace(energy=target.energy(state.value))

    def energy(self, state: PseudoMarginalState, target: IntractableDensity) -> Float[Array, ""]:
        """E(u) in nats, as cached."""
        return state.energy

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


class PseudoMarginal(IntractableKernel):
    r"""Pseudo-marginal Metropolis-Hastings for energy-based sites whose log Z is unknown.

    In the place of :math:`1 / Z(\theta)` stands an unbiased estimate up to a constant, from
    annealed importance sampling that starts at exact draws :math:`w \sim f(\cdot; \theta) /
    Z(\theta)` and goes through K models to a reference :math:`\hat\theta`:

    .. math:: \mathrm E\, \frac1M \sum_{m=1}^M r_m = \frac{Z(\hat\theta)}{Z(\theta)}, \qquad
        \log r = \sum_{k=0}^K \log \frac{f(w_k; \theta_{k+1})}{f(w_k; \theta_k)}

    The estimate stays with the chain until a proposal is accepted, which makes the posterior of
    :math:`\theta` **exact** for any M and K where the draws w are (see
    :class:`~numpyro_ebm.Exchange`, whose ways of drawing them are the same). A noisy estimate
    makes chains stick: raise K or M. M = 1 and K = 0 is the single auxiliary variable method of
    Møller et al., M = 1 and K > 0 the multiple auxiliary variable method: for these see
    :class:`~numpyro_ebm.AuxiliaryVariable`.

    ``extra_fields`` are ``"accept_prob"`` (always collected), ``"energy"``, ``"log_weight"``,
    ``"step_size"`` and ``"auxiliary_sweeps"``.

    Args:
        model: As for :class:`~numpyro_ebm.Exchange`.
        num_particles: M, estimates that are averaged for each replicate.
        num_bridges: K, models between parameters and reference.
        auxiliary: How w is drawn, as for :class:`~numpyro_ebm.Exchange`.
        reference: Values of all latent sites, :math:`\hat\theta`; by default the mode of the
            pseudo-posterior, which exists for discrete units.
        step_size: Standard deviation of proposals in units of that of the posterior; where
            adaptation starts, by default at 2.38 over the root of their number.
        adapt_step_size: Whether it adapts in the warm-up.
        dense_mass: Whether the covariance of the proposals is dense rather than diagonal.
        target_accept_prob: Acceptance probability to reach.
        bridge_kernel: Reversible kernel for the moves between bridges; by default Gibbs sweeps, in
            an order or, as likely, its reverse.

    Raises:
        TypeError: As for :class:`~numpyro_ebm.Exchange`.
        ValueError: As for :class:`~numpyro_ebm.Exchange`; the reference does not fit, or is needed;
            in ``Gibbs``, the parameters of the site depend on sites of other blocks.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC
        >>> def model(s):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 0.5))
        ...     numpyro.sample("s", ebm.Ising.lattice((3, 4), coupling), obs=s)
        >>> s = ebm.Ising.lattice((3, 4), 0.2).sample(jax.random.key(0))
        >>> kernel = ebm.PseudoMarginal(model, num_particles=5)
        >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), s)
        >>> mcmc.get_samples()["coupling"].shape
        (100,)

    References:
        Andrieu & Roberts (2009), "The pseudo-marginal approach for efficient Monte Carlo
        computations", Annals of Statistics 37; Møller, Pettitt, Reeves & Berthelsen (2006), "An
        efficient Markov chain Monte Carlo method for distributions with intractable normalising
        constants", Biometrika 93; Murray, Ghahramani & MacKay (2006), "MCMC for
        doubly-intractable distributions", UAI.
    """

    _kernel: PseudoMarginalStep

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_particles: int = 5,
        num_bridges: int = 5,
        auxiliary: Method = None,
        reference: Mapping[str, ArrayLike] | None = None,
        step_size: float | None = None,
        adapt_step_size: bool = True,
        dense_mass: bool = True,
        target_accept_prob: float | None = None,
        bridge_kernel: Kernel | None = None,
    ) -> None:
        owner = type(self).__name__
        check_count(owner, "num_particles", num_particles, 1)
        check_count(owner, "num_bridges", num_bridges, 0)
        if step_size is not None:
            check_positive(owner, "step_size", step_size)
        goal = check_goal(owner, target_accept_prob, 0.25)
        kernel = PseudoMarginalStep(
            num_particles,
            num_bridges,
            step_size,
            goal if adapt_step_size else None,
            dense_mass,
            check_bridge_kernel(owner, bridge_kernel),
        )
        super().__init__(model, kernel, auxiliary)
        self._reference = None if reference is None else dict(reference)

    def _begin(self, rng_key: Any, z: Any, model_trace: Any, args: Any, kwargs: Any):
        owner = type(self).__name__
        held = (kwargs or {}).get(GIBBS_SITES_KWARG, {})
        causes = causes_of(
            lambda held: self._trace(z, args, {**kwargs, GIBBS_SITES_KWARG: held}), held
        )
        foreign = sorted({cause for name in self._names for cause in causes.get(name, ())})
        if foreign:
            raise ValueError(
                f"{owner}: expected energy-based sites whose parameters depend on the sites of "
                f"this block only; they depend on {foreign} of other blocks, and the estimate of "
                "1 / Z cannot follow these. Use ebm.Exchange, or one block for all of them."
            )
        target, flat = self._target(z, model_trace, args, kwargs)
        mode = self._find_mode(target, flat)
        reference = self._reference_vector(z, model_trace, args, kwargs)
        if reference is None and mode is None:
            raise ValueError(
                f"{owner}: expected `reference`, values of {list(self._sites)} near the posterior: "
                "the units are continuous, and it cannot be found by pseudolikelihood."
            )
        chain = self._kernel.init(flat, target, mode, rng_key, reference)
        return z, {"joint": chain}, chain.energy

    def _reference_vector(self, z: Any, model_trace: Any, args: Any, kwargs: Any) -> Any:
        """Unconstrained reference parameters, if they were given."""
        if self._reference is None:
            return None
        if set(self._reference) != set(self._sites):
            raise ValueError(
                f"{type(self).__name__}: expected `reference` to have values of "
                f"{list(self._sites)}; got {list(self._reference)}."
            )
        given = {name: jnp.asarray(value) for name, value in self._reference.items()}
        for name, value in given.items():
            if value.shape != jnp.shape(z[name]):
                raise ValueError(
                    f"{type(self).__name__}: expected `reference['{name}']` of shape "
                    f"{jnp.shape(z[name])}; got {value.shape}."
                )
            given[name] = value.astype(jnp.result_type(z[name]))
        return self._target(given, model_trace, args, kwargs)[1]
