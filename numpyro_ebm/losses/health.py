"""Whether the chains of a contrastive loss keep up with the model they are to sample."""

from __future__ import annotations

import dataclasses
import warnings as python_warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Float64, Key, Num

from numpyro_ebm.base import Chain, EnergyDistribution, Kernel, unwrap
from numpyro_ebm.losses.health_report import ChainHealth, doubts
from numpyro_ebm.random_key import require_key


def chain_health(
    rng_key: Key[Array, ""],
    distribution: EnergyDistribution,
    chains: Any,
    data: Num[ArrayLike, "n *event"],
    *,
    num_steps: int = 200,
    kernel: Kernel | None = None,
) -> ChainHealth:
    r"""Run persistent chains on the model as it is, and say whether they sample it.

    Chains that have kept up with the model are draws from it, and stay so when it stands still:
    their mean energy does not drift. The other numbers tell how fast they mix. At a maximum of
    the likelihood, energies of data and chains also have equal means if the energy is linear in
    the parameters; with hidden units, before the maximum, and on held-out data they need not, so
    a gap is warned of only where the two hardly overlap. All of this can miss a mode that no
    chain has visited.

    The autocorrelation time is that of means over all chains, number of draws over effective
    sample size.

    Args:
        rng_key: Random key.
        distribution: The model at its present parameters.
        chains: What :func:`persistent_chains` keeps, ``state.mutable_state["chains"]`` of an
            ``SVIState``, or values of shape ``(num_chains, *event_shape)``.
        data: Rows of data, such as those trained on.
        num_steps: Steps of the run, 8 or more.
        kernel: The kernel that moves the chains: required where :func:`persistent_chains` was
            given one, the same. By default the model's own Gibbs step.

    Returns:
        The numbers, and ``warnings``.

    Raises:
        TypeError: ``distribution`` is not an energy-based model.
        ValueError: It has batch dimensions; ``num_steps`` is too small; ``data`` or ``chains``
            do not fit; or ``kernel`` is missing.

    Warns:
        UserWarning: The mean energy drifts by more than 4 standard errors; an autocorrelation
            time exceeds a tenth of ``num_steps``; chains never moved; energies of data and chains
            hardly overlap.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> rbm = ebm.RBM(0.1 * jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(2))
        >>> data, chains = rbm.sample(jax.random.key(0), (2, 100))
        >>> health = ebm.chain_health(jax.random.key(1), rbm, chains, data)
        >>> health.ok, health.energy_autocorrelation_time < 5
        (True, True)

    References:
        Decelle, Furtlehner & Seoane (2021), "Equilibrium and non-Equilibrium regimes in the
        learning of Restricted Boltzmann Machines" (chains that lag behind); Vehtari, Gelman,
        Simpson, Carpenter & Burkner (2021), "Rank-Normalization, Folding, and Localization",
        Bayesian Analysis 16(2) (effective sample size).
    """
    model, data = _checked(distribution, data, num_steps)
    start, state = _start(model, chains, kernel)
    first = np.asarray(model.visible(start))
    energies, values = _run(require_key(rng_key), model, state, num_steps, kernel)
    before = np.asarray(_energies(model, first), np.float64)
    rows = np.asarray(_energies(model, data), np.float64)
    energies, values = np.asarray(energies, np.float64).T, np.moveaxis(np.asarray(values), 0, 1)
    flat, num_chains = first.reshape(len(first), -1), len(first)
    unit_time, unit, num_constant = _slowest_unit(values)
    unmoved = (values == first[:, None]).reshape(num_chains, -1).all(1)
    drifts = energies[:, num_steps // 2 :].mean(1) - before
    spread = np.sqrt(_variance(rows) / len(rows) + _variance(before) / num_chains)
    gap = float(rows.mean() - before.mean())
    health = ChainHealth(
        num_chains=num_chains,
        num_steps=num_steps,
        energy_gap=gap,
        energy_gap_z=_ratio(gap, spread),
        energy_std_ratio=_ratio(np.sqrt(_variance(before)), np.sqrt(_variance(rows))),
        energy_drift=float(drifts.mean()),
        energy_drift_z=_ratio(drifts.mean(), np.sqrt(_variance(drifts) / num_chains)),
        energy_autocorrelation_time=_autocorrelation_time(energies),
        unit_autocorrelation_time=unit_time,
        slowest_unit=unit,
        num_constant_units=num_constant,
        share_unmoved=float(unmoved.mean()),
        share_duplicate=1 - len(np.unique(flat, axis=0)) / num_chains,
        energies=energies,
    )
    messages = doubts(health, rows, before)
    for message in messages:
        python_warnings.warn(f"chain_health: {message}", UserWarning, stacklevel=2)
    return dataclasses.replace(health, warnings=messages)


# ----- the run -----------------------------------------------------------------------------


def _checked(distribution: Any, data: Any, num_steps: Any) -> tuple[EnergyDistribution, Array]:
    model = unwrap(distribution)
    if model is None:
        raise TypeError(
            "chain_health: expected `distribution` to be an energy-based model such as ebm.RBM; "
            f"got {type(distribution).__name__}."
        )
    if model.batch_shape:
        raise ValueError(
            "chain_health: expected a `distribution` without batch dimensions; got batch shape "
            f"{model.batch_shape}. Pass one member and its chains at a time."
        )
    if not isinstance(num_steps, int) or num_steps < 8:
        raise ValueError(
            f"chain_health: expected `num_steps` to be an integer of 8 or more; got {num_steps!r}."
        )
    data = jnp.asarray(data)
    model.check_value(data, "data", as_rows=True)
    if data.ndim != 1 + len(model.event_shape) or len(data) < 2:
        raise ValueError(
            f"chain_health: expected two or more rows of `data`, each of shape "
            f"{model.event_shape}; got shape {data.shape}."
        )
    return model, data


def _start(model: EnergyDistribution, chains: Any, kernel: Kernel | None) -> tuple[Chain, Any]:
    """Chains as they are, and the state that the run starts from."""
    kept = chains if isinstance(chains, dict) else {}
    if isinstance(chains, dict) and "chain" not in chains:
        raise ValueError(
            "chain_health: expected `chains` to be the entry of persistent_chains, such as "
            f'state.mutable_state["chains"]; got a dictionary with {sorted(chains)}.'
        )
    chain = kept.get("chain", chains)
    if "state" in kept and kernel is None:
        raise ValueError(
            "chain_health: expected `kernel`, the one that persistent_chains was given, because "
            "the chains hold its state."
        )
    if isinstance(chain, jax.Array | np.ndarray):
        model.check_value(chain, "chains", as_rows=True)
        chain = model.chain_at(jnp.asarray(chain))
    shape = np.shape(model.visible(chain))
    if len(shape) != 1 + len(model.event_shape) or shape[1:] != model.event_shape:
        raise ValueError(
            f"chain_health: expected `chains` of values of shape {model.event_shape}; got the "
            f"shape {shape} with the chains in front."
        )
    if kernel is None:
        return chain, model.refresh(chain)
    state = kernel.init(model.visible(chain), model) if "state" not in kept else kept["state"]
    return chain, kernel.refresh(state, model) if "state" in kept else state


@partial(jax.jit, static_argnames=("num_steps", "kernel"))
def _run(
    rng_key: Key[Array, ""],
    model: EnergyDistribution,
    state: Any,
    num_steps: int,
    kernel: Kernel | None,
) -> tuple[Float[Array, "draw chain"], Num[Array, "draw chain *event"]]:
    """Energies and visible units after each step."""

    def step(state, key):
        if kernel is None:
            state = model.gibbs_step(key, state)
            value = model.visible(state)
        else:
            state, _ = kernel.step(key, state, model)
            value = kernel.value(state, model)
        return state, (model.energy(value), value)

    return jax.lax.scan(step, state, jax.random.split(rng_key, num_steps))[1]


@jax.jit
def _energies(model: EnergyDistribution, value: Array) -> Float[Array, " n"]:
    return model.energy(value)


# ----- what the run says -------------------------------------------------------------------


def _variance(x: Float64[np.ndarray, " n"]) -> float:
    return float(np.var(x, ddof=1)) if len(x) > 1 else float("nan")


def _ratio(part: float, whole: float) -> float:
    """A quotient; 0 / 0 is not a number, others over 0 infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(part) / np.float64(whole))


def _autocorrelation_time(draws: Num[np.ndarray, "chain draw"]) -> float:
    """Draws for one independent draw; NaN if nothing varies, infinite if only chains differ."""
    draws = draws.astype(np.float64)
    if np.ptp(draws) == 0:
        return float("nan")
    if np.all(np.ptp(draws, axis=1) == 0):
        return float("inf")
    with python_warnings.catch_warnings():
        python_warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    return float(draws.size / np.asarray(arviz.ess(draws, method="mean")))


def _slowest_unit(
    values: Num[np.ndarray, "chain draw *event"],
) -> tuple[float, tuple[int, ...] | None, int]:
    """Longest autocorrelation time of a unit, which unit it is, and how many are constant."""
    event = values.shape[2:]
    units = values.reshape(*values.shape[:2], -1)
    times = np.array([_autocorrelation_time(units[..., i]) for i in range(units.shape[-1])])
    num_constant = int(np.isnan(times).sum())
    if num_constant == len(times):
        return float("nan"), None, num_constant
    slowest = int(np.nanargmax(times))
    index = tuple(int(i) for i in np.unravel_index(slowest, event))
    return float(times[slowest]), index, num_constant
