"""The masked autoencoder for distribution estimation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Num

from numpyro_ebm.distributions.autoregressive import (
    Activation,
    Autoregressive,
    draw_units,
    floating,
    product,
)
from numpyro_ebm.distributions.conditionals import BernoulliLogits, Conditional
from numpyro_ebm.distributions.degrees import Degrees
from numpyro_ebm.distributions.ensemble import AutoregressiveEnsemble

Shapes = list[tuple[int, ...]]


class MADE(Autoregressive):
    r"""MADE: units in an order, each given those before it by one masked network.

    .. math:: p(x) = \prod_i p(x_i \mid x_{<i}), \qquad
        h^l = g\bigl(b^l + (M^l \odot W^l)^T h^{l-1}\bigr), \quad h^0 = x, \qquad
        o_i = b^{L+1}_i + (M^{L+1} \odot W^{L+1})_i^T h^L

    with masks M that leave a unit no path from itself or the units after it. The outputs
    :math:`o_i` are the logit of a binary unit; other units (``conditional``) read and give several
    numbers each. Normalized: ``log_prob`` takes one pass through the network and is exact, as is
    ``sample``, which goes unit by unit: as much as one pass for one hidden layer, and d passes
    through the middle layers for more.

    Args:
        weights: One array for each layer of weights, ``batch + (inputs, outputs)``: from the d
            visible units through every hidden layer back to the d visible units. The first is
            ``batch + (d, *input, outputs)`` and the last ``batch + (inputs, d, *output)``, where
            ``input`` is ``()`` for binary and real units and ``(q,)`` for categorical ones, and
            ``output`` is ``()`` for binary units, ``(q,)`` for categorical ones and ``(3, K)`` for
            Gaussian mixtures.
        biases: One array for each, ``batch + (outputs,)``; the last is ``batch + (d, *output)``.
        degrees: The order of the units and the degrees of the hidden ones, a :class:`Degrees`;
            ``Degrees.spread`` by default.
        conditional: What a unit is: one of ``ebm.conditionals``, binary by default.
        activation: g, the name of a function of ``jax.nn``, or a function at the top level of a
            module.
        validate_args: Whether parameters and values are checked, as in NumPyro.

    Raises:
        TypeError: ``degrees`` or ``conditional`` is something else.
        ValueError: Shapes do not match, or ``activation`` is no name of a function.

    Example:
        >>> import jax, numpyro, numpyro_ebm as ebm
        >>> made = ebm.MADE(**ebm.MADE.init_params(jax.random.key(0), 4, [8, 8]))
        >>> made.log_prob(made.sample(jax.random.key(1), (5,))).shape
        (5,)
        >>> degrees = ebm.MADE.Degrees.random(0, 4, [8, 8])
        >>> def model(data):  # as trainable parameters
        ...     params = numpyro.param("made", ebm.MADE.init_params(jax.random.key(0), 4, [8, 8]))
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("x", ebm.MADE(**params, degrees=degrees), obs=data)
        >>> several = made.ensemble([degrees, ebm.MADE.Degrees.random(1, 4, [8, 8])])

    References:
        Germain, Gregor, Murray & Larochelle (2015), "MADE: Masked Autoencoder for Distribution
        Estimation", sections 3 and 4.
    """

    Degrees = Degrees

    arg_constraints = {}
    pytree_data_fields = ("weights", "biases")
    pytree_aux_fields = ("degrees",)

    def __init__(
        self,
        weights: Sequence[Float[ArrayLike, "*batch inputs outputs"]],
        biases: Sequence[Float[ArrayLike, "*batch outputs"]],
        degrees: Degrees | None = None,
        *,
        conditional: Conditional = BernoulliLogits(),  # noqa: B008 (it is immutable)
        activation: Activation = "relu",
        validate_args: bool | None = None,
    ) -> None:
        self._set_network(conditional, activation)
        arrays = floating(*weights, *biases)
        self.weights, self.biases = arrays[: len(weights)], arrays[len(weights) :]
        shapes = [w.shape for w in self.weights], [b.shape for b in self.biases]
        if degrees is None:
            degrees = _spread_for(*shapes, conditional)
        if not isinstance(degrees, Degrees):
            raise TypeError(
                f"MADE: expected `degrees` to be MADE.Degrees; got {type(degrees).__name__}."
            )
        self.degrees = degrees
        batch_shape = _check_shapes(degrees, conditional, *shapes)
        super().__init__(batch_shape, degrees.sizes[:1], validate_args=validate_args)

    @staticmethod
    def init_params(
        rng_key: Key[Array, ""],
        num_visible: int,
        hidden_sizes: Sequence[int],
        *,
        mean: Float[ArrayLike, "d *input"] | None = None,
        conditional: Conditional = BernoulliLogits(),  # noqa: B008
    ) -> dict[str, tuple[Array, ...]]:
        """Draw parameters to start training from, ready for ``numpyro.param``.

        Weights are normal with variance 1 / inputs, before masking.

        Args:
            rng_key: Random key.
            num_visible: d, number of visible units.
            hidden_sizes: Number of units of each hidden layer.
            mean: Means of the units in the data, or the rates of each state of categorical units,
                that the biases start from; rates are kept above 0.01.
            conditional: What a unit is.

        Returns:
            ``weights`` and ``biases`` of :class:`MADE`.
        """
        sizes = num_visible, *hidden_sizes, num_visible
        shapes = _layer_shapes(sizes, conditional)[0]
        keys = jax.random.split(rng_key, len(shapes))
        return {
            "weights": tuple(
                jax.random.normal(key, shape) / math.sqrt(size)
                for key, shape, size in zip(keys, shapes, sizes[:-1], strict=True)
            ),
            "biases": (
                *(jnp.zeros(size) for size in hidden_sizes),
                conditional.start(num_visible, mean),
            ),
        }

    def with_degrees(self, degrees: Degrees) -> MADE:
        """Return the same parameters behind other masks.

        Args:
            degrees: The order of the units and the degrees of the hidden ones.
        """
        return MADE(
            self.weights,
            self.biases,
            degrees,
            conditional=self.conditional,
            activation=self._activation,
            validate_args=self._validate_args,
        )

    def ensemble(self, degrees: Sequence[Degrees]) -> AutoregressiveEnsemble:
        """Average the probabilities that the same parameters give behind several masks.

        Args:
            degrees: Orders of the units and degrees of the hidden ones.
        """
        return AutoregressiveEnsemble([self.with_degrees(each) for each in degrees])

    @property
    def masked_layers(self) -> list[tuple[Array, Array]]:
        """Masked matrices of weights ``(inputs, outputs)`` and biases of every layer of weights."""
        reads, gives = self.conditional.input_shape, self.conditional.output_shape
        weights, biases, masks = list(self.weights), list(self.biases), list(self.degrees.masks)
        first, last, bias = weights[0], weights[-1], biases[-1]
        weights[0] = _merged(first, first.ndim - 2 - len(reads), 1 + len(reads))
        weights[-1] = _merged(last, last.ndim - 1 - len(gives), 1 + len(gives))
        biases[-1] = _merged(bias, bias.ndim - 1 - len(gives), 1 + len(gives))
        masks[0] = np.repeat(masks[0], math.prod(reads), axis=0)
        masks[-1] = np.repeat(masks[-1], math.prod(gives), axis=1)
        masked = [w * mask for w, mask in zip(weights, masks, strict=True)]
        return list(zip(masked, biases, strict=True))

    def conditional_outputs(
        self, value: Num[ArrayLike, "*batch d"]
    ) -> Float[Array, "*batch d *output"]:
        """What the network says of each unit, given those before it in the order.

        Args:
            value: Values of shape ``batch + (d,)``.
        """
        *hidden, last = self.masked_layers
        value = jnp.asarray(value)
        layer = self.conditional.inputs(value, self.biases[-1].dtype).reshape(*value.shape[:-1], -1)
        for weights, bias in hidden:
            layer = self.activation(product(layer, weights) + bias)
        outputs = product(layer, last[0]) + last[1]
        return outputs.reshape(
            *outputs.shape[:-1], *self.event_shape, *self.conditional.output_shape
        )

    def _draw(self, rng_key: Key[Array, ""], shape: tuple[int, ...]) -> Num[Array, "*shape d"]:
        order = self.degrees.order
        first, *middle, last = self.masked_layers

        def by_unit(x: Array, axis: int) -> Array:
            """The units first, in their order."""
            axis = x.ndim + axis
            split = x.reshape(*x.shape[:axis], len(order), -1, *x.shape[axis + 1 :])
            return jnp.moveaxis(split, axis, 0)[order]

        def layers(field: Array) -> Array:
            layer = self.activation(field)
            for weights, bias in middle:
                layer = self.activation(product(layer, weights) + bias)
            return layer

        steps = by_unit(first[0], -2), by_unit(last[0], -1), by_unit(last[1], -1)
        field = jnp.broadcast_to(first[1], (*shape, first[1].shape[-1]))
        draws = draw_units(self, rng_key, field, steps, layers)
        return jnp.moveaxis(draws[np.asarray(self.degrees.ordering, np.int32) - 1], 0, -1)


# ----- shapes ------------------------------------------------------------------------------


def _merged(x: Array, axis: int, num: int) -> Array:
    """Make one axis of several, ``num`` from ``axis`` on."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + num :])


def _layer_shapes(sizes: Sequence[int], conditional: Conditional) -> tuple[Shapes, Shapes]:
    """Shapes of the weights and biases of layers of these sizes, visible ones first and last."""
    ends: Shapes = [(size,) for size in sizes[1:-1]]
    ends.append((sizes[-1], *conditional.output_shape))
    starts: Shapes = [(sizes[0], *conditional.input_shape), *ends[:-1]]
    return [(*start, *end) for start, end in zip(starts, ends, strict=True)], ends


def _spread_for(weights: Shapes, biases: Shapes, conditional: Conditional) -> Degrees:
    num_output = len(conditional.output_shape)
    if len(biases) < 2 or not all(biases) or len(biases[-1]) <= num_output:
        raise ValueError(
            "MADE: expected `weights` and `biases` of one or more hidden layers and of the output; "
            f"got shapes {weights} and {biases}."
        )
    sizes = [shape[-1] for shape in biases[:-1]]
    return Degrees.spread(biases[-1][-1 - num_output], sizes)


def _check_shapes(
    degrees: Degrees, conditional: Conditional, weights: Shapes, biases: Shapes
) -> tuple[int, ...]:
    """Return the batch shape."""
    expected = _layer_shapes(degrees.sizes, conditional)
    pairs = list(zip((*weights, *biases), (*expected[0], *expected[1]), strict=False))
    fits = len(weights) == len(biases) == len(expected[0]) and all(
        shape[-len(end) :] == end for shape, end in pairs
    )
    message = (
        f"MADE: expected `weights` of shapes {expected[0]} and `biases` of shapes {expected[1]}, "
        f"for layers of {degrees.sizes} units, with batch shapes that broadcast; got {weights} and "
        f"{biases}."
    )
    if not fits:
        raise ValueError(message)
    try:
        return jnp.broadcast_shapes(*(shape[: len(shape) - len(end)] for shape, end in pairs))
    except ValueError as error:
        raise ValueError(message) from error
