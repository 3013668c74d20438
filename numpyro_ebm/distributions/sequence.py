"""Sequences of frames, each drawn from an RBM that those before it condition."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num
from numpyro.distributions import constraints
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import EnergyDistribution, widen
from numpyro_ebm.distributions.conditional import ConditionalRBM
from numpyro_ebm.distributions.frame_draws import (
    draw_on,
    exact_frame_terms,
    filtered,
    smoothed,
    sweep_frames,
)
from numpyro_ebm.distributions.rbm import RBM, as_unit, check_finite, floating
from numpyro_ebm.protocols import UnitStates, unit_states
from numpyro_ebm.random_key import require_key
from numpyro_ebm.units import Unit


class FrameSequence(EnergyDistribution):
    r"""A distribution over sequences of frames, each an RBM given the frames before it.

    .. math:: p(x_1, \dots, x_T) = \prod_t \frac{e^{-E(x_t \mid u_t)}}{Z(u_t)}, \qquad
        E(x) = \sum_t E(x_t \mid u_t) + \log Z(u_t)

    where the condition :math:`u_t` is made of the frames before t. Every frame has a
    :math:`\log Z` that depends on the data before it, so that it is part of the energy: the
    density is normalized, log Z of the whole is zero and nothing is left to guard. ``energy`` and
    ``log_prob`` sum the smaller layer for each frame, and raise where it has too many states.

    Subclasses say what the condition is and how a frame moves it on.
    """

    arg_constraints = {}
    pytree_data_fields = ("weights", "visible_units", "hidden_units")
    is_conditional = True
    by_frames = True
    num_sweeps = 100
    """Gibbs sweeps for each frame where it cannot be drawn exactly."""

    weights: Array
    visible_units: Unit
    hidden_units: Unit

    def __init__(
        self,
        weights: Any,
        visible: Any,
        hidden: Any,
        num_frames: int,
        *,
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None,
    ) -> None:
        self.weights = floating(weights, "weights")
        self.visible_units = as_unit(visible, "visible")
        self.hidden_units = as_unit(hidden, "hidden")
        self._check_weights()
        event_shape = (_count(num_frames, type(self).__name__), *self.visible_units.shape)
        super().__init__(batch_shape, event_shape, normalizer="exact", validate_args=validate_args)
        RBM(self.weights, self.visible_units, self.hidden_units, validate_args=validate_args)
        if self._validate_args:
            for name in self._parameter_shapes():
                check_finite(type(self).__name__, name, getattr(self, name))

    def _check_weights(self) -> None:
        """Check the shapes of all parameters, which have no batch dimensions."""
        batches = self.visible_units.batch_shape, self.hidden_units.batch_shape
        for name, shape in self._parameter_shapes().items():
            array = getattr(self, name)
            if array is not None and (array.shape != shape or batches != ((), ())):
                raise ValueError(
                    f"{type(self).__name__}: expected `{name}` of shape {shape} and units without "
                    f"batch dimensions; got {array.shape}, {self.visible_units!r} and "
                    f"{self.hidden_units!r}."
                )

    # ----- what subclasses define ----------------------------------------------------------

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape that each array among the parameters must have."""
        return {"weights": self.visible_units.feature_shape + self.hidden_units.feature_shape}

    def frame_given(self, condition: Float[Array, "*batch c"]) -> ConditionalRBM:
        """The RBM of a frame given its condition."""
        raise TypeError(f"{type(self).__name__} does not define `frame_given`.")

    def first_condition(self, shape: tuple[int, ...]) -> Float[Array, "*shape c"]:
        """Condition of the first frame."""
        raise TypeError(f"{type(self).__name__} does not define `first_condition`.")

    def next_condition(
        self,
        condition: Float[Array, "*batch c"],
        frame: Num[Array, "*batch n"],
        rng_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch c"]:
        """Condition of the next frame; with a key, hidden states in it are drawn."""
        raise TypeError(f"{type(self).__name__} does not define `next_condition`.")

    # ----- density -------------------------------------------------------------------------

    @property
    def support(self) -> constraints.Constraint:
        """Every frame in the support of the visible units."""
        return constraints.independent(self.visible_units.support, 1)

    @property
    def unit_states(self) -> UnitStates | None:
        """States of the units of a discrete sequence; ``None`` for a continuous one."""
        states = unit_states(self.visible_units.support, self.visible_units.shape)
        if states is None:
            return None
        reps = self.event_shape[0], 1, 1
        return UnitStates(*(jnp.tile(part, reps).__array__() for part in states))

    def conditions(
        self, frames: Num[ArrayLike, "*batch t n"], rng_key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch t_plus_1 c"]:
        """Condition of each frame, and of one more, given those before it."""
        frames = jnp.asarray(frames)
        lead = jnp.broadcast_shapes(frames.shape[:-2], self.batch_shape)
        frames = jnp.broadcast_to(frames, lead + frames.shape[-2:])
        first = self.first_condition(lead)
        keys = None if rng_key is None else jax.random.split(rng_key, frames.shape[-2])

        def step(condition, inputs):
            condition = self.next_condition(condition, *inputs)
            return condition, condition

        _, later = jax.lax.scan(step, first, (jnp.moveaxis(frames, -2, 0), keys))
        return jnp.concatenate([first[..., None, :], jnp.moveaxis(later, 0, -2)], axis=-2)

    def conditionals(self, value: Num[ArrayLike, "*batch t n"]) -> ConditionalRBM:
        """One RBM for each frame, of batch shape ``batch + (num_frames,)``, given those before.

        It is what contrastive and conditional losses train, with gradients through the conditions.

        Args:
            value: Frames of shape ``batch + (num_frames, n)``.
        """
        return self.frame_given(self.conditions(value)[..., :-1, :])

    def energy(self, value: Num[ArrayLike, "*batch t n"]) -> Float[Array, "*batch"]:
        """Minus the exact log density in nats, log Z of each frame included.

        Args:
            value: Frames of shape ``batch + (num_frames, n)``.

        Raises:
            ValueError: Wrong shape, or values outside the support.
            NormalizerError: The states of a frame's smaller layer cannot be summed.
        """
        inside = self.check_value(value)
        energy = self._terms(self.conditionals(value), jnp.asarray(value)).sum(-1)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def _terms(self, rbm: ConditionalRBM, frames: Array) -> Float[Array, "*batch t"]:
        """Minus the log density of each frame given those before it."""
        return rbm.energy(frames) + rbm.exact_log_z()

    def exact_log_z(self) -> Float[Array, "*batch"]:
        """Zero: the density is normalized."""
        return jnp.zeros(self.batch_shape, self.weights.dtype)

    # ----- chain ---------------------------------------------------------------------------

    def init_chain(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape t n"]:
        """Start chains at frames drawn from the biases alone.

        Args:
            rng_key: Random key.
            shape: Shape of the batch of chains, in front of the batch shape.
        """
        visible = self.visible_units
        lead = tuple(shape) + self.batch_shape + self.event_shape[:1]
        field = jnp.zeros((*lead, visible.num_features), self.weights.dtype)
        return visible.sample(rng_key, field)

    def chain_at(self, value: Num[ArrayLike, "*batch t n"]) -> Num[Array, "*batch t n"]:
        """Start chains at given frames."""
        value = jnp.asarray(value).astype(self.visible_units.dtype)
        lead = jnp.broadcast_shapes(value.shape[:-2], self.batch_shape)
        return jnp.broadcast_to(value, lead + value.shape[-2:])

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: Num[Array, "*batch t n"],
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> Num[Array, "*batch t n"]:
        """One sweep over the frames, exact by Metropolis correction.

        A Gibbs sweep of a frame's own RBM, given the frames before it, is accepted by what it does
        to the density of the frames after it. It costs ``num_frames`` energies.

        Args:
            rng_key: Random key.
            chain: The current frames.
            mask: True where a unit is clamped.
            values: What the clamped units are held at.

        Raises:
            NormalizerError: The states of a frame's smaller layer cannot be summed.
        """
        if mask is not None:
            chain = jnp.where(mask, jnp.asarray(values).astype(chain.dtype), chain)

        def propose(key, rbm, frames):
            start = rbm.chain_at(frames)
            return rbm.gibbs_step(key, start, mask=mask, values=values).visible

        def at(frames):
            rbm = self.conditionals(frames)
            return rbm, self._terms(rbm, frames)

        return sweep_frames(rng_key, chain, propose, at)

    # ----- draws ---------------------------------------------------------------------------

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape t n"]:
        """Draw frame by frame: exactly where a frame's smaller layer has at most 2^14 states.

        Otherwise each frame takes ``num_sweeps`` Gibbs sweeps from an independent start.
        """
        first = self.first_condition(tuple(sample_shape) + self.batch_shape)
        return draw_on(self, require_key(key), first, self.event_shape[0], self.num_sweeps)

    @property
    def exact_terms(self) -> dict[str, int]:
        """States of the smaller layer of a frame, up to 2^14."""
        return exact_frame_terms(self)

    def _draw_exactly(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
    ) -> Num[Array, "*shape t n"]:
        return self.sample(rng_key, shape)

    def generate(
        self,
        rng_key: Key[Array, ""],
        history: Num[ArrayLike, "*batch s n"],
        num_frames: int,
        *,
        num_sweeps: int | None = None,
    ) -> Num[Array, "*batch t n"]:
        """Continue sequences frame by frame.

        Args:
            rng_key: Random key.
            history: Any number of first frames, ``batch + (s, n)``.
            num_frames: Frames to draw after them.
            num_sweeps: As in :meth:`sample`; by default the model's own.

        Returns:
            The new frames, ``batch + (num_frames, n)``.

        Raises:
            ValueError: The history is outside the support, or a number is not positive.
        """
        owner = f"{type(self).__name__}.generate"
        history = self._checked_frames(history, f"{owner}: expected `history`")
        key_history, key_frames = jax.random.split(require_key(rng_key))
        condition = self._condition_after(history, key_history)
        sweeps = self.num_sweeps if num_sweeps is None else _count(num_sweeps, owner, "num_sweeps")
        return draw_on(self, key_frames, condition, _count(num_frames, owner), sweeps)

    def _condition_after(self, history: Array, rng_key: Key[Array, ""]) -> Float[Array, "*batch c"]:
        return self.conditions(history, rng_key)[..., -1, :]

    def impute(
        self,
        rng_key: Key[Array, ""],
        frames: Num[ArrayLike, "*batch t n"],
        mask: Bool[ArrayLike, "*shape"],
        *,
        num_samples: int = 1,
        num_sweeps: int = 100,
        method: Literal["smoothing", "filtering"] = "smoothing",
    ) -> Num[Array, "num_samples *batch t n"]:
        """Draw the units that are not known, given those that are.

        ``"smoothing"`` draws from the posterior given frames before and after: independent chains
        of ``num_sweeps`` exact sweeps (:meth:`gibbs_step` with the known units clamped), from
        filtered starts. It needs the states of a frame's smaller layer to be summed.
        ``"filtering"`` goes through the frames once and draws the unknown units of each from its
        RBM given the frames before it and its known units, by ``num_sweeps`` Gibbs sweeps. It is
        an approximation that never looks at later frames, for models of any size.

        Args:
            rng_key: Random key.
            frames: Sequences; what the unknown units hold does not matter.
            mask: True where a unit is known, as in ``clamp``: of a shape that broadcasts to that
                of ``frames``, or ``(num_frames,)`` for whole frames.
            num_samples: Independent draws.
            num_sweeps: Gibbs sweeps, see above.
            method: ``"smoothing"`` or ``"filtering"``.

        Returns:
            Sequences in which the known units are unchanged, ``(num_samples,) + batch + (t, n)``.

        Raises:
            ValueError: A shape does not fit, known units are outside the support, a number is not
                positive, or there is no such method.
            NormalizerError: The states cannot be summed for ``"smoothing"``.
        """
        owner = f"{type(self).__name__}.impute"
        if method not in ("smoothing", "filtering"):
            raise ValueError(
                f'{owner}: expected `method` to be "smoothing" or "filtering"; got {method!r}.'
            )
        mask, frames = self._known(owner, frames, mask)
        sweeps = _count(num_sweeps, owner, "num_sweeps")
        shape = (_count(num_samples, owner, "num_samples"), *frames.shape)
        key_start, key_run = jax.random.split(require_key(rng_key))
        mask, frames = jnp.broadcast_to(mask, shape), jnp.broadcast_to(frames, shape)
        start = filtered(self, key_start, frames, mask, sweeps)
        if method == "filtering":
            return widen(start)
        return widen(smoothed(self, key_run, start, frames, mask, sweeps))

    def _known(self, owner: str, frames: Any, mask: Any) -> tuple[Array, Array]:
        """Mask and frames of one shape, feasible where unknown."""
        mask, frames = jnp.asarray(mask, bool), jnp.asarray(frames)
        mask = mask[:, None] if mask.ndim == 1 else mask
        lead = jnp.broadcast_shapes(frames.shape[:-2], self.batch_shape)
        shape = lead + self.event_shape
        try:
            fits = jnp.broadcast_shapes(mask.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits or frames.shape[-2:] != self.event_shape:
            raise ValueError(
                f"{owner}: expected `frames` of shape (..., {self.event_shape[0]}, "
                f"{self.event_shape[1]}) and `mask` of shape ({self.event_shape[0]},) or one that "
                f"broadcasts to that of `frames`; got {frames.shape} and {mask.shape}."
            )
        mask, frames = jnp.broadcast_to(mask, shape), jnp.broadcast_to(frames, shape)
        frames = jnp.where(mask, frames, self.visible_units.support.feasible_like(frames))
        return mask, self._checked_frames(frames, f"{owner}: expected known `frames`")

    def _checked_frames(self, frames: Any, label: str) -> Array:
        """Frames of any number in the support."""
        frames = jnp.asarray(frames)
        if frames.ndim < 2 or frames.shape[-1:] != self.event_shape[1:]:
            raise ValueError(
                f"{label} of shape (..., num_frames, {self.event_shape[1]}); got {frames.shape}."
            )
        inside = jnp.asarray(self.visible_units.support(frames))
        if self._validate_args and not_jax_tracer(inside) and not inside.all():
            raise ValueError(
                f"{label} in the support {self.visible_units.support}; got values outside it."
            )
        return frames.astype(self.visible_units.dtype)


def _count(value: Any, owner: str, name: str = "num_frames") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: expected `{name}` to be a positive integer; got {value!r}.")
    return value
