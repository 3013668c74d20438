"""The bridge equation, its error bar, and whether to believe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float64, Key
from scipy.optimize import brentq
from scipy.special import expit, logit

from numpyro_ebm.convert import pareto_k
from numpyro_ebm.evidence.chains import ess_of, rhat_of, standard_error_of_mean
from numpyro_ebm.evidence.posterior import Posterior, rounding
from numpyro_ebm.evidence.proposal import Proposal
from numpyro_ebm.evidence.result import Evidence, warn_of

_LARGEST_RHAT = 1.05
_SMALLEST_ESS = 100.0
_SMALLEST_OVERLAP = 0.02
_LARGEST_PARETO_K = 0.7
_LARGEST_ERROR = 0.5
_SMALL = 1e-3


class Run(NamedTuple):
    """One solution of the bridge equation.

    Attributes:
        log_evidence: Its root, in nats.
        std_error: From both samples.
        other: Log ratios at the proposal's draws.
        overlap: Expectation under g of the posterior over the mixture of both.
    """

    log_evidence: float
    std_error: float
    other: Float64[np.ndarray, " m"]
    overlap: float

    @classmethod
    def of(
        cls,
        density: Proposal,
        rng_key: Key[Array, ""],
        own: Float64[np.ndarray, "chain draw"],
        size: float,
        num_proposals: int,
    ) -> Run:
        """Draw from the proposal and solve.

        Args:
            density: Proposal and posterior.
            rng_key: Random key.
            own: Log ratios at posterior draws.
            size: Effective number of posterior draws.
            num_proposals: Number of proposal draws.
        """
        other = density.sample_log_ratio(rng_key, num_proposals)
        other = np.where(np.isfinite(other), other, -np.inf)
        share = size / (size + num_proposals)
        log_r = solve_bridge(own, other, share)
        above = expit(other - log_r + logit(share)) / share  # p over the mixture, at draws from g
        below = expit(log_r - own - logit(share)) / (1 - share)  # g over it, at draws from p
        errors = (
            above.std(ddof=1) / above.size**0.5 / above.mean(),
            standard_error_of_mean(below) / below.mean(),
        )
        return cls(log_r, float(np.hypot(*errors)), other, float(below.mean()))


def solve_bridge(
    own: Float64[np.ndarray, "..."], other: Float64[np.ndarray, "..."], share: float
) -> float:
    """Root of the bridge equation in log r, in nats.

    Args:
        own: Log ratios of the two unnormalized densities at draws from the first.
        other: The same at draws from the second.
        share: Weight of the first sample, between 0 and 1.
    """

    def excess(log_r: float) -> float:
        first = share * expit(log_r - own - logit(share)).mean()
        second = (1 - share) * expit(other - log_r + logit(share)).mean()
        return first - second

    finite = np.concatenate([own[np.isfinite(own)].ravel(), other[np.isfinite(other)].ravel()])
    low, high = finite.min() - 50.0, finite.max() + 50.0
    return float(brentq(excess, low, high, xtol=1e-12, rtol=8.9e-16, maxiter=500))


def evidence_of(
    method: str,
    runs: list[Run],
    own: Float64[np.ndarray, "chain draw"],
    posterior: Posterior,
    kept: np.ndarray,
    remedy: str,
    reported: Mapping[str, Any] | None = None,
    further: Sequence[str] = (),
) -> Evidence:
    """Average over repetitions, with diagnostics and warnings.

    Args:
        method: Name of the estimator.
        runs: Solutions of the bridge equation.
        own: Log ratios at posterior draws.
        posterior: Draws and density.
        kept: The draws that ``own`` belongs to.
        remedy: What a user can do about little overlap.
        reported: Other diagnostics.
        further: Other reasons to doubt the result.
    """
    estimates = np.array([run.log_evidence for run in runs])
    other = np.concatenate([run.other for run in runs])
    diagnostics: dict[str, Any] = {
        "ess": ess_of(kept),
        "rhat": rhat_of(posterior.vectors),
        "overlap": float(np.mean([run.overlap for run in runs])),
        "pareto_k_posterior": pareto_k(-own.ravel()),
        "pareto_k_proposal": pareto_k(other),
        "num_draws": own.size,
        "num_proposals": other.size,
        "num_non_finite": int(np.sum(~np.isfinite(other))),
        "rounding": rounding(posterior.target, own),
    }
    diagnostics.update(reported or {})
    if len(runs) > 1:
        diagnostics["repetitions"] = estimates
    error = float(np.mean([run.std_error for run in runs]))
    found = [*_doubts(diagnostics, error, remedy), *further]
    doubts = tuple(f"{method}: {doubt}" for doubt in found)
    warn_of(doubts, 4)
    return Evidence(
        float(estimates.mean()),
        error,
        method,
        diagnostics=diagnostics,
        warnings=doubts,
        data_hash=posterior.data_hash,
    )


def _doubts(found: Mapping[str, Any], error: float, remedy: str) -> list[str]:
    doubts = []
    if not found["rhat"] < _LARGEST_RHAT:
        doubts.append(
            f"the chains disagree (R-hat {found['rhat']:.3g}, above {_LARGEST_RHAT}): the draws "
            "are not from the posterior, and the error bar does not know. Run them for longer."
        )
    if found["ess"] < _SMALLEST_ESS:
        doubts.append(
            f"the effective sample size is {found['ess']:.0f}, below {_SMALLEST_ESS:.0f}: the "
            "error bar is itself uncertain. Run longer chains."
        )
    if found["overlap"] < _SMALLEST_OVERLAP:
        doubts.append(
            f"posterior and proposal hardly overlap ({found['overlap']:.2g}, 1 if equal): few "
            f"draws decide. {remedy}"
        )
    for side in ("posterior", "proposal"):
        if found[f"pareto_k_{side}"] > _LARGEST_PARETO_K and found["overlap"] < 0.5:
            doubts.append(
                f"ratios at {side} draws have a heavy tail (Pareto k "
                f"{found[f'pareto_k_{side}']:.2f}): the proposal is far from the posterior there. "
                f"{remedy}"
            )
    if found["rounding"] > max(_SMALL, error / 4):
        doubts.append(
            f"log densities in float32 are rounded to {found['rounding']:.2g} nats. Call "
            "numpyro.enable_x64() at the start of the program."
        )
    if not error < _LARGEST_ERROR:
        doubts.append(f"the standard error is {error:.2f} nats. Use more draws.")
    return doubts


def repetition_keys(caller: str, rng_key: Key[Array, ""], num_repetitions: int) -> list[Any]:
    """A key for each repetition.

    Raises:
        ValueError: ``num_repetitions`` is not a positive integer.
    """
    if not isinstance(num_repetitions, int) or num_repetitions < 1:
        raise ValueError(
            f"{caller}: expected `num_repetitions` to be a positive integer; got "
            f"{num_repetitions!r}."
        )
    return list(jax.random.split(rng_key, num_repetitions))
