"""Where the layers of a deep Boltzmann machine come from: RBMs, and centered parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from numpyro_ebm.distributions.dbm_checks import as_layers
from numpyro_ebm.distributions.dbm_sweeps import DBMSweeps, flat_weights
from numpyro_ebm.distributions.rbm import RBM
from numpyro_ebm.units import Concatenate, Unit
from numpyro_ebm.units.unit import LinearUnit


class DBMPretraining(DBMSweeps):
    """How a :class:`~numpyro_ebm.DBM` is put together from its layers."""

    @classmethod
    def from_centered(
        cls,
        weights: Sequence[Float[ArrayLike, "*batch"]],
        biases: Sequence[Unit | Float[ArrayLike, "*batch n"]],
        offsets: Sequence[Float[ArrayLike, "*features"]],
        **kwargs: Any,
    ) -> Self:
        r"""Return the DBM whose parameters are given in centered form.

        .. math:: E = -\sum_k b_k^T h_k - \sum_k (h_{k-1} - \lambda_{k-1})^T W_k
            (h_k - \lambda_k), \qquad h_0 = v

        up to a constant: biases of the plain form are
        :math:`b_k - W_k^T \lambda_{k-1} - W_{k+1} \lambda_{k+1}`. Learning is better conditioned
        when the offsets are near the means of the units, to the point that joint training can do
        without pretraining; any fixed offsets are right.

        Args:
            weights: W_1, ..., W_L, as in the constructor.
            biases: One for each layer: Bernoulli logits, or Bernoulli, Spin or Categorical units.
            offsets: :math:`\lambda_0, \dots, \lambda_L`: each a number or of the shape of the
                layer's features, such as the means of the data, and 0.5 for hidden layers.
            **kwargs: ``normalizer`` and ``validate_args``, passed to the constructor.

        Raises:
            ValueError: Shapes do not match, or units are continuous.

        Example:
            >>> import jax.numpy as jnp, numpyro_ebm as ebm
            >>> dbm = ebm.DBM.from_centered(
            ...     [jnp.ones((4, 2)), jnp.ones((2, 3))],
            ...     [jnp.zeros(4), jnp.zeros(2), jnp.zeros(3)], [0.5, 0.5, 0.5])
            >>> dbm.units[1].logits
            Array([-3.5, -3.5], dtype=float32)

        References:
            Montavon & Muller (2012), "Deep Boltzmann Machines and the Centering Trick".
        """
        given = cls(weights, biases, validate_args=False)
        if len(offsets) != len(given.units):
            raise ValueError(
                f"DBM.from_centered: expected `offsets` of {len(given.units)} layers; got "
                f"{len(offsets)}."
            )
        full = [_offset(*layer) for layer in zip(given.units, offsets, strict=True)]
        matrices, units = given.matrices, list(given.units)
        for number, matrix in enumerate(matrices):
            up = jnp.einsum("...fg,f->...g", matrix, full[number], precision="highest")
            down = jnp.einsum("...fg,g->...f", matrix, full[number + 1], precision="highest")
            units[number] = units[number].in_field(-down)
            units[number + 1] = units[number + 1].in_field(-up)
        return cls(given.weights, units, **kwargs)

    @property
    def matrices(self) -> tuple[Float[Array, "*batch f g"], ...]:
        """Weights of each layer with the features of units flattened."""
        triples = zip(self.weights, self.units[:-1], self.units[1:], strict=True)
        return tuple(flat_weights(*triple) for triple in triples)

    @staticmethod
    def pretraining_rbm(
        weights: Float[ArrayLike, "*batch"],
        below: Unit | Float[ArrayLike, "*batch n"],
        above: Unit | Float[ArrayLike, "*batch m"],
        *,
        is_bottom: bool = False,
        is_top: bool = False,
        **kwargs: Any,
    ) -> RBM:
        r"""Return the RBM that trains one layer of a DBM greedily.

        A unit of an inner layer will get input from both sides, of which the RBM of one layer has
        one: that side counts twice. The bottom RBM has two copies of its visible units with tied
        weights, so that :math:`p(h \mid v, v)` has :math:`2 W^T v` and :math:`p(v \mid h)` has
        :math:`W h`; its data are ``jnp.concatenate([v, v], -1)``. The top one has two copies of
        its hidden units; those in between have weights 2 W both ways. Train it by any loss, draw
        data of the next from ``conditional_hidden``, and join all by :meth:`from_pretrained`.

        Args:
            weights: W of the DBM, of shape ``batch`` + features below + features above.
            below: Lower layer: a unit, or an array of Bernoulli logits.
            above: Upper layer, likewise.
            is_bottom: Whether the lower layer are the visible units of the DBM.
            is_top: Whether the upper layer is the last.
            **kwargs: ``normalizer`` and ``validate_args``, passed to the RBM.

        Raises:
            ValueError: Shapes do not match.

        Example:
            >>> import jax.numpy as jnp, numpyro_ebm as ebm
            >>> rbm = ebm.DBM.pretraining_rbm(
            ...     jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(2), is_bottom=True)
            >>> value = jnp.array([1, 0, 0, 0])
            >>> both = jnp.concatenate([value, value])
            >>> rbm.conditional_hidden(both).base_dist.logits, rbm.weights.shape
            (Array([2., 2.], dtype=float32), (8, 2))

        References:
            Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines", section 2.1.
        """
        (array,), (lower, upper) = as_layers([weights], [below, above])
        if is_bottom == is_top:  # one layer alone is an RBM as it is
            return RBM(array if is_top else 2 * array, lower, upper, **kwargs)
        matrix = flat_weights(array, lower, upper)
        matrix = jnp.concatenate([matrix, matrix], -2 if is_bottom else -1)
        lower, upper = (_twice(lower), upper) if is_bottom else (lower, _twice(upper))
        event = lower.feature_shape + upper.feature_shape
        return RBM(matrix.reshape(matrix.shape[:-2] + event), lower, upper, **kwargs)

    @classmethod
    def from_pretrained(cls, rbms: Sequence[RBM], **kwargs: Any) -> Self:
        r"""Return the DBM of RBMs that :meth:`pretraining_rbm` made, from the bottom up.

        Its energy is half the sum of theirs, each with both copies of a layer in the same state:
        weights are the W they were made of, biases of inner layers the mean of those in the two
        RBMs that have them.

        Args:
            rbms: Trained RBMs, the bottom one first.
            **kwargs: ``normalizer`` and ``validate_args``, passed to the constructor.

        Raises:
            ValueError: There is none, the bottom or the top one has no two copies, or layers do
                not fit.

        Example:
            >>> import jax.numpy as jnp, numpyro_ebm as ebm
            >>> bottom = ebm.DBM.pretraining_rbm(
            ...     jnp.ones((4, 3)), jnp.zeros(4), jnp.zeros(3), is_bottom=True)
            >>> top = ebm.DBM.pretraining_rbm(
            ...     jnp.ones((3, 2)), jnp.ones(3), jnp.zeros(2), is_top=True)
            >>> dbm = ebm.DBM.from_pretrained([bottom, top])
            >>> dbm.units[1].logits, dbm.weights[1].shape
            (Array([0.5, 0.5, 0.5], dtype=float32), (3, 2))

        References:
            Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines", section 2.1; Hinton &
            Salakhutdinov (2012), "A Better Way to Pretrain Deep Boltzmann Machines".
        """
        if not rbms:
            raise ValueError("DBM.from_pretrained: expected at least one RBM in `rbms`; got none.")
        last = len(rbms) - 1
        weights, lower, upper = [], [], []
        for number, rbm in enumerate(rbms):
            matrix, below, above = rbm.weight_matrix, rbm.visible_units, rbm.hidden_units
            if number == 0 < last:
                below = _single(below, "bottom", "visible")
                matrix = _mean_of_halves(matrix, -2)
            elif 0 < number == last:
                above = _single(above, "top", "hidden")
                matrix = _mean_of_halves(matrix, -1)
            elif last > 0:
                matrix = matrix / 2
            weights.append(
                matrix.reshape(matrix.shape[:-2] + below.feature_shape + above.feature_shape)
            )
            lower.append(below)
            upper.append(above)
        inner = [_halfway(*pair) for pair in zip(upper[:-1], lower[1:], strict=True)]
        return cls(weights, [lower[0], *inner, upper[-1]], **kwargs)


def _twice(unit: Unit) -> Unit:
    """Two copies of a layer side by side."""
    if isinstance(unit, Concatenate):
        return Concatenate([unit, unit])
    axis = -len(unit.feature_shape)
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis), unit)


def _single(unit: Unit, which: str, side: str) -> Unit:
    """The one layer of which there are two copies."""
    if isinstance(unit, Concatenate):
        copies = unit.units
    elif unit.shape[0] % 2 == 0:
        half, axis = unit.shape[0] // 2, -len(unit.feature_shape)
        copies = [
            jax.tree.map(lambda leaf, p=p: jax.lax.slice_in_dim(leaf, *p, axis=axis), unit)
            for p in ((0, half), (half, 2 * half))
        ]
    else:
        copies = []
    if len(copies) != 2:
        raise ValueError(
            f"DBM.from_pretrained: expected the {which} RBM to have two copies of its {side} "
            f"units, as DBM.pretraining_rbm makes it; got {unit!r}."
        )
    return _halfway(*copies)


def _halfway(first: Unit, second: Unit) -> Unit:
    """Units with half the energy of two layers in the same state."""
    if type(first) is not type(second) or first.feature_shape != second.feature_shape:
        raise ValueError(
            "DBM.from_pretrained: expected the hidden units of each RBM to be the visible units "
            f"of the next, and copies of a layer to be alike; got {first!r} and {second!r}."
        )
    return first.interpolate(second, 0.5)


def _mean_of_halves(matrix: Float[Array, "*batch f g"], axis: int) -> Float[Array, "*batch f g"]:
    first, second = jnp.split(matrix, 2, axis=axis)
    return (first + second) / 2


def _offset(unit: Unit, offset: Any) -> Float[Array, " f"]:
    """Offset of the features of a layer, flat."""
    if not isinstance(unit, LinearUnit):
        raise ValueError(
            "DBM.from_centered: expected Bernoulli, Spin or Categorical units, whose energy is "
            f"linear in their features; got {type(unit).__name__}."
        )
    if jnp.shape(offset) not in ((), unit.feature_shape):
        raise ValueError(
            f"DBM.from_centered: expected `offsets` to be one number or of shape "
            f"{unit.feature_shape}; got {jnp.shape(offset)}."
        )
    return jnp.broadcast_to(jnp.asarray(offset), unit.feature_shape).reshape(-1)
