"""Checks of random keys."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Key
from numpyro.util import is_prng_key


def require_key(key: Any) -> Key[Array, ""]:
    """Return a random key, or say that there is none.

    Raises:
        TypeError: ``key`` is not one random key.
    """
    if not is_prng_key(key):
        came = f"an array of shape {key.shape}" if hasattr(key, "shape") else repr(key)
        raise TypeError(
            f"sample: expected `key` to be one random key, such as jax.random.key(0); got {came}. "
            "Inside a NumPyro model, run it under handlers.seed."
        )
    return key
