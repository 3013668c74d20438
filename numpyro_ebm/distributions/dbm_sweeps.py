"""Layers of a deep Boltzmann machine, and its block Gibbs sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.distributions.rbm import RBM, RBMChain
from numpyro_ebm.units import Concatenate, Unit


class DBMChain(NamedTuple):
    """State of a block Gibbs chain on a deep Boltzmann machine.

    Attributes:
        visible: Visible units.
        hidden: Hidden layers, from the one above the visible units up.
        field: Input to the odd layers, kept between sweeps once ``refresh`` has computed it;
            ``None`` where nothing is cached.
    """

    visible: Array
    hidden: tuple[Array, ...]
    field: Array | None = None


class DBMSweeps(EnergyDistribution):
    """What chains on a stack of layers do; see :class:`~numpyro_ebm.DBM`.

    Odd layers are coupled to even ones only, the visible units among these: the whole is one RBM
    between the two, which does the work.
    """

    weights: tuple[Array, ...]
    units: tuple[Unit, ...]
    _coupling: Any
    _on_path: bool

    @property
    def bipartite(self) -> RBM:
        """The same joint distribution as an RBM.

        Its visible units are the even layers side by side (the visible units, then the hidden
        layers 2, 4, ...), its hidden units the odd ones.
        """
        even, odd = self._sides(self.units)
        visible, hidden = _side_by_side(even), _side_by_side(odd)
        matrix = block_matrix(self.weights, self.units)
        event = visible.feature_shape + hidden.feature_shape
        weights = matrix.reshape(matrix.shape[:-2] + event)
        rbm = RBM(weights, visible, hidden, validate_args=False)
        rbm._coupling = self._coupling
        return rbm

    @property
    def has_reversible_gibbs(self) -> bool:
        """In the visible units it is not: the even hidden layers persist."""
        return len(self.units) == 2

    @staticmethod
    def _sides(layers: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Even and odd layers."""
        return tuple(layers[::2]), tuple(layers[1::2])

    def _as_chain(self, chain: RBMChain) -> DBMChain:
        """Take the two sides of the RBM apart."""
        layers: list[Array] = [jnp.zeros(0)] * len(self.units)
        for side, (start, joint) in enumerate(((0, chain.visible), (1, chain.hidden))):
            units, stop = self._sides(self.units)[side], 0
            for number, unit in zip(range(start, len(layers), 2), units, strict=True):
                first, stop = stop, stop + unit.shape[0]
                layers[number] = joint[..., first:stop].astype(unit.dtype)
        return DBMChain(layers[0], tuple(layers[1:]), chain.field)

    def _as_rbm_chain(self, chain: DBMChain) -> RBMChain:
        even, odd = self._sides((chain.visible, *chain.hidden))
        return RBMChain(jnp.concatenate(even, -1), jnp.concatenate(odd, -1), chain.field)

    # ----- chain ---------------------------------------------------------------------------

    def init_chain(self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()) -> DBMChain:
        """Start chains with every layer drawn from its biases alone.

        Args:
            rng_key: Random key.
            shape: Shape of the batch of chains, in front of the batch shape.
        """
        return self._as_chain(self.bipartite.init_chain(rng_key, shape))

    def chain_at(self, value: Num[Array, "*batch n"]) -> DBMChain:
        """Start chains at given visible values, and hidden layers that add no input.

        The first sweep draws the odd layers from the visible values alone. With two or more hidden
        layers the first sweeps depend on that start.

        Raises:
            ValueError: A model with two or more hidden layers on a path, whose states belong to
                the weights and cannot be left out.
        """
        if self._on_path and len(self.units) > 2:
            raise ValueError(
                "DBM: expected chains with their hidden layers along a path; a kernel on the "
                "visible units alone, or a start at visible values, loses them. Use the model's "
                "own Gibbs step, kernel=None, from independent units."
            )
        value = jnp.asarray(value).astype(self.units[0].dtype)
        lead = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        hidden = [jnp.zeros(lead + unit.shape, unit.dtype) for unit in self.units[1:]]
        return DBMChain(jnp.broadcast_to(value, lead + value.shape[-1:]), tuple(hidden))

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: DBMChain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> DBMChain:
        """One sweep: all odd layers given the even ones, then all even layers given the odd.

        Args:
            rng_key: Random key.
            chain: The current chain.
            mask: True where a visible unit is clamped; hidden units never are.
            values: What the clamped units are held at.
        """
        step = self.bipartite.gibbs_step
        return self._as_chain(step(rng_key, self._as_rbm_chain(chain), **self._held(mask, values)))

    def low_precision_step(
        self,
        rng_key: Key[Array, ""],
        chain: DBMChain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> DBMChain:
        """One sweep with bfloat16 products and 16-bit draws, for discrete units."""
        step = self.bipartite.low_precision_step
        return self._as_chain(step(rng_key, self._as_rbm_chain(chain), **self._held(mask, values)))

    def _held(self, mask: Any, values: Any) -> dict[str, Any]:
        """A clamp of visible units as one of all even layers."""
        if mask is None:
            return {}
        extra = sum(unit.shape[0] for unit in self.units[2::2])

        def padded(array: Array) -> Array:
            array = jnp.broadcast_to(array, jnp.broadcast_shapes(array.shape, self.event_shape))
            return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, extra)])

        return {"mask": padded(jnp.asarray(mask)), "values": padded(jnp.asarray(values))}

    def visible(self, chain: DBMChain) -> Num[Array, "*batch n"]:
        """Visible units of a chain."""
        return chain.visible

    def refresh(self, chain: DBMChain) -> DBMChain:
        """Cache the input to the odd layers for the present weights."""
        return self._as_chain(self.bipartite.refresh(self._as_rbm_chain(chain)))

    def low_precision_refresh(self, chain: DBMChain) -> DBMChain:
        """Cache the input to the odd layers for the present weights in bfloat16."""
        return self._as_chain(self.bipartite.low_precision_refresh(self._as_rbm_chain(chain)))

    def chain_energy(self, chain: DBMChain) -> Float[Array, "*batch"]:
        """Energy of a chain's even layers in nats, the odd ones summed out.

        That of the visible units alone is intractable in general; this one has the same mean
        gradient in the parameters over chains at the model.
        """
        return self.bipartite.chain_energy(self._as_rbm_chain(chain))


def _side_by_side(layers: tuple[Unit, ...]) -> Unit:
    return layers[0] if len(layers) == 1 else Concatenate(layers)


def flat_weights(
    weights: Float[Array, "*shape"], below: Unit, above: Unit
) -> Float[Array, "*batch f g"]:
    """Weights between two layers with the features of each flattened."""
    rank = len(below.feature_shape) + len(above.feature_shape)
    batch = weights.shape[: weights.ndim - rank]
    return weights.reshape(*batch, below.num_features, above.num_features)


def block_matrix(
    weights: Sequence[Array], units: Sequence[Unit]
) -> Float[Array, "*batch even odd"]:
    """Weights between all features of even layers and all features of odd layers."""
    flat = [flat_weights(w, *pair) for w, *pair in zip(weights, units, units[1:], strict=False)]
    batch = jnp.broadcast_shapes(*(w.shape[:-2] for w in flat))
    flat = [jnp.broadcast_to(w, batch + w.shape[-2:]) for w in flat]
    dtype = jnp.result_type(*flat)
    rows = []
    for even in range(0, len(units), 2):
        blocks = []
        for odd in range(1, len(units), 2):
            if odd == even + 1:
                blocks.append(flat[even])
            elif odd == even - 1:
                blocks.append(flat[odd].mT)
            else:
                shape = units[even].num_features, units[odd].num_features
                blocks.append(jnp.zeros(batch + shape, dtype))
        rows.append(jnp.concatenate(blocks, -1))
    return jnp.concatenate(rows, -2)
