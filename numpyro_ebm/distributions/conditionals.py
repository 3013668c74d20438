"""What each unit of an autoregressive model is, given those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key, Num
from numpyro.distributions import Distribution, constraints

from numpyro_ebm.units.discrete import softplus

__all__ = ["BernoulliLogits", "CategoricalLogits", "Conditional", "GaussianMixture"]

_LEAST_RATE = 0.01
"""Means of binary and categorical units in the data are kept this far from 0."""


class Conditional:
    """One kind of unit: what a network reads of it, and the density its outputs stand for.

    A network reads ``input_shape`` numbers of every unit and gives ``output_shape`` numbers for
    every unit. An autoregressive model knows no more of its units than this, so that a new kind of
    unit is one more subclass. Instances are static: they hold no arrays and can be hashed.
    """

    is_reparametrized: ClassVar[bool] = False
    """Whether draws can be differentiated in the outputs."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what the network reads of one unit."""
        return ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what the network says of one unit."""
        return ()

    @property
    def support(self) -> constraints.Constraint:
        """Values of one unit."""
        raise TypeError(f"{type(self).__name__} does not define `support`.")

    def inputs(self, value: Num[Array, "*shape"], dtype: Any) -> Float[Array, "*shape *input"]:
        """What the network reads of values, as floating-point numbers."""
        return value.astype(dtype)

    def distribution(self, outputs: Float[Array, "*shape *output"]) -> Distribution:
        """The density of each unit, with batch shape ``shape``."""
        raise TypeError(f"{type(self).__name__} does not define `distribution`.")

    def log_prob(
        self, outputs: Float[Array, "*shape *output"], value: Num[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Log density of each unit in nats."""
        value = value.astype(outputs.dtype)
        return jnp.asarray(self.distribution(outputs).log_prob(value))

    def sample(
        self, rng_key: Key[Array, ""], outputs: Float[Array, "*shape *output"]
    ) -> Num[Array, "*shape"]:
        """Draw each unit."""
        return jnp.asarray(self.distribution(outputs).sample(rng_key))

    def start(self, num_visible: int, mean: Any) -> Float[Array, "d *output"]:
        """Outputs without the network to start training from.

        Args:
            num_visible: Number of units.
            mean: Means of ``inputs`` in the data, of shape ``(d, *input_shape)``, or ``None``.
        """
        raise TypeError(f"{type(self).__name__} does not define `start`.")


@dataclass(frozen=True)
class BernoulliLogits(Conditional):
    r"""Binary units: the output is the logit of :math:`p(x_i = 1 \mid x_{<i})`.

    Example:
        >>> import jax.numpy as jnp, numpyro_ebm as ebm
        >>> float(ebm.conditionals.BernoulliLogits().distribution(jnp.zeros(())).log_prob(1))
        -0.693...
    """

    @property
    def support(self) -> constraints.Constraint:
        """{0, 1}."""
        return constraints.boolean

    def log_prob(
        self, outputs: Float[Array, "*shape"], value: Num[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Log probability of each unit in nats, with a derivative in the value too."""
        return value.astype(outputs.dtype) * outputs - softplus(outputs)

    def distribution(self, outputs: Float[Array, "*shape"]) -> Distribution:
        """Bernoulli units with these logits."""
        return dist.BernoulliLogits(outputs, validate_args=False)

    def start(self, num_visible: int, mean: Any) -> Float[Array, " d"]:
        """Logits of the means, which are clipped to [0.01, 0.99]; 0 by default."""
        rate = jnp.clip(jnp.asarray(0.5 if mean is None else mean), _LEAST_RATE, 1 - _LEAST_RATE)
        return jnp.broadcast_to(jax.scipy.special.logit(rate), (num_visible,))


@dataclass(frozen=True)
class CategoricalLogits(Conditional):
    r"""Units with states 0 to q - 1: the network reads a one-hot code and gives q logits.

    Args:
        num_states: q.

    Raises:
        ValueError: ``num_states`` is less than 2.
    """

    num_states: int

    def __post_init__(self) -> None:
        _at_least(2, self, "num_states")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(q,)``."""
        return (self.num_states,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(q,)``."""
        return (self.num_states,)

    @property
    def support(self) -> constraints.Constraint:
        """{0, ..., q - 1}."""
        return constraints.integer_interval(0, self.num_states - 1)

    def inputs(self, value: Num[Array, "*shape"], dtype: Any) -> Float[Array, "*shape q"]:
        """One-hot code."""
        return jax.nn.one_hot(value.astype(jnp.int32), self.num_states, dtype=dtype)

    def log_prob(
        self, outputs: Float[Array, "*shape q"], value: Num[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Log probability of each unit in nats."""
        return jnp.asarray(self.distribution(outputs).log_prob(value.astype(jnp.int32)))

    def distribution(self, outputs: Float[Array, "*shape q"]) -> Distribution:
        """Categorical units with these logits."""
        return dist.CategoricalLogits(outputs, validate_args=False)

    def start(self, num_visible: int, mean: Any) -> Float[Array, "d q"]:
        """Logarithms of the rates of the states, kept above 0.01; equal ones by default."""
        rate = jnp.asarray(1 / self.num_states if mean is None else mean)
        return jnp.broadcast_to(
            jnp.log(jnp.maximum(rate, _LEAST_RATE)), (num_visible, self.num_states)
        )


@dataclass(frozen=True)
class GaussianMixture(Conditional):
    r"""Real units: the outputs are logits, means and log scales of K normal components.

    .. math:: p(x_i \mid x_{<i}) = \sum_k \pi_{ik}\, N(x_i; \mu_{ik}, \sigma_{ik}^2), \qquad
        o_i = (\mathrm{logits}\ \pi_i, \ \mu_i, \ \log \sigma_i)

    of shape ``(3, K)``. Draws can be differentiated: where :math:`F` is the distribution function
    of the mixture, a draw moves with the outputs by
    :math:`\partial x / \partial o = -(\partial F / \partial o) / p(x)`.

    Args:
        num_components: K.

    Raises:
        ValueError: ``num_components`` is less than 1.

    References:
        Uria, Murray & Larochelle (2013), "RNADE: The real-valued neural autoregressive
        density-estimator", section 3; Figurnov, Mohamed & Mnih (2018), "Implicit
        Reparameterization Gradients", section 3.
    """

    num_components: int = 1

    is_reparametrized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _at_least(1, self, "num_components")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(3, K)``."""
        return 3, self.num_components

    @property
    def support(self) -> constraints.Constraint:
        """The real line."""
        return constraints.real

    def distribution(self, outputs: Float[Array, "*shape 3 K"]) -> Distribution:
        """A mixture of normal densities."""
        logits, loc, log_scale = (outputs[..., i, :] for i in range(3))
        return dist.MixtureSameFamily(
            dist.CategoricalLogits(logits, validate_args=False),
            dist.Normal(loc, jnp.exp(log_scale), validate_args=False),
            validate_args=False,
        )

    def sample(
        self, rng_key: Key[Array, ""], outputs: Float[Array, "*shape 3 K"]
    ) -> Float[Array, "*shape"]:
        """Draw each unit, with the gradient of the draw in the outputs."""
        fixed = self.distribution(jax.lax.stop_gradient(outputs))
        draw = jnp.asarray(fixed.sample(rng_key))
        level = self.distribution(outputs).cdf(draw)
        shift = level - jax.lax.stop_gradient(level)  # zero, but for its gradient
        return draw - shift / jnp.exp(jnp.asarray(fixed.log_prob(draw)))

    def start(self, num_visible: int, mean: Any) -> Float[Array, "d 3 K"]:
        """Equal components of scale 1, spread from one below to one above the means."""
        places = (2 * jnp.arange(self.num_components) + 1) / self.num_components - 1
        loc = jnp.asarray(0.0 if mean is None else mean)[..., None] + places
        loc = jnp.broadcast_to(loc, (num_visible, self.num_components))
        return jnp.stack([jnp.zeros_like(loc), loc, jnp.zeros_like(loc)], axis=1)


def _at_least(least: int, conditional: Any, name: str) -> None:
    number = getattr(conditional, name)
    if not isinstance(number, int) or number < least:
        raise ValueError(
            f"{type(conditional).__name__}: expected `{name}` to be an integer of at least "
            f"{least}; got {number!r}."
        )
