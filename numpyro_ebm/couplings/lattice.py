"""Couplings between nearest neighbours on a rectangular lattice."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num

from numpyro_ebm.couplings.coupling import Coupling, as_floating
from numpyro_ebm.couplings.graph import Graph


class Lattice(Coupling):
    r"""Couplings between nearest neighbours on a rectangular lattice of any dimension.

    Every site x is coupled to :math:`x + e_a` along each axis a. Along a periodic axis the last
    site is coupled to the first; there an axis of length 2 has two bonds between its two sites,
    and an axis of length 1 has none. Fields are sums of shifted grids; with equal couplings and
    8-bit features they are exact sums of integers.

    Args:
        shape: Shape of the lattice.
        coupling: J in nats: one number; an array of shape ``batch + (dimensions,)``, one for each
            axis (or ``batch + (1,)``); or a sequence of one array for each axis with the coupling
            of each bond :math:`(x, x + e_a)` at x, of shape ``batch + shape`` (along an axis that
            is not periodic, one shorter in that axis).
        periodic: Whether the lattice is periodic, for all axes or for each.

    Raises:
        ValueError: A shape does not fit, or a value is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> Lattice((4, 4), 0.5).pair_sum(jnp.ones((4, 4)))  # 32 bonds
        Array(16., dtype=float32)
    """

    leaves = ("values",)
    static = ("_shape", "periodic")
    values: tuple[Array, ...]
    _shape: tuple[int, ...]
    periodic: tuple[bool, ...]

    def __init__(
        self,
        shape: Sequence[int] | int,
        coupling: Float[ArrayLike, "*batch"] | Sequence[Any],
        periodic: bool | Sequence[bool] = True,
        *,
        owner: str = "Lattice",
    ) -> None:
        self._shape = _check_shape(shape, owner)
        self.periodic = _check_periodic(periodic, len(self._shape), owner)
        self.values = self._parse(coupling, owner)

    def _parse(self, coupling: Any, owner: str) -> tuple[Array, ...]:
        d = len(self._shape)
        if isinstance(coupling, list | tuple) and any(np.ndim(part) for part in coupling):
            if len(coupling) != d:
                raise ValueError(
                    f"{owner}: expected one array in `coupling` for each of {d} axes; got "
                    f"{len(coupling)}."
                )
            return tuple(self._bonds(part, a, owner) for a, part in enumerate(coupling))
        array = as_floating(coupling, owner, "coupling")
        if array.ndim == 0:
            array = array[None]
        if array.shape[-1] not in (1, d):
            raise ValueError(
                f"{owner}: expected `coupling` to be a number, an array (..., {d}) with one for "
                f"each axis, or a sequence of {d} arrays of bonds; got shape {array.shape}."
            )
        grid = (1,) * d
        parts = jnp.moveaxis(array, -1, 0)
        return tuple(part.reshape(part.shape + grid) for part in parts)

    def _bonds(self, part: Any, axis: int, owner: str) -> Array:
        """Couplings of the bonds along an axis, zero where there is no bond."""
        array = as_floating(part, owner, f"coupling[{axis}]")
        shape, d = self._shape, len(self._shape)
        if array.ndim == 0:
            array = jnp.broadcast_to(array, shape)
        grid = array.shape[array.ndim - d :] if array.ndim >= d else None
        wraps = self.periodic[axis]
        short = (*shape[:axis], shape[axis] - 1, *shape[axis + 1 :])
        if grid != shape and (wraps or grid != short):
            raise ValueError(
                f"{owner}: expected `coupling[{axis}]` of shape (..., "
                f"{', '.join(map(str, shape if wraps else short))}); got {array.shape}."
            )
        if wraps:
            return array
        along = array.ndim - d + axis
        inner = jnp.take(array, np.arange(shape[axis] - 1), axis=along)
        return jnp.pad(inner, [(0, int(k == along)) for k in range(array.ndim)])

    # ----- structure -----------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the lattice."""
        return self._shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of the values."""
        d = len(self._shape)
        return jnp.broadcast_shapes(*(value.shape[: value.ndim - d] for value in self.values))

    @property
    def isotropic(self) -> bool:
        """Whether one number couples all neighbours."""
        d = len(self._shape)
        return len(self.values) == 1 and self.values[0].shape[-d:] == (1,) * d

    @property
    def graph(self) -> Graph:
        """All bonds; the two bonds of a periodic axis of length 2 are two edges."""
        return _lattice_graph(self._shape, self.periodic)

    @property
    def coloring(self) -> Int[np.ndarray, "*shape"]:
        """Colour of every site: two colours, or three where a periodic axis has odd length."""
        return _lattice_coloring(self._shape, self.periodic)

    @property
    def edge_values(self) -> Float[Array, "*batch m"]:
        """Coupling of each bond, axis by axis."""
        batch, parts = self.batch_shape, []
        for axis in range(len(self._shape)):
            value, start = self._value(axis), _bond_starts(self._shape, self.periodic, axis)
            grid = value.shape[value.ndim - len(self._shape) :]
            value = value.reshape(*value.shape[: value.ndim - len(grid)], -1)
            if value.shape[-1] > 1:
                value = value[..., start]
            parts.append(jnp.broadcast_to(value, (*batch, start.size)))
        return jnp.concatenate(parts, axis=-1)

    def bonds_along(self, axis: int) -> Float[Array, "*batch shape"]:
        """Coupling of every site to the next along an axis, zero where there is no bond."""
        start = _bond_starts(self._shape, self.periodic, axis)
        bonded = np.isin(np.arange(self.num_units), start).reshape(self._shape)
        return jnp.where(bonded, self._value(axis), 0)

    def _value(self, axis: int) -> Array:
        return self.values[axis % len(self.values)]

    # ----- sums ----------------------------------------------------------------------------

    def around(
        self, grid: Num[Array, "*shape"], axis: int
    ) -> tuple[Num[Array, "*shape"], Num[Array, "*shape"]]:
        """Bring the neighbours forward and backward along an axis to every site.

        Zero where there is none. Grids are padded once and then sliced, because compiled loops over
        rolled arrays are several times slower.
        """
        along, size = axis - len(self._shape), self._shape[axis]
        if size == 1:
            return jnp.zeros_like(grid), jnp.zeros_like(grid)
        cut = partial(jax.lax.slice_in_dim, axis=grid.ndim + along)
        first, last = cut(grid, 0, 1), cut(grid, size - 1, size)
        if not self.periodic[axis]:
            first, last = jnp.zeros_like(first), jnp.zeros_like(last)
        padded = jax.lax.optimization_barrier(jnp.concatenate([last, grid, first], along))
        return cut(padded, 2, size + 2), cut(padded, 0, size)

    def neighbour_sum(self, features: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """Sum of the features of all neighbours, in the features' own type."""
        total = jnp.zeros((), features.dtype)
        for axis in range(len(self._shape)):
            forward, backward = self.around(features, axis)
            total = total + forward + backward
        return total

    def field(self, features: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Sum over neighbours, by shifts."""
        if self.isotropic:
            return self.values[0] * self.neighbour_sum(features).astype(self.dtype)
        features, total = features.astype(self.dtype), jnp.zeros((), self.dtype)
        for axis in range(len(self._shape)):
            value = self._value(axis)
            own = jnp.broadcast_shapes(value.shape, features.shape)
            backward = self.around(jnp.broadcast_to(value * features, own), axis)[1]
            total = total + value * self.around(features, axis)[0] + backward
        return total

    def pair_sum(self, features: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Sum over bonds."""
        d = len(self._shape)
        sites = tuple(range(-d, 0))
        total = jnp.zeros((), self.dtype)
        for axis in range(d):
            value = self._value(axis)
            if value.shape[value.ndim - d :] == (1,) * d:
                products = features * self.around(features, axis)[0]
                exact = jnp.issubdtype(products.dtype, jnp.integer)
                count = products.sum(sites, dtype=jnp.int32 if exact else None)
                total = total + value.reshape(value.shape[: value.ndim - d]) * count.astype(
                    self.dtype
                )
            else:
                own = features.astype(self.dtype)
                total = total + (value * own * self.around(own, axis)[0]).sum(sites)
        return total


# ----- structure ---------------------------------------------------------------------------


def _bond_starts(shape: tuple[int, ...], periodic: tuple[bool, ...], axis: int) -> np.ndarray:
    """Sites, in row-major order, that have a bond forward along an axis."""
    size = shape[axis]
    last = 0 if size == 1 else size - (not periodic[axis])
    coordinate = np.indices(shape, sparse=True)[axis]
    return np.flatnonzero(np.broadcast_to(coordinate < last, shape))


@lru_cache(maxsize=16)
def _lattice_graph(shape: tuple[int, ...], periodic: tuple[bool, ...]) -> Graph:
    number, edges = np.arange(math.prod(shape)).reshape(shape), []
    for axis in range(len(shape)):
        start = _bond_starts(shape, periodic, axis)
        edges.append(np.stack([start, np.roll(number, -1, axis).ravel()[start]], 1))
    return Graph(number.size, np.concatenate(edges))


@lru_cache(maxsize=16)
def _lattice_coloring(shape: tuple[int, ...], periodic: tuple[bool, ...]) -> np.ndarray:
    """Sums of colours along each axis, modulo the number of colours.

    Neighbours differ in one summand, by an amount that is not a multiple of that number.
    """
    odd = [
        wraps and size % 2 == 1 and size > 1 for size, wraps in zip(shape, periodic, strict=True)
    ]
    total = np.zeros(shape, np.int8)
    for axis, size in enumerate(shape):
        color = np.arange(size) % 2
        if odd[axis]:
            color[-1] = 2
        total = total + np.expand_dims(color, tuple(k for k in range(len(shape)) if k != axis))
    total = (total % (3 if any(odd) else 2)).astype(np.int8)
    total.setflags(write=False)
    return total


# ----- checks ------------------------------------------------------------------------------


def _check_shape(shape: Any, owner: str) -> tuple[int, ...]:
    try:
        sizes = shape if isinstance(shape, Sequence) else np.atleast_1d(shape).tolist()
        sizes = tuple(operator.index(size) for size in sizes)
    except TypeError as error:
        raise TypeError(f"{owner}: expected integers in `shape`; got {shape!r}.") from error
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{owner}: expected positive sizes in `shape`; got {sizes}.")
    return sizes


def _check_periodic(periodic: Any, num_axes: int, owner: str) -> tuple[bool, ...]:
    flags = (periodic,) * num_axes if np.ndim(periodic) == 0 else tuple(periodic)
    if len(flags) != num_axes or not all(isinstance(flag, bool | np.bool_) for flag in flags):
        raise ValueError(
            f"{owner}: expected `periodic` to be True or False, or {num_axes} of them; got "
            f"{periodic!r}."
        )
    return tuple(bool(flag) for flag in flags)
