"""Deep classifiers that start from stacks of restricted Boltzmann machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.distributions import RBM
from numpyro_ebm.models.feed_forward import check_rows, machines_of, trained, upward


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeepClassifier:
    r"""A softmax of labels on top of a stack of RBMs: discriminative fine-tuning.

    .. math:: p(y \mid x) = \mathrm{softmax}(a + m_L U)_y, \qquad
        m_k = \mathrm{E}[\phi(h_k) \mid m_{k-1} W_k], \quad m_0 = \phi(x)

    ``model`` is a NumPyro model of the labels; ``SVI(classifier.model, guide, optim,
    Trace_ELBO())`` with an empty guide maximizes their likelihood in all weights, and
    ``params["classifier"]`` is the trained classifier. It is a pytree; scales of units are not
    trained.

    Args:
        encoder: Machines from the visible units up, of which the weights and the hidden biases are
            used; see :meth:`on_top_of`.
        weights: U, of shape ``(features, num_classes)``.
        bias: a, of shape ``(num_classes,)``.

    Example:
        >>> import jax, jax.numpy as jnp, optax, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> data = jnp.tile(jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]]), (20, 1))
        >>> labels = jnp.tile(jnp.array([0, 1]), 20)
        >>> stack = [ebm.RBM(jax.random.normal(jax.random.key(0), (4, 3)), jnp.zeros(4),
        ...                  jnp.zeros(3))]
        >>> start = ebm.models.DeepClassifier.on_top_of(stack, num_classes=2)
        >>> svi = SVI(start.model, lambda *args: None, optax.adam(0.05), Trace_ELBO())
        >>> result = svi.run(jax.random.key(1), 100, data, labels, progress_bar=False)
        >>> result.params["classifier"].predict(data[:3])
        Array([0, 1, 0], dtype=int32)

    References:
        Hinton & Salakhutdinov (2006), "Reducing the Dimensionality of Data with Neural Networks",
        Science 313; Bengio, Lamblin, Popovici & Larochelle (2007), "Greedy Layer-Wise Training of
        Deep Networks".
    """

    encoder: tuple[RBM, ...]
    weights: Array
    bias: Array

    @classmethod
    def on_top_of(cls, layers: Sequence[RBM], num_classes: int) -> DeepClassifier:
        """Return the classifier of a trained stack, all classes equally likely.

        Args:
            layers: Machines from the visible units up, such as the ``layers`` of a DBN.
            num_classes: Number of labels.

        Raises:
            TypeError: A layer is no RBM.
            ValueError: Layers do not fit, or there are fewer than two classes.
        """
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(
                f"DeepClassifier: expected `num_classes` of at least 2; got {num_classes!r}."
            )
        machines = machines_of(layers, "DeepClassifier")
        top = machines[-1]
        zeros = jnp.zeros((top.hidden_units.num_features, num_classes), top.weights.dtype)
        return cls(machines, zeros, zeros[0])

    def model(
        self, data: Num[ArrayLike, "rows n"], labels: Int[ArrayLike, " rows"] | None = None
    ) -> Array:
        """NumPyro model of the labels, at the site ``label``.

        Args:
            data: Rows of visible values.
            labels: Integers from 0; ``None`` draws them.

        Returns:
            The labels.

        Raises:
            ValueError: ``data`` or ``labels`` do not fit.
        """
        rows = check_rows("DeepClassifier", self.encoder[0].visible_units, data)
        self._check_labels(labels, len(rows))
        logits = trained("classifier", self)._logits(rows)
        with numpyro.plate("rows", len(rows)):
            drawn: Any = numpyro.sample("label", dist.Categorical(logits=logits), obs=labels)
        return drawn

    def logits(self, data: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch classes"]:
        """Log probabilities of the labels up to a constant, in nats.

        Args:
            data: Visible values of shape ``batch + (n,)``.

        Raises:
            ValueError: ``data`` do not fit the visible units.
        """
        return self._logits(check_rows("DeepClassifier", self.encoder[0].visible_units, data))

    def predict(self, data: Num[ArrayLike, "*batch n"]) -> Int[Array, "*batch"]:
        """Most probable label of each value."""
        return self.logits(data).argmax(-1)

    def _logits(self, rows: Array) -> Array:
        return self.bias + upward(self.encoder, rows) @ self.weights

    def _check_labels(self, labels: Any, num_rows: int) -> None:
        if labels is None:
            return
        if np.shape(labels) != (num_rows,):
            raise ValueError(
                f"DeepClassifier: expected `labels` of shape ({num_rows},); got {np.shape(labels)}."
            )
        num_classes = len(self.bias)
        if not_jax_tracer(labels) and not np.isin(np.asarray(labels), range(num_classes)).all():
            raise ValueError(
                f"DeepClassifier: expected `labels` from 0 to {num_classes - 1}; got other values."
            )
