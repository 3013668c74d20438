"""Conditional RBMs over a window of past frames."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num

from numpyro_ebm.distributions.conditional import ConditionalRBM
from numpyro_ebm.distributions.rbm import floating
from numpyro_ebm.distributions.sequence import FrameSequence
from numpyro_ebm.units import Unit

__all__ = ["AutoregressiveRBM"]


class AutoregressiveRBM(FrameSequence):
    r"""Sequence of frames, each a conditional RBM given a window of the frames before it.

    .. math:: p(x_1, \dots, x_T \mid x_{1-N}, \dots, x_0) = \prod_t
        \frac{e^{-E(x_t \mid x_{t-1}, \dots, x_{t-N})}}{Z(x_{t-1}, \dots, x_{t-N})}, \qquad
        E(v, h \mid \cdot) = E(v, h) - \sum_k \phi(x_{t-k})^T (A_k \phi(v) + B_k \phi(h))

    with :math:`E(v, h)` the energy of :class:`~numpyro_ebm.RBM`. The density is normalized;
    ``energy`` (minus its logarithm) and ``log_prob`` are exact and include log Z of every frame,
    so that they raise where the smaller layer cannot be summed. Contrastive and conditional losses
    train the frames given their windows, without log Z, for models of any size;
    :class:`~numpyro_ebm.MaximumLikelihood` is exact. Frames are drawn, continued and filled in by
    :meth:`sample`, :meth:`generate` and :meth:`impute`.

    Args:
        weights: W, as in :class:`~numpyro_ebm.RBM`, without batch dimensions.
        visible: A unit, or an array of Bernoulli logits, for one frame.
        hidden: Likewise.
        visible_weights: A of shape ``(order,) + visible.feature_shape + visible.feature_shape``;
            the first entry belongs to the frame just before.
        hidden_weights: B of shape ``(order,) + visible.feature_shape + hidden.feature_shape``.
        history: The ``order`` frames before the first, ``batch + (order, n)``, the latest last.
        num_frames: T, frames of a value, whose shape is ``batch + (num_frames, n)``.
        validate_args: Whether parameters and values are checked.

    Raises:
        ValueError: Shapes do not match, or as in :class:`~numpyro_ebm.ConditionalRBM`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> follow = 4 * jnp.roll(jnp.eye(4), 1, axis=1)[None]  # a pixel that moves on
        >>> model = ebm.AutoregressiveRBM(jnp.zeros((4, 2)), -2 * jnp.ones(4), jnp.zeros(2),
        ...     follow, jnp.zeros((1, 4, 2)), history=jnp.eye(4)[:1], num_frames=5)
        >>> model.sample(jax.random.key(0)).shape
        (5, 4)
        >>> model.log_prob(jnp.eye(4)[jnp.array([1, 2, 3, 0, 1])]).round(1)
        Array(-2.5, dtype=float32)

    References:
        Taylor, Hinton & Roweis (2007), "Modeling Human Motion Using Binary Latent Variables",
        section 3.
    """

    pytree_data_fields = ("visible_weights", "hidden_weights", "history")

    def __init__(
        self,
        weights: Float[ArrayLike, "*features"],
        visible: Unit | Float[ArrayLike, " n"],
        hidden: Unit | Float[ArrayLike, " m"],
        visible_weights: Float[ArrayLike, "order *features"],
        hidden_weights: Float[ArrayLike, "order *features"],
        history: Num[ArrayLike, "*batch order n"],
        num_frames: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.visible_weights = floating(visible_weights, "visible_weights")
        self.hidden_weights = floating(hidden_weights, "hidden_weights")
        self.history = jnp.asarray(history)
        super().__init__(
            weights,
            visible,
            hidden,
            num_frames,
            batch_shape=self.history.shape[:-2],
            validate_args=validate_args,
        )
        if self._validate_args:
            self._checked_frames(self.history, "AutoregressiveRBM: expected `history`")

    @property
    def order(self) -> int:
        """Number of frames in the window."""
        return self.visible_weights.shape[0]

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        visible, hidden = self.visible_units.feature_shape, self.hidden_units.feature_shape
        order = self.visible_weights.shape[:1]
        return {
            **super()._parameter_shapes(),
            "visible_weights": order + visible + visible,
            "hidden_weights": order + visible + hidden,
            "history": self.history.shape[:-2] + order + self.visible_units.shape,
        }

    def first_condition(self, shape: tuple[int, ...]) -> Float[Array, "*shape c"]:
        """Features of the history, the latest frame first."""
        features = self.visible_units.features(self.history)[..., ::-1, :]
        flat = features.reshape(*features.shape[:-2], -1)
        return jnp.broadcast_to(flat, shape + flat.shape[-1:])

    def next_condition(
        self,
        condition: Float[Array, "*batch c"],
        frame: Num[Array, "*batch n"],
        rng_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch c"]:
        """Features of the window that has moved on by a frame."""
        new = self.visible_units.features(frame)
        kept = condition[..., : condition.shape[-1] - new.shape[-1]]
        return jnp.concatenate([new, kept], axis=-1)

    def frame_given(self, condition: Float[Array, "*batch c"]) -> ConditionalRBM:
        """The RBM of a frame given the features of its window, the latest frame first."""
        num_inputs = condition.shape[-1]
        return ConditionalRBM(
            self.weights,
            self.visible_units,
            self.hidden_units,
            self.visible_weights.reshape(num_inputs, *self.visible_units.feature_shape),
            self.hidden_weights.reshape(num_inputs, *self.hidden_units.feature_shape),
            condition,
            validate_args=False,
        )
