"""The restricted Boltzmann machine over any two layers of units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num
from numpyro.distributions import Distribution, constraints
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import Path, enumerable
from numpyro_ebm.distributions.base_path import BasePath
from numpyro_ebm.distributions.centering import uncentered
from numpyro_ebm.distributions.path import BaseRatePath
from numpyro_ebm.distributions.rbm_sites import site_energies
from numpyro_ebm.distributions.rbm_sweeps import RBMChain, RBMSweeps
from numpyro_ebm.distributions.summation import (
    can_sum,
    check_normalizable,
    exact_log_z,
    exact_sample,
    num_terms,
)
from numpyro_ebm.units import Bernoulli, Unit

__all__ = ["RBM", "RBMChain"]


class RBM(RBMSweeps):
    r"""Restricted Boltzmann machine, a distribution over its visible units.

    .. math:: E(v, h) = E_v(v) + E_h(h) - \phi(v)^T W \phi(h), \qquad
        E(v) = E_v(v) - \Lambda_h(\phi(v)^T W)

    with each layer's energy and features as its units define them and :math:`\Lambda_h` the
    cumulant function of the hidden layer. For Bernoulli units (arrays of logits b, c):
    :math:`E(v) = -b^T v - \sum_j \log(1 + e^{c_j + v^T W_j})`. Energies are in nats.

    Args:
        weights: W of shape ``batch + visible.feature_shape + hidden.feature_shape``:
            ``(num_visible, num_hidden)``, or ``(n, q, num_hidden)`` for Categorical visibles.
        visible: A unit, or an array of Bernoulli logits of shape ``batch + (num_visible,)``.
        hidden: Likewise, ``batch + (num_hidden,)``.
        normalizer: What ``log_prob`` knows of log Z, see :class:`~numpyro_ebm.EnergyDistribution`.
        validate_args: Whether parameters and values are checked.

    Raises:
        ValueError: Shapes do not match, a parameter is not finite, or the density cannot be
            normalized (such as Gaussian-Gaussian with an indefinite joint precision).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> rbm = ebm.RBM(0.1 * jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(2), normalizer="exact")
        >>> rbm.sample(jax.random.key(0)).shape
        (4,)
        >>> rbm.log_prob(jnp.array([1, 0, 1, 1])).shape
        ()

    References:
        Smolensky (1986), "Information Processing in Dynamical Systems: Foundations of Harmony
        Theory"; Goodfellow, Bengio & Courville (2016), *Deep Learning*, section 20.2;
        Welling, Rosen-Zvi & Hinton (2004), "Exponential Family Harmoniums".
    """

    arg_constraints = {"weights": constraints.real}
    pytree_data_fields = ("weights", "visible_units", "hidden_units", "_coupling")

    def __init__(
        self,
        weights: Float[ArrayLike, "*batch"],
        visible: Unit | Float[ArrayLike, "*batch num_visible"],
        hidden: Unit | Float[ArrayLike, "*batch num_hidden"],
        *,
        normalizer: str | ArrayLike = "guard",
        validate_args: bool | None = None,
    ) -> None:
        self.weights = floating(weights, "weights")
        self._coupling = None
        self._set_units(self._as_visible(visible), as_unit(hidden, "hidden"))
        batch_shape = self._check_shapes()
        if self._validate_args if validate_args is None else validate_args:
            self._check_finite()
        super().__init__(
            batch_shape,
            self.visible_units.shape,
            normalizer=normalizer,
            validate_args=validate_args,
        )
        if self._validate_args:
            check_normalizable(self)

    @classmethod
    def _as_visible(cls, visible: Any) -> Unit:
        """The visible units that an argument stands for."""
        return as_unit(visible, "visible")

    def _set_units(self, visible: Unit, hidden: Unit) -> None:
        self.visible_units, self.hidden_units = visible, hidden

    @classmethod
    def from_centered(
        cls,
        weights: Float[ArrayLike, "*batch"],
        visible: Unit | Float[ArrayLike, "*batch num_visible"],
        hidden: Unit | Float[ArrayLike, "*batch num_hidden"],
        visible_offset: Float[ArrayLike, "*visible_features"],
        hidden_offset: Float[ArrayLike, "*hidden_features"],
        **kwargs: Any,
    ) -> RBM:
        r"""Return the RBM whose parameters are given in centered form.

        .. math:: E(v, h) = -(v - \mu)^T W (h - \lambda) - b^T v - c^T h

        up to a constant: biases of the plain form are :math:`b - W \lambda` and
        :math:`c - W^T \mu`, and units that are not linear stand in the constant fields
        :math:`-W \lambda` and :math:`-W^T \mu`. Learning is better conditioned in (W, b, c) when
        the offsets are near the means of the units; any fixed offsets, and priors on the
        parameters, are right.

        Args:
            weights: W, as in the constructor.
            visible: Bernoulli logits b, or any units.
            hidden: c, likewise.
            visible_offset: :math:`\mu`, one number or of the shape of the visible features, such
                as the means of the data.
            hidden_offset: :math:`\lambda`, likewise, such as 0.5.
            **kwargs: ``normalizer`` and ``validate_args``, passed to the constructor.

        Raises:
            ValueError: Shapes do not match.

        Example:
            >>> import jax.numpy as jnp, numpyro_ebm as ebm
            >>> rbm = ebm.RBM.from_centered(
            ...     jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(2), 0.5, 0.5)
            >>> rbm.visible_units.logits
            Array([-1., -1., -1., -1.], dtype=float32)

        References:
            Montavon & Muller (2012), "Deep Boltzmann Machines and the Centering Trick"; Melchior,
            Fischer & Wiskott (2016), "How to Center Deep Boltzmann Machines", JMLR 17(99).
        """
        given = RBM(weights, cls._as_visible(visible), hidden, validate_args=False)
        units = uncentered(given, visible_offset, hidden_offset)
        return cls(given.weights, *units, **kwargs)

    # ----- checks --------------------------------------------------------------------------

    def _check_shapes(self) -> tuple[int, ...]:
        sides = self.visible_units.feature_shape, self.hidden_units.feature_shape
        event, shape = sides[0] + sides[1], self.weights.shape
        for name, axes, unit in (
            (
                "visible",
                slice(-len(event), len(shape) - len(self.hidden_units.feature_shape)),
                self.visible_units,
            ),
            ("hidden", slice(-len(self.hidden_units.feature_shape), None), self.hidden_units),
        ):
            if len(shape) < len(event) or shape[axes] != unit.feature_shape:
                raise ValueError(
                    f"RBM: expected `weights` of shape (..., {', '.join(map(str, event))}) to match"
                    f" `visible` and `hidden` units with features {sides[0]} and {sides[1]}; got "
                    f"`weights` {shape} (mismatch with `{name}`)."
                )
        batches = {
            "weights": shape[: len(shape) - len(event)],
            "visible": self.visible_units.batch_shape,
            "hidden": self.hidden_units.batch_shape,
        }
        try:
            return jnp.broadcast_shapes(*batches.values())
        except ValueError as error:
            raise ValueError(
                f"RBM: expected batch shapes that broadcast together; got {batches}."
            ) from error

    def _check_finite(self) -> None:
        check_finite("RBM", "weights", self.weights)

    # ----- pieces --------------------------------------------------------------------------

    @property
    def support(self) -> constraints.Constraint:
        """Support of the visible units."""
        return self.visible_units.support

    @property
    def num_hidden(self) -> int:
        """Number of hidden units."""
        return self.hidden_units.shape[0]

    # ----- energies and conditionals -------------------------------------------------------

    def energy(self, value: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch"]:
        """Free energy of visible values: hidden units summed out, in nats.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.

        Raises:
            ValueError: Wrong shape, or values outside the support.
        """
        inside = self.check_value(value)
        value = jnp.asarray(value)
        energy = self._energy_from(value, self.input_to_hidden(value))
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def joint_energy(
        self, value: Num[ArrayLike, "*batch n"], hidden: Num[ArrayLike, "*batch m"]
    ) -> Float[Array, "*batch"]:
        """E(v, h) in nats.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            hidden: Hidden values of shape ``batch + (num_hidden,)``.

        Raises:
            ValueError: A value has the wrong shape or lies outside its support.
        """
        inside = self.check_value(value)
        self._check_hidden(hidden)
        value, hidden = jnp.asarray(value), jnp.asarray(hidden)
        field = self._coupled(self.input_to_hidden(value))
        coupling = (field * self.hidden_units.features(hidden)).sum(-1)
        energy = self.visible_units.energy(value) + self.hidden_units.energy(hidden) - coupling
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def conditional_hidden(self, value: Num[ArrayLike, "*batch n"]) -> Distribution:
        """p(h | v), one NumPyro distribution over the hidden layer."""
        self.check_value(value)
        field = self._coupled(self.input_to_hidden(jnp.asarray(value)))
        return self.hidden_units.conditional(field)

    def conditional_visible(self, hidden: Num[ArrayLike, "*batch m"]) -> Distribution:
        """p(v | h), one NumPyro distribution over the visible layer."""
        self._check_hidden(hidden)
        field = self._coupled(self.input_to_visible(jnp.asarray(hidden)))
        return self.visible_units.conditional(field)

    def _check_hidden(self, hidden: Num[ArrayLike, "*batch m"]) -> None:
        shape = jnp.shape(hidden)
        if shape[-1:] != self.hidden_units.shape:
            raise ValueError(
                f"RBM: expected `hidden` of shape (..., {self.num_hidden}); got {shape}."
            )
        if self._validate_args:
            inside = self.hidden_units.support(hidden)
            if not_jax_tracer(inside) and not np.all(inside):
                raise ValueError(
                    f"RBM: expected `hidden` in the support {self.hidden_units.support}; got "
                    f"values outside it."
                )

    def site_energies(
        self, value: Num[ArrayLike, "*batch n"], sites: Int[ArrayLike, "*sites"] | None = None
    ) -> Float[Array, "*batch num_sites states"]:
        """Energies with visible units set to each of their states, hidden units summed out.

        The product of the value and the weights is computed once for all of them; see
        :meth:`EnergyDistribution.site_energies <numpyro_ebm.EnergyDistribution.site_energies>`.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            sites: Visible units, ``(num_sites,)``, or blocks, ``(num_blocks, k)``; all by default.

        Raises:
            ValueError: The visible units are not discrete, or the value or a site does not fit.
        """
        return site_energies(self, *self._parse_sites(value, sites))

    # ----- log Z, path, tilt ---------------------------------------------------------------

    def exact_log_z(self) -> Float[Array, "*batch"]:
        """Log Z in nats: states of the smaller layer summed, the other layer integrated."""
        return exact_log_z(self)

    def default_path(self, rng_key: Key[Array, ""], base: Any = None) -> Path:
        """Path of scaled weights from independent units at their base rates.

        Args:
            rng_key: Random key for estimating base rates from the model itself.
            base: Data of shape ``(n, num_visible)`` to take base rates from, a visible unit, or
                ``None`` for the model's own mean. A normalized distribution over the visible
                units, such as a NADE, is where a path of mixed energies starts instead.
        """
        if isinstance(base, Distribution):
            return BasePath.of(self, base)
        return BaseRatePath.of(self, rng_key, base)

    def tilt(
        self, log_factor: Callable[[Array], Array], shape: tuple[int, ...] | None = None
    ) -> RBM:
        """Return the RBM whose visible units have absorbed a likelihood term.

        Args:
            log_factor: Maps visible values to the log factor of each unit, of the same shape.
            shape: Shape of the values, ``batch + (num_visible,)`` by default.

        Raises:
            ValueError: A continuous unit's factor is not Gaussian in it.
        """
        shape = self.batch_shape + self.event_shape if shape is None else shape
        return self.with_visible(self.visible_units.tilt(log_factor, shape), self._coupling)

    def with_visible(self, visible: Unit, coupling: Any = None) -> RBM:
        """Return the unnormalized RBM with other visible units and weights times ``coupling``."""
        return self.with_parts((self.weights, visible, self.hidden_units), coupling)

    @staticmethod
    def with_parts(parts: tuple[Array, Unit, Unit], coupling: Any = None) -> RBM:
        """Return the unnormalized RBM of these weights (times ``coupling``) and units."""
        rbm = RBM(*parts, validate_args=False)
        rbm._coupling = coupling
        return rbm

    # ----- draws ---------------------------------------------------------------------------

    @property
    def exact_terms(self) -> dict[str, int]:
        """All states of the smaller layer; one term where both layers are Gaussian."""
        return enumerable(num_terms(self), self.batch_shape) if can_sum(self) else {}

    def _draw_exactly(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
    ) -> Num[Array, "*batch n"]:
        return exact_sample(self, rng_key, shape)


def check_finite(owner: str, name: str, array: Any) -> None:
    """Raise ``ValueError`` where a concrete array has entries that are not finite."""
    if array is None or not not_jax_tracer(array):
        return
    bad = int(np.sum(~np.isfinite(np.asarray(array))))
    if bad:
        raise ValueError(
            f"{owner}: expected finite `{name}`; got {bad} NaN or infinite of {array.size}. Lower "
            "the learning rate or restore earlier parameters."
        )


def floating(weights: Any, name: str) -> Array:
    """Weights as a floating array."""
    try:
        array = jnp.asarray(weights)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"RBM: expected an array for `{name}`; got {type(weights).__name__}."
        ) from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(jnp.result_type(float))


def as_unit(value: Any, name: str) -> Unit:
    """A unit as it is, or Bernoulli units with the given logits."""
    if isinstance(value, Unit):
        return value
    try:
        return Bernoulli(value)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"RBM: expected `{name}` to be a unit or an array of Bernoulli logits. {error}"
        ) from error
