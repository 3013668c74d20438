"""Pseudo-marginal posteriors of parameters, by unbiased estimates of 1 / Z."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike
from numpyro.infer.gibbs import GIBBS_SITES_KWARG

from numpyro_ebm.kernels.auxiliary import Method
from numpyro_ebm.kernels.bridges import check_bridge_kernel
from numpyro_ebm.kernels.intractable import causes_of
from numpyro_ebm.kernels.intractable_kernel import IntractableKernel
from numpyro_ebm.kernels.intractable_step import check_goal
from numpyro_ebm.kernels.langevin import check_count, check_positive
from numpyro_ebm.kernels.pseudo_marginal_step import PseudoMarginalStep
from numpyro_ebm.protocols import Kernel


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
            step_size,
            goal if adapt_step_size else None,
            dense_mass,
            num_particles=num_particles,
            num_bridges=num_bridges,
            bridge_kernel=check_bridge_kernel(owner, bridge_kernel),
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
