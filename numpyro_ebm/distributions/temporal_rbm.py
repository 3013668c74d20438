"""The temporal RBM, whose hidden states form a chain in time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Num

from numpyro_ebm.distributions.conditional import ConditionalRBM
from numpyro_ebm.distributions.products import dot
from numpyro_ebm.distributions.sequence import sweep_frames
from numpyro_ebm.distributions.temporal import HiddenChain
from numpyro_ebm.normalizer import NormalizerError

__all__ = ["TemporalRBM"]

_MAX_STATES = 2**10
"""Most joint hidden states of a frame in exact sums, which take the square of their number."""


class TemporalRBM(HiddenChain):
    r"""Sequence of frames, each an RBM given a hidden state of the frame before it.

    .. math:: p(x, h) = \prod_t \frac{e^{-E(x_t, h_t \mid h_{t-1}, x_{t-1})}}{Z(h_{t-1}, x_{t-1})},
        \qquad E(v, h \mid h', v') = E(v, h) - \phi(h')^T (U \phi(h) + V \phi(v))
        - \phi(v')^T (A \phi(v) + B \phi(h))

    with :math:`E(v, h)` the energy of :class:`~numpyro_ebm.RBM`: a chain of hidden states that is
    directed in time, each coupled to its frame without direction. The posterior of the hidden
    states does not factorize. What is exact: ancestral draws (:meth:`sample`); with at most
    2^10 joint hidden states of a frame also ``energy`` (minus the log density, hidden states
    summed by the forward algorithm) and ``log_prob``, the Gibbs step and :meth:`impute` (hidden
    paths are drawn by forward filtering and backward sampling), and
    :class:`~numpyro_ebm.MaximumLikelihood`.

    What is not: :meth:`infer_hidden`, the inference of the paper, passes means forward as if later
    frames said nothing of a hidden state. Contrastive and conditional losses train each frame
    given those means, held fixed, which is the paper's heuristic and no gradient of the
    likelihood. :class:`~numpyro_ebm.RecurrentTemporalRBM` makes the means part of the model.

    Args:
        weights: W, as in :class:`~numpyro_ebm.RBM`, without batch dimensions.
        visible: A unit, or an array of Bernoulli logits, for one frame.
        hidden: A unit with finitely many states, likewise.
        hidden_to_hidden: U of shape ``hidden.feature_shape + hidden.feature_shape``, from the
            hidden state before to the hidden units.
        num_frames: T; a value has the shape ``(num_frames, n)``.
        hidden_to_visible: V of shape ``hidden.feature_shape + visible.feature_shape``, or none.
        visible_to_visible: A, from the frame before to the visible units, or none.
        visible_to_hidden: B, from the frame before to the hidden units, or none.
        initial: Features in place of the hidden state before the first frame; zeros by default.
            The frame before the first is zero.
        validate_args: Whether parameters and values are checked.

    Raises:
        ValueError: Shapes do not match, the hidden units are continuous, or as in
            :class:`~numpyro_ebm.RBM`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> model = ebm.TemporalRBM(jnp.ones((3, 2)), -jnp.ones(3), jnp.zeros(2), jnp.eye(2), 4)
        >>> frames = model.sample(jax.random.key(0), (5,))
        >>> frames.shape, model.log_prob(frames).shape
        ((5, 4, 3), (5,))

    References:
        Sutskever & Hinton (2007), "Learning Multilevel Distributed Representations for
        High-Dimensional Sequences", section 2; Rabiner (1989), "A Tutorial on Hidden Markov
        Models", section III (the forward algorithm).
    """

    def _check_weights(self) -> None:
        super()._check_weights()
        if self.hidden_units.num_states is None:
            raise ValueError(
                "TemporalRBM: expected `hidden` units with finitely many states, such as "
                f"Bernoulli, whose states form the chain; got {self.hidden_units!r}."
            )

    # ----- inference of the paper ----------------------------------------------------------

    def next_condition(
        self,
        condition: Float[Array, "*batch c"],
        frame: Num[Array, "*batch n"],
        rng_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch c"]:
        """A drawn hidden state (or, without a key, its mean) given a frame and the past."""
        if rng_key is None:
            return self.condition_of(self.hidden_mean(condition, frame), frame)
        rbm = self.frame_given(condition)
        hidden = rbm.hidden_units.sample(rng_key, rbm.input_to_hidden(frame))
        return self.condition_of(self.hidden_units.features(hidden), frame)

    def infer_hidden(self, value: Num[ArrayLike, "*batch t n"]) -> Float[Array, "*batch t f"]:
        """Mean features of the hidden units of each frame by a forward pass; an approximation.

        Each mean is given its frame and the mean before it, as if that were the state, and later
        frames do not count.

        Args:
            value: Frames of shape ``batch + (num_frames, n)``.
        """
        self.check_value(value)
        return self.conditions(value)[..., 1:, : self.hidden_units.num_features]

    def conditionals(self, value: Num[ArrayLike, "*batch t n"]) -> ConditionalRBM:
        """One RBM for each frame given :meth:`infer_hidden`, without a gradient through that.

        Args:
            value: Frames of shape ``batch + (num_frames, n)``.
        """
        return self.frame_given(jax.lax.stop_gradient(self.conditions(value)[..., :-1, :]))

    # ----- exact sums over the hidden states -----------------------------------------------

    @property
    def _states(self) -> Float[Array, "states f"]:
        """Features of every joint hidden state of a frame."""
        count = self.hidden_units.num_states or 0
        if count > _MAX_STATES:
            raise NormalizerError(
                f"TemporalRBM: expected at most {_MAX_STATES} joint hidden states of a frame for "
                f"an exact density, Gibbs step or imputation by smoothing; got {count}. Train with "
                'ebm.ContrastiveDivergence, impute with method="filtering", or use '
                "RecurrentTemporalRBM."
            )
        states, _ = self.hidden_units.states(jnp.arange(count))
        return self.hidden_units.features(states)

    def _log_joint(
        self, condition: Float[Array, "*batch from c"], frame: Num[Array, "*batch n"]
    ) -> Float[Array, "*batch from to"]:
        """Log density of a frame with each of its hidden states, given each condition."""
        rbm, states = self.frame_given(condition), self._states
        values = self.hidden_units.states(jnp.arange(len(states)))[0]
        frame = frame[..., None, :]
        field = dot(condition, self._stacked_hidden) + self.input_to_hidden(frame)
        own = -rbm.visible_units.energy(frame) - rbm.exact_log_z()
        return own[..., None] + dot(field, states.T) - self.hidden_units.energy(values)

    @property
    def _stacked_hidden(self) -> Float[Array, "c f"]:
        stacked = self._stacked(self.hidden_to_hidden, self.visible_to_hidden, self.hidden_units)
        return jnp.asarray(stacked).reshape(-1, self.hidden_units.num_features)

    def input_to_hidden(self, frame: Num[Array, "*batch n"]) -> Float[Array, "*batch f"]:
        """``x @ W``."""
        matrix = self.weights.reshape(-1, self.hidden_units.num_features)
        return dot(self.visible_units.features(frame), matrix)

    def _forward(
        self, frames: Num[Array, "*batch t n"]
    ) -> tuple[Float[Array, "t *batch states"], Float[Array, "t_minus_1 *batch from to"]]:
        """Log density of the first frames with the last hidden state, and the steps between."""
        lead, states = frames.shape[:-2], self._states
        rows = jnp.moveaxis(frames, -2, 0)
        first = self._log_joint(self.first_condition(lead)[..., None, :], rows[0])[..., 0, :]

        def step(log_alpha, pair):
            before, frame = pair
            condition = self.condition_of(states, before[..., None, :])
            joint = jnp.broadcast_to(
                self._log_joint(condition, frame), (*lead, len(states), len(states))
            )
            log_alpha = logsumexp(log_alpha[..., None] + joint, axis=-2)
            return log_alpha, (log_alpha, joint)

        _, (later, joints) = jax.lax.scan(step, first, (rows[:-1], rows[1:]))
        return jnp.concatenate([first[None], later]), joints

    def energy(self, value: Num[ArrayLike, "*batch t n"]) -> Float[Array, "*batch"]:
        """Minus the exact log density in nats, the hidden states summed out.

        Args:
            value: Frames of shape ``batch + (num_frames, n)``.

        Raises:
            ValueError: Wrong shape, or values outside the support.
            NormalizerError: A frame has more than 2^10 joint hidden states.
        """
        inside = self.check_value(value)
        energy = -logsumexp(self._forward(jnp.asarray(value))[0][-1], axis=-1)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def sample_hidden(
        self, rng_key: Key[Array, ""], value: Num[ArrayLike, "*batch t n"]
    ) -> Int[Array, "*batch t m"]:
        """Draw the hidden states of all frames from their exact joint posterior.

        Args:
            rng_key: Random key.
            value: Frames of shape ``batch + (num_frames, n)``.

        Raises:
            NormalizerError: A frame has more than 2^10 joint hidden states.
        """
        log_alpha, joints = self._forward(jnp.asarray(value))
        keys = jax.random.split(rng_key, len(log_alpha))
        last = jax.random.categorical(keys[-1], log_alpha[-1])

        def back(after, inputs):
            key, log_alpha, joint = inputs
            into = jnp.take_along_axis(joint, after[..., None, None], axis=-1)[..., 0]
            number = jax.random.categorical(key, log_alpha + into)
            return number, number

        _, before = jax.lax.scan(back, last, (keys[:-1], log_alpha[:-1], joints), reverse=True)
        numbers = jnp.moveaxis(jnp.concatenate([before, last[None]]), 0, -1)
        states, _ = self.hidden_units.states(numbers.reshape(-1))
        return states.reshape(*numbers.shape, -1).astype(jnp.int32)

    # ----- chain and continuation ----------------------------------------------------------

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: Num[Array, "*batch t n"],
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> Num[Array, "*batch t n"]:
        """Draw the hidden states of all frames given the frames, and the frames given them.

        The former is exact. So is the latter where no weights lead from frame to frame; otherwise
        frames move one after another, each accepted by what it does to the next one.

        Args:
            rng_key: Random key.
            chain: The current frames.
            mask: True where a unit is clamped.
            values: What the clamped units are held at.

        Raises:
            NormalizerError: A frame has more than 2^10 joint hidden states.
        """
        if mask is not None:
            chain = jnp.where(mask, jnp.asarray(values).astype(chain.dtype), chain)
        key_hidden, key_frames = jax.random.split(rng_key)
        hidden = self.sample_hidden(key_hidden, chain)
        features = self.hidden_units.features(hidden)

        def propose(key, rbm, frames):
            moved = rbm.visible_units.sample(key, rbm.input_to_visible(hidden))
            return moved if mask is None else jnp.where(mask, frames, moved)

        def at(frames):
            first = self.first_condition(frames.shape[:-2])[..., None, :]
            later = self.condition_of(features[..., :-1, :], frames[..., :-1, :])
            rbm = self.frame_given(jnp.concatenate([first, later], axis=-2))
            return rbm, rbm.joint_energy(frames, hidden) + rbm.exact_log_z()

        if self.uses_frames:
            return sweep_frames(key_frames, chain, propose, at)
        return propose(key_frames, at(chain)[0], chain)

    def _condition_after(self, history: Any, rng_key: Key[Array, ""]) -> Float[Array, "*batch c"]:
        """Exact in the hidden state where these can be summed, else by the forward pass."""
        count = self.hidden_units.num_states or 0
        if count > _MAX_STATES or history.shape[-2] == 0:
            return super()._condition_after(history, rng_key)
        number = jax.random.categorical(rng_key, self._forward(history)[0][-1])
        return self.condition_of(self._states[number], history[..., -1, :])
