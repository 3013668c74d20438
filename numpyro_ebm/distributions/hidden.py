"""Pairwise models some of whose units are hidden."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import Chain, widen
from numpyro_ebm.couplings import Coupling
from numpyro_ebm.distributions.hidden_sum import (
    draw_hidden,
    hidden_terms,
    log_sum_hidden,
    unit_field,
)
from numpyro_ebm.distributions.mean_field import energy_at, entropy, fit_means
from numpyro_ebm.distributions.order import unit_order
from numpyro_ebm.distributions.pairwise import PairwiseModel
from numpyro_ebm.distributions.scan import sweep
from numpyro_ebm.random_key import require_key

_JOINT_DRAW = 10
"""Up to this many hidden units are drawn together in a Gibbs sweep."""


class HiddenChain(NamedTuple):
    """State of a Gibbs chain on a model with hidden units.

    Attributes:
        visible: Visible units.
        hidden: Hidden units.
    """

    visible: Array
    hidden: Array


class HiddenPairwiseModel(PairwiseModel):
    r"""A binary or spin model of which the first units are visible and the rest hidden.

    Values are of the visible units. Without hidden units this is a plain :class:`PairwiseModel`.
    """

    pytree_aux_fields = ("_num_visible", "_on_path")

    _num_visible: int | None
    _on_path: bool

    def _set_visible(self, couplings: Coupling, num_visible: Any) -> tuple[int, ...] | None:
        """Check the number of visible units and return the event shape."""
        owner, self._on_path, self._num_visible = type(self).__name__, False, None
        if num_visible is None:
            return None
        try:
            count = operator.index(num_visible)
        except TypeError as error:
            raise TypeError(
                f"{owner}: expected an integer `num_visible`; got {num_visible!r}."
            ) from error
        if len(couplings.shape) != 1 or not 0 < count <= couplings.num_units:
            raise ValueError(
                f"{owner}: expected `num_visible` from 1 to the number of units, and units in a "
                f"line, not a lattice; got {count} of units {couplings.shape}."
            )
        if count < couplings.num_units:
            self._num_visible = count
        return (count,)

    @property
    def num_visible(self) -> int:
        """Number of visible units."""
        return self.couplings.num_units if self._num_visible is None else self._num_visible

    @property
    def num_hidden(self) -> int:
        """Number of hidden units."""
        return self.couplings.num_units - self.num_visible

    def annealed(self, couplings: Coupling, field: Float[Array, "*shape"]) -> Self:
        """Return the model on a path, with other couplings of the same structure and field."""
        model = self.with_parameters(couplings, field)
        model._on_path = True
        return model

    # ----- hidden units summed out ---------------------------------------------------------

    def energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """Energy of visible values in nats; hidden units are summed out, state by state.

        Args:
            value: Visible values of shape ``batch + event_shape``.

        Raises:
            ValueError: Wrong shape, values outside the support, or more than 20 hidden units.
        """
        if self._num_visible is None:
            return super().energy(value)
        inside = self.check_value(value)
        value = jnp.asarray(value)
        rest = jnp.zeros((*value.shape[:-1], self.num_hidden), value.dtype)
        alone = self.units_energy(jnp.concatenate([value, rest], -1))  # zeros: no hidden term
        energy = alone - log_sum_hidden(self, value)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def joint_energy(
        self, value: Num[ArrayLike, "*batch k"], hidden: Num[ArrayLike, "*batch m"]
    ) -> Float[Array, "*batch"]:
        """E(v, h) in nats.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            hidden: Hidden values of shape ``batch + (num_hidden,)``.

        Raises:
            ValueError: A value has the wrong shape or lies outside its support, or the model has
                no hidden units.
        """
        name = type(self).__name__
        if self._num_visible is None:
            raise ValueError(f"{name}: expected hidden units (`num_visible`); use `energy`.")
        inside, shape = self.check_value(value), np.shape(hidden)
        if shape[-1:] != (self.num_hidden,):
            raise ValueError(
                f"{name}: expected `hidden` of shape (..., {self.num_hidden}); got {shape}."
            )
        if self._validate_args:
            fits = self._alphabet.site_support(hidden)
            if not_jax_tracer(fits) and not np.all(fits):
                raise ValueError(
                    f"{name}: expected `hidden` in the support {self._alphabet.site_support}; got "
                    "values outside it."
                )
        energy = self.units_energy(_join(jnp.asarray(value), jnp.asarray(hidden)))
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    # ----- chain ---------------------------------------------------------------------------

    def as_chain(self, value: Num[Array, "*batch n"]) -> Chain:
        """Split all units into visible and hidden ones."""
        if self._num_visible is None:
            return value
        return HiddenChain(value[..., : self._num_visible], value[..., self._num_visible :])

    def visible(self, chain: Chain) -> Num[Array, "*batch k"]:
        """Visible units of a chain."""
        return chain if self._num_visible is None else chain.visible

    def chain_at(self, value: Num[Array, "*batch k"]) -> Chain:
        """Start chains at given visible values; the first sweep draws the hidden units.

        Up to 10 hidden units are then drawn exactly; more start from their lower value, so that
        the first sweeps still depend on that start.

        Raises:
            ValueError: A model on a path with more than 10 hidden units, whose hidden states
                belong to the weights and cannot be left out.
        """
        if self._num_visible is None:
            return super().chain_at(value)
        if self._on_path and self.num_hidden > _JOINT_DRAW:
            raise ValueError(
                f"{type(self).__name__}: expected chains with their hidden units along a path; a "
                f"kernel on the visible units alone loses the {self.num_hidden} hidden ones (more "
                f"than {_JOINT_DRAW} are not drawn exactly). Use the model's own Gibbs step: "
                "kernel=None."
            )
        value = jnp.asarray(value)
        low = jnp.full((*value.shape[:-1], self.num_hidden), self._alphabet.low, value.dtype)
        return self.as_chain(self.align(_join(value, low)).astype(self._alphabet.dtype))

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: Chain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> Chain:
        """One Gibbs sweep: all hidden units given the visible, then the visible units.

        Up to 10 hidden units are drawn together, exactly; more are swept one after the other.

        Args:
            rng_key: Random key.
            chain: The current chain.
            mask: True where a visible unit is clamped; the hidden units are never.
            values: What the clamped units are held at.
        """
        if self._num_visible is None:
            return super().gibbs_step(rng_key, chain, mask=mask, values=values)
        visible, hidden = chain
        if mask is not None:
            visible = jnp.where(mask, jnp.asarray(values).astype(visible.dtype), visible)
        key_hidden, key_visible = jax.random.split(rng_key)
        hidden = self._draw_hidden(key_hidden, visible, hidden)
        units = _join(visible, hidden)
        held = jnp.broadcast_to(False if mask is None else jnp.asarray(mask), visible.shape)
        held = _join(held, jnp.ones(hidden.shape, bool))
        return self.as_chain(sweep(self, key_visible, units, held, units))

    def clamped_step(self, rng_key: Key[Array, ""], chain: Chain) -> Chain:
        """One sweep of the hidden units given the visible ones, exact for up to 10 of them.

        Args:
            rng_key: Random key.
            chain: The current chain.
        """
        if self._num_visible is None:
            return chain
        return chain._replace(hidden=self._draw_hidden(rng_key, chain.visible, chain.hidden))

    def _draw_hidden(
        self,
        rng_key: Key[Array, ""],
        visible: Num[Array, "*batch k"],
        hidden: Any,
        *,
        backward: bool = False,
    ) -> Num[Array, "*batch m"]:
        """Draw the hidden units given the visible: exactly if few, else by one sweep."""
        if self.num_hidden <= _JOINT_DRAW:
            return draw_hidden(self, rng_key, visible).astype(hidden.dtype)
        units = _join(visible, hidden)
        held = _join(jnp.ones(visible.shape, bool), jnp.zeros(hidden.shape, bool))
        units = sweep(self, rng_key, units, held, units, backward=backward)
        return units[..., self.num_visible :]

    def backward_gibbs_step(self, rng_key: Key[Array, ""], chain: Chain) -> Chain:
        """One Gibbs sweep in the opposite order: visible units, then hidden; the adjoint.

        Args:
            rng_key: Random key.
            chain: The current chain.
        """
        if self._num_visible is None:
            return super().backward_gibbs_step(rng_key, chain)
        visible, hidden = chain
        key_hidden, key_visible = jax.random.split(rng_key)
        units = _join(visible, hidden)
        held = _join(jnp.zeros(visible.shape, bool), jnp.ones(hidden.shape, bool))
        units = sweep(self, key_visible, units, held, units, backward=True)
        visible = units[..., : self.num_visible]
        return HiddenChain(visible, self._draw_hidden(key_hidden, visible, hidden, backward=True))

    def monotone_states(self) -> tuple[Chain, Chain, Bool[Array, "*batch"]]:
        """Largest and smallest state of the order in which Gibbs sweeps are monotone.

        Two units are ordered alike where their coupling is positive and the other way round where
        it is negative. No such order fits couplings that are frustrated (a cycle with an odd
        number of negative ones); fields do not matter. One unit of each set of coupled units is
        ordered as its values are.

        Returns:
            Chains of the batch shape at the largest and at the smallest state, and whether the
            order fits.
        """
        upward, fits = unit_order(self.couplings)
        grid, batch = self.couplings.shape, self.batch_shape
        upward = jnp.broadcast_to(upward, batch + grid)
        top, bottom = self._alphabet.choose(upward), self._alphabet.choose(~upward)
        return self.as_chain(top), self.as_chain(bottom), jnp.broadcast_to(fits, batch)

    def sample_hidden(
        self,
        rng_key: Key[Array, ""],
        value: Num[ArrayLike, "*batch k"],
        num_sweeps: int = 1000,
    ) -> Num[Array, "*batch m"]:
        """Draw hidden units given visible values.

        Exact for up to 10 hidden units; otherwise by a chain clamped at the visible values,
        started from the hidden units' own fields.

        Args:
            rng_key: Random key.
            value: Visible values of shape ``batch + (num_visible,)``.
            num_sweeps: Sweeps of the clamped chain.

        Raises:
            ValueError: ``value`` does not fit, or the model has no hidden units.
        """
        self._check_hidden()
        self.check_value(value)
        return _sample_hidden(self, require_key(rng_key), jnp.asarray(value), num_sweeps)

    def mean_field(
        self, value: Num[ArrayLike, "*batch k"], num_iterations: int = 100
    ) -> Float[Array, "*batch m"]:
        r"""Means of independent hidden units q(h) that approximate those given visible ones.

        The fixed point :math:`\mu_j = \mathrm{E}[h_j \mid v, \mu_{-j}]` is sought from the middle,
        all units at a time, half a step each.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            num_iterations: Number of iterations.

        Raises:
            ValueError: ``value`` does not fit, or the model has no hidden units.

        References:
            Goodfellow, Bengio & Courville (2016), *Deep Learning*, section 20.4.2;
            Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines", section 2.2.
        """
        self._check_hidden()
        self.check_value(value)
        return fit_means(self, jnp.asarray(value), num_iterations)

    def variational_energy(
        self, value: Num[ArrayLike, "*batch k"], means: Float[Array, "*batch m"]
    ) -> Float[Array, "*batch"]:
        r""":math:`\mathrm{E}_q[E(v, h)] - H(q)` in nats, never below the energy of ``value``.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            means: Means of independent hidden units, such as those of :meth:`mean_field`.

        Raises:
            ValueError: ``value`` does not fit, or the model has no hidden units.
        """
        self._check_hidden()
        inside, means = self.check_value(value), jnp.asarray(means)
        energy = energy_at(self, jnp.asarray(value), means) - entropy(self, means)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def _check_hidden(self) -> None:
        if self._num_visible is None:
            raise ValueError(f"{type(self).__name__}: expected hidden units (`num_visible`).")

    def chain_energy(self, chain: Chain) -> Float[Array, "*batch"]:
        """Energy of a chain in nats: of its visible units, the hidden summed out.

        With more than 10 hidden units, where that sum would cost more than the sweep, the joint
        energy of visible and hidden units.
        """
        if self._num_visible is not None and self.num_hidden > _JOINT_DRAW:
            return self.units_energy(_join(chain.visible, chain.hidden))
        return self.energy(self.visible(chain))

    # ----- path, tilt ----------------------------------------------------------------------

    def tilted_gain(
        self, chain: Chain, change: Self, step: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch"]:
        """Fall of a chain's energy when ``step`` times the parameters of ``change`` are added.

        The energy is that of :meth:`chain_energy`; hidden states are differenced before summing.
        """
        if self._num_visible is None:
            return super().tilted_gain(chain, change, step)
        visible, hidden = chain
        step = jnp.asarray(step)
        if self.num_hidden > _JOINT_DRAW:
            units = change.align(_join(visible, hidden))
            return step * (change.site_sum(units) + change.pair_sum(units))
        index = jnp.arange(2**self.num_hidden)
        log_probs = hidden_terms(self, visible, index)
        gains = hidden_terms(change, visible, index)
        probs = jax.nn.softmax(log_probs, axis=-1)
        units = change.align(_join(visible, jnp.zeros_like(hidden)))
        direct = step * (change.site_sum(units) + change.pair_sum(units))
        middle = (probs * gains).sum(-1, keepdims=True)
        spread = jnp.log1p((probs * jnp.expm1(step * (gains - middle))).sum(-1))
        return direct + step * middle[..., 0] + spread

    def tilt(
        self, log_factor: Callable[[Array], Array], shape: tuple[int, ...] | None = None
    ) -> Self:
        """Return the model whose visible units' field has absorbed a likelihood term.

        Args:
            log_factor: Maps visible values to the log factor of each unit, of the same shape.
            shape: Shape of the values, ``batch_shape + event_shape`` by default.
        """
        if self._num_visible is None:
            return super().tilt(log_factor, shape)
        shape = self.batch_shape + self.event_shape if shape is None else tuple(shape)
        extra = self._alphabet.field_of(log_factor, shape).astype(self.float_dtype)
        extra = jnp.pad(extra, [(0, 0)] * (extra.ndim - 1) + [(0, self.num_hidden)])
        return self.with_parameters(self.couplings, unit_field(self) + extra)


def _join(visible: Array, hidden: Array) -> Array:
    """All units of a model."""
    lead = jnp.broadcast_shapes(visible.shape[:-1], hidden.shape[:-1])
    parts = [jnp.broadcast_to(part, lead + part.shape[-1:]) for part in (visible, hidden)]
    return jnp.concatenate(parts, -1)


@jax.jit
def _sample_hidden(
    model: HiddenPairwiseModel, rng_key: Key[Array, ""], value: Array, num_sweeps: int | Array
) -> Num[Array, "*batch m"]:
    key_start, key_run = jax.random.split(rng_key)
    visible = model.chain_at(value).visible
    lead = visible.shape[: visible.ndim - 1 - len(model.batch_shape)]
    hidden = model.draw_independent(key_start, lead)[..., model.num_visible :]

    def step(i, hidden):
        return model._draw_hidden(jax.random.fold_in(key_run, i), visible, hidden)

    count = 1 if model.num_hidden <= _JOINT_DRAW else num_sweeps
    return widen(jax.lax.fori_loop(0, count, step, hidden))
