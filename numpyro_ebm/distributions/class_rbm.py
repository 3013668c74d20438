"""The restricted Boltzmann machine that classifies."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Int, Num

from numpyro_ebm.distributions.multimodal import MultimodalRBM
from numpyro_ebm.distributions.rbm import RBM
from numpyro_ebm.units import Bernoulli, Categorical, Concatenate, Unit


class ClassRBM(MultimodalRBM):
    r"""Restricted Boltzmann machine over inputs x and their class label y.

    .. math:: E(x, y, h) = E_x(x) - d_y + E_h(h) - (\phi(x)^T W + U_y) \phi(h), \qquad
        p(y \mid x) \propto \exp\bigl(d_y + \Lambda_h(\phi(x)^T W + U_y)\bigr)

    with the cumulant function :math:`\Lambda_h` of the hidden layer. The conditional of the label
    is exact and needs no log Z, so it classifies, and trains in any NumPyro model:

    - discriminative, ``numpyro.sample("y", rbm.conditional_label(x), obs=y)`` with any ELBO;
    - generative, ``numpyro.sample("xy", rbm, obs=rbm.join(x, y))`` with a loss such as
      :class:`~numpyro_ebm.PersistentContrastiveDivergence`;
    - hybrid, both sites in one model, one of them under ``numpyro.handlers.scale``.

    Args:
        weights: W above U, of shape ``batch + (num_features + num_classes, num_hidden)``.
        visible: The pair (inputs, labels): a unit or an array of Bernoulli logits, and Categorical
            labels of one unit or an array of their logits d of shape ``batch + (num_classes,)``;
            or the ``units.Concatenate`` of such units.
        hidden: A unit, or an array of Bernoulli logits of shape ``batch + (num_hidden,)``.
        normalizer: What ``log_prob`` of (x, y) knows of log Z, see
            :class:`~numpyro_ebm.EnergyDistribution`.
        validate_args: Whether parameters and values are checked.

    Raises:
        TypeError: ``visible`` is no such pair.
        ValueError: The labels are not one Categorical unit, or as in :class:`~numpyro_ebm.RBM`.

    Example:
        >>> import jax.numpy as jnp, numpyro_ebm as ebm
        >>> weights = jnp.concatenate([jnp.ones((4, 2)), jnp.array([[2.0, 0], [0, 2], [0, 0]])])
        >>> rbm = ebm.ClassRBM(weights, (jnp.zeros(4), jnp.zeros(3)), jnp.zeros(2))
        >>> rbm.conditional_label(jnp.array([[1, 0, 1, 1], [0, 0, 0, 0]])).probs.shape
        (2, 3)

    References:
        Larochelle & Bengio (2008), "Classification using Discriminative Restricted Boltzmann
        Machines", ICML; Larochelle, Mandel, Pascanu & Bengio (2012), "Learning Algorithms for the
        Classification Restricted Boltzmann Machine", JMLR 13.
    """

    @classmethod
    def _as_visible(cls, visible: Any) -> Unit:
        """Inputs and labels as units side by side."""
        units = visible.units if isinstance(visible, Concatenate) else visible
        if not isinstance(units, tuple | list) or len(units) != 2:
            raise TypeError(
                "ClassRBM: expected `visible` to be the pair (inputs, labels) of units or logits, "
                f"or their units.Concatenate; got {type(visible).__name__}."
            )
        inputs, labels = units
        inputs = inputs if isinstance(inputs, Unit) else Bernoulli(inputs)
        if not isinstance(labels, Unit):
            labels = Categorical(jnp.asarray(labels)[..., None, :])
        if not isinstance(labels, Categorical) or labels.shape != (1,):
            raise ValueError(
                f"ClassRBM: expected labels that are one Categorical unit; got {labels!r}."
            )
        return Concatenate([inputs, labels])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._labels.feature_shape[-1]

    @property
    def _labels(self) -> Categorical:
        return cast(Categorical, self.modalities[1])

    def join(self, *parts: Num[ArrayLike, "*batch"]) -> Num[Array, "*batch n"]:
        """Put inputs of shape ``batch + (num_inputs,)`` and labels of shape ``batch`` together.

        Args:
            *parts: Inputs, labels; leading dimensions broadcast.

        Raises:
            ValueError: There are not two, or the shape or support of one does not fit.
        """
        *inputs, labels = parts
        return super().join(*inputs, jnp.asarray(labels)[..., None])

    def split(self, value: Num[ArrayLike, "*batch n"]) -> tuple[Num[Array, "*batch"], ...]:
        """Take a value apart into inputs and labels, of shape ``batch``.

        Args:
            value: Values of shape ``batch + (num_inputs + 1,)``.
        """
        inputs, labels = super().split(value)
        return inputs, labels[..., 0]

    def conditional_label(self, inputs: Num[ArrayLike, "*batch n"]) -> dist.Distribution:
        """p(y | x), exactly, hidden units summed out; differentiable in every parameter.

        Costs one pass over the hidden units for each class, beside one product with the weights.

        Args:
            inputs: Inputs of shape ``batch + (num_inputs,)``.

        Returns:
            A Categorical distribution over labels of shape ``batch``.

        Raises:
            ValueError: Wrong shape, or inputs outside their support.
        """
        field = self._field_of(0, self._check_part(0, inputs))
        fields = self._coupled(field[..., None, :] + self._rows_of(1))
        axis = len(self.hidden_units.batch_shape)
        hidden = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), self.hidden_units)
        own = self._labels.logits[..., 0, :]
        return dist.Categorical(logits=own + hidden.log_partition(fields))

    def conditional_inputs(
        self, labels: Int[ArrayLike, "*batch"], *, normalizer: Any = "guard"
    ) -> RBM:
        """p(x | y), an RBM over the inputs for each label, to generate examples of a class.

        Args:
            labels: Labels of shape ``batch``.
            normalizer: Of the result.
        """
        return self.condition({1: jnp.asarray(labels)[..., None]}, normalizer=normalizer)
