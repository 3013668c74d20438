"""The deep Boltzmann machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.distributions import Distribution, constraints
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import widen
from numpyro_ebm.distributions.dbm_checks import as_layers, check_hidden, check_shapes
from numpyro_ebm.distributions.dbm_mean_field import MeanField, fit_means, variational_energy
from numpyro_ebm.distributions.dbm_path import DBMPath
from numpyro_ebm.distributions.dbm_pretraining import DBMPretraining
from numpyro_ebm.distributions.dbm_sum import log_sum_hidden
from numpyro_ebm.distributions.dbm_sweeps import DBMChain
from numpyro_ebm.distributions.mean_field_updates import check_mean_field
from numpyro_ebm.distributions.products import dot
from numpyro_ebm.distributions.rbm import RBM
from numpyro_ebm.distributions.summation import can_sum, check_normalizable
from numpyro_ebm.normalizer import NormalizerError
from numpyro_ebm.units import Concatenate, Unit

__all__ = ["DBM", "DBMChain", "MeanField"]


class DBM(DBMPretraining):
    r"""Deep Boltzmann machine: layers of units, each coupled to the next.

    .. math:: E(v, h_1, \dots, h_L) = E_0(v) + \sum_k E_k(h_k) - \phi(v)^T W_1 \phi(h_1)
        - \sum_{k=2}^{L} \phi(h_{k-1})^T W_k \phi(h_k)

    with each layer's energy and features as its units define them; for Bernoulli units (arrays of
    logits): :math:`E = -a^T v - \sum_k b_k^T h_k - v^T W_1 h_1 - \dots`. Values are of the visible
    units. Energies are in nats.

    ``energy`` and ``log_prob`` sum the hidden layers out exactly: the states of the even ones
    (2, 4, ...) or of the odd ones one by one, whichever are fewer (up to 2^20), the others in
    closed form. Larger models have a bound, ``variational_energy`` at the means of ``mean_field``,
    which equals the energy where the posterior of the hidden units factorizes. Odd layers are
    coupled to even ones alone, so that the whole is one RBM (``bipartite``): one Gibbs sweep draws
    all odd layers given the even ones, then all even layers given the odd ones.

    Two pathways that meet in a top layer, a multimodal DBM, are layers of ``units.Concatenate``
    with block-diagonal weights.

    Args:
        weights: W_1, ..., W_L from the visible units up; W_k has shape ``batch`` + the feature
            shape of the layer below + that of the layer above: ``(num_visible, num_hidden_1)``.
        biases: One for each layer, L + 1 in all: an array of Bernoulli logits of shape
            ``batch + (n,)``, or a unit.
        normalizer: What ``log_prob`` knows of log Z, see :class:`~numpyro_ebm.EnergyDistribution`.
        validate_args: Whether parameters and values are checked.

    Raises:
        TypeError: ``weights`` or ``biases`` is no sequence, or an element no array.
        ValueError: Shapes do not match, a parameter is not finite, or the density cannot be
            normalized.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> dbm = ebm.DBM(
        ...     [0.1 * jnp.ones((4, 3)), jnp.ones((3, 2))],
        ...     [jnp.zeros(4), jnp.zeros(3), -jnp.ones(2)], normalizer="exact")
        >>> values = dbm.sample(jax.random.key(0), (5,))
        >>> dbm.log_prob(values).shape
        (5,)
        >>> found = dbm.mean_field(values)
        >>> bool(jnp.all(dbm.variational_energy(values, found.means) >= dbm.energy(values)))
        True

    References:
        Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines"; Goodfellow, Bengio & Courville
        (2016), *Deep Learning*, section 20.4; Srivastava & Salakhutdinov (2012), "Multimodal
        Learning with Deep Boltzmann Machines".
    """

    arg_constraints = {}
    pytree_data_fields = ("weights", "units", "_coupling")
    pytree_aux_fields = ("_on_path",)

    def __init__(
        self,
        weights: Sequence[Float[ArrayLike, "*batch"]],
        biases: Sequence[Unit | Float[ArrayLike, "*batch n"]],
        *,
        normalizer: str | ArrayLike = "guard",
        validate_args: bool | None = None,
    ) -> None:
        self.weights, self.units = as_layers(weights, biases)
        self._coupling, self._on_path = None, False
        batch_shape = check_shapes(self.weights, self.units)
        super().__init__(
            batch_shape, self.units[0].shape, normalizer=normalizer, validate_args=validate_args
        )
        if self._validate_args:
            self._check_parameters()

    def _check_parameters(self) -> None:
        for number, weights in enumerate(self.weights, start=1):
            if not_jax_tracer(weights) and not bool(jnp.all(jnp.isfinite(weights))):
                bad = int(jnp.sum(~jnp.isfinite(weights)))
                raise ValueError(
                    f"DBM: expected finite `weights`; got {bad} NaN or infinite of {weights.size} "
                    f"in layer {number}. Lower the learning rate or restore earlier parameters."
                )
        try:
            check_normalizable(self.bipartite)
        except ValueError as error:
            raise ValueError(f"DBM, as an RBM of its even and odd layers. {error}") from error

    # ----- pieces --------------------------------------------------------------------------

    @property
    def support(self) -> constraints.Constraint:
        """Support of the visible units."""
        return self.units[0].support

    @property
    def num_hidden(self) -> int:
        """Number of hidden units in all layers."""
        return sum(unit.shape[0] for unit in self.units[1:])

    # ----- energies and conditionals -------------------------------------------------------

    def energy(self, value: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch"]:
        """Energy of visible values in nats, all hidden layers summed out.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.

        Raises:
            ValueError: Wrong shape, values outside the support, or more than 2^20 states of the
                even and of the odd hidden layers.
        """
        inside = self.check_value(value)
        value = jnp.asarray(value)
        energy = self.units[0].energy(value) - log_sum_hidden(self, value)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def joint_energy(
        self,
        value: Num[ArrayLike, "*batch n"],
        hidden: Sequence[Num[ArrayLike, "*batch m"]],
    ) -> Float[Array, "*batch"]:
        """E(v, h_1, ..., h_L) in nats.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            hidden: Values of each hidden layer, from the one above the visible units up.

        Raises:
            ValueError: A layer is missing, has the wrong shape or lies outside its support.
        """
        inside = self.check_value(value)
        check_hidden(self.units, hidden, self._validate_args)
        layers = [jnp.asarray(x) for x in (value, *hidden)]
        lead = jnp.broadcast_shapes(*(x.shape[:-1] for x in layers))
        layers = [jnp.broadcast_to(x, lead + x.shape[-1:]) for x in layers]
        features = [u.features(x) for u, x in zip(self.units, layers, strict=True)]
        rbm = self.bipartite
        field = rbm._coupled(dot(jnp.concatenate(features[::2], -1), rbm.weight_matrix))
        own = [unit.energy(x) for unit, x in zip(self.units, layers, strict=True)]
        energy = sum(own) - (field * jnp.concatenate(features[1::2], -1)).sum(-1)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def conditional_layer(
        self, number: int, layers: Sequence[Num[ArrayLike, "*batch n"]]
    ) -> Distribution:
        """p(layer | its neighbours), one NumPyro distribution over the layer.

        Args:
            number: Which layer; 0 are the visible units.
            layers: Values of all layers, the visible units first; only those of the neighbours of
                ``number`` are looked at, so that others may be ``None``.
        """
        last = len(self.units) - 1
        if not 0 <= number <= last or len(layers) != last + 1:
            raise ValueError(
                f"DBM: expected a layer `number` from 0 to {last} and values of {last + 1} "
                f"layers; got {number!r} and {len(layers)}."
            )
        field: Any = 0.0
        for other, index in ((number - 1, number - 1), (number + 1, number)):
            if not 0 <= other <= last:
                continue
            value = jnp.asarray(layers[other])
            if value.shape[-1:] != self.units[other].shape:
                raise ValueError(
                    f"DBM: expected values of layer {other} of shape (..., "
                    f"{self.units[other].shape[0]}); got {value.shape}."
                )
            matrix = self.matrices[index]
            field = field + dot(
                self.units[other].features(value), matrix if other < number else matrix.mT
            )
        return self.units[number].conditional(self.bipartite._coupled(field))

    # ----- mean field ----------------------------------------------------------------------

    def mean_field(
        self,
        value: Num[ArrayLike, "*batch n"],
        num_iterations: int = 100,
        *,
        tolerance: float = 1e-5,
    ) -> MeanField:
        r"""Means of independent hidden units q(h) that approximate those given visible values.

        The fixed point :math:`\mu_k = \mathrm{E}[\phi(h_k) \mid \mu_{k-1}, \mu_{k+1}]` is sought
        by turns, all odd layers and then all even ones; no turn raises ``variational_energy``,
        whose minimum need not be the only one. No gradient flows through the means.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            num_iterations: Most iterations.
            tolerance: Largest change of a mean in the last iteration for a row to have converged.

        Returns:
            The means of each hidden layer, which rows have converged, and the iterations made.

        Raises:
            ValueError: ``value`` does not fit, or hidden units are not Bernoulli, Spin,
                Categorical or Gaussian.

        References:
            Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines", section 2.2.
        """
        self.check_value(value)
        for unit in self.units[1:]:
            check_mean_field(unit, "hidden", "chains with clamped visible units")
        frozen, value = jax.lax.stop_gradient((self, jnp.asarray(value)))
        return jax.lax.stop_gradient(fit_means(frozen, value, num_iterations, tolerance))

    def variational_energy(
        self,
        value: Num[ArrayLike, "*batch n"],
        means: MeanField | Sequence[Float[ArrayLike, "*batch m"]],
    ) -> Float[Array, "*batch"]:
        r""":math:`\mathrm{E}_q[E(v, h)] - H(q)` in nats, never below the energy of ``value``.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            means: Means of the features of independent units of each hidden layer, such as those
                of :meth:`mean_field`; Gaussian units have the variance of their conditional.

        Raises:
            ValueError: ``value`` or ``means`` does not fit.
        """
        inside = self.check_value(value)
        layers = means.means if isinstance(means, MeanField) else tuple(means)
        if len(layers) != len(self.units) - 1:
            raise ValueError(
                f"DBM: expected `means` of {len(self.units) - 1} hidden layers; got {len(layers)}."
            )
        layers = [jnp.asarray(layer) for layer in layers]
        energy = variational_energy(self, jnp.asarray(value), layers)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    # ----- log Z, path, tilt, draws --------------------------------------------------------

    def exact_log_z(self) -> Float[Array, "*batch"]:
        """Log Z in nats: states of the even or of the odd layers summed, the others integrated."""
        rbm = self.bipartite
        if not can_sum(rbm):
            raise NormalizerError(
                "DBM: expected at most 2^20 states of all even layers (the visible units among "
                'them) or of all odd layers for normalizer="exact" and evidence.exact; the layers '
                f"are {', '.join(map(repr, self.units))}. Estimate log Z with ebm.evidence.ais "
                "and pass the array, or keep the default guard."
            )
        return rbm.exact_log_z()

    def default_path(self, rng_key: Key[Array, ""], base: Any = None) -> DBMPath:
        """Path of scaled weights from independent units at their base rates.

        Args:
            rng_key: Random key for estimating base rates from the model itself.
            base: Data of shape ``(n, num_visible)`` to take base rates from, a visible unit, or
                ``None`` for the model's own mean.
        """
        return DBMPath.of(self, rng_key, base)

    def annealed(self, rbm: RBM) -> DBM:
        """Return the DBM on a path whose even and odd layers are those of an RBM."""
        model = copy.copy(self)
        model.__dict__.pop("_attached", None)
        model._coupling, model._on_path, model._normalizer, model._log_z = (
            *(rbm._coupling, True, "guard"),
            None,
        )
        units = list(self.units)
        for start, side in ((0, rbm.visible_units), (1, rbm.hidden_units)):
            alone = len(units[start::2]) == 1
            units[start::2] = (side,) if alone or not isinstance(side, Concatenate) else side.units
        model.units = tuple(units)
        return model

    def tilt(
        self, log_factor: Callable[[Array], Array], shape: tuple[int, ...] | None = None
    ) -> DBM:
        """Return the DBM whose visible units have absorbed a likelihood term.

        Args:
            log_factor: Maps visible values to the log factor of each unit, of the same shape.
            shape: Shape of the values, ``batch + (num_visible,)`` by default.

        Raises:
            ValueError: A continuous unit's factor is not Gaussian in it.
        """
        shape = self.batch_shape + self.event_shape if shape is None else shape
        visible = self.units[0].tilt(log_factor, shape)
        dbm = DBM(self.weights, (visible, *self.units[1:]), validate_args=False)
        dbm._coupling, dbm._on_path = self._coupling, self._on_path
        return dbm

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*batch n"]:
        """Draw visible values.

        Exact where all even or all odd layers together have at most 2^14 states; otherwise by
        ``num_sweeps`` block Gibbs sweeps from independent starts.
        """
        rbm = self.bipartite
        rbm.num_sweeps = self.num_sweeps
        even = rbm.sample(key, tuple(sample_shape))
        return widen(even[..., : self.event_shape[0]].astype(self.units[0].dtype))

    @property
    def exact_terms(self) -> dict[str, int]:
        """All states of the even or of the odd layers together, whichever are fewer."""
        return self.bipartite.exact_terms

    def _draw_exactly(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
    ) -> Num[Array, "*batch n"]:
        even = self.bipartite.exact_sample(rng_key, shape)
        return even[..., : self.event_shape[0]].astype(self.units[0].dtype)
