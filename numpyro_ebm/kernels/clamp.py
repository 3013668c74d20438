"""Visible units held at given values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_ebm.base import EnergyDistribution


def parse_clamp(owner: str, clamp: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read ``{site: (mask, values)}``.

    Raises:
        ValueError: It is not of that form.
    """
    out = {}
    for name, pair in dict(clamp or {}).items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ValueError(
                f"{owner}: expected `clamp` as {{site: (mask, values)}}; got "
                f"{type(pair).__name__} for {name!r}."
            )
        out[name] = (np.asarray(pair[0], bool), np.asarray(pair[1]))
    return out


def check_clamp(
    owner: str,
    site: str,
    clamp: tuple[np.ndarray, np.ndarray],
    model: EnergyDistribution,
    shape: tuple[int, ...],
) -> None:
    """Check the shapes of a clamp, and that its values are in the support of the site.

    Raises:
        ValueError: They are not.
    """
    mask, values = clamp
    for part, array in (("mask", mask), ("values", values)):
        try:
            fits = jnp.broadcast_shapes(array.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{owner}: expected the {part} of `clamp['{site}']` to broadcast to shape "
                f"{shape}; got {array.shape}."
            )
    with jax.ensure_compile_time_eval():
        full = jnp.broadcast_to(values, shape)
        feasible = full if model.support is None else model.support.feasible_like(full)
        held = np.asarray(jnp.where(mask, full, feasible))
    model.check_value(held, f"clamp['{site}'] values")
