"""Block Gibbs sweeps of the restricted Boltzmann machine."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.distributions.centering import with_centered_gradient
from numpyro_ebm.distributions.low_precision import low_precision_field, low_precision_step
from numpyro_ebm.distributions.mean_field_updates import check_mean_field, expected_energy
from numpyro_ebm.distributions.products import dot, known_dot, state_dot
from numpyro_ebm.units import Unit


class RBMChain(NamedTuple):
    """State of a block Gibbs chain on an RBM.

    Attributes:
        visible: Visible units.
        hidden: Hidden units.
        field: Input ``v @ W`` to the hidden units, kept between sweeps once ``refresh`` has
            computed it; ``None`` where nothing is cached.
    """

    visible: Array
    hidden: Array
    field: Array | None = None


class RBMSweeps(EnergyDistribution):
    """What chains on two layers of units do; see :class:`~numpyro_ebm.RBM`."""

    visible_units: Unit
    hidden_units: Unit
    weights: Array
    _coupling: Any

    @property
    def weight_matrix(self) -> Float[Array, "*batch visible_features hidden_features"]:
        """Weights with the features of each layer flattened."""
        rank = len(self.visible_units.feature_shape) + len(self.hidden_units.feature_shape)
        batch = self.weights.shape[: self.weights.ndim - rank]
        return self.weights.reshape(
            *batch, self.visible_units.num_features, self.hidden_units.num_features
        )

    def input_to_hidden(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch f"]:
        """``v @ W``, at full precision because it enters log Z."""
        return dot(self.visible_units.features(value), self.weight_matrix)

    def input_to_visible(self, hidden: Num[Array, "*batch m"]) -> Float[Array, "*batch f"]:
        """``W @ h``."""
        return dot(self.hidden_units.features(hidden), self.weight_matrix.mT)

    def _up(self, states: Num[Array, "*batch n"]) -> Float[Array, "*batch f"]:
        """Input to the hidden units from states of the visible ones."""
        return state_dot(self.visible_units, states, self.weight_matrix)

    def _down(self, states: Num[Array, "*batch m"]) -> Float[Array, "*batch f"]:
        """Input to the visible units from states of the hidden ones."""
        return state_dot(self.hidden_units, states, self.weight_matrix.mT)

    def _coupled(self, field: Float[Array, "*batch f"]) -> Float[Array, "*batch f"]:
        return field if self._coupling is None else self._coupling * field

    def _energy_from(self, value: Array, field: Array) -> Float[Array, "*batch"]:
        hidden_term = self.hidden_units.log_partition(self._coupled(field))
        return self.visible_units.energy(value) - hidden_term

    def init_chain(self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()) -> RBMChain:
        """Start chains with every layer drawn from its biases alone.

        Args:
            rng_key: Random key.
            shape: Shape of the batch of chains, in front of the batch shape.
        """
        key_visible, key_hidden = jax.random.split(rng_key)
        batch = tuple(shape) + self.batch_shape
        dtype = self.weights.dtype
        visible, hidden = self.visible_units, self.hidden_units
        return RBMChain(
            visible.sample(key_visible, jnp.zeros(batch + (visible.num_features,), dtype)),
            hidden.sample(key_hidden, jnp.zeros(batch + (hidden.num_features,), dtype)),
        )

    def chain_at(self, value: Num[Array, "*batch n"]) -> RBMChain:
        """Start chains at given visible values; the first sweep draws the hidden units."""
        value = jnp.asarray(value).astype(self.visible_units.dtype)
        batch = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = jnp.broadcast_to(value, batch + value.shape[-1:])
        hidden = jnp.zeros(batch + self.hidden_units.shape, self.hidden_units.dtype)
        return RBMChain(value, hidden)

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: RBMChain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> RBMChain:
        """One block Gibbs sweep: all hidden units given the visible, then all visible units.

        Args:
            rng_key: Random key.
            chain: The current chain.
            mask: True where a visible unit is clamped.
            values: What the clamped units are held at.
        """
        key_hidden, key_visible = jax.random.split(rng_key)
        field = self._up(chain.visible) if chain.field is None else chain.field
        hidden = self.hidden_units.sample(key_hidden, self._coupled(field))
        back = self._coupled(self._down(hidden))
        visible = self.visible_units.sample(key_visible, back)
        if mask is not None:
            visible = jnp.where(mask, jnp.asarray(values).astype(visible.dtype), visible)
        cached = None if chain.field is None else self._up(visible)
        return RBMChain(visible, hidden, cached)

    def low_precision_step(
        self,
        rng_key: Key[Array, ""],
        chain: RBMChain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> RBMChain:
        """One sweep with bfloat16 products and 16-bit draws, for discrete units."""
        return low_precision_step(self, rng_key, chain, mask, values)

    def low_precision_refresh(self, chain: RBMChain) -> RBMChain:
        """Cache the input to the hidden units for the present weights in bfloat16."""
        return chain._replace(field=low_precision_field(self, chain.visible))

    @property
    def has_reversible_gibbs(self) -> bool:
        """In the visible units it is: the hidden are drawn anew in each sweep."""
        return True

    def visible(self, chain: RBMChain) -> Num[Array, "*batch n"]:
        """Visible units of a chain."""
        return chain.visible

    def refresh(self, chain: RBMChain) -> RBMChain:
        """Cache the input to the hidden units for the present weights."""
        return chain._replace(field=self._up(chain.visible))

    def chain_energy(self, chain: RBMChain) -> Float[Array, "*batch"]:
        """Free energy of a chain's visible units in nats, from the cached field if there is one."""
        if chain.field is None:
            field = self.input_to_hidden(chain.visible)
        else:
            features = self.visible_units.features(chain.visible)
            field = known_dot(features, self.weight_matrix, chain.field)
        return self._energy_from(chain.visible, field)

    # ----- mean field and centering --------------------------------------------------------

    def mean_features(
        self, value: Num[Array, "*batch n"]
    ) -> tuple[Float[Array, "*batch f"], Float[Array, "*batch g"]]:
        """Features of visible values, and means of those of the hidden units given them."""
        field = self._coupled(self.input_to_hidden(value))
        return self.visible_units.features(value), self.hidden_units.mean(field)

    def with_centered_gradient(
        self, visible_offset: Float[Array, " f"], hidden_offset: Float[Array, " g"]
    ) -> RBMSweeps:
        """Return the same RBM, whose gradient in its parameters is that of the centered one.

        Args:
            visible_offset: Offsets of the features of the visible units.
            hidden_offset: Offsets of those of the hidden units.

        Raises:
            ValueError: Units are not Bernoulli, Spin or Categorical, there are batch dimensions,
                or when differentiated with respect to some but not all of the parameters.
        """
        return with_centered_gradient(self, visible_offset, hidden_offset)

    def mean_field_start(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch f"]:
        """Features of the visible units; one-hot for Categorical ones."""
        check_mean_field(self.visible_units)
        return self.visible_units.features(value)

    def mean_field_step(self, means: Float[Array, "*batch f"]) -> Float[Array, "*batch f"]:
        """Means of the hidden units given those of the visible, and back.

        Args:
            means: Means of the features of the visible units.
        """
        up = dot(means, self.weight_matrix)
        hidden = self.hidden_units.mean(self._coupled(up))
        return self.visible_units.mean(self._coupled(dot(hidden, self.weight_matrix.mT)))

    def mean_field_energy(self, means: Float[Array, "*batch f"]) -> Float[Array, "*batch"]:
        """Energy of independent visible units with these means, hidden units summed out, in nats.

        The variance of Gaussian units is that of their conditional, without a gradient.

        Args:
            means: Means of the features of the visible units.
        """
        field = self._coupled(dot(means, self.weight_matrix))
        own = expected_energy(self.visible_units, means)
        return own - self.hidden_units.log_partition(field)
