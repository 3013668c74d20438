"""Gibbs sweeps over a lattice, colour by colour, by shifts of the whole grid.

One random number is drawn for each site in a sweep; a site is updated once, in its colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt32

from numpyro_ebm.couplings import Lattice
from numpyro_ebm.distributions.alphabet import Binary, SpinValues
from numpyro_ebm.random_bits import random_words, uniform_numbers

if TYPE_CHECKING:
    from numpyro_ebm.distributions.pairwise import PairwiseModel

_MAX_TABLE = 16
"""Largest number of neighbour sums whose thresholds are tabulated."""


def lattice_sweep(
    model: PairwiseModel, rng_key: Any, value: Array, mask: Any, colors: range
) -> Num[Array, "*shape"]:
    """Draw the sites of a lattice colour by colour.

    Args:
        model: A model on a lattice.
        rng_key: Random key.
        value: All sites.
        mask: True where a site is held at its value.
        colors: The colours in the order of the sweep.
    """
    table = threshold_table(model)
    if table is not None:
        return _table_sweep(model, rng_key, value, mask, colors, *table)
    coloring, alphabet = cast(np.ndarray, model.coloring), model._alphabet
    uniform = uniform_numbers(rng_key, value.shape, model.float_dtype)
    for color in colors:
        new = alphabet.draw(model.local_field(value), uniform)
        value = jnp.where(_chosen(coloring, color, mask), new, value)
    return value


def _chosen(coloring: np.ndarray, color: int, mask: Any) -> Bool[Array, "*shape"]:
    own = jnp.asarray(coloring.astype(np.int8)) == color
    return own if mask is None else own & ~mask


# ----- equal couplings and fields: integers against a few thresholds -----------------------


def threshold_table(
    model: PairwiseModel,
) -> tuple[list[int], list[UInt32[Array, "*shape"]]] | None:
    """Possible sums over neighbours and, for each, how many of 2^32 integers mean "up".

    ``None`` where couplings or fields differ from site to site.
    """
    couplings, alphabet, field = model.couplings, model._alphabet, model._site_field
    num = len(couplings.shape)
    if not isinstance(alphabet, Binary) or not isinstance(couplings, Lattice):
        return None
    if not couplings.isotropic or field.shape[field.ndim - num :] != (1,) * num:
        return None
    most = 2 * sum(size > 1 for size in couplings.shape)
    spins = isinstance(alphabet, SpinValues)
    even = all(
        wraps or n == 1 for wraps, n in zip(couplings.periodic, couplings.shape, strict=True)
    )
    sums = list(range(-most, most + 1, 2 if even else 1)) if spins else list(range(most + 1))
    if len(sums) > _MAX_TABLE:
        return None
    logits = [alphabet.logits(couplings.values[0] * total + field) for total in sums]
    return sums, [thresholds(logit) for logit in logits]


def thresholds(logits: Float[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """How many of the 2^32 integers lie below the probability with the given log odds.

    The smaller of the two probabilities is rounded in the type of the logits, then to 2^-32; none
    becomes certain.
    """
    tail = (jax.nn.sigmoid(-jnp.abs(logits)) * 2.0**32).astype(jnp.uint32)
    return jnp.where(logits < 0, tail, jnp.uint32(0) - jnp.maximum(tail, 1))


def _table_sweep(
    model: PairwiseModel,
    rng_key: Any,
    value: Array,
    mask: Any,
    colors: range,
    sums: list[int],
    table: list[UInt32[Array, "*shape"]],
) -> Num[Array, "*shape"]:
    """Draw the sites colour by colour, comparing random integers with tabulated thresholds."""
    coloring, alphabet = cast(np.ndarray, model.coloring), model._alphabet
    couplings: Any = model.couplings
    bits = random_words(rng_key, value.shape)
    for color in colors:
        neighbours = couplings.neighbour_sum(alphabet.features(value))
        limit = table[0]
        for total, threshold in zip(sums[1:], table[1:], strict=True):
            limit = jnp.where(neighbours >= total, threshold, limit)
        new = alphabet.choose(bits < limit)
        value = jnp.where(_chosen(coloring, color, mask), new, value)
    return value
