"""Mean-field energies of layers of units, and updates of pairwise models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_ebm.units.concatenate import Concatenate
from numpyro_ebm.units.continuous import Gaussian
from numpyro_ebm.units.counts import Poisson
from numpyro_ebm.units.unit import LinearUnit, Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.pairwise import PairwiseModel


def check_mean_field(unit: Unit) -> None:
    """Refuse a layer whose mean energy its mean features do not determine.

    Raises:
        ValueError: Some units are neither linear in their features nor Gaussian.
    """
    for part in unit.units if isinstance(unit, Concatenate) else (unit,):
        if isinstance(part, Poisson) or not isinstance(part, LinearUnit | Gaussian):
            raise ValueError(
                "Mean-field updates: expected Bernoulli, Spin, Categorical or Gaussian `visible` "
                f"units; got {type(part).__name__}. Use ebm.ContrastiveDivergence."
            )


def expected_energy(unit: Unit, means: Float[Array, "*batch f"]) -> Float[Array, "*batch"]:
    """Mean energy in nats of independent units with the given mean features.

    Gaussian units have the variance of their conditional, which gets no gradient here: the
    energy's own dependence on it stays.
    """
    if isinstance(unit, Concatenate):
        stops = np.cumsum([part.num_features for part in unit.units])[:-1]
        pieces = zip(unit.units, jnp.split(means, stops, axis=-1), strict=True)
        terms = [expected_energy(part, piece) for part, piece in pieces]
        return sum(terms[1:], start=terms[0])
    if isinstance(unit, LinearUnit):
        return -(means * unit._weights).sum(-1)
    scale = jnp.asarray(unit.feature_scale)
    return unit.energy(means) + (0.5 * (jax.lax.stop_gradient(scale) / scale) ** 2).sum(-1)


def start(model: PairwiseModel, value: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Values of binary or spin sites as means.

    Raises:
        ValueError: The sites are labels, or some units are hidden.
    """
    if model._alphabet.label_axis or value.shape[-1:] != model.couplings.shape[-1:]:
        raise model._no_mean_field()
    return model.align(value).astype(model.float_dtype)


def updated(model: PairwiseModel, means: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Means of all sites given those of their neighbours."""
    low = model._alphabet.low
    probs = jax.nn.sigmoid(model._alphabet.logits(model.local_field(means)))
    return low + (1 - low) * probs
