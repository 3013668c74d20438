"""Bridge sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Array, Key
from numpyro.distributions import Distribution

from numpyro_ebm.evidence.bridging import Run, evidence_of, repetition_keys
from numpyro_ebm.evidence.chains import ess_of
from numpyro_ebm.evidence.posterior import as_posterior
from numpyro_ebm.evidence.proposal import fit_proposal
from numpyro_ebm.evidence.result import Evidence

_REMEDY = 'Try proposal="warp3" or a fitted flow.'
_DISCRETE_REMEDY = "Pass as `proposal` a function that fits a nearer distribution, or use ais."


def bridge(
    rng_key: Key[Array, ""],
    target: Any,
    draws: Any = None,
    *,
    proposal: Literal["normal", "student_t", "warp3"]
    | Distribution
    | Callable[[Array], Distribution] = "normal",
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_proposals: int | None = None,
    num_repetitions: int = 1,
) -> Evidence:
    r"""Estimate the log evidence by bridge sampling from posterior draws.

    With :math:`\tilde p` the unnormalized density of the posterior in unconstrained space and g a
    normalized proposal, the estimate r of the evidence solves

    .. math:: \frac{s_1}{N_1} \sum_{i=1}^{N_1}
        \frac{s_2\, r\, g(u_i)}{s_1 \tilde p(u_i) + s_2\, r\, g(u_i)}
        = \frac{s_2}{N_2} \sum_{j=1}^{N_2}
        \frac{s_1 \tilde p(\tilde u_j)}{s_1 \tilde p(\tilde u_j) + s_2\, r\, g(\tilde u_j)}

    with :math:`u_i` draws from the posterior, :math:`\tilde u_j` from the proposal,
    :math:`s_1 = \mathrm{ESS} / (\mathrm{ESS} + N_2)`, :math:`s_2 = 1 - s_1`. One side rises and
    the other falls in log r, so a bracketing root finder cannot stop early. The proposal is fitted
    to the first half of each chain, and the second halves estimate. The standard error is that of
    the delta method with the autocorrelation of the chains. It knows only of what the chains have
    visited: compare with an estimate that starts from the prior (:func:`cross_check`) to find a
    mode that all of them missed. Models are evaluated in JAX's present precision; a warning says
    where float32 is not enough (``numpyro.enable_x64()`` before anything else gives float64).

    Args:
        rng_key: Random key.
        target: A NumPyro model, a finished ``MCMC``, or an energy-based distribution.
        draws: Posterior draws: by site, values of shape ``(chain, draw, ...)``; for an energy-based
            distribution an array ``(chain, draw, ...)`` or ``(draw, ...)``. An ``MCMC`` has its
            own.
        proposal: ``"normal"``, ``"student_t"`` (5 degrees of freedom) or ``"warp3"`` (the posterior
            standardized and made symmetric, against a standard normal), each fitted to the first
            halves; a NumPyro distribution over the unconstrained vector (a flow, ``guide
            .get_posterior(params)``), or a function that fits one to draws ``(n, dim)``. For
            discrete units ``"normal"`` stands for independent units at their base rates.
        model_args: Arguments of the model; an ``MCMC`` has its own.
        model_kwargs: Likewise.
        num_proposals: Draws from the proposal, as many as posterior draws by default.
        num_repetitions: How often the proposal is drawn from afresh; estimates are averaged.

    Returns:
        The log evidence in nats. ``diagnostics``: ``ess`` and ``rhat`` (the worst over the
        unconstrained coordinates), ``overlap`` (1 where posterior and proposal are equal),
        ``pareto_k_posterior``, ``pareto_k_proposal``, ``num_draws``, ``num_proposals``.

    Raises:
        TypeError: ``target`` is none of these, or draws are missing.
        ValueError: The model has no latent sites, subsampled plates or discrete sites that are not
            summed out; too few draws; a proposal of the wrong dimension.
        NormalizerError: Log Z of an energy-based site of the model is unknown.

    Warns:
        EvidenceWarning: Chains disagree or are short, little overlap, heavy tails, a large error.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC, NUTS
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=1000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.array(0.5))
        >>> found = ebm.evidence.bridge(jax.random.key(1), mcmc)
        >>> truth = dist.Normal(0, jnp.sqrt(2.0)).log_prob(0.5)
        >>> bool(abs(found.log_evidence - truth) < 4 * found.std_error)
        True

    References:
        Meng & Wong (1996), "Simulating ratios of normalizing constants via a simple identity",
        Statistica Sinica 6, section 3; Meng & Schilling (2002), "Warp bridge sampling"; Gronau et
        al. (2017), "A tutorial on bridge sampling", J. Math. Psych. 81; Fruhwirth-Schnatter (2004),
        "Estimating marginal likelihoods for mixture and Markov switching models using bridge
        sampling techniques", eq. 16; Micaletto & Vehtari (2025), "Bridge sampling diagnostics".
    """
    posterior = as_posterior("bridge", target, draws, model_args, model_kwargs)
    fitted, kept = posterior.halves()
    density = fit_proposal("bridge", proposal, fitted, posterior)
    own = density.log_ratio(kept)
    runs = [
        Run.of(density, key, own, ess_of(kept), num_proposals or own.size)
        for key in repetition_keys("bridge", rng_key, num_repetitions)
    ]
    remedy = _REMEDY if posterior.states is None else _DISCRETE_REMEDY
    return evidence_of("bridge", runs, own, posterior, kept, remedy)
