"""What losses ask of an energy-based model beyond its energy and its chain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.protocols import UnitStates

_CHUNK_FLOATS = 2**20
"""Size of the arrays of values whose energies are held at once."""


class Trainable:
    """The part of :class:`~numpyro_ebm.EnergyDistribution` that only losses use.

    What has no general answer raises here; models override it where they have one.
    """

    if TYPE_CHECKING:
        event_shape: Any
        batch_shape: Any
        energy: Any
        check_value: Any

        @property
        def support(self) -> Any: ...  # noqa: D102

        @property
        def unit_states(self) -> UnitStates | None: ...  # noqa: D102

    _attached: dict[str, Any]

    @property
    def attached(self) -> dict[str, Any]:
        """What helpers in a NumPyro model have attached to this very object for its loss.

        Persistent chains, a learnt log Z, noise or a sampler. It is no part of the pytree: a copy
        that has passed through a transformation has nothing attached.
        """
        return self.__dict__.setdefault("_attached", {})

    is_conditional: bool = False
    """Whether rows of data have densities of their own, so that no chain serves all of them."""

    by_frames: bool = False
    """Whether losses see each frame of a sequence given those before; see :meth:`conditionals`."""

    def conditionals(self, value: Num[ArrayLike, "*shape"]) -> Any:
        """Return the models of which this is the product, each given a part of the value.

        Raises:
            ValueError: The model is no such product.
        """
        raise ValueError(f"{type(self).__name__} is no product of conditional models.")

    noise_scale: Any = None
    """Scale of the noise that the energy is conditional on; ``None`` if it is on none."""

    def with_noise_scale(self, noise_scale: Float[ArrayLike, "*batch"]) -> Self:
        """Return the model conditional on other noise, of the batch shape of ``noise_scale``.

        Raises:
            ValueError: The model is not conditional on noise.
        """
        raise ValueError(f"{type(self).__name__} is not conditional on a noise scale.")

    def site_energies(
        self, value: Num[ArrayLike, "*shape"], sites: Int[ArrayLike, "*sites"] | None = None
    ) -> Float[Array, "*batch num_sites states"]:
        """Energies of a discrete value with chosen sites set to each of their states, in nats.

        They say how each site is distributed given all others, and differ from :meth:`energy` by
        a constant for each row and site. Differentiable in the parameters.

        Args:
            value: Values of shape ``batch + event_shape``.
            sites: Sites by their number in the flattened event, ``(num_sites,)``, or blocks of
                sites that are set together, ``(num_blocks, k)``; every single site by default.

        Returns:
            Energies of shape ``batch + (num_sites, q)`` for the states of ``unit_states``, or
            ``batch + (num_blocks, q**k)`` for the joint states of blocks, the first site's state
            changing fastest; +inf where a unit has no such state. What a value outside the
            support is given means nothing.

        Raises:
            ValueError: The model is not discrete, or the value or a site does not fit.
        """
        value, states, blocks = self._parse_sites(value, sites)
        lead = value.shape[: value.ndim - len(self.event_shape)]
        flat = value.reshape(*lead, -1)
        values, allowed = (jnp.asarray(part).reshape(flat.shape[-1], -1) for part in states)
        digits = block_digits(values.shape[-1], blocks.shape)

        @jax.checkpoint
        def at(pair):
            block, digit = pair
            moved = flat.at[..., block].set(values[block, digit].astype(flat.dtype))
            energy = self.energy(moved.reshape(value.shape))
            return jnp.where(allowed[block, digit].all(), energy, jnp.inf)

        num_blocks, num_states = len(blocks), digits.shape[-1]
        pairs = jnp.repeat(blocks, num_states, axis=0), jnp.tile(digits.T, (num_blocks, 1))
        batch_size = max(1, _CHUNK_FLOATS // max(1, flat.size))
        energies = jax.lax.map(at, pairs, batch_size=batch_size)
        energies = energies.reshape(num_blocks, num_states, *lead)
        return jnp.moveaxis(energies, (0, 1), (-2, -1))

    def log_pseudolikelihood(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        r"""Sum over the units of their log probability given all others, in nats; log Z cancels.

        .. math:: \sum_i \log p(x_i \mid x_{-i}), \qquad
            p(x_i \mid x_{-i}) = \frac{e^{-E(x)}}{\sum_s e^{-E(x_{-i}, x_i = s)}}

        Differentiable in the parameters. Hidden units are summed out.

        Args:
            value: Values of shape ``batch + event_shape``.

        Raises:
            ValueError: The model is not discrete, or the value does not fit.

        References:
            Besag (1975), "Statistical Analysis of Non-Lattice Data", The Statistician 24.
        """
        value, states, _ = self._parse_sites(value, None)
        values, allowed = (part.reshape(-1, part.shape[-1]) for part in states)
        flat = value.reshape(*value.shape[: value.ndim - len(self.event_shape)], -1)
        present = (flat[..., None] == values) & allowed
        return log_conditional(self.site_energies(value), present).sum(-1)

    def _parse_sites(self, value: Any, sites: Any) -> tuple[Array, UnitStates, Array]:
        """Values with the batch shape, the states of the units, and blocks of sites."""
        name, states = type(self).__name__, self.unit_states
        if states is None:
            raise ValueError(
                f"{name}.site_energies: expected discrete units; the support is {self.support}."
            )
        self.check_value(value)
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(jnp.int32)  # a state of another sign than those present must fit
        lead = value.shape[: value.ndim - len(self.event_shape)]
        value = jnp.broadcast_to(
            value, jnp.broadcast_shapes(lead, self.batch_shape) + self.event_shape
        )
        num_units = math.prod(self.event_shape)
        blocks = jnp.arange(num_units) if sites is None else jnp.asarray(sites)
        fits = blocks.ndim in (1, 2) and jnp.issubdtype(blocks.dtype, jnp.integer)
        if fits and not_jax_tracer(blocks):
            fits = bool(np.all((np.asarray(blocks) >= 0) & (np.asarray(blocks) < num_units)))
        if not fits:
            raise ValueError(
                f"{name}.site_energies: expected `sites` to be integers from 0 to {num_units - 1} "
                f"of shape (num_sites,) or (num_blocks, k); got {sites!r}."
            )
        return value, states, blocks[:, None] if blocks.ndim == 1 else blocks

    def mean_field_start(self, value: Num[Array, "*shape"]) -> Float[Array, "*batch features"]:
        """Means of the features of the visible units where these are known to be ``value``."""
        raise self._no_mean_field()

    def mean_field_step(
        self, means: Float[Array, "*batch features"]
    ) -> Float[Array, "*batch features"]:
        """One mean-field update of all visible units at a time, hidden units in between.

        Args:
            means: Means of the features of the visible units.

        Raises:
            ValueError: The model has no such update.
        """
        raise self._no_mean_field()

    def mean_field_energy(self, means: Float[Array, "*batch features"]) -> Float[Array, "*batch"]:
        """Energy of independent visible units with these means in nats, hidden units summed out."""
        raise self._no_mean_field()

    def _no_mean_field(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__} has no mean-field updates of its units; they are defined for "
            "RBMs, and for Ising models and Boltzmann machines without hidden units. Use "
            "ebm.ContrastiveDivergence."
        )

    def mean_features(
        self, value: Num[Array, "*shape"]
    ) -> tuple[Float[Array, "*batch f"], Float[Array, "*batch g"]]:
        """Features of visible values, and means of those of the hidden units given them.

        Raises:
            ValueError: The model is no RBM.
        """
        raise self._no_centering()

    def with_centered_gradient(
        self, visible_offset: Float[Array, " f"], hidden_offset: Float[Array, " g"]
    ) -> Self:
        """Return the same model, whose gradient in its parameters is that of the centered one.

        Raises:
            ValueError: The model is no RBM, or its units have no centered gradient.
        """
        raise self._no_centering()

    def _no_centering(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__} has no centered gradient, which is defined for RBMs; use "
            'gradient="plain".'
        )


def block_digits(num_states: int, shape: tuple[int, ...]) -> Int[np.ndarray, "k states"]:
    """State of each site in every joint state of a block; the first site's changes fastest.

    Args:
        num_states: States of a site.
        shape: ``(num_blocks, k)``.
    """
    size = shape[-1]
    return np.indices((num_states,) * size).reshape(size, -1)[::-1]


def log_conditional(
    energies: Float[Array, "*batch q"], present: Bool[Array, "*batch q"]
) -> Float[Array, "*batch"]:
    """Log probability of the present state among all, in nats."""
    now = jnp.where(present, energies, 0).sum(-1)
    return -now - logsumexp(-energies, axis=-1)
