"""Lower bounds of the log-likelihood of models with several hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float64, Key, Num

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.evidence.ais import ais
from numpyro_ebm.evidence.result import Evidence, warn_of
from numpyro_ebm.evidence.settings import at_least, split_key
from numpyro_ebm.evidence.target import check_target

_NAME = "variational_bound"
_ROWS_AT_A_TIME = 500


def variational_bound(
    rng_key: Key[Array, ""],
    model: EnergyDistribution | Sequence[EnergyDistribution],
    data: Num[ArrayLike, "rows *event"],
    *,
    log_z: Evidence | None = None,
    num_samples: int = 100,
    num_iterations: int = 100,
) -> Evidence:
    r"""Estimate a lower bound of the mean log-likelihood of data under a deep model.

    .. math:: \log p(v) \ge \mathrm{E}_{q(h \mid v)} [\log p^*(v, h) - \log q(h \mid v)] - \log Z

    For a DBM, or a Boltzmann machine with hidden units, q is the mean-field solution and the
    expectation exact. For a deep belief network, a :class:`~numpyro_ebm.DBN` or its restricted
    Boltzmann machines from the data up,

    .. math:: \log p^*(v, h) = \log p(v \mid h_1) + \dots + \log p(h_{L-2} \mid h_{L-1})
        - E_{top}(h_{L-1}), \qquad q(h \mid v) = q(h_1 \mid v) \cdots q(h_{L-1} \mid h_{L-2}),

    with the conditionals of each machine in both directions (of the recognition machines upwards,
    where a DBN has such), and the expectation is an average over draws from q.

    Args:
        rng_key: Random key.
        model: A DBM, a Boltzmann machine or Ising model with hidden units, a DBN, or a sequence of
            RBMs of which each has the hidden units of the one below as its visible units.
        data: Values of shape ``(rows, *event)``.
        log_z: Log Z of the Boltzmann machine, or of the top RBM; by default from :func:`ais`.
        num_samples: Draws of the hidden layers for each row of a deep belief network.
        num_iterations: Mean-field iterations for a DBM or Boltzmann machine, at most.

    Returns:
        The bound, a mean over rows, in nats. Its standard error is that of log Z and of the draws,
        for these rows; how far the bound is below the log-likelihood it does not tell.
        ``diagnostics``: ``bounds`` of the rows, ``num_rows``, ``log_z``, ``log_z_std_error``,
        ``draws_std_error`` and ``num_not_converged``, rows of a DBM whose means still moved.

    Raises:
        TypeError: ``model`` is neither.
        ValueError: The layers or the data do not fit, or a number is too small.

    Warns:
        EvidenceWarning: What is doubtful of log Z, or means that have not converged.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> lower = ebm.RBM(jnp.ones((4, 3)), -jnp.ones(4), -jnp.ones(3))
        >>> top = ebm.RBM(jnp.ones((3, 2)), jnp.zeros(3), jnp.zeros(2))
        >>> data = lower.sample(jax.random.key(0), (50,))
        >>> bound = ebm.evidence.variational_bound(jax.random.key(1), ebm.DBN([lower, top]), data)
        >>> bool(bound.log_evidence < 0)
        True

    References:
        Salakhutdinov & Murray (2008), "On the Quantitative Analysis of Deep Belief Networks",
        section 3.2; Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines", section 3.2.
    """
    layers = _layers(model)
    recognition = getattr(model, "recognition", layers[:-1])
    top = layers[-1]
    key_z, key_draws = split_key(_NAME, rng_key, top)
    rows = _rows(layers[0], data)
    draws = at_least(_NAME, num_samples, 2, "num_samples")
    iterations = at_least(_NAME, num_iterations, 1, "num_iterations")
    if log_z is None:
        log_z = ais(key_z, top)
    bounds, variance, num_stuck = [], [], 0
    for i in range(0, len(rows), _ROWS_AT_A_TIME):
        part = jnp.asarray(rows[i : i + _ROWS_AT_A_TIME])
        if layers[0] is model:
            *found, stuck = _of_mean_field(model, part, iterations)
            num_stuck += stuck
        else:
            machines = layers, recognition
            found = _of_layers(jax.random.fold_in(key_draws, i), machines, part, draws)
        bounds.append(found[0])
        variance.append(found[1])
    doubts = _doubts_of_mean_field(num_stuck, len(rows), iterations)
    bound = _evidence(np.concatenate(bounds), np.concatenate(variance), log_z, doubts)
    return replace(bound, diagnostics={**bound.diagnostics, "num_not_converged": num_stuck})


def _layers(model: Any) -> tuple[Any, ...]:
    if isinstance(model, EnergyDistribution) and hasattr(model, "recognition"):
        check_target(model, _NAME)
        model = model.layers
    elif isinstance(model, EnergyDistribution):
        if not callable(getattr(model, "mean_field", None)) or not getattr(model, "num_hidden", 0):
            raise TypeError(
                f"{_NAME}: expected `model` to be a Boltzmann machine or Ising model with hidden "
                f"units, a DBN or a sequence of RBMs; got {type(model).__name__}. The likelihood "
                "of an RBM needs no bound of this kind: use ebm.evidence.log_likelihood."
            )
        check_target(model, _NAME)
        return (model,)
    if not isinstance(model, Sequence) or not model:
        raise TypeError(
            f"{_NAME}: expected `model` to be a Boltzmann machine with hidden units, a DBN or a "
            f"sequence of RBMs; got {type(model).__name__}."
        )
    for layer in model:
        check_target(layer, _NAME)
        if not callable(getattr(layer, "conditional_hidden", None)):
            raise TypeError(
                f"{_NAME}: expected a sequence of RBMs as `model`; {type(layer).__name__} is none."
            )
    for number, (below, above) in enumerate(zip(model[:-1], model[1:], strict=True)):
        if (below.num_hidden,) != tuple(above.event_shape):
            raise ValueError(
                f"{_NAME}: expected the visible units of layer {number + 1} to be the hidden units "
                f"of layer {number}; got {above.event_shape} and {below.num_hidden}."
            )
    return tuple(model)


def _rows(bottom: EnergyDistribution, data: Any) -> np.ndarray:
    rows = np.asarray(data)
    if rows.ndim != 2 or rows.shape[1:] != tuple(bottom.event_shape) or not len(rows):
        raise ValueError(
            f"{_NAME}: expected `data` of shape (rows, {bottom.event_shape[0]}) with at least one "
            f"row; got {rows.shape}."
        )
    bottom.check_value(rows, "data")
    return rows


@partial(jax.jit, static_argnames="num_iterations")
def _mean_field_bounds(
    model: Any, rows: Array, num_iterations: int
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    """Bounds, and which rows have converged where the model says so."""
    found = model.mean_field(rows, num_iterations)
    converged = getattr(found, "converged", jnp.ones(len(rows), bool))
    return -model.variational_energy(rows, found), converged


def _of_mean_field(
    model: Any, rows: Array, num_iterations: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Bounds, their variances, and the number of rows that have not converged."""
    bounds, converged = _mean_field_bounds(model, rows, num_iterations)
    bounds = np.asarray(bounds, np.float64)
    return bounds, np.zeros_like(bounds), int(np.sum(~np.asarray(converged)))


def _doubts_of_mean_field(num_stuck: int, num_rows: int, num_iterations: int) -> tuple[str, ...]:
    if not num_stuck:
        return ()
    return (
        f"{_NAME}: the means of {num_stuck} of {num_rows} rows have not converged in "
        f"{num_iterations} mean-field iterations, so their bounds hold but are lower than need be. "
        "Use more `num_iterations`.",
    )


@partial(jax.jit, static_argnames="num_samples")
def _log_weights(
    rng_key: Key[Array, ""], machines: Any, rows: Array, num_samples: int
) -> Float[Array, "samples rows"]:
    """Log p*(v, h) - log q(h | v) of draws of the hidden layers."""
    layers, recognition = machines

    def one(key):
        total, value = jnp.zeros(len(rows)), rows
        keys = jax.random.split(key, len(layers))
        for layer, upward, key_layer in zip(layers, recognition, keys, strict=False):
            up = upward.conditional_hidden(value)
            hidden = up.sample(key_layer)
            down = layer.conditional_visible(hidden)
            total = total + down.log_prob(value) - up.log_prob(hidden)
            value = hidden
        return total - layers[-1].energy(value)

    return jax.lax.map(one, jax.random.split(rng_key, num_samples))


def _of_layers(
    rng_key: Key[Array, ""], machines: Any, rows: Array, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of rows and the variances of their means over draws."""
    found = np.asarray(_log_weights(rng_key, machines, rows, num_samples), np.float64)
    return found.mean(0), found.var(0, ddof=1) / num_samples


def _evidence(
    bounds: Float64[np.ndarray, " rows"],
    variance: Float64[np.ndarray, " rows"],
    log_z: Evidence,
    doubts: tuple[str, ...],
) -> Evidence:
    draws_error = float(np.sqrt(variance.sum()) / bounds.size)
    doubts += tuple(f"{_NAME}, log Z: {w.partition(': ')[2]}" for w in log_z.warnings)
    warn_of(doubts)
    return Evidence(
        float(bounds.mean() - log_z.log_evidence),
        float(np.hypot(draws_error, log_z.std_error)),
        _NAME,
        diagnostics={
            "bounds": bounds - log_z.log_evidence,
            "num_rows": bounds.size,
            "log_z": float(log_z.log_evidence),
            "log_z_std_error": float(log_z.std_error),
            "draws_std_error": draws_error,
        },
        warnings=doubts,
    )
