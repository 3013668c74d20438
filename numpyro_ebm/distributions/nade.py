"""The neural autoregressive distribution estimator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num
from numpyro.distributions import constraints
from numpyro.util import not_jax_tracer

from numpyro_ebm.distributions.autoregressive import (
    Activation,
    Autoregressive,
    draw_units,
    floating,
)
from numpyro_ebm.distributions.conditionals import BernoulliLogits, Conditional
from numpyro_ebm.distributions.ensemble import AutoregressiveEnsemble
from numpyro_ebm.distributions.nade_recursion import recursion


class NADE(Autoregressive):
    r"""NADE: units in an order, each given those before it by a hidden layer they all share.

    .. math:: p(x) = \prod_i p(x_i \mid x_{<i}), \qquad
        o_i = b_i + V_i\, h_i, \qquad h_i = g\bigl(c + \textstyle\sum_{j<i} W_j x_j\bigr)

    with rows :math:`W_j` and :math:`V_i` of ``weights_in`` and ``weights_out``. The outputs
    :math:`o_i` are the logit of a binary unit; other units (``conditional``) read and give several
    numbers each, such as those of a Gaussian mixture (RNADE). Normalized: ``log_prob`` and
    ``sample`` are exact, and each takes O(dh) for one value. The gradient of ``log_prob``
    recomputes most hidden layers instead of keeping all d of them, so that its memory grows as
    :math:`h \sqrt d` for one value; it is there in reverse mode only.

    Args:
        weights_in: W of shape ``batch + (d, *input, h)``, where ``input`` is ``()`` for binary
            and real units and ``(q,)`` for categorical ones.
        weights_out: V of shape ``batch + (d, *output, h)``, where ``output`` is ``()`` for binary
            units, ``(q,)`` for categorical ones and ``(3, K)`` for Gaussian mixtures.
        bias: b of shape ``batch + (d, *output)``, the outputs without the hidden layer.
        hidden_bias: c of shape ``batch + (h,)``.
        conditional: What a unit is: one of ``ebm.conditionals``, binary by default.
        order: The units from first to last, integers of shape ``batch + (d,)``; by default that
            of the vector. It can be drawn anew at every update (see the example).
        activation: g, the name of a function of ``jax.nn``, or a function at the top level of a
            module.
        validate_args: Whether parameters and values are checked, as in NumPyro.

    Raises:
        TypeError: ``conditional`` is something else.
        ValueError: Shapes do not match, ``order`` is no permutation, or ``activation`` is no name
            of a function.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> nade = ebm.NADE(**ebm.NADE.init_params(jax.random.key(0), 4, 3))
        >>> nade.log_prob(nade.sample(jax.random.key(1), (5,))).shape
        (5,)
        >>> def model(data):  # as trainable parameters, for all orders at once
        ...     params = numpyro.param("nade", ebm.NADE.init_params(jax.random.key(0), 4, 3))
        ...     order = jax.random.permutation(numpyro.prng_key(), 4)
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("x", ebm.NADE(**params, order=order), obs=data)
        >>> several = nade.ensemble([[0, 1, 2, 3], [3, 2, 1, 0]])  # averages their probabilities

    References:
        Larochelle & Murray (2011), "The Neural Autoregressive Distribution Estimator", eq. 3-5
        and algorithm 1; Uria, Murray & Larochelle (2013), "RNADE: The real-valued neural
        autoregressive density-estimator", section 3; Uria, Murray & Larochelle (2014), "A Deep and
        Tractable Density Estimator", section 4 (ensembles of orders).
    """

    arg_constraints = {
        "weights_in": constraints.independent(constraints.real, 2),
        "weights_out": constraints.independent(constraints.real, 2),
        "bias": constraints.real_vector,
        "hidden_bias": constraints.real_vector,
    }
    pytree_data_fields = ("weights_in", "weights_out", "bias", "hidden_bias", "order")

    def __init__(
        self,
        weights_in: Float[ArrayLike, "*batch d *input h"],
        weights_out: Float[ArrayLike, "*batch d *output h"],
        bias: Float[ArrayLike, "*batch d *output"],
        hidden_bias: Float[ArrayLike, "*batch h"],
        *,
        conditional: Conditional = BernoulliLogits(),  # noqa: B008 (it is immutable)
        order: Int[ArrayLike, "*batch d"] | None = None,
        activation: Activation = "sigmoid",
        validate_args: bool | None = None,
    ) -> None:
        self._set_network(conditional, activation)
        arrays = floating(weights_in, weights_out, bias, hidden_bias)
        self.weights_in, self.weights_out, self.bias, self.hidden_bias = arrays
        batch_shape, num_visible = self._check_shapes()
        self.order = None if order is None else _check_order(order, num_visible)
        if self.order is not None:
            batch_shape = jnp.broadcast_shapes(batch_shape, self.order.shape[:-1])
        super().__init__(batch_shape, (num_visible,), validate_args=validate_args)

    @staticmethod
    def init_params(
        rng_key: Key[Array, ""],
        num_visible: int,
        num_hidden: int,
        *,
        mean: Float[ArrayLike, "d *input"] | None = None,
        conditional: Conditional = BernoulliLogits(),  # noqa: B008
    ) -> dict[str, Array]:
        r"""Draw parameters to start training from, ready for ``numpyro.param``.

        Weights are normal with variance 1/d into and 1/h out of the hidden layer.

        Args:
            rng_key: Random key.
            num_visible: d, number of units.
            num_hidden: h, number of hidden units.
            mean: Means of the units in the data, or the rates of each state of categorical units,
                that the biases start from; rates are kept above 0.01.
            conditional: What a unit is.

        Returns:
            The arguments of :class:`NADE`, by name.
        """
        key_in, key_out = jax.random.split(rng_key)
        shapes = [
            (num_visible, *shape, num_hidden)
            for shape in (conditional.input_shape, conditional.output_shape)
        ]
        return {
            "weights_in": jax.random.normal(key_in, shapes[0]) / math.sqrt(num_visible),
            "weights_out": jax.random.normal(key_out, shapes[1]) / math.sqrt(num_hidden),
            "bias": conditional.start(num_visible, mean),
            "hidden_bias": jnp.zeros(num_hidden),
        }

    def with_order(self, order: Int[ArrayLike, "*batch d"] | None) -> NADE:
        """Return the same parameters read in another order.

        Args:
            order: The units from first to last.
        """
        return NADE(
            self.weights_in,
            self.weights_out,
            self.bias,
            self.hidden_bias,
            conditional=self.conditional,
            order=order,
            activation=self._activation,
            validate_args=self._validate_args,
        )

    def ensemble(self, orders: Sequence[Int[ArrayLike, " d"]]) -> AutoregressiveEnsemble:
        """Average the probabilities that the same parameters give in several orders.

        Args:
            orders: Several orders, each the units from first to last.
        """
        return AutoregressiveEnsemble([self.with_order(order) for order in orders])

    def _check_shapes(self) -> tuple[tuple[int, ...], int]:
        """Return the batch shape and the number of units."""
        reads, gives = self.conditional.input_shape, self.conditional.output_shape
        names = "weights_in", "weights_out", "bias", "hidden_bias"
        shapes = {name: jnp.shape(getattr(self, name)) for name in names}
        ndims = 2 + len(reads), 2 + len(gives), 1 + len(gives), 1
        sizes = ["".join(f"{size}, " for size in shape) for shape in (reads, gives)]
        message = (
            f"NADE: expected `weights_in` (..., d, {sizes[0]}h), `weights_out` (..., d, {sizes[1]}"
            f"h), `bias` (..., d{', ' + sizes[1][:-2] if gives else ','}) and `hidden_bias` "
            f"(..., h) with batch shapes that broadcast; got {shapes}."
        )
        if any(len(shape) < n for shape, n in zip(shapes.values(), ndims, strict=True)):
            raise ValueError(message)
        d, h = shapes["weights_in"][-ndims[0]], shapes["weights_in"][-1]
        ends = (d, *reads, h), (d, *gives, h), (d, *gives), (h,)
        if any(shape[-len(end) :] != end for shape, end in zip(shapes.values(), ends, strict=True)):
            raise ValueError(message)
        batches = [shape[: len(shape) - n] for shape, n in zip(shapes.values(), ndims, strict=True)]
        try:
            return jnp.broadcast_shapes(*batches), d
        except ValueError as error:
            raise ValueError(message) from error

    def _by_unit(self) -> tuple[Array, Array, Array]:
        """Weights ``(d, p, h)`` and ``(d, k, h)`` and biases ``(d, k)``, in order."""
        d, h = self.event_shape[0], self.hidden_bias.shape[-1]
        reads, gives = len(self.conditional.input_shape), len(self.conditional.output_shape)
        lead = [
            array.shape[: array.ndim - n]
            for array, n in (
                (self.weights_in, 2 + reads),
                (self.weights_out, 2 + gives),
                (self.bias, 1 + gives),
            )
        ]
        weights_in = self.weights_in.reshape(*lead[0], d, -1, h)
        weights_out = self.weights_out.reshape(*lead[1], d, -1, h)
        bias = self.bias.reshape(*lead[2], d, -1)
        return (
            _ordered(weights_in, self.order, -3),
            _ordered(weights_out, self.order, -3),
            _ordered(bias, self.order, -2),
        )

    def conditional_outputs(
        self, value: Num[ArrayLike, "*batch d"]
    ) -> Float[Array, "*batch d *output"]:
        """What the network says of each unit, given those before it in the order.

        Args:
            value: Values of shape ``batch + (d,)``.
        """
        return _outputs(self, jnp.asarray(value))

    def _draw(self, rng_key: Key[Array, ""], shape: tuple[int, ...]) -> Num[Array, "*shape d"]:
        weights_in, weights_out, bias = self._by_unit()
        steps = (
            jnp.moveaxis(weights_in, -3, 0),
            jnp.moveaxis(jnp.swapaxes(weights_out, -1, -2), -3, 0),
            jnp.moveaxis(bias, -2, 0),
        )
        field = jnp.broadcast_to(self.hidden_bias, (*shape, self.hidden_bias.shape[-1]))
        draws = draw_units(self, rng_key, field, steps, self.activation)
        return _ordered(jnp.moveaxis(draws, 0, -1), _inverse(self.order), -1)


@jax.jit
def _outputs(nade: NADE, value: Num[Array, "*batch d"]) -> Float[Array, "*batch d *output"]:
    batch, dtype, (d,) = nade.batch_shape, nade.bias.dtype, nade.event_shape
    weights_in, weights_out, bias = nade._by_unit()
    lead = jnp.broadcast_shapes(value.shape[:-1], batch)
    inputs = nade.conditional.inputs(value, dtype).reshape(*value.shape, -1)
    num_rows = math.prod(lead[: len(lead) - len(batch)])
    inputs = jnp.broadcast_to(inputs, (*lead, d, inputs.shape[-1]))
    inputs = jnp.moveaxis(inputs.reshape(num_rows, *batch, d, -1), 0, -2)  # batch, unit, row, input
    run = jnp.vectorize(
        partial(recursion, nade.activation), signature="(d,p,h),(d,k,h),(h),(d,r,p)->(d,r,k)"
    )
    outputs = run(weights_in, weights_out, nade.hidden_bias, _ordered(inputs, nade.order, -3))
    outputs = _ordered(outputs + bias[..., None, :], _inverse(nade.order), -3)
    outputs = jnp.moveaxis(outputs, -2, 0)
    return outputs.reshape(*lead, d, *nade.conditional.output_shape)


def _ordered(x: Array, order: Int[Array, "*batch d"] | None, axis: int) -> Array:
    """Reorder an axis; the order has its batch dimensions in front of it."""
    if order is None:
        return x
    missing = x.ndim + axis + 1 - order.ndim  # leading dimensions of `x` that the order lacks
    order = order.reshape((1,) * missing + order.shape + (1,) * (-axis - 1))
    x = x.reshape((1,) * -missing + x.shape) if missing < 0 else x
    return jnp.take_along_axis(x, order, axis)


def _inverse(order: Int[Array, "*batch d"] | None) -> Int[Array, "*batch d"] | None:
    return None if order is None else jnp.argsort(order, axis=-1)


def _check_order(order: Any, num_visible: int) -> Int[Array, "*batch d"]:
    array = jnp.asarray(order)
    fits = array.ndim > 0 and array.shape[-1] == num_visible
    fits = fits and jnp.issubdtype(array.dtype, jnp.integer)
    if fits and not_jax_tracer(array):
        fits = bool(np.all(np.sort(np.asarray(array), axis=-1) == np.arange(num_visible)))
    if not fits:
        raise ValueError(
            f"NADE: expected `order` to be a permutation of 0 to {num_visible - 1}, of shape "
            f"(..., {num_visible}); got {order!r}."
        )
    return array
