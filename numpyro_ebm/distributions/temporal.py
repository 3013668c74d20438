"""RBMs whose biases depend on hidden states of the past: recurrent temporal, and temporal."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num

from numpyro_ebm.distributions.conditional import ConditionalRBM
from numpyro_ebm.distributions.rbm import floating
from numpyro_ebm.distributions.sequence import FrameSequence
from numpyro_ebm.units import Unit

__all__ = ["HiddenChain", "RecurrentTemporalRBM"]

_LINKS = ("hidden_to_hidden", "hidden_to_visible", "visible_to_visible", "visible_to_hidden")


class HiddenChain(FrameSequence):
    """What temporal RBMs share: directed weights from the last hidden state and the last frame.

    The condition of a frame is the hidden state before it, followed by the features of the frame
    before it if any weights lead from there.
    """

    pytree_data_fields = (*_LINKS, "initial")

    def __init__(
        self,
        weights: Float[ArrayLike, "*features"],
        visible: Unit | Float[ArrayLike, " n"],
        hidden: Unit | Float[ArrayLike, " m"],
        hidden_to_hidden: Float[ArrayLike, "*features"],
        num_frames: int,
        *,
        hidden_to_visible: Float[ArrayLike, "*features"] | None = None,
        visible_to_visible: Float[ArrayLike, "*features"] | None = None,
        visible_to_hidden: Float[ArrayLike, "*features"] | None = None,
        initial: Float[ArrayLike, "*hidden_features"] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.hidden_to_hidden = floating(hidden_to_hidden, _LINKS[0])
        self.hidden_to_visible = _optional(hidden_to_visible, _LINKS[1])
        self.visible_to_visible = _optional(visible_to_visible, _LINKS[2])
        self.visible_to_hidden = _optional(visible_to_hidden, _LINKS[3])
        self.initial = _optional(initial, "initial")
        super().__init__(weights, visible, hidden, num_frames, validate_args=validate_args)

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        visible, hidden = self.visible_units.feature_shape, self.hidden_units.feature_shape
        sides = {"visible": visible, "hidden": hidden}
        expected = {**super()._parameter_shapes(), "initial": hidden}
        for link in _LINKS:
            source, target = link.split("_to_")
            expected[link] = sides[source] + sides[target]
        return expected

    @property
    def uses_frames(self) -> bool:
        """Whether the last frame itself is part of the condition."""
        return self.visible_to_visible is not None or self.visible_to_hidden is not None

    def first_condition(self, shape: tuple[int, ...]) -> Float[Array, "*shape c"]:
        """The initial hidden state, and no frame."""
        if self.initial is None:
            first = jnp.zeros(self.hidden_units.num_features, self.weights.dtype)
        else:
            first = self.initial.reshape(-1)
        if self.uses_frames:
            nothing = jnp.zeros(self.visible_units.num_features, first.dtype)
            first = jnp.concatenate([first, nothing])
        return jnp.broadcast_to(first, shape + first.shape)

    def condition_of(
        self, hidden: Float[Array, "*batch f"], frame: Num[Array, "*batch n"]
    ) -> Float[Array, "*batch c"]:
        """Condition after a frame with a hidden state."""
        if not self.uses_frames:
            return hidden
        features = self.visible_units.features(frame)
        lead = jnp.broadcast_shapes(hidden.shape[:-1], features.shape[:-1])
        parts = [jnp.broadcast_to(part, lead + part.shape[-1:]) for part in (hidden, features)]
        return jnp.concatenate(parts, axis=-1)

    def frame_given(self, condition: Float[Array, "*batch c"]) -> ConditionalRBM:
        """The RBM of a frame given the hidden state (and the frame) before it."""
        return ConditionalRBM(
            self.weights,
            self.visible_units,
            self.hidden_units,
            self._stacked(self.hidden_to_visible, self.visible_to_visible, self.visible_units),
            self._stacked(self.hidden_to_hidden, self.visible_to_hidden, self.hidden_units),
            condition,
            validate_args=False,
        )

    def _stacked(self, of_hidden: Any, of_frame: Any, target: Unit) -> Array | None:
        """Weights from the whole condition to the features of a layer."""
        if of_hidden is None and of_frame is None:
            return None
        sources = [(of_hidden, self.hidden_units)]
        sources += [(of_frame, self.visible_units)] if self.uses_frames else []
        parts = [
            jnp.zeros((unit.num_features, *target.feature_shape), self.weights.dtype)
            if weights is None
            else weights.reshape(unit.num_features, *target.feature_shape)
            for weights, unit in sources
        ]
        return jnp.concatenate(parts)

    def hidden_mean(
        self, condition: Float[Array, "*batch c"], frame: Num[Array, "*batch n"]
    ) -> Float[Array, "*batch f"]:
        """Mean features of the hidden units given a frame and its condition."""
        rbm = self.frame_given(condition)
        return rbm.hidden_units.mean(rbm.input_to_hidden(frame))


class RecurrentTemporalRBM(HiddenChain):
    r"""Sequence of frames, each an RBM given the mean hidden states of the frames before it.

    .. math:: r_t = \mathrm{E}[\phi(h_t) \mid x_t, r_{t-1}], \qquad
        p(x_1, \dots, x_T) = \prod_t \frac{e^{-E(x_t \mid r_{t-1})}}{Z(r_{t-1})}, \qquad
        E(v, h \mid r) = E(v, h) - r^T U \phi(h) - r^T V \phi(v)

    with :math:`E(v, h)` the energy of :class:`~numpyro_ebm.RBM`; for Bernoulli hidden units
    :math:`r_t = \sigma(W^T x_t + c + U^T r_{t-1})`. What is passed on in time is the mean of the
    hidden units, not a state of theirs, so that inference is exact and a single forward pass; the
    hidden units of a frame are summed out. The density is normalized; ``energy`` (minus its
    logarithm) and ``log_prob`` are exact and include log Z of every frame, so that they raise
    where the smaller layer cannot be summed.

    :class:`~numpyro_ebm.ContrastiveDivergence` trains every frame given those before it, as in the
    paper: the gradient of the difference of energies runs back through time along r, log Z is not
    needed. :class:`~numpyro_ebm.MaximumLikelihood` does the same exactly.

    Args:
        weights: W, as in :class:`~numpyro_ebm.RBM`, without batch dimensions.
        visible: A unit, or an array of Bernoulli logits, for one frame.
        hidden: Likewise.
        hidden_to_hidden: U of shape ``hidden.feature_shape + hidden.feature_shape``, from the
            hidden state before to the hidden units.
        num_frames: T; a value has the shape ``(num_frames, n)``.
        hidden_to_visible: V of shape ``hidden.feature_shape + visible.feature_shape``, or none.
        visible_to_visible: Weights from the frame before to the visible units, or none.
        visible_to_hidden: Weights from the frame before to the hidden units, or none.
        initial: :math:`r_0`, in place of the hidden state before the first frame; zeros by
            default. The frame before the first is zero.
        validate_args: Whether parameters and values are checked.

    Raises:
        ValueError: Shapes do not match, or as in :class:`~numpyro_ebm.RBM`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, optax, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(frames):
        ...     w = numpyro.param("w", lambda key: 0.1 * jax.random.normal(key, (4, 3)))
        ...     u = numpyro.param("u", jnp.zeros((3, 3)))
        ...     rtrbm = ebm.RecurrentTemporalRBM(w, jnp.zeros(4), jnp.zeros(3), u, 5)
        ...     with numpyro.plate("rows", len(frames)):
        ...         numpyro.sample("frames", rtrbm, obs=frames)
        >>> frames = jnp.eye(4)[jnp.array([[0, 1, 2, 3, 0], [2, 3, 0, 1, 2]])]
        >>> svi = SVI(model, lambda frames: None, optax.adam(0.01), ebm.ContrastiveDivergence())
        >>> params = svi.run(jax.random.key(0), 100, frames, progress_bar=False).params
        >>> rtrbm = ebm.RecurrentTemporalRBM(
        ...     params["w"], jnp.zeros(4), jnp.zeros(3), params["u"], 5)
        >>> rtrbm.generate(jax.random.key(1), frames, num_frames=3).shape
        (2, 3, 4)

    References:
        Sutskever, Hinton & Taylor (2008), "The Recurrent Temporal Restricted Boltzmann Machine",
        sections 3 and 4.
    """

    def next_condition(
        self,
        condition: Float[Array, "*batch c"],
        frame: Num[Array, "*batch n"],
        rng_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch c"]:
        """Mean hidden state of a frame, and the frame itself if weights lead from it."""
        return self.condition_of(self.hidden_mean(condition, frame), frame)


def _optional(weights: Any, name: str) -> Array | None:
    return None if weights is None else floating(weights, name)
