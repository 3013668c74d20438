"""What a deep Boltzmann machine is given, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.util import not_jax_tracer

from numpyro_ebm.units import Bernoulli, Unit


def as_layers(weights: Any, biases: Any) -> tuple[tuple[Array, ...], tuple[Unit, ...]]:
    """Weights as floating arrays and biases as units.

    Raises:
        TypeError: Either is no sequence, or an element no array.
        ValueError: There are no weights, or not one more layer than weights.
    """
    for name, given in (("weights", weights), ("biases", biases)):
        if not isinstance(given, Sequence):
            raise TypeError(
                f"DBM: expected `{name}` to be a list with one entry for each "
                f"{'pair of neighbouring layers' if name == 'weights' else 'layer'}; got "
                f"{type(given).__name__}."
            )
    if not weights or len(biases) != len(weights) + 1:
        raise ValueError(
            "DBM: expected at least one matrix in `weights`, and one more layer in `biases`, the "
            f"visible units first; got {len(weights)} and {len(biases)}."
        )
    arrays = tuple(_floating(number, w) for number, w in enumerate(weights, start=1))
    units = tuple(
        b if isinstance(b, Unit) else _bernoulli(number, b) for number, b in enumerate(biases)
    )
    return arrays, units


def _floating(number: int, weights: Any) -> Array:
    try:
        array = jnp.asarray(weights)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"DBM: expected an array for `weights` of layer {number}; got {type(weights).__name__}."
        ) from error
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array if floating else array.astype(jnp.result_type(float))


def _bernoulli(number: int, logits: Any) -> Bernoulli:
    try:
        return Bernoulli(logits)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"DBM: expected `biases` of layer {number} to be a unit or an array of Bernoulli "
            f"logits. {error}"
        ) from error


def check_shapes(weights: Sequence[Array], units: Sequence[Unit]) -> tuple[int, ...]:
    """Return the common batch shape.

    Raises:
        ValueError: Weights do not fit the layers, or batch shapes do not broadcast.
    """
    batches = [unit.batch_shape for unit in units]
    for number, matrix in enumerate(weights, start=1):
        below, above = units[number - 1].feature_shape, units[number].feature_shape
        event, shape = below + above, matrix.shape
        if shape[max(0, len(shape) - len(event)) :] != event:
            raise ValueError(
                f"DBM: expected `weights` of layer {number} of shape (..., "
                f"{', '.join(map(str, event))}) to match layers {number - 1} and {number} with "
                f"features {below} and {above}; got {shape}."
            )
        batches.append(shape[: len(shape) - len(event)])
    try:
        return jnp.broadcast_shapes(*batches)
    except ValueError as error:
        raise ValueError(
            f"DBM: expected batch shapes of layers and weights that broadcast; got {batches}."
        ) from error


def check_hidden(units: Sequence[Unit], hidden: Any, validate: bool) -> None:
    """Check values of the hidden layers.

    Raises:
        ValueError: A layer is missing, has the wrong shape or lies outside its support.
    """
    if not isinstance(hidden, Sequence) or len(hidden) != len(units) - 1:
        count = len(hidden) if isinstance(hidden, Sequence) else type(hidden).__name__
        raise ValueError(
            f"DBM: expected `hidden` to be a list with the values of {len(units) - 1} hidden "
            f"layers; got {count}."
        )
    for number, (unit, value) in enumerate(zip(units[1:], hidden, strict=True), start=1):
        shape = jnp.shape(value)
        if shape[-1:] != unit.shape:
            raise ValueError(
                f"DBM: expected values of layer {number} of shape (..., {unit.shape[0]}); got "
                f"{shape}."
            )
        inside = unit.support(value) if validate else True
        if inside is not True and not_jax_tracer(inside) and not np.all(inside):
            raise ValueError(
                f"DBM: expected values of layer {number} in the support {unit.support}; got "
                "values outside it."
            )
