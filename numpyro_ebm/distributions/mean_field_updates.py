"""Mean-field energies of layers of units, and updates of pairwise models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Float, Num

from numpyro_ebm.units.concatenate import Concatenate
from numpyro_ebm.units.continuous import Gaussian
from numpyro_ebm.units.counts import Poisson
from numpyro_ebm.units.discrete import Bernoulli, Categorical
from numpyro_ebm.units.spin import Spin
from numpyro_ebm.units.unit import LinearUnit, Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.pairwise import PairwiseModel


def check_mean_field(
    unit: Unit, name: str = "visible", instead: str = "ebm.ContrastiveDivergence"
) -> None:
    """Refuse a layer whose mean energy its mean features do not determine.

    Args:
        unit: The layer.
        name: What the error calls it.
        instead: What to use in place of mean fields.

    Raises:
        ValueError: Some units are neither linear in their features nor Gaussian.
    """
    for part in unit.units if isinstance(unit, Concatenate) else (unit,):
        if isinstance(part, Poisson) or not isinstance(part, LinearUnit | Gaussian):
            raise ValueError(
                f"Mean-field updates: expected Bernoulli, Spin, Categorical or Gaussian `{name}` "
                f"units; got {type(part).__name__}. Use {instead}."
            )


def expected_energy(unit: Unit, means: Float[Array, "*batch f"]) -> Float[Array, "*batch"]:
    """Mean energy in nats of independent units with the given mean features.

    Gaussian units have the variance of their conditional, which gets no gradient here: the
    energy's own dependence on it stays.
    """
    if isinstance(unit, Concatenate):
        terms = [expected_energy(part, piece) for part, piece in _pieces(unit, means)]
        return sum(terms[1:], start=terms[0])
    if isinstance(unit, LinearUnit):
        return -(means * unit._weights).sum(-1)
    scale = jnp.asarray(unit.feature_scale)
    return unit.energy(means) + (0.5 * (jax.lax.stop_gradient(scale) / scale) ** 2).sum(-1)


def entropy(unit: Unit, means: Float[Array, "*batch f"]) -> Float[Array, "*batch"]:
    """Entropy in nats of independent units with the given mean features.

    That of Gaussian units, with the variance of their conditional, gets no gradient.

    Raises:
        ValueError: The means do not determine the entropy.
    """
    if isinstance(unit, Concatenate):
        terms = [entropy(part, piece) for part, piece in _pieces(unit, means)]
        return sum(terms[1:], start=terms[0])
    if isinstance(unit, Gaussian):
        scale = jax.lax.stop_gradient(unit.scale)
        each = jnp.log(scale) + 0.5 * (1 + jnp.log(2 * jnp.pi))
        return jnp.broadcast_to(each, means.shape).sum(-1)
    if isinstance(unit, Categorical):
        return entr(means).sum(-1)
    if not isinstance(unit, Bernoulli | Spin):
        raise ValueError(
            "Mean-field entropy: expected Bernoulli, Spin, Categorical or Gaussian units; got "
            f"{type(unit).__name__}."
        )
    probs = (means + 1) / 2 if isinstance(unit, Spin) else means
    return (entr(probs) + entr(1 - probs)).sum(-1)


def _pieces(unit: Concatenate, means: Float[Array, "*batch f"]) -> Any:
    """The units of a concatenation, each with its stretch of the means."""
    stops = np.cumsum([part.num_features for part in unit.units])[:-1]
    return zip(unit.units, jnp.split(means, stops, axis=-1), strict=True)


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
