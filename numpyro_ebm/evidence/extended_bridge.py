"""Bridge sampling where the likelihood has an unknown log Z."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float64, Key
from numpyro.distributions import Distribution
from numpyro.infer import MCMC

from numpyro_ebm.base import EnergyDistribution, Kernel
from numpyro_ebm.evidence.bridging import Run, evidence_of, repetition_keys
from numpyro_ebm.evidence.chains import ess_of
from numpyro_ebm.evidence.parameter_path import ParameterPaths, parameter_paths
from numpyro_ebm.evidence.posterior import Posterior, as_posterior
from numpyro_ebm.evidence.proposal import Proposal, fit_proposal
from numpyro_ebm.evidence.result import Evidence
from numpyro_ebm.evidence.settings import at_least, check_kernel, split_key
from numpyro_ebm.evidence.target import describe, unpack_mcmc
from numpyro_ebm.kernels.intractable import Unnormalized

_CALLER = "extended_bridge"
_REMEDY = "Use more temperatures (`num_temperatures`), or another `proposal`."
_NUM_SPREAD = 32
_LARGEST_SPREAD = 1.5


def extended_bridge(
    rng_key: Key[Array, ""],
    target: Any,
    draws: Mapping[str, Any] | None = None,
    *,
    proposal: Literal["normal", "student_t"]
    | Distribution
    | Callable[[Array], Distribution] = "normal",
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_temperatures: int = 100,
    num_sweeps: int = 1,
    num_proposals: int | None = None,
    num_repetitions: int = 1,
    kernel: Kernel | None = None,
    auxiliary: Any = None,
) -> Evidence:
    r"""Estimate the log evidence of a model whose likelihood has an unknown log Z.

    The observed energy-based sites have the likelihood
    :math:`f(y; \theta) / Z(\theta)^N` with N replicates. Annealed importance sampling from a base
    of known :math:`Z_0` up to the model gives a weight v with :math:`E[v] = Z(\theta) / Z_0`;
    down from an exact draw of the model, by the adjoints of the same moves, it gives a weight w
    with :math:`E[w] = Z_0 / Z(\theta)`. On the space of parameters and N such paths
    :math:`\xi \sim r(\xi \mid \theta)` downward, the density

    .. math:: p(\theta)\, f(y; \theta) \prod_{n=1}^N \frac{w_n}{Z_0}\; r(\xi \mid \theta)

    integrates to the evidence p(y), and given :math:`\theta` its paths are those that go up. So
    bridge sampling (:func:`bridge`) runs between draws from the posterior, each with paths up, and
    draws from a proposal g, each with paths down, on the log ratios

    .. math:: \log p(\theta) + \log f(y; \theta) - \sum_n \log \hat Z_n - \log g(\theta), \qquad
        \hat Z_n = Z_0 v_n \text{ or } Z_0 / w_n .

    The ratio is estimated consistently for any number of temperatures; few of them cost overlap,
    which the standard error knows. It needs draws from the posterior itself (:class:`Exchange`
    with perfect sampling, or NUTS with ``normalizer="exact"``): pseudo-posteriors and double
    Metropolis-Hastings bias it, as do auxiliary draws that are not exact, of which a warning
    tells. Where log Z can be summed, :func:`bridge` with ``normalizer="exact"`` is exact in Z and
    cheaper.

    Args:
        rng_key: Random key.
        target: A NumPyro model, or a finished ``MCMC``.
        draws: Posterior draws by site, of shape ``(chain, draw, ...)``. An ``MCMC`` has its own.
        proposal: ``"normal"`` or ``"student_t"``, fitted to the first halves of the chains; a
            NumPyro distribution over the unconstrained vector, or a function that fits one.
        model_args: Arguments of the model; an ``MCMC`` has its own.
        model_kwargs: Likewise.
        num_temperatures: Inverse temperatures of a path, base and model included. The spread of
            the estimate of log Z falls with their square root; more replicates need more.
        num_sweeps: Moves at each of them.
        num_proposals: Draws from the proposal, as many as posterior draws by default.
        num_repetitions: How often the proposal is drawn from afresh; estimates are averaged.
        kernel: Moves of the paths, which must be reversible; by default the models' own Gibbs
            sweeps, and downward their adjoints.
        auxiliary: How the model is drawn at proposed parameters, as in :class:`Exchange`:
            ``kernels.ExactDraws()``, ``kernels.CouplingFromThePast()`` or
            ``kernels.AuxiliaryChain(num_steps)``; by default the best exact method there is, and
            otherwise a chain of 1000 steps from the data.

    Returns:
        The log evidence in nats. ``diagnostics``: those of :func:`bridge`, and ``log_z_spread``,
        the standard deviation of the estimate of the sum of log Z at the centre of the posterior.

    Raises:
        TypeError: ``target`` is neither, or draws are missing.
        ValueError: No energy-based site has an unknown log Z; one is scaled or has no path; moves
            without a known time reversal; as in :func:`bridge`.
        CoalescenceError: Coupling from the past does not end at proposed parameters.

    Warns:
        EvidenceWarning: As in :func:`bridge`; auxiliary draws that are not exact; too few
            temperatures.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC, NUTS
        >>> def model(spins, normalizer="guard"):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 0.3))
        ...     ising = ebm.Ising.lattice((3, 3), coupling, normalizer=normalizer)
        ...     numpyro.sample("spins", ising, obs=spins)
        >>> spins = ebm.Ising.lattice((3, 3), 0.2).sample(jax.random.key(0))
        >>> mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=800, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), spins, normalizer="exact")
        >>> truth = ebm.evidence.bridge(jax.random.key(2), mcmc).log_evidence
        >>> draws = mcmc.get_samples(group_by_chain=True)
        >>> found = ebm.evidence.extended_bridge(
        ...     jax.random.key(3), model, draws, model_args=(spins,), num_temperatures=20
        ... )
        >>> bool(abs(found.log_evidence - truth) < 4 * found.std_error)
        True

    References:
        Meng & Wong (1996), "Simulating ratios of normalizing constants via a simple identity",
        Statistica Sinica 6, section 3; Neal (2001), "Annealed importance sampling", Statistics and
        Computing 11; Murray, Ghahramani & MacKay (2006), "MCMC for doubly-intractable
        distributions", UAI (paths between models); Friel (2013), "Evidence and Bayes factor
        estimation for Gibbs random fields", JCGS 22 (the same quantity by other means).
    """
    key_paths, key_own, key_runs = split_key(_CALLER, rng_key, target, 3)
    posterior, program = _read(target, draws, model_args, model_kwargs)
    betas = np.linspace(0.0, 1.0, at_least(_CALLER, num_temperatures, 2, "num_temperatures"))
    at_least(_CALLER, num_sweeps, 1, "num_sweeps")
    check_kernel(_CALLER, kernel)
    fitted, kept = posterior.halves()
    if isinstance(proposal, str) and proposal == "warp3":
        raise ValueError(
            f"{_CALLER}: expected `proposal` to be 'normal', 'student_t', a distribution or a "
            "function that fits one; got 'warp3', whose mirror images have no paths."
        )
    near = fit_proposal(_CALLER, proposal, fitted, posterior)
    paths = parameter_paths(
        _CALLER, key_paths, program, posterior.target, fitted, kernel, betas, num_sweeps, auxiliary
    )
    density = ExtendedProposal(posterior, near.distribution, paths)
    log_z, spread = _log_z_upward(paths, key_own, kept)
    own = density.log_ratio(kept) - log_z
    runs = [
        Run.of(density, key, own, ess_of(kept), num_proposals or own.size)
        for key in repetition_keys(_CALLER, key_runs, num_repetitions)
    ]
    reported = {"log_z_spread": spread, "exact_draws": paths.is_exact}
    doubts = [*paths.doubts(), *_spread_doubts(spread)]
    return evidence_of(_CALLER, runs, own, posterior, kept, _REMEDY, reported, doubts)


class ExtendedProposal(Proposal):
    """A proposal for the parameters, with paths down from draws of the model.

    Args:
        posterior: Draws and density, without log Z.
        distribution: g, over vectors.
        paths: Estimates of log Z.
    """

    def __init__(
        self, posterior: Posterior, distribution: Distribution, paths: ParameterPaths
    ) -> None:
        super().__init__(posterior, distribution)
        self.paths = paths

    def sample_log_ratio(self, rng_key: Key[Array, ""], num: int) -> Float64[np.ndarray, " num"]:
        """Log ratios at fresh draws from the proposal, in nats."""
        key_draw, key_paths = jax.random.split(rng_key)
        drawn = self.draw(key_draw, num)
        return self.log_ratio(drawn) - self.paths.log_z_downward(key_paths, drawn)


def _read(
    target: Any, draws: Any, model_args: Sequence[Any], model_kwargs: Mapping[str, Any] | None
) -> tuple[Posterior, Callable[[], Any]]:
    """Draws with the density without log Z, and the model with its arguments."""
    mcmc = target
    target, model_args, model_kwargs = unpack_mcmc(_CALLER, target, model_args, model_kwargs)
    if isinstance(target, EnergyDistribution) or not callable(target):
        raise TypeError(
            f"{_CALLER}: expected `target` to be a NumPyro model or a finished MCMC; got "
            f"{describe(target)}. Log Z of a distribution is estimated by ebm.evidence.bridge or "
            "ais."
        )
    if draws is None and isinstance(mcmc, MCMC):
        draws = mcmc.get_samples(group_by_chain=True)
    posterior = as_posterior(_CALLER, Unnormalized(target), draws, model_args, model_kwargs)

    def program() -> Any:
        return target(*model_args, **(model_kwargs or {}))

    return posterior, program


def _log_z_upward(
    paths: ParameterPaths, rng_key: Key[Array, ""], vectors: Float64[np.ndarray, "chain draw n"]
) -> tuple[Float64[np.ndarray, "chain draw"], float]:
    """Estimates of log Z at draws, and their standard deviation at the centre."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    centre = np.broadcast_to(paths.centre, (_NUM_SPREAD, flat.shape[1]))
    found = paths.log_z_upward(rng_key, np.concatenate([flat, centre]))
    return found[: len(flat)].reshape(vectors.shape[:-1]), float(found[len(flat) :].std(ddof=1))


def _spread_doubts(spread: float) -> list[str]:
    if spread < _LARGEST_SPREAD:
        return []
    return [
        f"estimates of log Z at the same parameters spread by {spread:.2g} nats, so that few paths "
        "decide. Use more temperatures (`num_temperatures`)."
    ]
