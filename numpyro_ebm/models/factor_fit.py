"""Maximum likelihood of probabilistic PCA and factor analysis: closed form and EM, in float64."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64

from numpyro_ebm.models.factor_em import LinearParams, Statistics, run

_SMALLEST_NOISE = {False: 1e-6, True: 1e-14}
"""Least share of the variance that is left to noise: of a column, or of all columns together."""

_ROWS_AT_A_TIME = 512


class FitWarning(UserWarning):
    """Doubt about fitted parameters."""


class FactorFit(NamedTuple):
    """Parameters fitted by expectation maximization.

    Attributes:
        params: Parameters by name.
        log_likelihood: Mean log-likelihood of a row in nats, at the start and after every
            iteration.
        num_iterations: Number of iterations.
        converged: Whether the gain has fallen below the tolerance.
        heywood: Columns whose noise has vanished (kept at 1e-6 of their variance).
    """

    params: dict[str, Array]
    log_likelihood: Float64[np.ndarray, " iterations"]
    num_iterations: int
    converged: bool
    heywood: tuple[int, ...]


def check_table(owner: str, data: Any, mask: Any, num_visible: int) -> tuple[np.ndarray, Any]:
    """Return rows in float64, 0 where they are missing, and the mask.

    Raises:
        ValueError: Shapes do not fit, entries are not finite, or a column has none.
    """
    table = np.asarray(data, np.float64)
    if table.ndim != 2 or table.shape[1] != num_visible or len(table) < 2:
        raise ValueError(
            f"{owner}: expected `data` of shape (rows, {num_visible}) with at least two rows; got "
            f"{table.shape}."
        )
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != table.shape or mask.dtype != bool:
            raise ValueError(
                f"{owner}: expected a boolean `mask` of the shape {table.shape} of `data`, True "
                f"where an entry is observed; got {mask.dtype} of shape {mask.shape}."
            )
        empty = np.flatnonzero(mask.sum(0) < 2)
        if empty.size:
            raise ValueError(
                f"{owner}: expected at least two observed entries in every column; columns "
                f"{empty[:8].tolist()} have fewer. Leave them out."
            )
        table = np.where(mask, table, 0)
        mask = None if mask.all() else mask
    if not np.isfinite(table).all():
        raise ValueError(
            f"{owner}: expected finite observed `data`; got {(~np.isfinite(table)).sum()} NaN or "
            "infinite entries. Mark missing ones with mask=~np.isnan(data)."
        )
    return table, mask


def closed_form(owner: str, table: np.ndarray, num_factors: int) -> dict[str, np.ndarray]:
    """Maximum-likelihood parameters of probabilistic PCA.

    Raises:
        ValueError: The data have no more dimensions than factors.
    """
    loc = table.mean(0)
    centred = table - loc
    values, vectors = np.linalg.eigh(centred.T @ centred / len(table))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    noise = values[num_factors:].mean()
    if noise <= values[0] * np.finfo(float).eps * table.shape[1]:
        rank = int((values > values[0] * np.finfo(float).eps * table.shape[1]).sum())
        raise ValueError(
            f"{owner}: expected `num_factors` less than the number of dimensions in which the data "
            f"vary, {rank}; got {num_factors}. The noise would vanish."
        )
    loadings = vectors[:, :num_factors] * np.sqrt(values[:num_factors] - noise)
    return {"loc": loc, "loadings": _fix_signs(loadings), "scale": np.sqrt(noise)}


def _fix_signs(loadings: np.ndarray) -> np.ndarray:
    """Largest entry of every factor positive."""
    largest = np.abs(loadings).argmax(0)
    signs = np.sign(loadings[largest, np.arange(loadings.shape[1])])
    return loadings * np.where(signs == 0, 1, signs)


def em(
    owner: str,
    table: np.ndarray,
    mask: np.ndarray | None,
    num_factors: int,
    shared: bool,
    start: tuple[Array, Array, Array] | None,
    num_iterations: int,
    tolerance: float,
) -> FactorFit:
    """Run expectation maximization; see ``FactorModel.em``."""
    if not isinstance(num_iterations, int) or num_iterations < 1 or not tolerance >= 0:
        raise ValueError(
            f"{owner}: expected `num_iterations` of at least 1 and `tolerance` of at least 0; got "
            f"{num_iterations!r} and {tolerance!r}."
        )
    shift, units = _standard(owner, table, mask, shared)
    scaled = (table - shift) / units
    scaled = scaled if mask is None else np.where(mask, scaled, 0)
    found = closed_form(owner, scaled, num_factors)  # refuses too many factors
    with jax.enable_x64(True):
        stats = _stats(scaled, mask, shared)
        if start is None:
            params = LinearParams(
                found["loc"], found["loadings"], np.full(len(units), found["scale"]) ** 2
            )
        else:
            loc, loadings, scale = (np.asarray(part, np.float64) for part in start)
            params = LinearParams(
                (loc - shift) / units, loadings / units[:, None], (scale / units) ** 2
            )
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        params, history, num = run(params, stats, shared, num_iterations, tolerance)
        params = jax.tree.map(np.asarray, params)
        history = np.asarray(history)[: int(num) + 1] - _log_units(units, mask, len(table))
        heywood = np.flatnonzero(params.variance <= np.asarray(stats.floor) * (1 + 1e-9))
    converged = len(history) > 1 and bool(history[-1] - history[-2] <= tolerance)
    _warn(owner, converged, int(num), tolerance, heywood)
    return FactorFit(
        _named(params, shift, units, shared), history, int(num), converged, tuple(heywood.tolist())
    )


def _named(
    params: LinearParams, shift: np.ndarray, units: np.ndarray, shared: bool
) -> dict[str, Array]:
    """Parameters in the units of the data, loadings along principal axes."""
    scale = np.sqrt(params.variance)
    _, _, axes = np.linalg.svd(params.loadings / scale[:, None], full_matrices=False)
    found = {
        "loc": shift + params.loc * units,
        "loadings": _fix_signs((params.loadings @ axes.T) * units[:, None]),
        "scale": scale[0] * units[0] if shared else scale * units,
    }
    return {name: jnp.asarray(value, jnp.result_type(float)) for name, value in found.items()}


def _warn(owner: str, converged: bool, num: int, tolerance: float, heywood: np.ndarray) -> None:
    if not converged:
        warnings.warn(
            f"{owner}: after {num} iterations of EM the log-likelihood still rises by more than "
            f"{tolerance:g} nats a row; raise `num_iterations`.",
            FitWarning,
            stacklevel=4,
        )
    if heywood.size:
        warnings.warn(
            f"{owner}: the noise has vanished in columns {heywood[:8].tolist()} (a Heywood case), "
            "which the factors fit exactly; use fewer factors, or leave out repeated columns.",
            FitWarning,
            stacklevel=4,
        )


# ----- data --------------------------------------------------------------------------------


def _standard(
    owner: str, table: np.ndarray, mask: np.ndarray | None, shared: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Means of the columns, and the units in which they are fitted."""
    observed = np.ones_like(table) if mask is None else mask
    counts = observed.sum(0)
    mean = (observed * table).sum(0) / counts
    variance = (observed * (table - mean) ** 2).sum(0) / counts
    if shared:
        return mean, np.full(len(mean), np.sqrt(variance.mean()) or 1.0)
    constant = np.flatnonzero(variance <= np.finfo(float).eps * mean**2)
    if constant.size:
        raise ValueError(
            f"{owner}: expected columns that vary; columns {constant[:8].tolist()} have one value, "
            "whose noise would vanish. Leave them out."
        )
    return mean, np.sqrt(variance)


def _stats(scaled: np.ndarray, mask: np.ndarray | None, shared: bool) -> Statistics:
    observed = np.ones_like(scaled) if mask is None else mask.astype(float)
    counts, squares = observed.sum(0), (scaled**2).sum(0)
    variance = np.broadcast_to(
        (squares / counts).mean() if shared else squares / counts, counts.shape
    )
    floor, num = _SMALLEST_NOISE[shared] * variance, float(len(scaled))
    parts = (counts, squares, floor, num)
    if mask is None:
        return jax.tree.map(jnp.asarray, Statistics(None, None, scaled.T @ scaled, *parts))
    return jax.tree.map(jnp.asarray, Statistics(_blocks(scaled), _blocks(observed), None, *parts))


def _blocks(rows: np.ndarray) -> np.ndarray:
    """Rows in blocks, filled up with rows of nothing."""
    size = min(_ROWS_AT_A_TIME, len(rows))
    filled = np.pad(rows, ((0, -len(rows) % size), (0, 0)))
    return filled.reshape(-1, size, rows.shape[1])


def _log_units(units: np.ndarray, mask: np.ndarray | None, num_rows: int) -> float:
    counts = np.full(len(units), num_rows) if mask is None else mask.sum(0)
    return float((counts * np.log(units)).sum() / num_rows)
