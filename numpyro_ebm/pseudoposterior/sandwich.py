"""The matrix that gives a pseudo-posterior the spread of its Godambe information."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.linalg import solve_triangular

_SMALLEST_SHARE = 1e-4
"""Share of the data in the curvature below which a direction is the prior's alone."""
_LARGEST_CONDITION = 1e4
_LARGEST_SCORE = 5.0
_SMALLEST_PRECISION = 1e-6
_FEWEST_DRAWS = 100
_LARGEST_SKEW = 0.5
_LARGEST_SPREAD = 2.0

Matrix = Float64[np.ndarray, "n n"]


def adjusting_matrix(
    hessian: Matrix, prior_hessian: Matrix, score_variance: Matrix
) -> tuple[Matrix, list[str]]:
    """The matrix C of :func:`~numpyro_ebm.godambe_adjustment`, and doubts about it.

    Args:
        hessian: H.
        prior_hessian: P, the part of it that is the prior's.
        score_variance: J.
    """
    root = _root(hessian)
    if root is None:
        return np.eye(len(hessian)), ["H is not positive definite: draws are left as they are."]
    shares, axes = _known(root, hessian - prior_hessian)
    scaled = axes / np.sqrt(shares)
    ratios, turn = np.linalg.eigh(scaled.T @ _whitened(root, score_variance) @ scaled)
    doubts = _ratio_doubts(ratios)
    ratios = np.where(ratios > ratios.max(initial=0.0) / _LARGEST_CONDITION, ratios, 1.0)
    half = axes * np.sqrt(shares) @ turn
    information = half / ratios @ half.T  # J is taken as A where it is not known
    precision, basis = np.linalg.eigh(information + _whitened(root, prior_hessian))
    if precision[0] < _SMALLEST_PRECISION:
        doubts.append(
            "the adjusted precision is not positive definite (the prior is not log-concave where "
            "the data say little): draws are left as they are in those directions."
        )
    factor = 1 / np.sqrt(np.where(precision < _SMALLEST_PRECISION, 1.0, precision))
    middle = basis * factor @ basis.T
    return solve_triangular(root, middle @ root.T, lower=True, trans=1), doubts


def normality_doubts(
    hessian: Matrix, prior_hessian: Matrix, deviations: Float64[np.ndarray, "m n"]
) -> list[str]:
    """Whether draws are far from the normal distribution around the mode, where data tell."""
    root = _root(hessian)
    if root is None or len(deviations) < _FEWEST_DRAWS:
        return []
    _, axes = _known(root, hessian - prior_hessian)
    scores = deviations @ root @ axes
    mean, variance = np.abs(scores.mean(0)), scores.var(0)
    skew = mean.max(initial=0.0)
    spread = np.maximum(variance, 1 / variance).max(initial=1.0)
    if skew < _LARGEST_SKEW and spread < _LARGEST_SPREAD:
        return []
    return [
        f"the draws are far from normal around the mode (mean off by {skew:.2g} standard "
        f"deviations, variance by a factor of {spread:.2g}): an adjustment by one matrix is rough. "
        "More data, or another parametrization, makes the posterior more normal."
    ]


def score_doubts(scores: Float64[np.ndarray, "m n"]) -> list[str]:
    """Whether scores do not average to zero, as they do over exact draws."""
    spread = scores.std(0, ddof=1) / len(scores) ** 0.5
    varies = spread > 1e-6 * (1 + np.abs(scores).max(0))
    z = np.abs(scores.mean(0)[varies]) / spread[varies]
    if z.max(initial=0.0) < _LARGEST_SCORE:
        return []
    return [
        f"the score of simulated data does not average to zero ({z.max():.1f} standard errors): "
        "they are not draws from the model, so that J is wrong. Raise `num_sweeps` of the "
        "distribution."
    ]


def _root(hessian: Matrix) -> Matrix | None:
    """Cholesky factor, ``None`` where there is none."""
    try:
        return np.linalg.cholesky(hessian)
    except np.linalg.LinAlgError:
        return None


def _whitened(root: Matrix, matrix: Matrix) -> Matrix:
    """A matrix in coordinates in which H is the identity."""
    half = solve_triangular(root, matrix, lower=True)
    return solve_triangular(root, half.T, lower=True)


def _known(
    root: Matrix, data_hessian: Matrix
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "n k"]]:
    """Directions in those coordinates of which the data tell, and their share of the curvature."""
    shares, axes = np.linalg.eigh(_whitened(root, data_hessian))
    known = shares > _SMALLEST_SHARE
    return shares[known], axes[:, known]


def _ratio_doubts(ratios: Float64[np.ndarray, " k"]) -> list[str]:
    if ratios.size == 0:
        return ["the data say nothing about the parameters: draws are left as they are."]
    if ratios[0] > ratios[-1] / _LARGEST_CONDITION:
        return []
    return [
        f"J is ill-conditioned (eigenvalues relative to the curvature from {ratios[0]:.2g} to "
        f"{ratios[-1]:.2g}): draws are left as they are where it is singular. Use more simulations "
        "than parameters (`num_simulations`), or fewer parameters."
    ]
