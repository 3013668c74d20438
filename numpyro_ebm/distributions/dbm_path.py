"""The base-rate path of a deep Boltzmann machine, for annealing and tempering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array, ArrayLike, Float, Key

from numpyro_ebm.distributions.dbm_sweeps import DBMChain
from numpyro_ebm.distributions.path import BaseRatePath, own_base, visible_base
from numpyro_ebm.units import Concatenate, Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.dbm import DBM


class DBMPath:
    r"""Models with weights :math:`\beta W_k` between independent units and a full DBM.

    It is the base-rate path of the RBM between even and odd layers: the even layers interpolate
    between units at their base rates and the model's own, the odd ones start without bias. Odd
    layers are summed out of every weight.

    References:
        Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines", section 3.1.
    """

    def __init__(self, target: DBM, base: Unit) -> None:
        self.target, self.base = target, base

    @classmethod
    def of(cls, target: DBM, rng_key: Key[Array, ""], base: Any = None) -> DBMPath:
        """Choose the base of the visible units: a unit, data, or (``None``) the model's own mean.

        The even hidden layers start at the means that they have in short Gibbs chains.
        """
        own = own_base(target.bipartite, rng_key)
        visible = visible_base(target, target.units[0], base)
        if visible is None or len(target.units) == 2:
            return cls(target, own if visible is None else visible)
        hidden = own.units[1:] if isinstance(own, Concatenate) else ()
        return cls(target, Concatenate([visible, *hidden]))

    @property
    def _bipartite(self) -> BaseRatePath:
        return BaseRatePath(self.target.bipartite, self.base)

    @property
    def log_z0(self) -> Float[Array, ""]:
        """Log Z of the independent units at beta = 0, in nats."""
        return self._bipartite.log_z0

    def at(self, beta: Float[ArrayLike, ""]) -> DBM:
        """Return the DBM at inverse temperature ``beta``."""
        return self.target.annealed(self._bipartite.at(beta))

    def retarget(self, target: DBM) -> DBMPath:
        """Return the path from the same base to another DBM."""
        return DBMPath(target, self.base)

    def sample(self, rng_key: Key[Array, ""], num_samples: int) -> DBMChain:
        """Draw chains of independent units, with their input to the odd layers cached."""
        return self.target._as_chain(self._bipartite.sample(rng_key, num_samples))

    def log_weight_increment(
        self, chain: DBMChain, beta: Float[ArrayLike, ""], beta_next: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch"]:
        """E_beta - E_beta_next of the even layers in nats; odd units are differenced one by one."""
        joint = self.target._as_rbm_chain(chain)
        return self._bipartite.log_weight_increment(joint, beta, beta_next)


jax.tree_util.register_pytree_node(
    DBMPath,
    lambda path: ((path.target, path.base), None),
    lambda _, children: DBMPath(*children),
)
