"""What every kind of unit has in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num
from numpyro.distributions import Distribution, constraints
from numpyro.util import not_jax_tracer

SMALLEST_RATE = 1e-3
"""Base rates are kept this far from 0 and 1, so that their natural parameters stay finite."""


class Unit:
    r"""One layer of conditionally independent units, an exponential family.

    A layer has an energy :math:`E(x)` and features :math:`\phi(x)`; a field :math:`f` from other
    layers adds :math:`-f^T \phi(x)` to the energy. Every unit type gives its energy, its cumulant
    function :math:`\log \sum_x \exp(-E(x) + f^T \phi(x))` and its conditional, so that a model
    built from them needs to know no unit type. A unit is a pytree of its own parameters; leading
    dimensions of the parameters are batch dimensions. Energies are in nats.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters, in the order of the constructor."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_pytree_with_keys(cls, cls._flatten, cls._unflatten)

    def _flatten(self) -> tuple[Any, None]:
        return tuple((jax.tree_util.GetAttrKey(f), getattr(self, f)) for f in self.fields), None

    @classmethod
    def _unflatten(cls, _: None, children: Any) -> Self:
        unit = object.__new__(cls)
        for field, child in zip(cls.fields, children, strict=True):
            setattr(unit, field, child)
        return unit

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, batch_shape={self.batch_shape})"

    # ----- shapes --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one value of the layer, ``(num_units,)``."""
        return jnp.shape(getattr(self, self.fields[0]))[-1:]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the features of one value; weights have this shape on the unit's side."""
        return self.shape

    @property
    def num_features(self) -> int:
        """Number of features of the layer."""
        return math.prod(self.feature_shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of the parameters."""
        shape = jnp.shape(getattr(self, self.fields[0]))
        return shape[: len(shape) - len(self.feature_shape)]

    @property
    def support(self) -> constraints.Constraint:
        """Values the layer can take."""
        raise TypeError(f"{type(self).__name__} does not define `support`.")

    @property
    def num_states(self) -> int | None:
        """Number of joint states of the layer; ``None`` for continuous units."""
        return None

    @property
    def dtype(self) -> Any:
        """Type in which states are kept; 8-bit for binary units."""
        return self.float_dtype

    @property
    def nonnegative(self) -> Any:
        """Whether features are restricted to be nonnegative."""
        return False

    @property
    def feature_scale(self) -> Any:
        """Standard deviation of each feature at no field; 0 for bounded features."""
        return 0.0

    # ----- the family ----------------------------------------------------------------------

    def features(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch features"]:
        """Features of a value that enter the interaction, flat and in floating point."""
        return jnp.asarray(value).astype(self.float_dtype)

    def energy(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch"]:
        """Energy of a value in nats."""
        raise TypeError(f"{type(self).__name__} does not define `energy`.")

    def energy_difference(
        self, other: Self, value: Num[Array, "*batch n"]
    ) -> Float[Array, "*batch"]:
        """Energy of a value less that by the parameters of ``other``, in nats."""
        return self.energy(value) - other.energy(value)

    def unit_log_partition(self, field: Float[Array, "*batch features"]) -> Float[Array, "..."]:
        """Cumulant function of each unit in nats, shape ``batch + (n,)``."""
        raise TypeError(f"{type(self).__name__} does not define `unit_log_partition`.")

    def log_partition(self, field: Float[Array, "*batch features"]) -> Float[Array, "*batch"]:
        """Cumulant function of the layer: the log sum of ``exp(-energy + field . features)``."""
        return self.unit_log_partition(field).sum(-1)

    def conditional(self, field: Float[Array, "*batch features"]) -> Distribution:
        """Return the distribution proportional to ``exp(-energy + field . features)``."""
        raise TypeError(f"{type(self).__name__} does not define `conditional`.")

    def sample(
        self, rng_key: Key[Array, ""], field: Float[Array, "*batch features"]
    ) -> Num[Array, "*batch n"]:
        """Draw from :meth:`conditional`, in the compact type :attr:`dtype`."""
        return jnp.asarray(self.conditional(field).sample(rng_key)).astype(self.dtype)

    def sample_16_bit(
        self, rng_key: Key[Array, ""], field: Float[Array, "*batch features"]
    ) -> Num[Array, "*batch n"]:
        """Draw as :meth:`sample` does; binary units with 16 random bits each."""
        return self.sample(rng_key, field)

    def mean(self, field: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Expected features under :meth:`conditional`: the gradient of the cumulant function."""
        shape = jnp.broadcast_shapes(jnp.shape(field), self.batch_shape + (self.num_features,))
        field = jnp.broadcast_to(field, shape)
        return jax.grad(lambda f: self.log_partition(f).sum())(field)

    def states(
        self, index: Int[Array, " states"]
    ) -> tuple[Num[Array, "states n"], Float[Array, " states"]]:
        """Joint states by number, and the log weight of each in a sum over states."""
        raise TypeError(f"{type(self).__name__} has no finite set of states.")

    def expand(self, batch_shape: tuple[int, ...]) -> Self:
        """Broadcast the parameters to a batch shape."""
        event = self.feature_shape
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, batch_shape + event), self)

    # ----- relatives -----------------------------------------------------------------------

    def in_field(self, field: Float[Array, "*batch features"]) -> Self:
        """Return units whose energy has a constant field absorbed, up to a constant.

        Args:
            field: Added to the natural parameters, ``batch + (num_features,)``.
        """
        raise TypeError(f"{type(self).__name__} does not define `in_field`.")

    def interpolate(self, base: Self, beta: Float[ArrayLike, ""]) -> Self:
        """Natural parameters ``(1 - beta) base + beta self``."""
        return jax.tree.map(lambda a, b: (1.0 - beta) * a + beta * b, base, self)

    def base_rate(self, mean: Float[Array, " features"], second: Float[Array, " features"]) -> Self:
        """Return a unit of this type whose features have the given moments at no field.

        Args:
            mean: Mean of each feature.
            second: Mean square of each feature (used by continuous units).
        """
        raise TypeError(f"{type(self).__name__} does not define `base_rate`.")

    def tilt(self, log_factor: Callable[[Array], Array], shape: tuple[int, ...]) -> Self:
        """Absorb a factor that is a product over units, so that the result is again such a unit.

        Args:
            log_factor: Maps values of shape ``shape`` to the log factor of each unit.
            shape: Shape of the values.

        Raises:
            ValueError: The product is not of the unit's family.
        """
        raise ValueError(f"{type(self).__name__} cannot absorb a likelihood term.")

    # ----- checks --------------------------------------------------------------------------

    @property
    def float_dtype(self) -> Any:
        """Floating type of the parameters."""
        return jnp.result_type(*jax.tree.leaves(self))

    def _set(self, **parameters: Any) -> None:
        """Store parameters as finite floating arrays of a common shape."""
        name, arrays = type(self).__name__, {}
        for key, value in parameters.items():
            try:
                array = jnp.asarray(value)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name}: expected an array for `{key}`; got {type(value).__name__}."
                ) from error
            if not jnp.issubdtype(array.dtype, jnp.floating):
                array = array.astype(jnp.result_type(float))
            if not_jax_tracer(array) and not np.all(np.isfinite(array)):
                bad = int(np.sum(~np.isfinite(array)))
                raise ValueError(
                    f"{name}: expected finite `{key}`; got {bad} NaN or infinite of {array.size}."
                )
            arrays[key] = array
        try:
            shape = jnp.broadcast_shapes(*(a.shape for a in arrays.values()))
        except ValueError as error:
            raise ValueError(
                f"{name}: expected parameters of shapes that broadcast together; got "
                + ", ".join(f"`{k}` {a.shape}" for k, a in arrays.items())
                + "."
            ) from error
        for key, array in arrays.items():
            setattr(self, key, jnp.broadcast_to(array, shape))

    def _check_rank(self, rank: int, what: str) -> None:
        shape = jnp.shape(getattr(self, self.fields[0]))
        if len(shape) < rank or 0 in shape:
            raise ValueError(
                f"{type(self).__name__}: expected `{self.fields[0]}` of shape {what} with at "
                f"least one unit; got {shape}."
            )


class LinearUnit(Unit):
    r"""Units with energy :math:`-b^T \phi(x)`, where b is their only parameter."""

    @property
    def _weights(self) -> Float[Array, "*batch features"]:
        weights = jnp.asarray(getattr(self, self.fields[0]))
        return weights.reshape(*self.batch_shape, self.num_features)

    def energy(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch"]:
        r""":math:`-b^T \phi(x)`."""
        return -_dot(self.features(value), self._weights)

    def energy_difference(
        self, other: Self, value: Num[Array, "*batch n"]
    ) -> Float[Array, "*batch"]:
        """Energy of a value less that by ``other``; parameters are subtracted first."""
        return -_dot(self.features(value), self._weights - other._weights)

    def in_field(self, field: Float[Array, "*batch features"]) -> Self:
        """Add the field to the parameter."""
        field = jnp.asarray(field)
        parameter, kind = jnp.asarray(getattr(self, self.fields[0])), cast(Any, type(self))
        return kind(parameter + field.reshape(*field.shape[:-1], *self.feature_shape))


def _dot(x: Float[Array, "*batch f"], y: Float[Array, "*other f"]) -> Float[Array, "*shape"]:
    """Scalar products of vectors; by one vector it is a product with a matrix."""
    if y.ndim == 1:
        return jnp.matmul(x, y, precision="highest")
    return (x * y).sum(-1)


def digits(index: Int[Array, " states"], num_units: int, base: int) -> Int[Array, "states n"]:
    """Write state numbers in positional notation, least significant unit first."""
    powers = jnp.asarray([base**i for i in range(num_units)], index.dtype)
    return (index[:, None] // powers) % base
