"""Log Z from below and from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, ArrayLike, Float, Float64, Key
from scipy.special import expit, logit

from numpyro_ebm.base import Kernel
from numpyro_ebm.evidence.ais import forward
from numpyro_ebm.evidence.annealing import is_reversible
from numpyro_ebm.evidence.bridging import solve_bridge
from numpyro_ebm.evidence.problem import Problem, problem_of
from numpyro_ebm.evidence.result import Evidence, warn_of
from numpyro_ebm.evidence.reverse import backward, choose_starts
from numpyro_ebm.evidence.settings import at_least, split_key
from numpyro_ebm.evidence.weights import summarize_weights

_LARGEST_Z = 4.0


@dataclass(frozen=True, eq=False, repr=False)
class Bracket(Evidence):
    """An estimate between a stochastic lower and a stochastic upper bound, in nats.

    ``diagnostics`` has ``lower`` and ``upper`` with ``lower_std_error`` and ``upper_std_error``.
    """

    def interval(self, prob: float = 0.95) -> tuple[Any, Any]:
        """From below the lower bound to above the upper, each by its own error, in nats.

        Raises:
            ValueError: ``prob`` is not between 0 and 1.
        """
        if not 0 < prob < 1:
            raise ValueError(f"Evidence.interval: expected `prob` between 0 and 1; got {prob}.")
        half, found = NormalDist().inv_cdf((1 + prob) / 2), self.diagnostics
        sides = [(found[name], half * found[f"{name}_std_error"]) for name in ("lower", "upper")]
        return float(min(x - e for x, e in sides)), float(max(x + e for x, e in sides))


def bracket(
    rng_key: Key[Array, ""],
    target: Any,
    draws: Any = None,
    *,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    base: Any = None,
    kernel: Kernel | None = None,
    num_temperatures: int = 1000,
    num_particles: int = 100,
    betas: Float[ArrayLike, " num_temperatures"] | None = None,
    schedule: Literal["linear", "sigmoid", "adaptive"] | None = None,
) -> Evidence:
    r"""Estimate log Z from below by :func:`ais` and from above by :func:`reverse_ais`.

    Forward annealing from the base is a stochastic lower bound. Reverse annealing from draws of
    the target is a stochastic upper bound if the draws are exact. Where both agree, annealing is
    slow enough for the path; where they do not, log Z is between them, as far as the draws are
    to be believed: a path with a first-order transition, for which forward annealing alone
    reports a full effective sample size and an answer that is nats too low, shows here.

    Where they agree and the kernel is reversible, the estimate is the bridge (acceptance ratio)
    of both sets of paths,

    .. math:: \frac1{n_F} \sum_F \frac{w / \hat Z}{s\, w / \hat Z + 1 - s}
        = \frac1{n_R} \sum_R \frac{1}{s\, w / \hat Z + 1 - s},

    with the importance weight w of a path and s the share of reverse paths; otherwise the middle.
    Where they disagree, half their distance is the standard error.

    Args:
        rng_key: Random key.
        target: As in :func:`ais`.
        draws: Draws from the target, as in :func:`reverse_ais`.
        model_args: Arguments of the model; an ``MCMC`` has its own.
        model_kwargs: Likewise.
        base: As in :func:`ais`.
        kernel: As in :func:`ais`.
        num_temperatures: As in :func:`ais`.
        num_particles: Number of particles each way; upwards no more than there are draws.
        betas: As in :func:`ais`.
        schedule: As in :func:`ais`.

    Returns:
        Log Z in nats, with ``diagnostics`` ``lower``, ``upper``, ``gap`` (upper minus lower) in
        nats, ``lower_std_error``, ``upper_std_error``, ``lower_ess``, ``upper_ess``;
        ``interval`` covers both bounds.

    Raises:
        TypeError: As in :func:`reverse_ais`.
        ValueError: As in :func:`reverse_ais`.
        NormalizerError: Log Z of an energy-based site of the model is unknown.

    Warns:
        EvidenceWarning: The bounds disagree by more than their errors allow, or as in :func:`ais`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> rbm = ebm.RBM(0.3 * jnp.ones((4, 3)), jnp.zeros(4), -jnp.ones(3))
        >>> draws = rbm.sample(jax.random.key(0), (100,))  # exact for an RBM this small
        >>> found = ebm.evidence.bracket(jax.random.key(1), rbm, draws, num_temperatures=200)
        >>> low, high = found.interval(0.999)
        >>> bool(low < ebm.evidence.exact(rbm).log_evidence < high)
        True

    References:
        Grosse, Ghahramani & Adams (2015), "Sandwiching the marginal likelihood using bidirectional
        Monte Carlo", section 3; Bennett (1976), "Efficient estimation of free energy differences
        from Monte Carlo data", J. Comput. Phys. 22; Crooks (2000), "Path-ensemble averages in
        systems driven far from equilibrium", Phys. Rev. E 61 (the acceptance ratio over paths).
    """
    count = at_least("bracket", num_particles, 1, "num_particles")
    key_path, key_up, key_down = split_key("bracket", rng_key, target, 3)
    problem = problem_of(
        "bracket", target, model_args, model_kwargs, base=base, kernel=kernel, rng_key=key_path
    )
    starts = choose_starts(problem, target, draws, None, at_most=count)
    problem, temperatures = problem.tuned(key_path, betas, schedule, num_temperatures)
    lower = forward(problem, key_up, temperatures, count, issue=False)
    upper = backward(problem, key_down, temperatures, starts)
    evidence = combine(problem, lower, upper)
    warn_of(evidence.warnings, 3)
    return evidence


def combine(problem: Problem, lower: Evidence, upper: Evidence) -> Bracket:
    """Both bounds, and the best estimate that they allow."""
    gap = upper.log_evidence - lower.log_evidence
    allowed = _LARGEST_Z * float(np.hypot(lower.std_error, upper.std_error))
    estimate, error = lower.log_evidence + gap / 2, float(np.hypot(gap / 2, allowed / _LARGEST_Z))
    sides = (("forward", lower), ("reverse", upper))
    doubts = [
        f"bracket, {name}: {doubt.partition(': ')[2]}"
        for name, side in sides
        for doubt in side.warnings
    ]
    agree = bool(np.abs(gap) <= allowed)
    if agree and is_reversible(problem.kernel, problem.path.at(0.5)):
        estimate, error = _bridge(lower, upper)
    elif agree:
        error = allowed / _LARGEST_Z / 2
    elif gap > 0:
        doubts.append(
            f"bracket: the bounds are {gap:.2f} nats apart, more than their errors "
            f"({allowed / _LARGEST_Z:.2f} together) allow: annealing is too fast, or the path has "
            "a barrier that only one direction feels. Believe the interval, not the estimate; use "
            "more temperatures or another base."
        )
    else:
        doubts.append(
            f"bracket: the upper bound is {-gap:.2f} nats below the lower, more than their errors "
            f"({allowed / _LARGEST_Z:.2f} together) allow: the draws are not from the target. Run "
            "their chains for longer, or use exact draws."
        )
    diagnostics = {
        "lower": lower.log_evidence,
        "upper": upper.log_evidence,
        "gap": gap,
        "lower_std_error": lower.std_error,
        "upper_std_error": upper.std_error,
        "lower_ess": lower.diagnostics["ess"],
        "upper_ess": upper.diagnostics["ess"],
        "num_non_finite": sum(side.diagnostics["num_non_finite"] for _, side in sides),
    }
    return Bracket(
        float(estimate),
        float(error),
        "bracket",
        diagnostics=diagnostics,
        warnings=tuple(doubts),
        betas=lower.betas,
        log_z0=lower.log_z0,
        data_hash=lower.data_hash,
    )


def _bridge(lower: Evidence, upper: Evidence) -> tuple[float, float]:
    """Acceptance-ratio estimate over paths of both directions, and its standard error."""
    other, down = np.asarray(lower.log_weights), np.asarray(upper.log_weights)
    other, down = np.where(np.isfinite(other), other, -np.inf), down[np.isfinite(down)]
    own, independent = -down, summarize_weights(down, "", "").std_error
    widening = float(upper.std_error) / independent if independent > 0 else 1.0
    share = own.size / (own.size + other.size)
    log_ratio = solve_bridge(own, other, share)
    above = expit(other - log_ratio + logit(share)) / share
    below = expit(log_ratio - own - logit(share)) / (1 - share)
    own_error = max(1.0, widening) * _relative_error(below)
    return lower.log_z0 + log_ratio, float(np.hypot(_relative_error(above), own_error))


def _relative_error(values: Float64[np.ndarray, " num"]) -> float:
    """Standard error of a mean of independent values, over the mean."""
    if values.size < 2:
        return float("nan")
    return float(values.std(ddof=1) / values.size**0.5 / values.mean())
