"""Gibbs sweeps over the units of any graph: by colours, in order, or at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_ebm.couplings import Coupling, Dense, Edges
from numpyro_ebm.couplings.graph import Graph
from numpyro_ebm.random_bits import uniform_numbers

if TYPE_CHECKING:
    from numpyro_ebm.distributions.pairwise import PairwiseModel

_BLOCK = 32
"""Units whose fields are computed together in a sequential sweep over dense couplings."""


def graph_sweep(
    model: PairwiseModel, rng_key: Any, value: Array, mask: Any, colors: range
) -> Num[Array, "*shape"]:
    """Draw the units of a graph colour by colour, gathering their neighbours."""
    coloring = cast(np.ndarray, model.coloring)
    uniform = uniform_numbers(rng_key, value.shape, model.float_dtype)
    neighbours = _Neighbours.of(model)
    for color in colors:
        units = np.flatnonzero(coloring == color)
        field = neighbours.field(value, units)
        new = model._alphabet.draw(field, uniform[..., units])
        if mask is not None:
            new = jnp.where(mask[..., units], value[..., units], new)
        value = value.at[..., units].set(new, unique_indices=True)
    return value


class _Neighbours:
    """Fields on chosen units from their neighbours, for any couplings."""

    def __init__(self, model: PairwiseModel, couplings: Coupling, field: Array) -> None:
        self.model, self.couplings, self.unit_field = model, couplings, field
        if isinstance(couplings, Edges):
            self.table, self.edge = couplings.graph.neighbours
            values = couplings.values
            self.values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])

    @classmethod
    def of(cls, model: PairwiseModel) -> _Neighbours:
        """Flatten the grid of a model."""
        couplings, num = model.couplings, len(model.couplings.shape)
        graph = couplings.graph
        if graph is not None:
            couplings = Edges.from_graph(graph, couplings.edge_values)
        field = model.site_field(num)  # any number of dimensions; batch ones stay in place
        grid = model.couplings.shape
        lead = field.shape[: field.ndim - num]
        flat = jnp.broadcast_to(field, lead + grid).reshape(*lead, -1)
        return cls(model, couplings, flat)

    def field(self, value: Num[Array, "*batch n"], units: Any) -> Float[Array, "*batch k"]:
        """Field on ``units`` (an array of numbers), label first for Potts models."""
        alphabet, own = self.model._alphabet, self.unit_field[..., units]
        if alphabet.label_axis:
            own = own.reshape(own.shape[0], *[1] * (value.ndim + 1 - own.ndim), *own.shape[1:])
        if isinstance(self.couplings, Dense):
            rows = self.couplings.matrix[..., units, :]
            features = alphabet.features(value).astype(rows.dtype)
            return own + jnp.einsum("...j,...kj->...k", features, rows, precision="highest")
        table, edge = self.table, self.edge
        if isinstance(units, np.ndarray):  # known: no unit of the colour has more neighbours
            width = max(1, int(cast(Graph, self.couplings.graph).degree[units].max(initial=0)))
            near, along = table[units, :width], edge[units, :width]
        else:
            near, along = jnp.asarray(table)[units], jnp.asarray(edge)[units]
        features = alphabet.features(value[..., near]).astype(self.values.dtype)
        return own + (features * self.values[..., along]).sum(-1)


# ----- one site after the other ------------------------------------------------------------


def one_by_one(
    model: PairwiseModel, rng_key: Any, value: Array, mask: Any, backward: bool
) -> Num[Array, "*shape"]:
    """Draw the units in order, backward or not, or as many at random with replacement."""
    num = len(model.couplings.shape)
    lead, n = value.shape[: value.ndim - num], model.couplings.num_units
    key_order, key_draw = jax.random.split(rng_key)
    flat = value.reshape(*lead, n)
    held = None if mask is None else mask.reshape(*lead, n)
    uniform = uniform_numbers(key_draw, flat.shape, model.float_dtype)
    if model.scan == "sequential" and isinstance(model.couplings, Dense):
        return _block_sweep(model, flat, uniform, held, backward).reshape(value.shape)
    order = jnp.arange(n)[::-1] if backward else jnp.arange(n)
    if model.scan == "random":
        order = jax.random.randint(key_order, (n,), 0, n)
    neighbours = _Neighbours.of(model)

    def visit(step, flat):
        unit = order[step][None]
        draw = jax.lax.dynamic_slice_in_dim(uniform, step, 1, axis=-1)
        new = model._alphabet.draw(neighbours.field(flat, unit), draw)
        old = flat[..., unit]
        new = new if held is None else jnp.where(held[..., unit], old, new)
        return flat.at[..., unit].set(new)

    return jax.lax.fori_loop(0, n, visit, flat).reshape(value.shape)


def _block_sweep(
    model: PairwiseModel, value: Array, uniform: Array, held: Any, backward: bool
) -> Num[Array, "*batch n"]:
    """Draw densely coupled units in order.

    The fields on a block of units come from one matrix product; within the block every change is
    added to the fields of the units that follow.
    """
    alphabet, matrix, n = model._alphabet, model.couplings.dense(), value.shape[-1]
    size = min(_BLOCK, n)
    field = model.site_field(value.ndim)
    field = jnp.broadcast_to(field, (*field.shape[:-1], n))
    if backward:  # the same sweep over units in the opposite order
        matrix = matrix[..., ::-1, ::-1]
        value, field = value[..., ::-1], field[..., ::-1]
        held = None if held is None else held[..., ::-1]

    def draw_block(start, value, width):
        rows = jax.lax.dynamic_slice_in_dim(matrix, start, width, axis=-2)
        within = jax.lax.dynamic_slice_in_dim(rows, start, width, axis=-1)
        features = alphabet.features(value).astype(matrix.dtype)
        local = jnp.einsum("...j,...kj->...k", features, rows, precision="highest")
        local = local + jax.lax.dynamic_slice_in_dim(field, start, width, axis=-1)
        old = jax.lax.dynamic_slice_in_dim(value, start, width, axis=-1)
        draws = jax.lax.dynamic_slice_in_dim(uniform, start, width, axis=-1)
        fixed = None if held is None else jax.lax.dynamic_slice_in_dim(held, start, width, axis=-1)

        def visit(i, state):
            local, block = state
            before = block[..., i]
            after = alphabet.draw(local[..., i], draws[..., i])
            after = after if fixed is None else jnp.where(fixed[..., i], before, after)
            change = alphabet.features(after) - alphabet.features(before)
            local = local + change.astype(local.dtype)[..., None] * within[..., i, :]
            return local, block.at[..., i].set(after)

        _, block = jax.lax.fori_loop(0, width, visit, (local, old))
        return jax.lax.dynamic_update_slice_in_dim(value, block, start, axis=-1)

    whole = n // size
    value = jax.lax.fori_loop(0, whole, lambda b, v: draw_block(b * size, v, size), value)
    value = value if whole * size == n else draw_block(whole * size, value, n - whole * size)
    return value[..., ::-1] if backward else value
