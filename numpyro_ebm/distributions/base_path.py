"""The path of mixed energies from any normalized distribution to any energy-based model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num
from numpyro.distributions import Distribution

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.distributions.energy_path import EnergyPath, check_base
from numpyro_ebm.distributions.generic import GenericEnergy


class BasePath(EnergyPath):
    r"""Energies mixed between a normalized base, such as a NADE, and a model.

    .. math:: E_\beta(x) = -(1 - \beta) \log b(x) + \beta E(x)

    The models in between know no hidden units: their Gibbs step sweeps over single discrete units,
    each at the cost of the base's log density for all of them.
    """

    @classmethod
    def of(cls, target: EnergyDistribution, base: Distribution | None = None) -> BasePath:
        """Start at a normalized distribution.

        Raises:
            TypeError: ``base`` is no distribution.
            ValueError: Its log Z is unknown, or its shape or support are not the target's.
        """
        check_base(target, base)
        return cls(_EnergyAlone(target), jax.tree.map(jnp.array, base))

    def retarget(self, target: EnergyDistribution) -> BasePath:
        """Return the path from the same base to another model."""
        return BasePath(_EnergyAlone(target), self.base)


class _EnergyAlone(GenericEnergy):
    """A model of which nothing is used but its energy."""

    pytree_data_fields = ("model",)

    def __init__(self, model: EnergyDistribution) -> None:
        self.model = model
        super().__init__((), model.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the model."""
        return self.model.support

    def energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """Energy of the model in nats."""
        return self.model.energy(value)


jax.tree_util.register_pytree_node(
    BasePath,
    lambda path: ((path.target, path.base), None),
    lambda _, children: BasePath(*children),
)
