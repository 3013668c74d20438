"""Exact sums over the states of an RBM: log Z, exact draws, and whether Z is finite.

One layer is summed state by state; the other has a closed cumulant function. Two continuous layers
are integrated in closed form (both Gaussian) or by Gauss-Legendre quadrature (up to three ReLU
units in one of them).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.distributions.enumeration import all_terms, draw_number, log_sum
from numpyro_ebm.normalizer import NormalizerError
from numpyro_ebm.units import Gaussian, ReLU, Unit
from numpyro_ebm.units.unit import digits

if TYPE_CHECKING:
    from numpyro_ebm.distributions.rbm import RBM

MAX_STATES = 2**20
"""Most states of the smaller layer that are summed."""
_CHUNK_FLOATS = 2**22
"""Size of the arrays held at once while summing."""
_NODES = {1: 400, 2: 128, 3: 100}
"""Quadrature nodes of each unit of a ReLU layer, by the number of units."""
_SCALES_PER_NODE = 0.6
"""Widest range of one unit that the nodes resolve to 1e-9, in scales and per node."""


class _Layers(NamedTuple):
    """An RBM seen from the layer whose states are summed."""

    summed: Unit
    other: Unit
    matrix: Array
    summed_is_visible: bool


def _terms(rbm: RBM) -> tuple[int | None, int | None]:
    """Terms in a sum over each layer; quadrature only where neither layer is discrete."""
    layers = rbm.visible_units, rbm.hidden_units
    visible, hidden = (unit.num_states for unit in layers)
    if visible is None and hidden is None:
        visible, hidden = (_num_nodes(unit) for unit in layers)
    return visible, hidden


def _num_nodes(unit: Unit) -> int | None:
    nodes = _NODES.get(unit.shape[0]) if isinstance(unit, ReLU) else None
    return None if nodes is None else nodes ** unit.shape[0]


def _both_gaussian(rbm: RBM) -> bool:
    return isinstance(rbm.visible_units, Gaussian) and isinstance(rbm.hidden_units, Gaussian)


def num_terms(rbm: RBM) -> int:
    """Number of terms in the cheapest exact sum for log Z (1 for a closed form)."""
    return 1 if _both_gaussian(rbm) else min(n for n in _terms(rbm) if n is not None)


def can_sum(rbm: RBM) -> bool:
    """Whether the states of the smaller layer can be summed."""
    return _both_gaussian(rbm) or (_terms(rbm) != (None, None) and num_terms(rbm) <= MAX_STATES)


def _check_can_sum(rbm: RBM) -> None:
    if can_sum(rbm):
        return
    kinds = f"{rbm.visible_units!r} and {rbm.hidden_units!r}"
    if _terms(rbm) == (None, None):
        reason = f"neither layer can be summed or integrated (of {kinds})"
    else:
        reason = f"the smaller layer of {kinds} has {num_terms(rbm):.3g} states"
    raise NormalizerError(
        f'RBM: expected at most {MAX_STATES} states in the smaller layer for normalizer="exact" '
        f"and evidence.exact; {reason}. Estimate log Z with ebm.evidence.ais and pass the array, "
        "or keep the default guard."
    )


def _orient(rbm: RBM) -> _Layers:
    visible, hidden = _terms(rbm)
    matrix = rbm.weight_matrix if rbm._coupling is None else rbm._coupling * rbm.weight_matrix
    if hidden is not None and (visible is None or hidden <= visible):
        return _Layers(rbm.hidden_units, rbm.visible_units, matrix.mT, False)
    return _Layers(rbm.visible_units, rbm.hidden_units, matrix, True)


def _over_batch(function, rbm: RBM, *args):
    """Apply ``function`` to each member of a batch of RBMs, as many at a time as fit in memory."""
    batch = rbm.batch_shape
    if not batch:
        return function(rbm, *args)
    event = rbm.visible_units.feature_shape + rbm.hidden_units.feature_shape
    units = rbm.visible_units.expand(batch), rbm.hidden_units.expand(batch)
    is_shared = rbm.weights.shape == event
    own = () if is_shared else jnp.broadcast_to(rbm.weights, batch + event)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), (units, own))

    def one(inputs):
        ((visible, hidden), own), arguments = inputs
        parts = rbm.weights if is_shared else own, visible, hidden
        return function(rbm.with_parts(parts, rbm._coupling), *arguments)

    batch_size = max(1, _CHUNK_FLOATS // (num_terms(rbm) * sum(rbm.weight_matrix.shape[-2:])))
    out = jax.lax.map(one, (flat, args), batch_size=batch_size)
    return out.reshape(*batch, *out.shape[1:])


# ----- terms of the sum --------------------------------------------------------------------


def _quadrature(layers: _Layers) -> tuple[Array, Array]:
    """Nodes and log weights for each ReLU unit, both of shape (units, nodes).

    NaN where the nodes are too far apart for the density.
    """
    unit, other, matrix = cast(ReLU, layers.summed), layers.other, layers.matrix
    # Inhibition between nonnegative units can be left out: it makes the density no wider.
    exciting = jnp.where(other.nonnegative, jnp.maximum(matrix, 0), matrix)
    top = _reach(unit, other, exciting)
    top = jnp.where(jnp.isfinite(top), top, _reach(unit, other, matrix))
    top = jax.lax.stop_gradient(top)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES[unit.shape[0]])
    resolved = top < _SCALES_PER_NODE * nodes.size * unit.scale
    top = jnp.where(resolved, top, jnp.nan)[:, None]
    return top * (nodes + 1) / 2, jnp.log(top * weights / 2)


def _reach(unit: ReLU, other: Unit, matrix: Array) -> Float[Array, " n"]:
    """Upper ends of the range of ReLU units coupled by ``matrix`` to another layer.

    Eleven standard deviations beyond the mean in the Gaussian that bounds the slope of their log
    density: the unbounded units of the other layer contribute their mean at no field and a
    curvature, the bounded ones at most one. Infinite where that Gaussian does not exist.
    """
    spread = jnp.broadcast_to(other.feature_scale, (matrix.shape[1],))
    at_rest = other.mean(jnp.zeros(spread.shape, matrix.dtype))
    drift = jnp.where(spread > 0, matrix * at_rest, jnp.abs(matrix)).sum(1)
    slope = unit.loc / unit.scale**2 + drift
    coupled = jnp.where(matrix == 0, 0, matrix * spread)
    precision = jnp.diag(1 / unit.scale**2) - coupled @ coupled.T
    covariance = jnp.linalg.inv(precision)
    deviation = jnp.sqrt(jnp.diag(covariance))
    mean = jnp.abs(covariance) @ jnp.maximum(slope, 0)
    mean = mean + deviation**2 * jnp.minimum(slope, 0)
    top = mean + jnp.sqrt(jnp.minimum(mean, 0) ** 2 + (11 * deviation) ** 2)
    return jnp.where(jnp.linalg.eigvalsh(precision)[0] > 0, top, jnp.inf)


def _states(layers: _Layers, index: Array) -> tuple[Array, Array]:
    unit = layers.summed
    if unit.num_states is not None:
        return unit.states(index)
    nodes, log_weights = _quadrature(layers)
    picks = digits(index, unit.shape[0], nodes.shape[1])
    rows = jnp.arange(unit.shape[0])
    return nodes[rows, picks], log_weights[rows, picks].sum(-1)


def _log_terms(layers: _Layers, index: Array) -> Float[Array, " terms"]:
    value, log_weight = _states(layers, index)
    field = jnp.matmul(layers.summed.features(value), layers.matrix, precision="highest")
    return log_weight - layers.summed.energy(value) + layers.other.log_partition(field)


def _summed_log_z(rbm: RBM) -> Float[Array, ""]:
    layers, total = _orient(rbm), num_terms(rbm)
    return log_sum(partial(_log_terms, layers), total, _chunk(layers, total))


def _chunk(layers: _Layers, total: int) -> int:
    """Number of states that fit in memory together."""
    return max(1, min(total, _CHUNK_FLOATS // sum(layers.matrix.shape)))


# ----- both layers Gaussian ----------------------------------------------------------------


def _gaussian_joint(rbm: RBM) -> tuple[Array, Array, Array]:
    """Cholesky factor of the joint precision, joint mean, and the energy at zero."""
    visible, hidden = cast(Gaussian, rbm.visible_units), cast(Gaussian, rbm.hidden_units)
    matrix = rbm.weight_matrix if rbm._coupling is None else rbm._coupling * rbm.weight_matrix
    loc = jnp.concatenate([visible.loc, hidden.loc], -1)
    scale = jnp.concatenate([visible.scale, hidden.scale], -1)
    n = visible.shape[0]
    precision = jnp.diag(1 / scale**2).at[:n, n:].set(-matrix).at[n:, :n].set(-matrix.T)
    factor = jnp.linalg.cholesky(precision)
    mean = jax.scipy.linalg.cho_solve((factor, True), loc / scale**2)
    return factor, mean, 0.5 * ((loc / scale) ** 2).sum()


def _gaussian_log_z(rbm: RBM) -> Float[Array, ""]:
    factor, mean, energy_at_zero = _gaussian_joint(rbm)
    quadratic = 0.5 * ((factor.T @ mean) ** 2).sum()
    log_det = jnp.log(jnp.diag(factor)).sum()
    return 0.5 * mean.size * jnp.log(2 * jnp.pi) - log_det + quadratic - energy_at_zero


# ----- what the RBM calls ------------------------------------------------------------------


def exact_log_z(rbm: RBM) -> Float[Array, "*batch"]:
    """Log Z in nats, differentiable in every parameter.

    Raises:
        NormalizerError: The smaller layer has more than 2^20 states.
    """
    _check_can_sum(rbm)
    return _over_batch(_gaussian_log_z if _both_gaussian(rbm) else _summed_log_z, rbm)


def exact_sample(
    rbm: RBM, rng_key: Key[Array, ""], shape: tuple[int, ...]
) -> Num[Array, "*shape n"]:
    """Independent exact draws of the visible units, ``shape + batch_shape + event_shape``."""

    def draw(single: RBM, key) -> Array:
        keys = jax.random.split(key, 3)
        if _both_gaussian(single):
            factor, mean, _ = _gaussian_joint(single)
            noise = jax.random.normal(keys[0], (*shape, mean.size), mean.dtype)
            solve = jax.scipy.linalg.solve_triangular
            joint = (
                mean + solve(factor.T, noise[..., None], lower=False)[..., 0]
                if noise.ndim == 1
                else mean + noise @ jnp.linalg.inv(factor)
            )
            return joint[..., : single.event_shape[0]]
        layers, total = _orient(single), num_terms(single)
        terms = all_terms(partial(_log_terms, layers), total, _chunk(layers, total))
        index = draw_number(keys[0], terms, shape)
        value, _ = _states(layers, index.reshape(-1))
        field = jnp.matmul(layers.summed.features(value), layers.matrix, precision="highest")
        other = layers.other.sample(keys[1], field)
        if layers.summed_is_visible and layers.summed.num_states is None:
            back = jnp.matmul(layers.other.features(other), layers.matrix.T, precision="highest")
            value = layers.summed.sample(keys[2], back)
        visible = value if layers.summed_is_visible else other
        return visible.reshape(*shape, -1).astype(single.visible_units.dtype)

    batch = rbm.batch_shape
    if not batch:
        return draw(rbm, rng_key)
    keys = jax.random.split(rng_key, int(np.prod(batch)))
    draws = _over_batch(draw, rbm, keys)
    return jnp.moveaxis(draws, range(len(batch)), range(len(shape), len(shape) + len(batch)))


def check_normalizable(rbm: RBM) -> None:
    r"""Raise unless the density of concrete parameters is known to be normalizable.

    With scales whitened into the weights, :math:`A = \sigma_v W \sigma_h` over the unbounded
    features, Z is finite if the largest singular value of A is below 1 (and for Gaussian pairs
    only then). Between nonnegative units only positive couplings count. Counts, of infinite scale,
    allow no such coupling to unbounded units at all.
    """
    if not all(not_jax_tracer(leaf) for leaf in jax.tree.leaves(rbm)):
        return
    visible, hidden = rbm.visible_units, rbm.hidden_units
    row = np.broadcast_to(visible.feature_scale, visible.batch_shape + (visible.num_features,))
    column = np.broadcast_to(hidden.feature_scale, hidden.batch_shape + (hidden.num_features,))
    if not row.any() or not column.any():
        return
    both = np.logical_and.outer(
        np.broadcast_to(visible.nonnegative, (visible.num_features,)),
        np.broadcast_to(hidden.nonnegative, (hidden.num_features,)),
    )
    weights = np.asarray(rbm.weight_matrix)
    scales = row[..., :, None], column[..., None, :]
    unbounded = (scales[0] > 0) & (scales[1] > 0) & (weights != 0)
    finite = np.isfinite(scales[0]) & np.isfinite(scales[1])
    if np.any(unbounded & ~finite & ~(both & (weights < 0))):
        raise ValueError(
            f"RBM: {type(visible).__name__} visible and {type(hidden).__name__} hidden units with "
            "these weights have a density that cannot be normalized: beside counts, weights to "
            "Gaussian units must be 0 and those to nonnegative unbounded ones at most 0. Use "
            "bounded units in one layer, such as Bernoulli."
        )
    factors = [np.where(np.isfinite(scale), scale, 0) for scale in scales]
    whitened = factors[0] * weights * factors[1]
    norms = [
        np.linalg.norm(m, 2, axis=(-2, -1)).max()
        for m in (whitened, np.where(both, np.maximum(whitened, 0), whitened))
    ]
    if min(norms) >= 1:
        raise ValueError(
            f"RBM: {type(visible).__name__} visible and {type(hidden).__name__} hidden units with "
            f"these weights have a density that cannot be normalized: the joint precision is "
            f"indefinite (largest singular value of scale * weights * scale is {min(norms):.4g}, "
            "expected below 1). Scale the weights down or use bounded units in one layer."
        )
