"""The path of mixed energies from a normalized distribution to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.distributions import Distribution

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.distributions.reference import StandardReference
from numpyro_ebm.protocols import UnitStates, unit_states

if TYPE_CHECKING:
    from numpyro_ebm.distributions.generic import GenericEnergy, MixedEnergy


class EnergyPath:
    r"""Energies mixed between a normalized base b and a target E.

    .. math:: E_\beta(x) = -(1 - \beta) \log b(x) + \beta E(x) = -\log b(x) + \beta f(x), \qquad
        f(x) = E(x) + \log b(x)

    At :math:`\beta = 0` log Z is 0 and draws are exact. A target that contains b as a factor
    evaluates f without it.

    Args:
        target: The model at :math:`\beta = 1`.
        base: b; ``None`` is the target's own.

    References:
        Neal (2001), "Annealed importance sampling", Statistics and Computing 11, section 2.
    """

    def __init__(self, target: GenericEnergy, base: Distribution | None = None) -> None:
        self.target, self.base = target, base

    @classmethod
    def of(cls, target: GenericEnergy, base: Any = None) -> EnergyPath:
        """Choose the base: a distribution, one fitted to data, or (``None``) the default.

        Raises:
            TypeError: ``base`` is none of these.
            ValueError: It does not fit the target.
        """
        if base is not None and base is target.own_base:
            return cls(target)
        if isinstance(base, Distribution):
            check_base(target, base)
            return cls(target, jax.tree.map(jnp.array, base))  # none of the target's own arrays
        if base is not None:
            return cls(target, StandardReference.fit(target, _as_data(target, base)))
        return cls(target, None if target.own_base is not None else StandardReference.of(target))

    @property
    def base_distribution(self) -> Distribution:
        """The distribution at beta = 0."""
        base = self.target.own_base if self.base is None else self.base
        if base is None:
            raise ValueError("EnergyPath: expected a `base` for a target without one of its own.")
        return base

    @property
    def log_z0(self) -> Float[Array, ""]:
        """Log Z at beta = 0, in nats: the base is normalized."""
        return jnp.zeros((), self.target.float_dtype)

    def at(self, beta: Float[ArrayLike, ""]) -> MixedEnergy:
        """Return the model at inverse temperature ``beta``."""
        return self.target.mixed(self, beta)

    def retarget(self, target: GenericEnergy) -> EnergyPath:
        """Return the path from the same base (or the target's own) to another target."""
        return EnergyPath(target, self.base)

    def sample(self, rng_key: Key[Array, ""], num_samples: int) -> Num[Array, "n *event"]:
        """Draw values from the base."""
        draws = self.base_distribution.sample(rng_key, (num_samples,))
        return jnp.asarray(draws).astype(self.target.chain_dtype)

    def log_base(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """Log density of the base in nats."""
        return jnp.asarray(self.base_distribution.log_prob(self.target.as_input(value)))

    def excess_energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """f(x), the energy of the target above that of the base, in nats."""
        if self.base is None:
            return self.target.excess_energy(value)
        return self.target.energy(value) + self.log_base(value)

    def log_weight_increment(
        self,
        chain: Num[Array, "*shape"],
        beta: Float[ArrayLike, ""],
        beta_next: Float[ArrayLike, ""],
    ) -> Float[Array, "*batch"]:
        """E_beta(x) - E_beta_next(x) in nats: the step times f."""
        return (jnp.asarray(beta) - jnp.asarray(beta_next)) * self.excess_energy(chain)


jax.tree_util.register_pytree_node(
    EnergyPath,
    lambda path: ((path.target, path.base), None),
    lambda _, children: EnergyPath(*children),
)


def check_base(target: EnergyDistribution, base: Any) -> None:
    """Refuse a base that is not normalized, or on another space.

    Raises:
        TypeError: It is no distribution.
        ValueError: Its log Z is unknown, or its shape or support are not those of the target.
    """
    owner = type(target).__name__
    check_normalized(owner, base)
    if base.batch_shape or base.event_shape != target.event_shape:
        raise ValueError(
            f"{owner}: expected a `base` with batch shape () and event shape "
            f"{target.event_shape}; got {base.batch_shape} and {base.event_shape}. Make batch "
            "dimensions part of the event with .to_event()."
        )
    if base.is_discrete != target.is_discrete:
        raise ValueError(
            f"{owner}: expected a `base` with the support {target.support}; got {base.support}."
        )
    states, given = target.unit_states, unit_states(base.support, base.event_shape)
    if states is not None and given is not None and _sets(states) != _sets(given):
        raise ValueError(
            f"{owner}: expected a `base` whose units have the same states, those of "
            f"{target.support}; got {base.support}."
        )


def _sets(states: UnitStates) -> list[set[Any]]:
    return [set(row) for row in states.values.reshape(-1, states.values.shape[-1]).tolist()]


def check_normalized(owner: str, base: Any, name: str = "base") -> None:
    """Refuse a distribution whose density is not known to integrate to one.

    Raises:
        TypeError: It is no distribution.
        ValueError: Its log Z is unknown.
    """
    if not isinstance(base, Distribution):
        raise TypeError(
            f"{owner}: expected `{name}` to be a NumPyro distribution; got {type(base).__name__}."
        )
    if isinstance(base, EnergyDistribution):
        raise ValueError(
            f"{owner}: expected a normalized `{name}` with exact draws; got {type(base).__name__}, "
            "an energy-based model. Multiply energy-based models by ebm.ProductOfExperts."
        )


def _as_data(target: EnergyDistribution, base: Any) -> Array:
    owner, event = type(target).__name__, target.event_shape
    try:
        data = jnp.asarray(base)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{owner}: expected `base` to be a normalized NumPyro distribution, data of shape "
            f"(n, *{event}) or None; got {type(base).__name__}."
        ) from error
    if data.ndim != 1 + len(event) or data.shape[1:] != event or data.shape[0] == 0:
        raise ValueError(
            f"{owner}: expected `base` data of shape (n, *{event}) with n >= 1; got {data.shape}."
        )
    target.check_value(data, "base", as_rows=True)
    return data
