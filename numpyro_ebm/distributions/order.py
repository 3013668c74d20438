"""The order of the units in which models without frustration are monotone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from numpyro_ebm.couplings import Coupling, Lattice


def unit_order(couplings: Coupling) -> tuple[Bool[Array, "*batch grid"], Bool[Array, "*batch"]]:
    """Which units are ordered as their values are, the others being reversed, and whether it fits.

    Of every unit there are two copies, one as it is and one reversed. A positive coupling joins
    like copies of two units, a negative one unlike copies. The couplings are frustrated if both
    copies of a unit end up in one component; else a unit is reversed if its reversed copy is in
    the component of the first unit that it is joined to. Components carry their smallest label,
    which spreads along couplings that are not zero.

    Args:
        couplings: The couplings, concrete or traced.
    """
    table, values = _neighbours(couplings)
    n, batch = couplings.num_units, values.shape[:-2]
    label = jnp.broadcast_to(jnp.arange(2 * n).reshape(n, 2), (*batch, n, 2))
    like, unlike = (values > 0)[..., None], (values < 0)[..., None]

    def spread(state):
        label, _ = state
        near = label[..., table, :]
        joined = jnp.where(like, near, jnp.where(unlike, near[..., ::-1], 2 * n))
        new = jnp.minimum(label, joined.min(-2))
        return new, jnp.any(new != label)

    label, _ = jax.lax.while_loop(lambda state: state[1], spread, (label, jnp.any(values < 0)))
    upward = (label[..., 0] % 2 == 0).reshape(*batch, *couplings.shape)
    return upward, jnp.all(label[..., 0] != label[..., 1], axis=-1)


def _neighbours(couplings: Coupling) -> tuple[Int[np.ndarray, "n k"], Float[Array, "*batch n k"]]:
    """Neighbours of every unit and the couplings to them; those of one pair added up."""
    graph, n = couplings.graph, couplings.num_units
    if graph is None:
        return np.broadcast_to(np.arange(n), (n, n)), couplings.dense()
    table, edge = graph.neighbours
    values = couplings.edge_values
    values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])[..., edge]
    if isinstance(couplings, Lattice):  # two bonds where a periodic axis has length 2
        same = table[:, :, None] == table[:, None, :]
        values = jnp.where(same, values[..., None, :], 0).sum(-1)
    return table, values
