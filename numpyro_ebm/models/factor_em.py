"""Iterations of EM for linear models with normal factors, from rows or from their covariance."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Statistics(NamedTuple):
    """The data: rows with a mask, or without one their covariance alone."""

    rows: Any
    """Blocks of rows, ``(blocks, rows, d)``, 0 where they are missing."""
    observed: Any
    """The mask, as numbers."""
    covariance: Any
    """Sum of products of columns."""
    counts: Any
    """Observed entries of every column."""
    squares: Any
    """Sums of their squares."""
    floor: Any
    """Least variance of the noise."""
    num_rows: Any


class LinearParams(NamedTuple):
    """Parameters in standard units; the variance of the noise for every column."""

    loc: Any
    loadings: Any
    variance: Any


class _Moments(NamedTuple):
    """Sums over the observed rows of each column; the last factor is the constant 1."""

    data: Array
    factors: Array


@partial(jax.jit, static_argnames=("shared", "num_iterations"))
def run(
    params: LinearParams, stats: Statistics, shared: bool, num_iterations: int, tolerance: float
) -> tuple[Any, Array, Any]:
    """Iterate; the log-likelihood of the parameters before each iteration, and at the end."""
    expect = _of_covariance if stats.rows is None else _of_rows
    moments, log_likelihood = expect(params, stats)
    history = jnp.full(num_iterations + 1, log_likelihood)

    def goes_on(carry: Any) -> Array:
        _, _, history, i = carry
        gain = history[i] - history[i - 1]
        return (i < num_iterations) & ((i == 0) | (gain > tolerance))

    def step(carry: Any) -> Any:
        _, moments, history, i = carry
        params = _maximize(moments, stats, shared)
        moments, log_likelihood = expect(params, stats)
        return params, moments, history.at[i + 1].set(log_likelihood), i + 1

    params, _, history, num = jax.lax.while_loop(goes_on, step, (params, moments, history, 0))
    return params, history, num


def _maximize(moments: _Moments, stats: Statistics, shared: bool) -> LinearParams:
    """Regress every column on the factors and a constant."""
    weights = jnp.linalg.solve(moments.factors, moments.data[..., None])[..., 0]
    rest = stats.squares - (weights * moments.data).sum(-1)
    variance = rest.sum() / stats.counts.sum() if shared else rest / stats.counts
    variance = jnp.maximum(jnp.broadcast_to(variance, rest.shape), stats.floor)
    return LinearParams(weights[:, -1], weights[:, :-1], variance)


def _of_rows(params: LinearParams, stats: Statistics) -> tuple[_Moments, Array]:
    """Expected moments, and the mean log-likelihood of a row, with missing entries."""
    num_columns, k = params.loadings.shape
    zero = _Moments(jnp.zeros((num_columns, k + 1)), jnp.zeros((num_columns, (k + 1) ** 2)))

    def block(sums: Any, part: Any) -> Any:
        return jax.tree.map(jnp.add, sums, _of_block(params, *part)), None

    (moments, terms), _ = jax.lax.scan(block, (zero, jnp.zeros(())), (stats.rows, stats.observed))
    constant = stats.counts @ jnp.log(2 * jnp.pi * params.variance)
    factors = moments.factors.reshape(-1, k + 1, k + 1)
    return _Moments(moments.data, factors), -(terms + constant) / (2 * stats.num_rows)


def _of_block(params: LinearParams, rows: Array, observed: Array) -> tuple[_Moments, Array]:
    """Moments of some rows, and what their log-likelihoods have besides a constant, times -2."""
    loadings, (num, k) = params.loadings, (len(rows), params.loadings.shape[1])
    residual = observed * (rows - params.loc)
    over = loadings / params.variance[:, None]
    precision = observed @ (over[:, :, None] * loadings[:, None, :]).reshape(-1, k * k)
    tril = jnp.linalg.cholesky(precision.reshape(num, k, k) + jnp.eye(k))
    covariance = jax.scipy.linalg.cho_solve((tril, True), jnp.broadcast_to(jnp.eye(k), tril.shape))
    field = residual @ over
    mean = jnp.einsum("nij,nj->ni", covariance, field)
    quadratic = (residual**2 / params.variance).sum() - (field * mean).sum()
    log_det = 2 * jnp.log(jnp.diagonal(tril, axis1=1, axis2=2)).sum()
    first = jnp.concatenate([mean, jnp.ones((num, 1))], axis=1)
    second = first[:, :, None] * first[:, None, :]
    second = second.at[:, :k, :k].add(covariance)
    return _Moments(rows.T @ first, observed.T @ second.reshape(num, -1)), quadratic + log_det


def _of_covariance(params: LinearParams, stats: Statistics) -> tuple[_Moments, Array]:
    """The same from the scatter of full rows around their mean, where the mean stays."""
    scatter, loadings, num = stats.covariance, params.loadings, stats.num_rows
    k = loadings.shape[1]
    scatter = scatter + num * params.loc[:, None] * params.loc  # where it has not started there
    over = loadings / params.variance[:, None]
    tril = jnp.linalg.cholesky(jnp.eye(k) + loadings.T @ over)
    covariance = jax.scipy.linalg.cho_solve((tril, True), jnp.eye(k))
    back = over @ covariance
    cross = scatter @ back
    quadratic = (jnp.diag(scatter) / params.variance).sum() - (over * cross).sum()
    log_det = num * 2 * jnp.log(jnp.diag(tril)).sum()
    constant = num * jnp.log(2 * jnp.pi * params.variance).sum()
    total = -num * params.loc @ back  # of the factors; that of the data is 0
    inner = num * covariance + back.T @ cross
    factors = jnp.block([[inner, total[:, None]], [total[None], num[None, None]]])
    data = jnp.concatenate([stats.covariance @ back, jnp.zeros((len(loadings), 1))], axis=1)
    moments = _Moments(data, jnp.broadcast_to(factors, (len(loadings), k + 1, k + 1)))
    return moments, -(quadratic + log_det + constant) / (2 * num)
