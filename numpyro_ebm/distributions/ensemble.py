"""Averages of normalized densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Key, Num
from numpyro.distributions import Distribution
from numpyro.distributions.util import validate_sample

from numpyro_ebm.distributions.energy_path import check_normalized
from numpyro_ebm.random_key import require_key


class AutoregressiveEnsemble(Distribution):
    r"""The average of the probabilities that several autoregressive models give.

    .. math:: p(x) = \frac1n \sum_k p_k(x)

    such as those of one NADE in several orders, or of one MADE with several masks. Normalized:
    ``log_prob`` is exact, and ``sample`` draws from a component chosen at random for each draw
    (all of them draw, so it takes n times as long as one).

    Args:
        components: Normalized distributions with the same event shape and support, whose batch
            shapes broadcast.
        validate_args: Whether values are checked, as in NumPyro.

    Raises:
        TypeError: A component is no distribution.
        ValueError: There are none, one is not normalized, or their shapes or supports differ.

    Example:
        >>> import jax, numpyro_ebm as ebm
        >>> params = ebm.MADE.init_params(jax.random.key(0), 4, [8])
        >>> degrees = [ebm.MADE.Degrees.random(seed, 4, [8]) for seed in range(3)]
        >>> ensemble = ebm.MADE(**params).ensemble(degrees)
        >>> ensemble.log_prob(ensemble.sample(jax.random.key(1), (5,))).shape
        (5,)

    References:
        Uria, Murray & Larochelle (2014), "A Deep and Tractable Density Estimator", section 4;
        Germain, Gregor, Murray & Larochelle (2015), "MADE: Masked Autoencoder for Distribution
        Estimation", section 4.
    """

    arg_constraints = {}
    pytree_data_fields = ("components",)

    def __init__(
        self, components: Sequence[Distribution], *, validate_args: bool | None = None
    ) -> None:
        self.components = tuple(components)
        _check_components(self.components)
        shapes = [component.batch_shape for component in self.components]
        try:
            batch_shape = jnp.broadcast_shapes(*shapes)
        except ValueError as error:
            raise ValueError(
                "AutoregressiveEnsemble: expected `components` with batch shapes that broadcast; "
                f"got {shapes}."
            ) from error
        event_shape = self.components[0].event_shape
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Support of every component."""
        return self.components[0].support

    @property
    def has_rsample(self) -> bool:
        """Never: which component draws is a discrete choice."""
        return False

    @validate_sample
    def log_prob(
        self, value: Num[Array, "*batch event"], intermediates: Any = None
    ) -> Float[Array, "*batch"]:
        """Exact log density in nats.

        Args:
            value: Values of shape ``batch + event_shape``.
            intermediates: Unused; part of NumPyro's signature.
        """
        terms = [component.log_prob(value) for component in self.components]
        stacked = jnp.stack(jnp.broadcast_arrays(*terms))
        return logsumexp(stacked, axis=0) - math.log(len(terms))

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape event"]:
        """Draw exactly, each draw from a component chosen at random."""
        key_choice, *keys = jax.random.split(require_key(key), 1 + len(self.components))
        shape = tuple(sample_shape) + self.batch_shape
        draws = [
            component.expand(self.batch_shape).sample(key, tuple(sample_shape))
            for component, key in zip(self.components, keys, strict=True)
        ]
        choice = jax.random.randint(key_choice, shape, 0, len(draws))
        choice = choice.reshape((1, *shape) + (1,) * self.event_dim)
        return jnp.take_along_axis(jnp.stack(draws), choice, axis=0)[0]


def _check_components(components: tuple[Any, ...]) -> None:
    owner = "AutoregressiveEnsemble"
    if not components:
        raise ValueError(f"{owner}: expected one or more `components`; got none.")
    for component in components:
        check_normalized(owner, component, "components")
    first = components[0]
    for component in components:
        if (component.event_shape, component.support) != (first.event_shape, first.support):
            raise ValueError(
                f"{owner}: expected `components` with one event shape and support; got "
                f"{first.event_shape} on {first.support} and {component.event_shape} on "
                f"{component.support}."
            )
