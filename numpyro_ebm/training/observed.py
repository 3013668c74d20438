"""The energy-based model that a NumPyro model observes, at the parameters of an SVI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from numpyro.distributions import Delta
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoGuide

from numpyro_ebm.base import EnergyDistribution, mask_of, unwrap


class Observation(NamedTuple):
    """An observed energy-based site.

    Attributes:
        distribution: Its model, without plates and masks.
        value: What is observed, of shape ``(rows, ...)``.
        mask: Whether each row counts.
    """

    distribution: EnergyDistribution
    value: Num[Array, "rows *event"]
    mask: Array


def distribution_of(
    svi: SVI, state: Any, *args: Any, site: str | None = None, **kwargs: Any
) -> EnergyDistribution:
    """Return the energy-based model that is observed, at the parameters of a state.

    The model is traced with the parameters of the state. Latent sites are at the median of an
    automatic guide (for ``AutoDelta`` at its point), or at the values of a guide that has only
    ``Delta`` sites.

    Args:
        svi: The inference, whose ``init`` has been called.
        state: Its state.
        *args: Arguments of the model; of data a few rows do.
        site: Name of the observed site; only needed where there are several.
        **kwargs: Keyword arguments of the model.

    Raises:
        ValueError: There is no such site, or several; or the guide has random sites and no median.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, optax, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(data):
        ...     weights = numpyro.param("weights", jnp.ones((4, 2)))
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("v", ebm.RBM(weights, jnp.zeros(4), jnp.zeros(2)), obs=data)
        >>> svi = SVI(model, lambda data: None, optax.adam(0.1), ebm.ContrastiveDivergence())
        >>> state = svi.init(jax.random.key(0), jnp.eye(4))
        >>> ebm.distribution_of(svi, state, jnp.eye(4)).weights.shape
        (4, 2)
    """
    return observe(svi, state, args, kwargs, site).distribution


def observe(
    svi: SVI, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: str | None = None
) -> Observation:
    """The observed energy-based site at the parameters of a state; see :func:`distribution_of`."""
    sites = observed_sites(svi, state, args, kwargs)
    found = {name: msg for name, msg in sites.items() if unwrap(msg["fn"]) is not None}
    if site is not None and site not in found:
        raise ValueError(
            f"distribution_of: expected `site` among the observed energy-based sites "
            f"{sorted(found)}; got {site!r}."
        )
    if site is None and len(found) != 1:
        raise ValueError(
            "distribution_of: expected a model with one observed energy-based site; got "
            f"{sorted(found) or 'none'}. Name one with `site`, or build the model from parameters "
            "with a function of your own."
        )
    msg = found[site or next(iter(found))]
    distribution = unwrap(msg["fn"])
    if distribution is None or distribution.batch_shape:
        raise ValueError(
            f"distribution_of: expected one energy-based model for all rows at site "
            f"'{msg['name']}'; got a batch of models, of shape "
            f"{getattr(distribution, 'batch_shape', ())}: each has a log Z of its own."
        )
    event = len(distribution.event_shape)
    value = jnp.asarray(msg["value"])
    rows = value.reshape(-1, *value.shape[value.ndim - event :])
    mask = jnp.broadcast_to(mask_of(msg["fn"]), value.shape[: value.ndim - event])
    return Observation(distribution, rows, mask.reshape(-1))


def observed_sites(
    svi: SVI,
    state: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    allow_random: bool = False,
) -> dict[str, Any]:
    """Observed sites of the model, traced at the parameters of a state.

    Args:
        svi: The inference.
        state: Its state.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        allow_random: Whether the guide may draw latent sites at random.
    """
    kwargs = {**kwargs, **svi.static_kwargs}
    params = svi.get_params(state)
    values = {**params, **(state.mutable_state or {})}
    model = substitute(seed(svi.model, jax.random.key(0)), data=values)
    if isinstance(svi.guide, AutoGuide):
        model = substitute(model, data=svi.guide.median(params))
    else:
        guide = substitute(seed(svi.guide, jax.random.key(0)), data=values)
        guide_trace = trace(guide).get_trace(*args, **kwargs)
        if not allow_random:
            _check_guide(guide_trace)
        model = replay(model, guide_trace)
    model_trace = trace(model).get_trace(*args, **kwargs)
    return {
        name: msg
        for name, msg in model_trace.items()
        if msg["type"] == "sample" and msg["is_observed"]
    }


def _check_guide(guide_trace: dict[str, Any]) -> None:
    for name, msg in guide_trace.items():
        fn = msg["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if msg["type"] == "sample" and not msg["is_observed"] and not isinstance(fn, Delta):
            raise ValueError(
                f"distribution_of: the guide draws site '{name}' at random, and knows no median to "
                "put the model at. Use an automatic guide such as AutoDelta or AutoNormal, or "
                "build the model from parameters with a function of your own."
            )


def num_nats(svi: SVI, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """One nat for every observed number, times the scale of its site."""
    total = 0.0
    for msg in observed_sites(svi, state, args, kwargs, allow_random=True).values():
        scale = 1.0 if msg["scale"] is None else float(np.max(msg["scale"]))
        total += abs(scale) * np.size(msg["value"])
    return max(total, 1.0)


def override(
    build: Callable[[dict[str, Any]], EnergyDistribution], svi: SVI, state: Any, batch: Any
) -> Observation:
    """An observation of the data as they are by a model built from parameters.

    Raises:
        TypeError: The function returns no energy-based model.
    """
    distribution = build(svi.get_params(state))
    if not isinstance(distribution, EnergyDistribution):
        raise TypeError(
            "fit: expected `distribution` to return an energy-based model from parameters; got "
            f"{type(distribution).__name__}."
        )
    rows = batch[0]
    return Observation(distribution, rows, jnp.ones(rows.shape[0], bool))


def energy_sum(observation: Observation, weights: Float[Array, " rows"]) -> tuple[Any, Any]:
    """Weighted sum of the energies of the rows that count, in nats, and of their weights."""
    weights = jnp.where(observation.mask, weights, 0.0)
    energies = observation.distribution.energy(observation.value)
    return jnp.where(weights > 0, weights * energies, 0.0).sum(), weights.sum()
