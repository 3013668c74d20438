"""What the losses have in common that see each unit of a discrete model given all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.losses.checks import require_states
from numpyro_ebm.losses.loss import EnergyLoss


class SiteLoss(EnergyLoss):
    """Base of the losses that are sums over single sites, or over a random subset of them.

    Args:
        num_sites: Sites drawn at each update, shared by its observations; ``None`` for all.
        num_particles: Draws from the guide for one estimate.
        vectorize_particles: Whether to ``vmap`` over them.
    """

    def __init__(
        self,
        num_sites: int | None = None,
        *,
        num_particles: int = 1,
        vectorize_particles: Any = True,
    ) -> None:
        if num_sites is not None and (not isinstance(num_sites, int) or num_sites < 1):
            raise ValueError(
                f"{type(self).__name__}: expected `num_sites` to be a positive integer, or None "
                f"for all sites; got {num_sites!r}."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.num_sites = num_sites

    def site_terms(
        self, energies: Float[Array, "*batch q"], present: Bool[Array, "*batch q"]
    ) -> Float[Array, "*batch"]:
        """Minus the loss of each site from the energies of its states.

        Args:
            energies: In nats, up to a constant for each site; +inf for states that do not exist.
            present: Which state each site is in.
        """
        raise TypeError(f"{type(self).__name__} does not define `site_terms`.")

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Sum over the sites, or an unbiased estimate of it."""
        states, size = require_states(self, name, distribution), self.num_sites
        values, allowed = (jnp.asarray(part.reshape(-1, part.shape[-1])) for part in states)
        num_units, sites, scale = len(values), None, 1.0
        if size is not None and size > num_units:
            raise ValueError(
                f"{type(self).__name__}: expected `num_sites` of at most {num_units}, the number "
                f"of units at site '{name}'; got {size}."
            )
        if size is not None:
            sites = jax.random.choice(rng_key, num_units, (size,), replace=False)
            values, allowed, scale = values[sites], allowed[sites], num_units / size

        def log_prob(value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
            flat = flat_sites(value, distribution)
            flat = flat if sites is None else flat[..., sites]
            energies = distribution.site_energies(value, sites)
            present = (flat[..., None] == values) & allowed
            total = scale * self.site_terms(energies, present).sum(-1)
            return inside_support(total, value, distribution)

        return log_prob


def flat_sites(
    value: Num[Array, "*shape"], distribution: EnergyDistribution
) -> Num[Array, "*batch num_sites"]:
    """Values with their event dimensions flattened."""
    event = distribution.event_shape
    return value.reshape(*value.shape[: value.ndim - len(event)], math.prod(event))


def inside_support(
    log_prob: Float[Array, "*batch"], value: Num[Array, "*shape"], distribution: EnergyDistribution
) -> Float[Array, "*batch"]:
    """Give observations outside the support an infinite loss."""
    inside = distribution.check_value(value)
    return log_prob if inside is True else jnp.where(inside, log_prob, -jnp.inf)
