r"""Narrow lattices summed row by row: log Z and exact draws by a transfer matrix.

A lattice is cut across one axis into rows of w sites. The sum over all states of the rows up to
one, as a function of the :math:`q^w` states of that row, is carried to the next row: the bonds
between them couple site to site, so that their matrix is a product of w small ones and costs
:math:`w q^{w + 1}`. Where the axis is periodic, this is done for each state of the first row.
What is carried are logarithms. Sums are relative to their largest term, over four binary sites at a
time, so that in single precision nothing is lost with couplings of up to 8 nats between spins.
"""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key, Num

from numpyro_ebm.couplings import Lattice
from numpyro_ebm.distributions.enumeration import all_terms, draw_number, log_sum

if TYPE_CHECKING:
    from numpyro_ebm.distributions.pairwise import PairwiseModel

MAX_ROW_STATES = 2**12
"""Most states of one row."""
_GROUP_STATES = 16
"""Sites are summed over in groups of at most this many joint states."""
_CHUNK_FLOATS = 2**22
"""Size of the arrays held at once."""


class Cut(NamedTuple):
    """How a lattice is cut into rows.

    Attributes:
        axis: The axis along which the rows follow one another.
        closed: Whether the last row is coupled to the first.
        row_states: States of one row.
    """

    axis: int
    closed: bool
    row_states: int

    @property
    def num_terms(self) -> int:
        """Terms that are carried from row to row."""
        return self.row_states ** (1 + self.closed)


def best_cut(model: PairwiseModel) -> Cut | None:
    """The cheapest cut of a model on a lattice; ``None`` if there is none with few row states."""
    couplings = model.couplings
    if not isinstance(couplings, Lattice):
        return None
    cuts = [
        Cut(axis, wraps and size > 1, model._alphabet.num_states ** (couplings.num_units // size))
        for axis, (size, wraps) in enumerate(zip(couplings.shape, couplings.periodic, strict=True))
    ]
    narrow = [cut for cut in cuts if cut.row_states <= MAX_ROW_STATES]
    return min(narrow, key=lambda cut: cut.num_terms, default=None)


# ----- one lattice, cut into rows ----------------------------------------------------------


class _Rows(NamedTuple):
    """A lattice in terms of rows of w sites with Q joint states.

    Attributes:
        own: Log weight of the states of each row by itself, ``(num_rows, Q)``.
        bonds: Coupling of each site to the next row, ``(num_rows, w)``.
        features: Features of the sites in each state of a row, ``(Q, w, f)``.
        pairs: Product of the features of two states of a site, ``(q, q)``.
    """

    own: Array
    bonds: Array
    features: Array
    pairs: Array


def _cut_rows(model: PairwiseModel, cut: Cut, site: Array, bonds: Array) -> _Rows:
    """Cut a lattice into rows.

    Args:
        model: The model, for its structure.
        cut: How to cut it.
        site: Log weight of each state of each site, ``(*grid, q)``.
        bonds: Coupling of each site to the next along each axis, ``(dimensions, *grid)``.
    """
    alphabet, grid = model._alphabet, model.couplings.shape
    q, num_rows = alphabet.num_states, grid[cut.axis]
    cross = grid[: cut.axis] + grid[cut.axis + 1 :]
    labels = _row_labels(math.prod(cross), q)
    pairs = np.eye(q) if alphabet.label_axis else np.outer(alphabet.values, alphabet.values)
    features = np.eye(q)[labels] if alphabet.label_axis else alphabet.values[labels][..., None]
    number = np.arange(math.prod(cross)).reshape(cross)
    ahead = [np.roll(number, -1, axis).ravel() for axis in range(len(cross))]
    within = [pairs[labels, labels[:, near]] for near in ahead]
    table = np.concatenate([np.eye(q)[labels].reshape(len(labels), -1), *within], axis=1)
    site = jnp.moveaxis(site, cut.axis, 0).reshape(num_rows, -1)
    bonds = jnp.moveaxis(bonds, cut.axis + 1, 1).reshape(len(grid), num_rows, -1)
    rest = [bonds[axis] for axis in range(len(grid)) if axis != cut.axis]
    terms = jnp.concatenate([site, *rest], axis=1)
    own = jnp.matmul(terms, jnp.asarray(table.T, terms.dtype), precision="highest")
    between = bonds[cut.axis]
    return _Rows(own, between, *(jnp.asarray(x, terms.dtype) for x in (features, pairs)))


def _row_labels(width: int, num_states: int) -> Int[np.ndarray, "Q w"]:
    """Labels of the sites in each state of a row, the first site most significant."""
    return np.indices((num_states,) * width).reshape(width, num_states**width).T


def _across(rows: _Rows, bonds: Array, state: Int[Array, ""]) -> Float[Array, " Q"]:
    """Log weight of the bonds between a row in one state and the next in each."""
    one = rows.features[state] * bonds[:, None]
    return jnp.einsum("wf,Qwf->Q", one, rows.features, precision="highest")


def _sum_over_row(rows: _Rows, log_v: Float[Array, " Q"], bonds: Array) -> Float[Array, " Q"]:
    """Multiply by the weights of the bonds to the next row and sum over this row.

    A few sites at a time, relative to the largest term of each sum; their axes go to the end.
    """
    size = max(1, int(math.log(_GROUP_STATES, len(rows.pairs))))
    for start in range(0, len(bonds), size):
        group = [bond * rows.pairs for bond in bonds[start : start + size]]
        log_kernel = reduce(_sum_of_pair, group)
        top_kernel = jax.lax.stop_gradient(log_kernel.max())
        parts = log_v.reshape(len(log_kernel), -1)
        top = jax.lax.stop_gradient(parts.max(0))
        kernel = jnp.exp(log_kernel - top_kernel)
        total = jnp.matmul(jnp.exp(parts - top).T, kernel, precision="highest")
        total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
        log_v = (jnp.log(total) + top[:, None] + top_kernel).reshape(-1)
    return log_v


def _sum_of_pair(first: Float[Array, "a a"], second: Float[Array, "b b"]) -> Float[Array, "ab ab"]:
    """Log weights of two sites between their joint states."""
    size = len(first) * len(second)
    return (first[:, None, :, None] + second[None, :, None, :]).reshape(size, size)


def _messages(rows: _Rows, first: Int[Array, ""] | None) -> Float[Array, "rows Q"]:
    """Log of the sum over all rows before each, as a function of its state.

    Args:
        rows: The rows.
        first: State of the first row where the last is coupled to it, which starts the messages at
            the second and adds those bonds to the last; else ``None``.
    """

    @jax.checkpoint
    def following(log_v, inputs):
        own, bonds = inputs
        log_v = _sum_over_row(rows, log_v, bonds) + own
        return log_v, log_v

    done = 1 if first is None else 2
    start = rows.own[0]
    if first is not None:
        start = rows.own[0][first] + _across(rows, rows.bonds[0], first) + rows.own[1]
    _, rest = jax.lax.scan(following, start, (rows.own[done:], rows.bonds[done - 1 : -1]))
    messages = jnp.concatenate([start[None], rest])
    return messages if first is None else messages.at[-1].add(_across(rows, rows.bonds[-1], first))


def _first_row_terms(rows: _Rows, index: Int[Array, " states"]) -> Float[Array, " states"]:
    """Log of the sum over all other rows, for states of the first by number."""
    return jax.vmap(lambda first: logsumexp(_messages(rows, first)[-1]))(index)


def _chunk(rows: _Rows) -> int:
    return max(1, min(rows.own.shape[1], _CHUNK_FLOATS // rows.own.size))


def _draw_rows(
    rows: _Rows, first_terms: Any, messages: Any, rng_key: Key[Array, ""]
) -> Int[Array, " rows"]:
    """Draw the state of every row, from the last row back."""
    key_first, key_last, key_rest = jax.random.split(rng_key, 3)
    first = None
    if first_terms is not None:
        first = draw_number(key_first, first_terms, ())
        messages = _messages(rows, first)
    last = draw_number(key_last, messages[-1], ())
    bonds = rows.bonds[-len(messages) :][:-1]

    def before(state, inputs):
        key, message, bonds = inputs
        state = draw_number(key, message + _across(rows, bonds, state), ())
        return state, state

    keys = jax.random.split(key_rest, len(messages) - 1)
    _, rest = jax.lax.scan(before, last, (keys, messages[:-1], bonds), reverse=True)
    return jnp.concatenate([*([] if first is None else [first[None]]), rest, last[None]])


# ----- what models call --------------------------------------------------------------------


def _parameters(model: PairwiseModel) -> tuple[Array, Array]:
    """Log weights of the states of sites, and bonds along each axis, one row for each member."""
    couplings, alphabet = cast(Lattice, model.couplings), model._alphabet
    grid, field, dtype = couplings.shape, model._site_field, model.float_dtype
    batch = model._batch_of(couplings, field)
    if not alphabet.label_axis:
        field = field[..., None] * jnp.asarray(alphabet.values, dtype)
    site = jnp.broadcast_to(field, (*batch, *grid, alphabet.num_states)).astype(dtype)
    axes = [
        jnp.broadcast_to(couplings.bonds_along(axis), (*batch, *grid)).astype(dtype)
        for axis in range(len(grid))
    ]
    bonds = jnp.stack(axes, axis=len(batch))
    return site.reshape(-1, *grid, site.shape[-1]), bonds.reshape(-1, len(grid), *grid)


@partial(jax.jit, static_argnums=1)
def transfer_log_z(model: PairwiseModel, cut: Cut) -> Float[Array, "*batch"]:
    """Log Z in nats, differentiable in every parameter.

    Args:
        model: A model on a lattice.
        cut: How to cut it into rows, see :func:`best_cut`.
    """

    def one(parameters):
        rows = _cut_rows(model, cut, *parameters)
        if not cut.closed:
            return logsumexp(_messages(rows, None)[-1])
        return log_sum(partial(_first_row_terms, rows), cut.row_states, _chunk(rows))

    batch = model._batch_of(model.couplings, model._site_field)
    return _map(one, _parameters(model), model, cut.num_terms).reshape(batch)


@partial(jax.jit, static_argnums=(1, 3))
def transfer_sample(
    model: PairwiseModel, cut: Cut, rng_key: Key[Array, ""], shape: tuple[int, ...]
) -> Num[Array, "*shape"]:
    """Independent exact chains, of shape ``shape + batch_shape``.

    Args:
        model: A model on a lattice.
        cut: How to cut it into rows.
        rng_key: Random key.
        shape: Shape of the draws.
    """
    alphabet, grid, num = model._alphabet, model.couplings.shape, math.prod(shape)
    cross = grid[: cut.axis] + grid[cut.axis + 1 :]

    def one(inputs):
        key, parameters = inputs
        rows = _cut_rows(model, cut, *parameters)
        first_terms = messages = None
        if cut.closed:
            first_terms = all_terms(partial(_first_row_terms, rows), cut.row_states, _chunk(rows))
        else:
            messages = _messages(rows, None)
        draw = partial(_draw_rows, rows, first_terms, messages)
        return jax.lax.map(draw, jax.random.split(key, num), batch_size=min(num, _chunk(rows)))

    parameters = _parameters(model)
    keys = jax.random.split(rng_key, len(parameters[0]))
    states = _map(one, (keys, parameters), model, cut.num_terms)
    labels = _row_labels(math.prod(cross), alphabet.num_states)
    values = jnp.asarray(alphabet.values[labels], alphabet.dtype)[states]
    values = jnp.moveaxis(values.reshape(*states.shape, *cross), 2, 2 + cut.axis)
    batch = model._batch_of(model.couplings, model._site_field)
    return model.as_chain(jnp.moveaxis(values, 0, 1).reshape(*shape, *batch, *grid))


def _map(function: Any, inputs: Any, model: PairwiseModel, num_terms: int) -> Array:
    """Apply a function to each member of a batch, as many at a time as fit in memory."""
    size = num_terms * model.couplings.num_units
    members = len(jax.tree.leaves(inputs)[0])
    return jax.lax.map(function, inputs, batch_size=max(1, min(members, _CHUNK_FLOATS // size)))
