"""Draws from a pseudo-posterior, moved so that their spread is right to first order."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Key
from numpyro.infer import MCMC
from numpyro.infer.util import constrain_fn

from numpyro_ebm.convert import to_datatree
from numpyro_ebm.evidence.model import ModelTarget
from numpyro_ebm.evidence.settings import at_least, split_key
from numpyro_ebm.evidence.target import describe, unpack_mcmc
from numpyro_ebm.kernels.pseudolikelihood import has_pseudolikelihood
from numpyro_ebm.pseudoposterior.mode import find_mode
from numpyro_ebm.pseudoposterior.sandwich import adjusting_matrix, normality_doubts, score_doubts
from numpyro_ebm.pseudoposterior.simulation import simulated_scores

if TYPE_CHECKING:
    import xarray

_CALLER = "godambe_adjustment"


@dataclass(frozen=True, eq=False, repr=False)
class GodambeAdjustment:
    """Adjusted draws from a pseudo-posterior, and what they were adjusted by.

    Vectors and matrices are over the unconstrained values of the latent sites, flattened, in the
    order of the model.

    Attributes:
        draws: Adjusted draws by site, deterministic sites too, grouped by chain as given.
        mode: The mode of the pseudo-posterior in unconstrained space, by site.
        center: The same as an unconstrained vector.
        hessian: H, of minus the log pseudo-posterior at the mode.
        prior_hessian: The part of it that is the prior's, with the Jacobian of the transforms.
        score_variance: J, the variance of the gradient of the log pseudolikelihood at the mode.
        matrix: C, by which unconstrained deviations from the mode are multiplied.
        warnings: Reasons to doubt the adjustment; each was also issued as a ``UserWarning``.
    """

    draws: Mapping[str, np.ndarray]
    mode: Mapping[str, np.ndarray]
    center: Float64[np.ndarray, " n"]
    hessian: Float64[np.ndarray, "n n"]
    prior_hessian: Float64[np.ndarray, "n n"]
    score_variance: Float64[np.ndarray, "n n"]
    matrix: Float64[np.ndarray, "n n"]
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings

    def to_datatree(self) -> xarray.DataTree:
        """Put draws grouped by chain in a group ``posterior`` of a tree that ArviZ takes.

        For ArviZ 0.23 wrap the tree: ``az.InferenceData.from_datatree(result.to_datatree())``.
        """
        dims = {
            name: ["chain", "draw", *(f"{name}_dim_{i}" for i in range(np.ndim(value) - 2))]
            for name, value in self.draws.items()
        }
        return to_datatree({"posterior": self.draws}, dims=dims)

    def __repr__(self) -> str:
        doubts = "".join(f"\n  warning: {message}" for message in self.warnings)
        return f"GodambeAdjustment(sites={list(self.draws)}, ok={self.ok}){doubts}"


def godambe_adjustment(
    rng_key: Key[Array, ""],
    target: Any,
    draws: Mapping[str, Any] | None = None,
    *,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_simulations: int = 500,
) -> GodambeAdjustment:
    r"""Move draws from a pseudo-posterior so that their spread is right to first order.

    With :math:`\hat\theta` the mode of the pseudo-posterior in unconstrained space, H the Hessian
    of minus its logarithm there, P the part of H that is the prior's, A = H - P that of the
    pseudolikelihood, and J the variance of the gradient of the log pseudolikelihood,

    .. math:: \theta \mapsto \hat\theta + C (\theta - \hat\theta), \qquad
        C H^{-1} C^T = (A J^{-1} A + P)^{-1}.

    The pseudo-posterior has the covariance :math:`H^{-1}` near its mode; the Godambe information
    :math:`A J^{-1} A` is the precision of the maximum pseudolikelihood estimate, and takes the
    place of A beside the curvature of the prior, which stays. With a flat prior the covariance of
    the adjusted draws is :math:`H^{-1} J H^{-1} = (H J^{-1} H)^{-1}`; where the data say nothing,
    draws stay where they are. Of the many roots, C is the one that is symmetric in the metric H.

    The adjustment is approximate: it is calibrated to first order, as observations grow and the
    posterior becomes normal, as a statement about the maximum pseudolikelihood estimate, which has
    more variance than the maximum likelihood estimate. It does not move the mode, which leans too
    far to the data where the prior is informative, and its matrix is that of one point. J is
    estimated from data simulated from the model itself at the mode, all replicates of a plate
    together: by ``exact_sample`` where the distribution has it, and else by its long Gibbs chains
    (``num_sweeps`` sweeps). The gradient averages to zero over exact draws, and a warning says
    where it does not.

    Args:
        rng_key: Random key.
        target: A finished ``MCMC`` of a model made by :func:`pseudolikelihood`, or such a model.
        draws: Draws from its posterior by site, of shape ``(chain, draw, ...)`` or ``(draw, ...)``.
            An ``MCMC`` has its own.
        model_args: Arguments of the model; an ``MCMC`` has its own.
        model_kwargs: Likewise.
        num_simulations: Data sets from which J is estimated: its entries have a relative error of
            about :math:`\sqrt{2/n}`.

    Returns:
        The adjusted draws, with mode, H, J and C.

    Raises:
        TypeError: ``target`` is no such model, or draws are missing.
        ValueError: No site of the model has a pseudolikelihood; draws that do not fit; subsampled
            plates; discrete latent sites.

    Warns:
        UserWarning: The mode was not found; the draws are far from normal around it; J is
            ill-conditioned; simulated data do not look like draws from the model; the adjusted
            covariance is not positive definite.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC, NUTS
        >>> def model(spins=None):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 1))
        ...     numpyro.sample("spins", ebm.Ising.lattice((3, 4), coupling), obs=spins)
        >>> spins = ebm.Ising.lattice((3, 4), 0.3).sample(jax.random.key(0))
        >>> kernel = NUTS(ebm.pseudolikelihood(model))
        >>> mcmc = MCMC(kernel, num_warmup=200, num_samples=200, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), spins)
        >>> adjusted = ebm.godambe_adjustment(jax.random.key(2), mcmc)
        >>> adjusted.draws["coupling"].shape
        (1, 200)

    References:
        Ribatet, Cooley & Davison (2012), "Bayesian inference from composite likelihoods, with an
        application to spatial extremes", Statistica Sinica 22 (curvature adjustment); Shaby (2014),
        "The open-faced sandwich adjustment for MCMC using estimating functions", JCGS 23; Bouranis,
        Friel & Maire (2017), "Efficient Bayesian inference for exponential random graph models by
        correcting the pseudo-posterior distribution", Social Networks 50 (whose matrix matches the
        posterior itself); Varin, Reid & Firth (2011), "An overview of composite likelihood
        methods", Statistica Sinica 21.
    """
    key, _ = split_key(_CALLER, rng_key, target)
    count = at_least(_CALLER, num_simulations, 2, "num_simulations")
    model, observed, draws = _read(target, draws, model_args, model_kwargs)
    lead = _lead_of(model, draws)
    given = {name: jnp.asarray(draws[name]) for name in model.sites if name in draws}
    vectors = np.asarray(model.unconstrain(given, lead), np.float64)
    if not np.all(np.isfinite(vectors)):
        bad = int(np.sum(~np.isfinite(vectors).all(-1)))
        raise ValueError(
            f"{_CALLER}: expected finite draws; {bad} of {vectors[..., 0].size} are not finite in "
            "unconstrained space."
        )
    mode = find_mode(model, vectors.reshape(-1, vectors.shape[-1]))
    center = jnp.asarray(mode.vector, jnp.result_type(float))
    scores = simulated_scores(model, key, center, observed, count)
    variance = np.atleast_2d(np.cov(scores, rowvar=False))
    matrix, doubts = adjusting_matrix(mode.hessian, mode.prior_hessian, variance)
    deviations = (vectors - mode.vector).reshape(-1, mode.vector.size)
    shape_doubts = normality_doubts(mode.hessian, mode.prior_hessian, deviations)
    doubts = [*mode.doubts(), *shape_doubts, *score_doubts(scores), *doubts]
    for doubt in doubts:
        python_warnings.warn(f"{_CALLER}: {doubt}", UserWarning, stacklevel=2)
    moved = mode.vector + (vectors - mode.vector) @ matrix.T
    return GodambeAdjustment(
        _constrained(model, moved, lead),
        _constrained(model, mode.vector, 0),
        mode.vector,
        mode.hessian,
        mode.prior_hessian,
        variance,
        matrix,
        tuple(f"{_CALLER}: {doubt}" for doubt in doubts),
    )


# ----- reading the arguments ---------------------------------------------------------------


def _read(
    target: Any, draws: Any, model_args: Sequence[Any], model_kwargs: Mapping[str, Any] | None
) -> tuple[ModelTarget, dict[str, tuple[int, ...]], Mapping[str, Any]]:
    """The density, the shapes of the observed values, and the draws."""
    mcmc = target
    target, model_args, model_kwargs = unpack_mcmc(_CALLER, target, model_args, model_kwargs)
    if draws is None and isinstance(mcmc, MCMC):
        draws = mcmc.get_samples(group_by_chain=True)
    if not callable(target) or isinstance(target, type):
        raise TypeError(
            f"{_CALLER}: expected `target` to be a finished MCMC or a NumPyro model, made by "
            f"ebm.pseudolikelihood; got {describe(target)}."
        )
    if not isinstance(draws, Mapping):
        raise TypeError(
            f"{_CALLER}: expected `draws` from the pseudo-posterior as a dict of arrays by site, "
            f"or a finished MCMC as `target`; got {type(draws).__name__}."
        )
    model = ModelTarget(_CALLER, target, model_args, model_kwargs, needs_likelihood=False)
    if model.enumeration is not None:
        raise ValueError(f"{_CALLER}: expected no discrete latent sites, even if marked.")
    sites = {
        name: site
        for name, site in model.prototype().items()
        if site["type"] == "sample" and site["is_observed"]
    }
    if not any(has_pseudolikelihood(site) for site in sites.values()):
        raise ValueError(
            f"{_CALLER}: expected draws from the posterior of ebm.pseudolikelihood(model); no "
            f"observed site of this model has a pseudolikelihood: {sorted(sites)}."
        )
    shapes = {name: jnp.shape(s["value"]) for name, s in sites.items() if jnp.size(s["value"])}
    return model, shapes, draws


def _lead_of(model: ModelTarget, draws: Mapping[str, Any]) -> int:
    """Number of leading dimensions of draws: one, or two for chains."""
    prototype = model.prototype()
    found = {
        name: np.ndim(draws[name]) - np.ndim(prototype[name]["value"])
        for name in model.sites
        if name in draws
    }
    if found and set(found.values()) <= {1, 2} and len(set(found.values())) == 1:
        return next(iter(found.values()))
    shapes = {name: np.shape(draws[name]) for name in found}
    raise ValueError(
        f"{_CALLER}: expected `draws` of every latent site {list(model.sites)}, of shape (draw, "
        f"...) or (chain, draw, ...); got {shapes}."
    )


def _constrained(model: ModelTarget, vectors: np.ndarray, lead: int) -> dict[str, np.ndarray]:
    """Values of latent and deterministic sites from unconstrained vectors."""

    def one(vector: Float[Array, " n"]) -> dict[str, Array]:
        values = model.unravel(vector)
        return constrain_fn(
            model.model, model.args, model.kwargs, values, return_deterministic=True
        )

    for _ in range(lead):
        one = jax.vmap(one)
    values = jax.jit(one)(jnp.asarray(vectors, jnp.result_type(float)))
    return {name: np.asarray(value) for name, value in values.items()}
