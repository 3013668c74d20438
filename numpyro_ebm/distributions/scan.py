"""Gibbs sweeps over the sites of a pairwise model, in one of three orders.

Every sweep draws one random number per site. Each site is drawn from its conditional given all
others at that moment; sites of one colour are not coupled, so that drawing them together is the
same as one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.couplings import Coupling, Lattice
from numpyro_ebm.couplings.graph import Graph
from numpyro_ebm.distributions.graph_sweep import graph_sweep, one_by_one
from numpyro_ebm.distributions.lattice_sweep import lattice_sweep

if TYPE_CHECKING:
    from numpyro_ebm.distributions.pairwise import PairwiseModel

SCANS = ("chromatic", "sequential", "random")
_MAX_COLORS = 32
"""Graphs that need more colours are swept one site after the other by default."""


# ----- the order ---------------------------------------------------------------------------


def choose_scan(
    couplings: Coupling, scan: str | None, coloring: Any, owner: str
) -> tuple[str, np.ndarray | None]:
    """Return the order of a sweep and, for a chromatic one, the colours.

    Args:
        couplings: The couplings.
        scan: The order asked for; ``None`` is chromatic where a colouring is known.
        coloring: The colour of every unit asked for, or ``None``.
        owner: Class that asks, for error messages.

    Raises:
        ValueError: ``scan`` is unknown, or two coupled units share a colour.
    """
    if scan not in (None, *SCANS):
        raise ValueError(f"{owner}: expected `scan` to be one of {SCANS}; got {scan!r}.")
    if coloring is not None:
        if scan not in (None, "chromatic"):
            raise ValueError(f'{owner}: expected no `coloring` with scan="{scan}".')
        return "chromatic", check_coloring(couplings, coloring, owner)
    if scan in ("sequential", "random"):
        return scan, None
    if isinstance(couplings, Lattice):
        return "chromatic", couplings.coloring
    graph = couplings.graph
    if graph is None:
        if scan is None:
            return "sequential", None
        graph = _graph_of_dense(couplings, owner)
    if scan is None and graph.coloring.max(initial=0) >= _MAX_COLORS:
        return "sequential", None
    return "chromatic", graph.coloring


def _graph_of_dense(couplings: Coupling, owner: str) -> Graph:
    """Pairs of units with nonzero coupling in concrete dense couplings."""
    matrix = couplings.dense()
    if not not_jax_tracer(matrix):
        raise ValueError(
            f"{owner}: expected concrete `couplings` for a chromatic sweep over a dense matrix, so "
            "that the colours can be checked; got a traced array. Pass "
            'ebm.couplings.Edges(edges, values), or scan="sequential".'
        )
    coupled = np.any(np.asarray(matrix) != 0, axis=tuple(range(matrix.ndim - 2)))
    return Graph.of(couplings.num_units, np.argwhere(np.triu(coupled, 1)))


def check_coloring(couplings: Coupling, coloring: Any, owner: str) -> Int[np.ndarray, "*grid"]:
    """Return a colouring as an array of the shape of the grid.

    Raises:
        ValueError: Its shape does not fit, or two coupled units share a colour.
    """
    colors = np.asarray(coloring)
    if colors.shape != couplings.shape or not np.issubdtype(colors.dtype, np.integer):
        raise ValueError(
            f"{owner}: expected integers of shape {couplings.shape} for `coloring`, the colour of "
            f"every unit; got {colors.dtype} of shape {colors.shape}."
        )
    graph = couplings.graph
    graph = _graph_of_dense(couplings, owner) if graph is None else graph
    bad = graph.conflicts(colors)
    if len(bad):
        i, j = (tuple(map(int, np.unravel_index(unit, couplings.shape))) for unit in bad[0])
        raise ValueError(
            f"{owner}: expected a `coloring` in which coupled units differ; units {i} and {j} are "
            f"coupled and share colour {int(colors[i])} (one of {len(bad)} such pairs). Drawing "
            "them together would sample another distribution."
        )
    return np.unique(colors, return_inverse=True)[1].reshape(colors.shape).astype(np.int32)


# ----- a sweep -----------------------------------------------------------------------------


def sweep(
    model: PairwiseModel,
    rng_key: Key[Array, ""],
    value: Num[Array, "*shape"],
    mask: Bool[Array, "*grid"] | None = None,
    held: Num[Array, "*grid"] | None = None,
    *,
    backward: bool = False,
) -> Num[Array, "*shape"]:
    """Draw every site once (in random order: as many sites as there are), given all others.

    Args:
        model: The model.
        rng_key: Random key.
        value: All units, aligned with the model's batch dimensions.
        mask: True where a unit is held.
        held: What these are held at.
        backward: Whether the order is reversed, which gives the adjoint of the sweep.
    """
    if mask is not None:
        held = jnp.broadcast_to(jnp.asarray(held).astype(value.dtype), value.shape)
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), value.shape)
        value = jnp.where(mask, held, value)
    if model.scan != "chromatic":
        return one_by_one(model, rng_key, value, mask, backward)
    colors = range(cast(np.ndarray, model.coloring).max() + 1)
    one_sweep = lattice_sweep if isinstance(model.couplings, Lattice) else graph_sweep
    return one_sweep(model, rng_key, value, mask, colors[::-1] if backward else colors)
