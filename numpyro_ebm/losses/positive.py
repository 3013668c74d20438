"""The positive phase of the contrastive losses: energies at the data, hidden units given them."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import Chain, EnergyDistribution

PHASES = ("energy", "mean_field", "clamped")
_KEY = 2**32 - 1
"""Keeps the random numbers of clamped chains apart from those of the free ones."""


def check_positive(owner: str, positive: Any, num_positive_steps: Any) -> str:
    """Return the name of a positive phase.

    Raises:
        ValueError: There is none of this name, or ``num_positive_steps`` is not positive.
    """
    if positive not in PHASES:
        raise ValueError(f"{owner}: expected `positive` to be one of {PHASES}; got {positive!r}.")
    if not isinstance(num_positive_steps, int) or num_positive_steps < 1:
        raise ValueError(
            f"{owner}: expected `num_positive_steps` to be a positive integer; got "
            f"{num_positive_steps!r}."
        )
    return positive


def clamped_chain(
    rng_key: Key[Array, ""],
    distribution: EnergyDistribution,
    value: Num[Array, "*shape"],
    num_steps: int,
) -> Chain:
    """Chains whose hidden units have been swept given visible values, without gradients."""
    frozen = jax.lax.stop_gradient(distribution)
    rng_key = jax.random.fold_in(rng_key, _KEY)

    def sweep(i, chain):
        return frozen.clamped_step(jax.random.fold_in(rng_key, i), chain)

    chain = jax.lax.fori_loop(0, num_steps, sweep, frozen.chain_at(value))
    return jax.lax.stop_gradient(chain)


def positive_energy(
    positive: str,
    rng_key: Key[Array, ""],
    distribution: EnergyDistribution,
    value: Num[Array, "*shape"],
    num_steps: int,
) -> Float[Array, "*batch"]:
    """Energies whose gradients are those of the positive phase, in nats.

    Args:
        positive: ``"energy"``, ``"mean_field"`` or ``"clamped"``.
        rng_key: Random key of the clamped chains.
        distribution: The model.
        value: The data.
        num_steps: Mean-field iterations, or sweeps of the clamped chains.

    Raises:
        ValueError: The model has no mean field.
    """
    if positive == "energy":
        return distribution.energy(value)
    if positive == "clamped":
        return distribution.chain_energy(clamped_chain(rng_key, distribution, value, num_steps))
    frozen: Any = jax.lax.stop_gradient(distribution)
    if not callable(getattr(frozen, "mean_field", None)):
        raise ValueError(
            f'positive="mean_field": {type(frozen).__name__} has no mean field of its hidden '
            'units. Use "energy", which sums them out exactly where that can be done.'
        )
    means = jax.lax.stop_gradient(frozen.mean_field(value, num_steps))
    model: Any = distribution
    return model.variational_energy(value, means)
