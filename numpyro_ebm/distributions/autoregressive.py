"""What NADE, MADE and their ensembles have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from numpyro_ebm.distributions.conditionals import Conditional
from numpyro_ebm.random_key import require_key

Activation = str | Callable[[Array], Array]


class Autoregressive(Distribution):
    r"""A product of conditional densities, each unit given those before it in an order.

    .. math:: \log p(x) = \sum_i \log p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}})

    Subclasses say what their network makes of a value (``conditional_outputs``) and how it draws
    one (``_draw``); what the outputs mean is known to :attr:`conditional` alone.
    """

    conditional: Conditional
    _activation: Activation
    pytree_aux_fields = ("conditional", "_activation")

    def _set_network(self, conditional: Any, activation: Any) -> None:
        owner = type(self).__name__
        if not isinstance(conditional, Conditional):
            raise TypeError(
                f"{owner}: expected `conditional` to be one of ebm.conditionals, such as "
                f"ebm.conditionals.CategoricalLogits(3); got {conditional!r}."
            )
        named = isinstance(activation, str) and hasattr(jax.nn, activation)
        if not (named or (callable(activation) and not isinstance(activation, str))):
            raise ValueError(
                f"{owner}: expected `activation` to be a function or the name of one in jax.nn; "
                f"got {activation!r}."
            )
        self.conditional, self._activation = conditional, activation

    @property
    def activation(self) -> Callable[[Array], Array]:
        """The nonlinearity of the hidden layers."""
        named = isinstance(self._activation, str)
        return getattr(jax.nn, self._activation) if named else self._activation

    @property
    def support(self) -> constraints.Constraint:
        """Values of all units."""
        return constraints.independent(self.conditional.support, 1)

    @property
    def has_rsample(self) -> bool:
        """Whether draws can be differentiated in the parameters."""
        return self.conditional.is_reparametrized

    def conditional_outputs(
        self, value: Num[ArrayLike, "*batch d"]
    ) -> Float[Array, "*batch d *output"]:
        """What the network says of each unit, given those before it.

        Args:
            value: Values of shape ``batch + (d,)``.
        """
        raise TypeError(f"{type(self).__name__} does not define `conditional_outputs`.")

    def conditionals(self, value: Num[ArrayLike, "*batch d"]) -> Distribution:
        """The density of each unit given those before it, of batch shape ``batch + (d,)``.

        Args:
            value: Values of shape ``batch + (d,)``.
        """
        return self.conditional.distribution(self.conditional_outputs(value))

    def conditional_logits(self, value: Num[ArrayLike, "*batch d"]) -> Float[Array, "..."]:
        """Logits of each discrete unit given those before it: its outputs.

        Args:
            value: Values of shape ``batch + (d,)``.

        Raises:
            ValueError: The units are real.
        """
        if not self.is_discrete:
            raise ValueError(
                f"{type(self).__name__}.conditional_logits: expected discrete units; got "
                f"{self.conditional}. Use conditionals(value)."
            )
        return self.conditional_outputs(value)

    @validate_sample
    def log_prob(
        self, value: Num[ArrayLike, "*batch d"], intermediates: Any = None
    ) -> Float[Array, "*batch"]:
        """Exact log density in nats.

        Args:
            value: Values of shape ``batch + (d,)``.
            intermediates: Unused; part of NumPyro's signature.
        """
        outputs = self.conditional_outputs(value)
        terms = self.conditional.log_prob(outputs, jnp.asarray(value)).sum(-1)
        return jnp.broadcast_to(terms, jnp.broadcast_shapes(terms.shape, self.batch_shape))

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape d"]:
        """Draw exactly, unit by unit in the order."""
        return _sample(self, require_key(key), tuple(sample_shape))

    def _draw(self, rng_key: Key[Array, ""], shape: tuple[int, ...]) -> Num[Array, "*shape d"]:
        """Draw values of batch shape ``shape``, which ends in the model's own."""
        raise TypeError(f"{type(self).__name__} does not define `_draw`.")


@partial(jax.jit, static_argnums=2)
def _sample(model: Autoregressive, rng_key: Key[Array, ""], sample_shape: tuple[int, ...]) -> Array:
    return model._draw(rng_key, sample_shape + model.batch_shape)


def draw_units(
    model: Autoregressive,
    rng_key: Key[Array, ""],
    field: Float[Array, "*shape h"],
    steps: tuple[Array, Array, Array],
    layers: Callable[[Array], Array],
) -> Num[Array, "d *shape"]:
    """Draw unit after unit, while the input of the first hidden layer grows.

    Args:
        model: Says what the units are.
        rng_key: Random key.
        field: Input of the first hidden layer before any unit.
        steps: For every unit in turn, its weights into the first hidden layer ``(p, h)``, those out
            of the last one ``(h, k)`` and its biases ``(k,)``, all with batch dimensions.
        layers: From the input of the first hidden layer to the last hidden layer.
    """
    conditional, dtype = model.conditional, field.dtype
    shape = field.shape[:-1]

    def unit(field, step):
        (weights_in, weights_out, bias), key = step
        outputs = product(layers(field), weights_out) + bias
        x = conditional.sample(key, outputs.reshape(*shape, *conditional.output_shape))
        inputs = conditional.inputs(x, dtype).reshape(*shape, -1)
        return field + product(inputs, weights_in), x

    keys = jax.random.split(rng_key, len(steps[0]))
    return jax.lax.scan(unit, field, (steps, keys))[1]


def product(
    layer: Float[Array, "*batch n"], weights: Float[Array, "*batch n m"]
) -> Float[Array, "*batch m"]:
    """Rows times weights, one matrix for each member of a batch."""
    if weights.ndim == 2:
        return jnp.matmul(layer, weights, precision="highest")
    return jnp.matmul(layer[..., None, :], weights, precision="highest")[..., 0, :]


def floating(*parameters: Any) -> tuple[Array, ...]:
    """Parameters as arrays of one floating type."""
    arrays = [jnp.asarray(parameter) for parameter in parameters]
    dtype = jnp.result_type(*arrays) if arrays else jnp.result_type(float)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return tuple(array.astype(dtype) for array in arrays)
