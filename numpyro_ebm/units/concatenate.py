"""Several kinds of units side by side in one layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_ebm.random_key import require_key
from numpyro_ebm.units.unit import Unit


def _split(array: Array, sizes: Sequence[int]) -> list[Array]:
    return jnp.split(array, list(accumulate(sizes))[:-1], axis=-1)


class _ConcatenatedSupport(constraints.Constraint):
    """Each stretch of a vector in its own unit's support."""

    event_dim = 1

    def __init__(self, parts: tuple[constraints.Constraint, ...], sizes: tuple[int, ...]) -> None:
        self.parts, self.sizes = parts, sizes
        self.is_discrete = all(part.is_discrete for part in parts)

    def __call__(self, x: Num[ArrayLike, "*batch n"]) -> Array:
        xp = jnp if isinstance(x, jax.Array) else np
        pieces = xp.split(x, list(accumulate(self.sizes))[:-1], axis=-1)
        inside = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return xp.all(xp.stack(inside), axis=0)

    def feasible_like(self, prototype: Array) -> Array:
        """Concatenated feasible values of the parts."""
        pieces = _split(prototype, self.sizes)
        feasible = [p.feasible_like(x) for p, x in zip(self.parts, pieces, strict=True)]
        return jnp.concatenate(feasible, axis=-1)

    def __repr__(self) -> str:
        return f"concatenation of {self.parts} of sizes {self.sizes}"

    def tree_flatten(self) -> tuple[Any, Any]:
        """Parts are data, sizes are static."""
        return (self.parts,), (("parts",), {"sizes": self.sizes, "is_discrete": self.is_discrete})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ConcatenatedSupport) and (self.parts, self.sizes) == (
            other.parts,
            other.sizes,
        )

    def __hash__(self) -> int:
        return hash((_ConcatenatedSupport, self.sizes))


class ConcatenatedDistribution(dist.Distribution):
    """Independent distributions over consecutive stretches of one vector.

    Args:
        parts: Distributions, each with one event dimension and a common batch shape.
    """

    pytree_data_fields = ("parts",)

    def __init__(
        self, parts: Sequence[dist.Distribution], *, validate_args: bool | None = None
    ) -> None:
        self.parts = tuple(parts)
        batch_shape = jnp.broadcast_shapes(*(part.batch_shape for part in parts))
        size = sum(part.event_shape[0] for part in parts)
        super().__init__(batch_shape, (size,), validate_args=validate_args)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of each stretch."""
        return tuple(part.event_shape[0] for part in self.parts)

    @property
    def support(self) -> constraints.Constraint:
        """Each stretch in its part's support."""
        supports = [part.support for part in self.parts if part.support is not None]
        return _ConcatenatedSupport(tuple(supports), self.sizes)

    def sample(self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw every part and concatenate, in the type that holds all."""
        keys = jax.random.split(require_key(key), len(self.parts))
        shape = tuple(sample_shape) + self.batch_shape
        draws = [
            jnp.asarray(p.expand(self.batch_shape).sample(k, sample_shape))
            for p, k in zip(self.parts, keys, strict=True)
        ]
        return jnp.concatenate([d.reshape(*shape, -1) for d in draws], axis=-1)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        """Sum of the parts' log densities, in nats."""
        log_prob = jnp.zeros(())
        for part, piece in zip(self.parts, _split(jnp.asarray(value), self.sizes), strict=True):
            typed = piece.astype(jnp.int32) if part.is_discrete else piece
            log_prob = log_prob + part.log_prob(typed)
        return log_prob

    @property
    def mean(self) -> Array:
        """Concatenated means."""
        shape = self.batch_shape
        return jnp.concatenate([p.expand(shape).mean for p in self.parts], axis=-1)

    @property
    def variance(self) -> Array:
        """Concatenated variances."""
        shape = self.batch_shape
        return jnp.concatenate([p.expand(shape).variance for p in self.parts], axis=-1)


class Concatenate(Unit):
    """Units of several kinds side by side, as in a multimodal RBM.

    Values and features are the units' own, concatenated along the last axis; the weights of a
    model have one row for each feature (a Categorical unit of q states takes q rows).

    Args:
        units: Two or more units.

    Raises:
        TypeError: An element of ``units`` is not a unit.
        ValueError: ``units`` is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_ebm.units import Bernoulli, Gaussian
        >>> layer = Concatenate([Gaussian(jnp.zeros(3), 1.0), Bernoulli(jnp.zeros(2))])
        >>> layer.shape, layer.num_states
        ((5,), None)

    References:
        Srivastava & Salakhutdinov (2012), "Multimodal Learning with Deep Boltzmann Machines".
    """

    fields = ("units",)

    def __init__(self, units: Sequence[Unit]) -> None:
        units = tuple(units)
        for unit in units:
            if not isinstance(unit, Unit):
                raise TypeError(
                    f"Concatenate: expected `units` to hold units such as Bernoulli or Gaussian; "
                    f"got {type(unit).__name__}."
                )
        if not units:
            raise ValueError("Concatenate: expected at least one unit in `units`; got none.")
        batch = jnp.broadcast_shapes(*(unit.batch_shape for unit in units))
        self.units = tuple(unit.expand(batch) for unit in units)

    @property
    def dtype(self) -> Any:
        """The smallest type that holds the values of all units."""
        return jnp.result_type(*(unit.dtype for unit in self.units))

    @property
    def shape(self) -> tuple[int, ...]:
        """``(num_units,)``."""
        return (sum(self._sizes),)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(unit.shape[0] for unit in self.units)

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(unit.num_features for unit in self.units)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """``(num_features,)``."""
        return (sum(self._widths),)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Common batch shape of the units."""
        return self.units[0].batch_shape

    @property
    def support(self) -> constraints.Constraint:
        """Each stretch in its unit's support."""
        return _ConcatenatedSupport(tuple(u.support for u in self.units), self._sizes)

    @property
    def num_states(self) -> int | None:
        """Product of the units' numbers of states, if all are discrete."""
        counts = [unit.num_states for unit in self.units]
        finite = [count for count in counts if count is not None]
        return math.prod(finite) if len(finite) == len(counts) else None

    @property
    def feature_scale(self) -> Any:
        """Standard deviations at no field, 0 for bounded features."""
        return jnp.concatenate(
            [
                jnp.broadcast_to(u.feature_scale, u.batch_shape + (u.num_features,))
                for u in self.units
            ],
            -1,
        )

    @property
    def nonnegative(self) -> Any:
        """Which features are restricted to be nonnegative."""
        return np.concatenate(
            [np.broadcast_to(u.nonnegative, (u.num_features,)) for u in self.units]
        )

    def features(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch features"]:
        """Features of all units."""
        pieces = _split(jnp.asarray(value), self._sizes)
        parts = [u.features(x) for u, x in zip(self.units, pieces, strict=True)]
        return jnp.concatenate(parts, axis=-1)

    def energy(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch"]:
        """Sum of the units' energies, in nats."""
        pieces = _split(jnp.asarray(value), self._sizes)
        parts = [u.energy(x) for u, x in zip(self.units, pieces, strict=True)]
        return sum(parts[1:], start=parts[0])

    def unit_log_partition(self, field: Float[Array, "*batch features"]) -> Float[Array, "..."]:
        """Cumulant functions of all units, in nats."""
        pieces = _split(field, self._widths)
        parts = [u.unit_log_partition(f) for u, f in zip(self.units, pieces, strict=True)]
        return jnp.concatenate(parts, axis=-1)

    def conditional(self, field: Float[Array, "*batch features"]) -> dist.Distribution:
        """The units' conditionals side by side."""
        pieces = _split(field, self._widths)
        parts = [u.conditional(f) for u, f in zip(self.units, pieces, strict=True)]
        return ConcatenatedDistribution(parts)

    def sample(self, rng_key: Key[Array, ""], field: Float[Array, "*batch features"]) -> Array:
        """Draw every unit from its conditional."""
        keys = jax.random.split(rng_key, len(self.units))
        pieces = _split(field, self._widths)
        draws = [u.sample(k, f) for u, k, f in zip(self.units, keys, pieces, strict=True)]
        return jnp.concatenate([d.astype(self.dtype) for d in draws], axis=-1)

    def mean(self, field: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Expected features of all units."""
        pieces = _split(field, self._widths)
        return jnp.concatenate([u.mean(f) for u, f in zip(self.units, pieces, strict=True)], -1)

    def states(self, index: Int[Array, " states"]) -> tuple[Array, Array]:
        """Joint states of all units; the first unit's state changes fastest."""
        values, log_weight = [], jnp.zeros(index.shape, self.float_dtype)
        for unit in self.units:
            count = unit.num_states or 1  # continuous units raise in `states`
            value, weight = unit.states(index % count)
            index = index // count
            values.append(value)
            log_weight = log_weight + weight
        return jnp.concatenate(values, axis=-1), log_weight

    def expand(self, batch_shape: tuple[int, ...]) -> Self:
        """Broadcast every unit's parameters to a batch shape."""
        return type(self)([unit.expand(batch_shape) for unit in self.units])

    def in_field(self, field: Float[Array, "*batch features"]) -> Self:
        """Each unit in its stretch of the field."""
        pieces = _split(jnp.asarray(field), self._widths)
        return type(self)([u.in_field(f) for u, f in zip(self.units, pieces, strict=True)])

    def interpolate(self, base: Self, beta: Float[ArrayLike, ""]) -> Self:
        """Interpolate unit by unit."""
        pairs = zip(self.units, base.units, strict=True)
        return type(self)([unit.interpolate(other, beta) for unit, other in pairs])

    def base_rate(self, mean: Float[Array, " f"], second: Float[Array, " f"]) -> Self:
        """Base rate of each unit."""
        means, seconds = _split(mean, self._widths), _split(second, self._widths)
        triples = zip(self.units, means, seconds, strict=True)
        return type(self)([unit.base_rate(m, s) for unit, m, s in triples])

    def tilt(self, log_factor: Callable[[Array], Array], shape: tuple[int, ...]) -> Self:
        """Tilt unit by unit; the factor of one unit does not depend on the others' values."""
        tilted, start = [], 0
        for unit, size in zip(self.units, self._sizes, strict=True):
            stop = start + size

            def part(x, start=start, stop=stop):
                full = jnp.zeros(shape, jnp.result_type(x)).at[..., start:stop].set(x)
                return log_factor(full)[..., start:stop]

            tilted.append(unit.tilt(part, (*shape[:-1], size)))
            start = stop
        return type(self)(tilted)
