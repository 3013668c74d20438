"""The plate of rows that every directed model draws or observes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array


def rows_plate(
    owner: str, data: Any, num_rows: int | None, subsample_size: int | None
) -> numpyro.plate:
    """Plate ``rows``; fewer rows of ``data`` than ``num_rows`` are a minibatch of so many.

    Raises:
        ValueError: Neither ``data`` nor ``num_rows`` is given.
    """
    if data is None and num_rows is None:
        raise ValueError(f"{owner}: expected `data` or `num_rows`; got neither.")
    if data is not None and num_rows not in (None, len(data)) and subsample_size is None:
        subsample_size = len(data)
    size = len(data) if num_rows is None else num_rows
    return numpyro.plate("rows", size, subsample_size=subsample_size)


def drawn(data: Any, rows: Array) -> Any:
    """The rows of the data that the plate has drawn, of those it was not given drawn already."""
    if data is None or len(data) == len(rows):
        return data
    return numpyro.subsample(data, event_dim=1)


def check_columns(owner: str, data: Any, num_visible: int) -> Any:
    """Return rows of numbers as an array.

    Raises:
        ValueError: They have another shape.
    """
    if np.ndim(data) != 2 or np.shape(data)[1] != num_visible:
        raise ValueError(
            f"{owner}: expected `data` of shape (rows, {num_visible}); got {np.shape(data)}."
        )
    return jnp.asarray(data)
