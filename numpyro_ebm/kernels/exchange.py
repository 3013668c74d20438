"""The exchange algorithm: posteriors of parameters without log Z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpyro_ebm.kernels.auxiliary import Method
from numpyro_ebm.kernels.bridges import check_bridge_kernel
from numpyro_ebm.kernels.exchange_step import ExchangeStep
from numpyro_ebm.kernels.intractable_kernel import IntractableKernel
from numpyro_ebm.kernels.intractable_step import check_goal
from numpyro_ebm.kernels.langevin import check_count, check_positive
from numpyro_ebm.protocols import Kernel

PROPOSALS = ("random_walk", "langevin")
_GOALS = {"random_walk": 0.35, "langevin": 0.574}


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
            step_size,
            goal if adapt_step_size else None,
            dense_mass,
            proposal=proposal,
            num_bridges=num_bridges,
            num_score_draws=num_score_draws,
            bridge_kernel=check_bridge_kernel("Exchange", bridge_kernel),
        )
        super().__init__(model, kernel, auxiliary)
