"""Draws and chains of the deep belief network, from the top machine down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.distributions.dbn_sum import has_sum
from numpyro_ebm.distributions.rbm import RBM, RBMChain


class DBNChain(NamedTuple):
    """State of a chain on a deep belief network.

    Attributes:
        top: Block Gibbs chain of the top machine.
        lower: Layers below it, from the visible units up.
    """

    top: RBMChain
    lower: tuple[Array, ...]


class DBNSweeps(EnergyDistribution):
    """What chains on a deep belief network do; see :class:`~numpyro_ebm.DBN`."""

    layers: tuple[RBM, ...]
    _recognition: tuple[RBM, ...] | None

    @property
    def recognition(self) -> tuple[RBM, ...]:
        """Machines whose hidden units given the visible are q, of the layers below the top one."""
        return self.layers[:-1] if self._recognition is None else self._recognition

    @property
    def has_tied_recognition(self) -> bool:
        """Whether the recognition distribution is that of the layers themselves."""
        return self._recognition is None

    @property
    def top(self) -> RBM:
        """The top machine, whose log Z is that of the network, with its batch shape."""
        rbm = self.layers[-1]
        if rbm.batch_shape == self.batch_shape:
            return rbm
        event = rbm.visible_units.feature_shape + rbm.hidden_units.feature_shape
        return RBM(
            jnp.broadcast_to(rbm.weights, self.batch_shape + event),
            rbm.visible_units.expand(self.batch_shape),
            rbm.hidden_units.expand(self.batch_shape),
            validate_args=False,
        )

    def sample_hidden(
        self, rng_key: Key[Array, ""], value: Num[ArrayLike, "*batch n"]
    ) -> tuple[Num[Array, "*batch m"], ...]:
        """Draw the hidden layers below the top one from the recognition distribution.

        Args:
            rng_key: Random key.
            value: Visible values of shape ``batch + (num_visible,)``.

        Returns:
            One array for each layer, from the bottom up, discrete units in 8 bits.
        """
        states, below = [], jnp.asarray(value)
        for i, rbm in enumerate(self.recognition):
            field = rbm._coupled(rbm._up(below))
            below = rbm.hidden_units.sample(jax.random.fold_in(rng_key, i), field)
            states.append(below)
        return tuple(states)

    def _descend(self, rng_key: Key[Array, ""], top: Num[Array, "*batch m"]) -> tuple[Array, ...]:
        """Draw the layers below the visible units of the top machine; visible units come first."""
        states, above = [], top
        for i, layer in enumerate(reversed(self.layers[:-1])):
            field = layer._coupled(layer._down(above))
            above = layer.visible_units.sample(jax.random.fold_in(rng_key, i), field)
            states.append(above)
        return tuple(reversed(states))

    def init_chain(self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()) -> DBNChain:
        """Start chains with the top machine's layers drawn from its biases, the others from it.

        Args:
            rng_key: Random key.
            shape: Shape of the batch of chains, in front of the batch shape.
        """
        key_top, key_down = jax.random.split(rng_key)
        top = self.top.init_chain(key_top, shape)
        return DBNChain(top, self._descend(key_down, top.visible))

    def chain_at(self, value: Num[Array, "*batch n"]) -> DBNChain:
        """Start chains at visible values, the layers above drawn from the recognition distribution.

        That is not the posterior, so a chain started at draws of the network is not yet at its
        stationary distribution. The draws are the same at every call.
        """
        batch = jnp.broadcast_shapes(jnp.shape(value)[:-1], self.batch_shape)
        value = jnp.broadcast_to(jnp.asarray(value), batch + self.event_shape)
        return self.chain_of(value, self.sample_hidden(jax.random.key(0), value))

    def chain_of(
        self, value: Num[Array, "*batch n"], hidden: Sequence[Num[Array, "*batch m"]]
    ) -> DBNChain:
        """Start chains at given states of all layers but the topmost.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            hidden: Values of the hidden layers below the top one, from the bottom up.
        """
        units = [layer.visible_units for layer in self.layers]
        states = self._states(value, hidden)
        states = tuple(x.astype(unit.dtype) for x, unit in zip(states, units, strict=True))
        return DBNChain(self.top.chain_at(states[-1]), states[:-1])

    def layer_states(self, chain: DBNChain) -> tuple[Num[Array, "*batch n"], ...]:
        """States of all layers of a chain but the topmost, from the visible units up."""
        return (*chain.lower, chain.top.visible)

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: DBNChain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> DBNChain:
        """One block Gibbs sweep of the top machine, and new draws of all layers below it.

        Raises:
            ValueError: Units are clamped: the layers above given these are not tractable.
        """
        if mask is not None:
            raise ValueError(
                "DBN: its Gibbs step cannot hold visible units fixed, because the hidden layers "
                "given them are not independent; leave `clamp` out, or use "
                "ebm.GibbsWithGradients for a network whose states can be summed."
            )
        key_top, key_down = jax.random.split(rng_key)
        top = self.top.gibbs_step(key_top, chain.top)
        return DBNChain(top, self._descend(key_down, top.visible))

    def visible(self, chain: DBNChain) -> Num[Array, "*batch n"]:
        """Visible units of a chain."""
        return self.layer_states(chain)[0]

    def refresh(self, chain: DBNChain) -> DBNChain:
        """Cache the input to the topmost units for the present weights."""
        return chain._replace(top=self.top.refresh(chain.top))

    def chain_energy(self, chain: DBNChain) -> Float[Array, "*batch"]:
        """Energy of a chain's visible units in nats; NaN where the states cannot be summed."""
        value = self.visible(chain)
        if has_sum(self.layers):
            return self.energy(value)
        return jnp.full(value.shape[:-1], jnp.nan, self.layers[0].weights.dtype)

    def _states(self, value: Any, hidden: Sequence[Any]) -> tuple[Array, ...]:
        shapes = [jnp.shape(h)[-1:] for h in hidden]
        expected = [layer.hidden_units.shape for layer in self.layers[:-1]]
        if shapes != expected:
            raise ValueError(
                f"DBN: expected `hidden` to be a sequence of layers with {expected} units; got "
                f"{shapes}."
            )
        return tuple(jnp.asarray(x) for x in (value, *hidden))
