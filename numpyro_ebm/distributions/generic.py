"""Models known by their energy alone: chains, draws and sums that need nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num
from numpyro.distributions import Distribution, biject_to

from numpyro_ebm.base import EnergyDistribution, Kernel, enumerable, widen
from numpyro_ebm.distributions.energy_path import EnergyPath
from numpyro_ebm.distributions.held_units import HeldUnits
from numpyro_ebm.distributions.reference import StandardReference
from numpyro_ebm.distributions.site_gibbs import site_sweep
from numpyro_ebm.distributions.state_sum import exact_log_z, exact_sample, num_joint_states
from numpyro_ebm.distributions.trapezoid import MAX_DIM, trapezoid_log_z
from numpyro_ebm.normalizer import NormalizerError


class GenericEnergy(EnergyDistribution):
    """What distributions share that are known by their energy alone.

    The chain is the value itself. Discrete units are swept one by one; continuous ones move by a
    kernel, which the distribution has to be given.
    """

    arg_constraints = {}
    pytree_aux_fields = ("_kernel",)

    _kernel: Kernel | None = None

    # ----- what subclasses may know --------------------------------------------------------

    @property
    def kernel(self) -> Kernel | None:
        """The kernel of ``gibbs_step``; ``None`` for sweeps over discrete units."""
        return self._kernel

    @property
    def own_base(self) -> Distribution | None:
        """A normalized distribution that the density contains as a factor."""
        return None

    def excess_energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """Energy in nats of all but the factor :attr:`own_base`."""
        return self.energy(value)

    # ----- types ---------------------------------------------------------------------------

    @property
    def float_dtype(self) -> Any:
        """Floating type of the parameters."""
        types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(self)]
        floating = [dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)]
        return jnp.result_type(*floating) if floating else jnp.result_type(float)

    @property
    def chain_dtype(self) -> Any:
        """Type of the values in a chain: the smallest that holds discrete states."""
        states = self.unit_states
        if states is None:
            return self.float_dtype
        low, high = int(states.values.min()), int(states.values.max())
        for dtype in (jnp.uint8, jnp.int8):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return dtype
        return jnp.int32

    def as_input(self, value: Num[ArrayLike, "*shape"]) -> Num[Array, "*batch"]:
        """Values for an energy function: floating, or integers in which sums do not wrap."""
        value = jnp.asarray(value)
        if self.is_discrete:
            return value.astype(jnp.int32) if value.dtype == bool else widen(value)
        if jnp.issubdtype(value.dtype, jnp.floating):
            return value
        return value.astype(self.float_dtype)

    # ----- chain ---------------------------------------------------------------------------

    def init_chain(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape"]:
        """Start chains at independent values.

        Draws of :attr:`own_base` where there is one; else uniform over the states of discrete
        units, and standard normal in the unconstrained space of continuous ones.

        Args:
            rng_key: Random key.
            shape: Shape of the batch of chains, in front of the batch shape.
        """
        shape = tuple(shape) + self.batch_shape
        base = self.own_base
        if base is None:
            base = StandardReference.of(self)
        return jnp.asarray(base.sample(rng_key, shape)).astype(self.chain_dtype)

    def chain_at(self, value: Num[ArrayLike, "*shape"]) -> Num[Array, "*shape"]:
        """Start chains at given values."""
        value = jnp.asarray(value)
        num_lead = value.ndim - len(self.event_shape)
        lead = jnp.broadcast_shapes(value.shape[:num_lead], self.batch_shape)
        return jnp.broadcast_to(value, lead + self.event_shape).astype(self.chain_dtype)

    @property
    def has_reversible_gibbs(self) -> bool:
        """Whether the kernel is reversible; sweeps over discrete units are not."""
        return bool(getattr(self._kernel, "is_reversible", False))

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: Num[Array, "*shape"],
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> Num[Array, "*shape"]:
        """One step of the kernel, or one sweep over discrete units in random order.

        A sweep costs q - 1 energies of every chain for each unit of q states.

        Args:
            rng_key: Random key.
            chain: The current values.
            mask: True where a unit is clamped.
            values: What the clamped units are held at.

        Raises:
            ValueError: The units are continuous and there is no kernel.
        """
        if mask is not None:
            mask = jnp.broadcast_to(jnp.asarray(mask, bool), chain.shape)
            values = jnp.broadcast_to(jnp.asarray(values).astype(chain.dtype), chain.shape)
            chain = jnp.where(mask, values, chain)
        if self._kernel is None:
            self._require_discrete("gibbs_step")
            return site_sweep(self, rng_key, chain, mask)
        target: Any = self if mask is None else HeldUnits(self, mask, jnp.asarray(values))
        if mask is not None and self.unit_states is not None:
            raise ValueError(
                f"{type(self).__name__}: expected no `kernel` to clamp discrete units, so that "
                "they can be swept one by one."
            )
        state = self._kernel.init(chain, target)
        state, _ = self._kernel.step(rng_key, state, target)
        moved = self._kernel.value(state, target).astype(chain.dtype)
        return moved if mask is None else jnp.where(mask, chain, moved)

    def _require_discrete(self, method: str) -> None:
        if self.unit_states is None:
            raise ValueError(
                f"{type(self).__name__}: `{method}` of continuous units needs a kernel; pass "
                "kernel=ebm.kernels.MALAStep(step_size), or sample the site of a model with "
                "MCMC(ebm.MALA(model))."
            )

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape"]:
        """Draw values.

        Exact where there are at most 2^14 joint states; otherwise by ``num_sweeps`` steps of
        ``gibbs_step`` from independent starts, approximate where these mix slowly.

        Raises:
            ValueError: The units are continuous and there is no kernel.
        """
        if self._kernel is None:
            self._require_discrete("sample")
        return super().sample(key, sample_shape)

    @property
    def exact_terms(self) -> dict[str, int]:
        """All joint states, where the units are discrete."""
        if self.unit_states is None:
            return {}
        return enumerable(num_joint_states(self), self.batch_shape)

    def _draw_exactly(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
    ) -> Num[Array, "*shape"]:
        return exact_sample(self, rng_key, shape)

    # ----- log Z and path ------------------------------------------------------------------

    def exact_log_z(self) -> Float[Array, "*batch"]:
        """Return log Z in nats: all joint states summed (at most 2^20), or by quadrature.

        Quadrature is over at most three continuous dimensions, by the trapezoidal rule in
        unconstrained space; NaN where it has not settled to 1e-3 nats. Differentiable.

        Raises:
            NormalizerError: There are more states or dimensions.
        """
        if self.unit_states is not None:
            return exact_log_z(self)
        transform = biject_to(self.support)
        if np.prod(transform.inverse_shape(self.event_shape)) > MAX_DIM or self.batch_shape:
            raise NormalizerError(
                f"{type(self).__name__}: expected at most {MAX_DIM} continuous dimensions and "
                f'batch shape () for normalizer="exact" and evidence.exact; got event shape '
                f"{self.event_shape} and batch shape {self.batch_shape}. Estimate log Z with "
                "ebm.evidence.ais and pass the array, or keep the default guard."
            )
        return trapezoid_log_z(self)

    def default_path(self, rng_key: Key[Array, ""], base: Any = None) -> EnergyPath:
        """Path of mixed energies from a normalized distribution.

        Args:
            rng_key: Unused: nothing is estimated from the model.
            base: A normalized NumPyro distribution with the model's event shape and support; data
                of shape ``(n, *event_shape)`` to fit one to (independent units, normal in
                unconstrained space or with the frequencies of states); or ``None`` for
                :attr:`own_base`, and without one where ``init_chain`` starts.
        """
        return EnergyPath.of(self, base)

    def mixed(self, path: EnergyPath, beta: Float[ArrayLike, ""]) -> MixedEnergy:
        """Return the model on a path at inverse temperature ``beta``."""
        return MixedEnergy(path, beta)


class MixedEnergy(GenericEnergy):
    """A model on the way from a normalized base to a target, see :class:`EnergyPath`."""

    pytree_data_fields = ("_path", "_beta")

    def __init__(self, path: EnergyPath, beta: Float[ArrayLike, ""]) -> None:
        self._path, self._beta = path, beta
        self._kernel = path.target.kernel
        super().__init__((), path.target.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the target."""
        return self._path.target.support

    @property
    def own_base(self) -> Distribution | None:
        """The base of the path."""
        return self._path.base_distribution

    @property
    def float_dtype(self) -> Any:
        """Floating type of the target."""
        return self._path.target.float_dtype

    def excess_energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """What is added to the energy of the base, in nats."""
        return jnp.asarray(self._beta) * self._path.excess_energy(value)

    def energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """Energy of the base and of the excess, in nats."""
        return self.excess_energy(value) - self._path.log_base(value)
