"""Weights and path of an evidence estimate."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from numpyro_ebm.convert import pareto_k
from numpyro_ebm.plots.figure import figure_and_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_BODY, _ESTIMATE = "#31688e", "#d1495b"


def plot_log_weights(
    evidence: Any, *, num_bins: int | None = None, ax: "Axes | None" = None
) -> "Figure | SubFigure":
    """Draw the histogram of the log importance weights behind an evidence estimate.

    The line marks their log-mean-exp, the estimate they make. Where it lies far out in the right
    tail a few weights decide it; the effective sample size and the Pareto shape k (trouble above
    0.7) in the title say so in numbers.

    Args:
        evidence: A result with `log_weights` of shape (n,) in nats, `method` and `diagnostics`.
        num_bins: Number of bins; by default it grows with the square root of n, 10 to 60.
        ax: Axes to draw into.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `evidence` has no log-weights, or none that is finite.

    Example:
        >>> from types import SimpleNamespace
        >>> log_weights = np.random.default_rng(0).normal(size=500)
        >>> diagnostics = {"ess": 200.0, "pareto_k": 0.4}
        >>> evidence = SimpleNamespace(
        ...     log_weights=log_weights, diagnostics=diagnostics, method="ais"
        ... )
        >>> plot_log_weights(evidence).axes[0].get_title()
        'ais: effective sample size 200 of 500, Pareto k 0.40'

    References:
        A. Vehtari, D. Simpson, A. Gelman, Y. Yao and J. Gabry (2024), "Pareto smoothed importance
        sampling", JMLR 25(72).
    """
    stored = getattr(evidence, "log_weights", None)
    if stored is None or np.size(stored) == 0:
        raise ValueError(
            "plot_log_weights: expected `evidence` with log-weights; those of method "
            f"{evidence.method!r} have none."
        )
    log_weights = np.asarray(stored, dtype=np.float64)
    finite = log_weights[np.isfinite(log_weights)]
    if finite.size == 0:
        raise ValueError(f"plot_log_weights: none of {log_weights.size} log-weights is finite.")
    figure, ax = figure_and_axes(ax, (6.4, 3.8), "plot_log_weights")
    bins = num_bins or int(np.clip(2 * finite.size**0.5, 10, 60))
    ax.hist(finite, bins=bins, color=_BODY, alpha=0.85, edgecolor="white", linewidth=0.5)
    estimate = _log_mean_exp(log_weights[:, None])[0].item()
    ax.axvline(estimate, color=_ESTIMATE, linewidth=2, label=f"log-mean-exp {estimate:.2f}")
    if finite.size < log_weights.size:
        ax.plot([], [], " ", label=f"{log_weights.size - finite.size} not finite, not drawn")
    known = evidence.diagnostics
    ess = known["ess"] if "ess" in known else _effective_sample_size(log_weights)
    k = known["pareto_k"] if "pareto_k" in known else pareto_k(log_weights)
    ax.set_title(
        f"{evidence.method}: effective sample size {ess:.0f} of {log_weights.size}, "
        f"Pareto k {k:.2f}"
    )
    ax.set(xlabel="log weight (nats)", ylabel="particles")
    _tidy(ax)
    return figure


def plot_trajectory(
    evidence: Any, *, num_paths: int = 20, ax: "Axes | None" = None
) -> "Figure | SubFigure":
    """Draw how annealed importance sampling climbs from the base to the target.

    At each inverse temperature the line is log Z(beta), the log-mean-exp of the weights up to
    there plus log Z at beta = 0, in a band of two standard errors to either side (delta method:
    the standard error of the mean weight over the mean weight). The thin lines are the cumulative
    log-weights of single particles: where they fan out, the path needs more temperatures.

    Args:
        evidence: A result with `trajectory` of shape (num_particles, num_temperatures), `betas`
            of shape (num_temperatures,), `log_z0`, `log_evidence`, `std_error` (all but `betas`
            in nats) and `method`.
        num_paths: Most particles to draw, the first ones; 0 for none.
        ax: Axes to draw into.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `evidence` has no trajectory, or one that does not fit `betas`.

    Example:
        >>> from types import SimpleNamespace
        >>> steps = np.random.default_rng(0).normal(0.01, 0.1, size=(50, 99))
        >>> evidence = SimpleNamespace(
        ...     trajectory=np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1),
        ...     betas=np.linspace(0, 1, 100), log_z0=5.0,
        ...     log_evidence=6.3, std_error=0.1, method="ais",
        ... )
        >>> plot_trajectory(evidence).axes[0].get_title()
        'ais: log evidence 6.30 ± 0.10 nats'

    References:
        R. M. Neal (2001), "Annealed importance sampling", Statistics and Computing 11, section 2.
    """
    if getattr(evidence, "trajectory", None) is None:
        raise ValueError(
            "plot_trajectory: expected `evidence` with a trajectory; this result of method "
            f"{evidence.method!r} kept none."
        )
    trajectory = np.asarray(evidence.trajectory, dtype=np.float64)
    betas = np.asarray(evidence.betas, dtype=np.float64)
    if trajectory.ndim != 2 or not trajectory.size or betas.shape != trajectory.shape[1:]:
        raise ValueError(
            "plot_trajectory: expected `trajectory` of shape (num_particles, num_temperatures) "
            f"with as many `betas`; got {trajectory.shape} and {betas.shape}."
        )
    figure, ax = figure_and_axes(ax, (6.4, 4.2), "plot_trajectory")
    mean, error = _log_mean_exp(trajectory)
    log_z = mean + evidence.log_z0
    paths = trajectory[:num_paths].T + evidence.log_z0
    ax.plot(betas, paths, color="0.6", linewidth=0.5, alpha=0.6)
    ax.plot([], [], color="0.6", linewidth=0.8, label=f"{paths.shape[1]} particles")
    low, high = log_z - 2 * error, log_z + 2 * error
    ax.fill_between(betas, low, high, color=_BODY, alpha=0.3, linewidth=0, label="± 2 se")
    ax.plot(betas, log_z, color=_BODY, linewidth=1.8, label="log Z(β)")
    ax.set_title(
        f"{evidence.method}: log evidence {evidence.log_evidence:.2f} ± "
        f"{evidence.std_error:.2f} nats"
    )
    ax.set(xlabel="inverse temperature β", ylabel="log Z(β) (nats)")
    ax.set_xlim(betas.min(), betas.max())
    _tidy(ax)
    return figure


def _log_mean_exp(
    log_weights: Float64[np.ndarray, "num_particles num_temperatures"],
) -> tuple[Float64[np.ndarray, " num_temperatures"], Float64[np.ndarray, " num_temperatures"]]:
    """Log of the mean weight over the particles, and its standard error by the delta method."""
    largest = log_weights.max(axis=0)
    degrees = np.float64(len(log_weights) - 1)  # 0 / 0: one particle has no standard error
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.exp(log_weights - largest)
        mean = weights.mean(axis=0)
        deviation = np.sqrt(((weights - mean) ** 2).sum(axis=0) / degrees)
        return largest + np.log(mean), deviation / (np.sqrt(len(weights)) * mean)


def _effective_sample_size(log_weights: Float64[np.ndarray, " n"]) -> float:
    """Kish's effective number of equally weighted particles."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (weights**2).sum())


def _tidy(ax: "Axes") -> None:
    """Drop the box, keep the legend off the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
