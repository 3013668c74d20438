"""What Boltzmann machines, Ising and Potts models have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Num
from numpyro.distributions import Distribution, constraints

from numpyro_ebm.base import Chain, EnergyDistribution, Path
from numpyro_ebm.couplings import Coupling, as_coupling
from numpyro_ebm.couplings.coupling import as_floating
from numpyro_ebm.couplings.graph import Static
from numpyro_ebm.distributions import mean_field_updates
from numpyro_ebm.distributions.alphabet import Alphabet, field_sum
from numpyro_ebm.distributions.base_path import BasePath
from numpyro_ebm.distributions.pairwise_path import PairwisePath
from numpyro_ebm.distributions.pairwise_sum import exact_log_z, exact_sample, exact_terms
from numpyro_ebm.distributions.scan import choose_scan, sweep


class PairwiseModel(EnergyDistribution):
    r"""A discrete model with couplings between pairs of sites and a field on every site.

    .. math:: E(x) = -\sum_i b_i(x_i) - \sum_{i<j} J_{ij}\, \phi(x_i)^T \phi(x_j)

    The sites lie on the grid of the couplings. Subclasses choose what a site can be (the
    alphabet) and the name of the field.
    """

    pytree_data_fields = ("couplings",)
    pytree_aux_fields = ("_scan", "_coloring", "_alphabet")

    field_name: ClassVar[str] = "field"
    """Attribute with the fields: of size 1 along an axis of equal ones."""

    couplings: Coupling
    _alphabet: Any

    def _setup(
        self,
        couplings: Any,
        field: Any,
        alphabet: Alphabet,
        *,
        scan: str | None,
        coloring: Any,
        normalizer: str | ArrayLike,
        validate_args: bool | None,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        owner = type(self).__name__
        self.couplings = as_coupling(couplings, owner)
        self._alphabet = alphabet
        self._site_field = self._parse_field(field, owner)
        self._scan, found = choose_scan(self.couplings, scan, coloring, owner)
        self._coloring = None if found is None else Static(found)
        super().__init__(
            self._batch_of(self.couplings, self._site_field),
            self.couplings.shape if event_shape is None else event_shape,
            normalizer=normalizer,
            validate_args=validate_args,
        )

    # ----- parameters ----------------------------------------------------------------------

    def _parse_field(self, field: Any, owner: str) -> Array:
        """A field for every site, or of size 1 along an axis of equal ones."""
        array = as_floating(field, owner, self.field_name)
        grid, own = self.couplings.shape, (self._alphabet.num_states,)
        own = own if self._alphabet.label_axis else ()
        label = ", ".join(map(str, grid + own))
        if array.ndim == len(own):
            array = array.reshape((1,) * len(grid) + array.shape)
        tail = array.shape[array.ndim - len(grid + own) :]
        fits = array.ndim >= len(grid + own) and tail[len(grid) :] == own
        if not fits or any(m not in (1, n) for m, n in zip(tail, grid + own, strict=True)):
            raise ValueError(
                f"{owner}: expected `{self.field_name}` of shape (..., {label}) to match "
                f"`couplings` between {grid} units{' with ' + str(*own) + ' states' if own else ''}"
                f"; got {array.shape}."
            )
        return array

    def _batch_of(self, couplings: Coupling, field: Array) -> tuple[int, ...]:
        num_event = len(couplings.shape) + self._alphabet.label_axis
        batches = {
            "couplings": couplings.batch_shape,
            self.field_name: field.shape[: field.ndim - num_event],
        }
        try:
            return jnp.broadcast_shapes(*batches.values())
        except ValueError as error:
            raise ValueError(
                f"{type(self).__name__}: expected batch shapes that broadcast together; got "
                f"{batches}."
            ) from error

    @property
    def _site_field(self) -> Array:
        return self.__dict__[self.field_name]

    @_site_field.setter
    def _site_field(self, field: Array) -> None:
        self.__dict__[self.field_name] = field

    def with_parameters(self, couplings: Coupling, field: Float[Array, "*shape"]) -> Self:
        """Return the unnormalized model with other couplings of the same structure and field."""
        model = copy.copy(self)
        model.couplings, model._site_field = couplings, field
        model._batch_shape = self._batch_of(couplings, field)
        model._normalizer, model._log_z, model._validate_args = "guard", None, False
        model._attached = {}
        return model

    def annealed(self, couplings: Coupling, field: Float[Array, "*shape"]) -> Self:
        """Return the model on a path, with other couplings of the same structure and field."""
        return self.with_parameters(couplings, field)

    @property
    def scan(self) -> str:
        """Order in which a Gibbs sweep updates the sites."""
        return self._scan

    @property
    def coloring(self) -> Int[np.ndarray, "*grid"] | None:
        """Colours of the sites that a chromatic sweep updates one after the other."""
        return None if self._coloring is None else self._coloring.array

    @property
    def support(self) -> constraints.Constraint:
        """All grids of values that a site can take."""
        return constraints.independent(self._alphabet.site_support, len(self.event_shape))

    @property
    def float_dtype(self) -> Any:
        """Floating type of the parameters."""
        return jnp.result_type(self.couplings.dtype, self._site_field)

    # ----- energy --------------------------------------------------------------------------

    def align(self, value: Num[ArrayLike, "*shape"]) -> Num[Array, "*shape"]:
        """Give values of all units the batch dimensions of the parameters."""
        value, num = jnp.asarray(value), len(self.couplings.shape)
        batch = self._batch_of(self.couplings, self._site_field)
        lead = jnp.broadcast_shapes(value.shape[: value.ndim - num], batch)
        return jnp.broadcast_to(value, lead + self.couplings.shape)

    def site_field(self, num_dims: int) -> Float[Array, "*shape"]:
        """Field on every site, ready to be added to the field of its neighbours.

        Args:
            num_dims: Number of dimensions of the values.
        """
        field = self._site_field
        if not self._alphabet.label_axis:
            return field
        field = jnp.moveaxis(field, -1, 0)
        return field.reshape(field.shape[0], *[1] * (num_dims - field.ndim + 1), *field.shape[1:])

    def local_field(self, value: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Field on every site from its neighbours and its own; label first for Potts models."""
        features = self._alphabet.features(value)
        return self.couplings.field(features) + self.site_field(value.ndim)

    def site_sum(self, value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
        r""":math:`\sum_i b_i(x_i)`."""
        return field_sum(self._alphabet, self._site_field, value, len(self.couplings.shape))

    def pair_sum(self, value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
        r""":math:`\sum_{i<j} J_{ij} \phi(x_i)^T \phi(x_j)`."""
        total = self.couplings.pair_sum(self._alphabet.features(value))
        return total.sum(0) if self._alphabet.label_axis else total

    def units_energy(self, value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Energy of all units in nats."""
        value = self.align(value)
        return -self.site_sum(value) - self.pair_sum(value)

    def energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """E(value) in nats.

        Args:
            value: Values of shape ``batch + event_shape``.

        Raises:
            ValueError: Wrong shape, or values outside the support.
        """
        inside = self.check_value(value)
        energy = self.units_energy(jnp.asarray(value))
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def site_energies(
        self, value: Num[ArrayLike, "*shape"], sites: Int[ArrayLike, "*sites"] | None = None
    ) -> Float[Array, "*batch num_sites states"]:
        """Energies with sites set to each of their states, from the field of their neighbours.

        Blocks of several sites, and models with hidden units, are evaluated state by state; see
        :meth:`EnergyDistribution.site_energies <numpyro_ebm.EnergyDistribution.site_energies>`.

        Args:
            value: Values of shape ``batch + event_shape``.
            sites: Sites by number, ``(num_sites,)``, or blocks, ``(num_blocks, k)``; all by
                default.

        Raises:
            ValueError: The value or a site does not fit.
        """
        value, _, blocks = self._parse_sites(value, sites)
        if blocks.shape[-1] > 1 or self.event_shape != self.couplings.shape:
            return super().site_energies(value, sites)
        field = self.local_field(value)  # label first for Potts models
        if self._alphabet.label_axis:
            energies = -jnp.moveaxis(field, 0, -1)
        else:
            energies = -field[..., None] * jnp.asarray(self._alphabet.values, field.dtype)
        lead = value.shape[: value.ndim - len(self.event_shape)]
        energies = jnp.broadcast_to(energies, (*value.shape, energies.shape[-1]))
        energies = energies.reshape(*lead, -1, energies.shape[-1])
        return energies if sites is None else energies[..., blocks[:, 0], :]

    def mean_field_start(self, value: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Values of binary or spin sites as means.

        Raises:
            ValueError: The sites are labels, or some units are hidden.
        """
        return mean_field_updates.start(self, value)

    def mean_field_step(self, means: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Means of all sites at a time, given those of their neighbours."""
        return mean_field_updates.updated(self, means)

    def mean_field_energy(self, means: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Mean energy of independent sites with these means, in nats."""
        return self.units_energy(means)

    def edge_list(self) -> tuple[np.ndarray, np.ndarray, Float[Array, "*batch m"]]:
        """Both ends of every pair of units that may be coupled, and their coupling in nats."""
        graph = self.couplings.graph
        if graph is not None:
            return *graph.edges.T, self.couplings.edge_values
        first, second = np.triu_indices(self.couplings.num_units, 1)
        return first, second, self.couplings.dense()[..., first, second]

    # ----- log Z, path, tilt ---------------------------------------------------------------

    @property
    def num_joint_states(self) -> int:
        """Number of joint states of all units."""
        return self._alphabet.num_states**self.couplings.num_units

    def exact_log_z(self) -> Float[Array, "*batch"]:
        """Log Z in nats, differentiable.

        All states of all units are summed (at most 2^20), or a lattice row by row by a transfer
        matrix (across one of its axes at most 2^12 states). The latter is preferred where it is
        faster; on a torus of width 12, whose first row is summed over as well, it takes a second.
        """
        return exact_log_z(self)

    def default_path(self, rng_key: Key[Array, ""], base: Any = None) -> Path:
        """Path of scaled couplings from independent units at their base rates.

        Args:
            rng_key: Random key for estimating base rates from the model itself.
            base: Data of shape ``(n, *event_shape)`` to take base rates from, or ``None`` for
                the model's own mean in short chains. A normalized distribution over the units,
                such as a NADE, is where a path of mixed energies starts instead.
        """
        if isinstance(base, Distribution):
            return BasePath.of(self, base)
        return PairwisePath.of(self, rng_key, base)

    def tilt(
        self, log_factor: Callable[[Array], Array], shape: tuple[int, ...] | None = None
    ) -> Self:
        """Return the model whose field has absorbed a likelihood term.

        Args:
            log_factor: Maps values to the log factor of each site, of the same shape.
            shape: Shape of the values, ``batch_shape + event_shape`` by default.
        """
        shape = self.batch_shape + self.event_shape if shape is None else tuple(shape)
        extra = self._alphabet.field_of(log_factor, shape)
        if self._alphabet.label_axis:
            extra = jnp.moveaxis(extra, 0, -1)
        field = self._site_field + extra.astype(self.float_dtype)
        return self.with_parameters(self.couplings, field)

    def tilted_gain(
        self, chain: Chain, change: Self, step: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch"]:
        """Fall of a chain's energy when ``step`` times the parameters of ``change`` are added."""
        value = change.align(self.visible(chain))
        return jnp.asarray(step) * (change.site_sum(value) + change.pair_sum(value))

    # ----- chain ---------------------------------------------------------------------------

    def as_chain(self, value: Num[Array, "*shape"]) -> Chain:
        """Return the chain with the given values of all units."""
        return value

    def draw_independent(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape"]:
        """Draw all units from their own fields, without couplings."""
        batch = self._batch_of(self.couplings, self._site_field)
        shape = tuple(shape) + batch + self.couplings.shape
        uniform = jax.random.uniform(rng_key, shape, self.float_dtype)
        field = self.site_field(len(shape))
        full = (field.shape[0], *shape) if self._alphabet.label_axis else shape
        return self._alphabet.draw(jnp.broadcast_to(field, full), uniform)

    def init_chain(self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Chain:
        """Start chains with every unit drawn from its field alone.

        Args:
            rng_key: Random key.
            shape: Shape of the batch of chains, in front of the batch shape.
        """
        return self.as_chain(self.draw_independent(rng_key, shape))

    def chain_at(self, value: Num[Array, "*shape"]) -> Chain:
        """Start chains at given values."""
        return self.align(value).astype(self._alphabet.dtype)

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: Chain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> Chain:
        """One Gibbs sweep in the order of :attr:`scan`.

        Args:
            rng_key: Random key.
            chain: The current chain.
            mask: True where a unit is clamped.
            values: What the clamped units are held at.
        """
        return sweep(self, rng_key, chain, mask, values)

    def backward_gibbs_step(self, rng_key: Key[Array, ""], chain: Chain) -> Chain:
        """One Gibbs sweep in the opposite order, the adjoint of :meth:`gibbs_step`.

        Args:
            rng_key: Random key.
            chain: The current chain.
        """
        return sweep(self, rng_key, chain, backward=True)

    # ----- exact draws ---------------------------------------------------------------------

    @property
    def exact_terms(self) -> dict[str, int]:
        """All joint states, or those of the rows of a narrow lattice."""
        return exact_terms(self)

    def _draw_exactly(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
    ) -> Num[Array, "*shape"]:
        return self.visible(exact_sample(self, rng_key, shape, method))
