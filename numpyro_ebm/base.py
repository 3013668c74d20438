"""What every energy-based model, kernel and path of the package has in common.

An energy-based model is a NumPyro distribution whose density is known up to a constant,
``p(x) = exp(-E(x)) / Z``. :class:`EnergyDistribution` makes the constant impossible to forget.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)
from numpyro.util import not_jax_tracer

from numpyro_ebm.normalizer import (
    NORMALIZERS,
    NormalizerError,
    guard,
    in_host_log_likelihood,
    warn_unnormalized,
)
from numpyro_ebm.protocols import Kernel, Path, UnitStates, unit_states
from numpyro_ebm.random_key import require_key
from numpyro_ebm.trainable import Trainable

__all__ = [
    "Chain",
    "EnergyDistribution",
    "Kernel",
    "Path",
    "mask_of",
    "rewrap",
    "sample_by_gibbs",
    "unwrap",
    "widen",
]

Chain = Any
"""The state of a Markov chain on a model: a pytree that the model itself defines."""
MAX_TERMS = 2**20
"""Most terms that ``exact_sample`` sums, all members of a batch together."""
_SAMPLE_TERMS = 2**14
"""Most terms that ``sample`` sums for exact draws."""


class EnergyDistribution(Trainable, Distribution):
    r"""A NumPyro distribution with density :math:`p(x) = \exp(-E(x)) / Z`.

    Subclasses define ``energy`` (hidden units summed out), the Gibbs chain and, where the states
    can be summed, ``exact_log_z``; the treatment of :math:`\log Z` is here. Energies and log
    densities are in nats.

    Args:
        batch_shape: Batch shape, as in every NumPyro distribution.
        event_shape: Shape of one value.
        normalizer: What ``log_prob`` knows of :math:`\log Z`. ``"guard"`` (default) leaves it out
            and raises :class:`NormalizerError` when ``log_prob`` is differentiated with respect
            to a parameter; ``"exact"`` sums the states; an array is :math:`\log Z` at these
            very parameters (the guard stays on); ``"ignore"`` leaves it out on purpose.
        validate_args: Whether parameters and values are checked, as in NumPyro.

    References:
        Goodfellow, Bengio & Courville (2016), *Deep Learning*, section 16.2.
    """

    pytree_data_fields = ("_log_z",)
    pytree_aux_fields = ("_normalizer",)

    num_sweeps: int = 1000
    """Gibbs sweeps that ``sample`` runs from independent starts where it cannot be exact."""

    def __init__(
        self,
        batch_shape: tuple[int, ...],
        event_shape: tuple[int, ...],
        *,
        normalizer: str | ArrayLike = "guard",
        validate_args: bool | None = None,
    ) -> None:
        self._normalizer, self._log_z = self._parse_normalizer(normalizer, batch_shape)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def _parse_normalizer(self, normalizer: Any, batch_shape: tuple[int, ...]) -> tuple[str, Any]:
        name = type(self).__name__
        if isinstance(normalizer, str):
            if normalizer not in NORMALIZERS:
                raise ValueError(
                    f"{name}: expected `normalizer` to be one of {NORMALIZERS} or an array with "
                    f"log Z; got {normalizer!r}."
                )
            return normalizer, None
        try:
            log_z = jnp.asarray(normalizer)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: expected `normalizer` to be one of {NORMALIZERS} or an array with "
                f"log Z; got {type(normalizer).__name__}."
            ) from error
        if not jnp.issubdtype(log_z.dtype, jnp.floating):
            log_z = log_z.astype(jnp.result_type(float))
        try:
            fits = jnp.broadcast_shapes(log_z.shape, batch_shape) == batch_shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: expected an array `normalizer` to broadcast to the batch shape "
                f"{batch_shape}; got shape {log_z.shape}."
            )
        if not_jax_tracer(log_z) and not np.all(np.isfinite(log_z)):
            raise ValueError(f"{name}: expected a finite `normalizer`; got {np.asarray(log_z)}.")
        return "known", log_z

    # ----- density -------------------------------------------------------------------------

    def energy(self, value: Num[ArrayLike, "*shape"]) -> Float[Array, "*batch"]:
        """E(value) in nats, hidden units summed out: everything of -log p but log Z."""
        raise TypeError(f"{type(self).__name__} does not define `energy`.")

    def exact_log_z(self) -> Float[Array, "*batch"]:
        """Return log Z in nats by summing all states (differentiable).

        Raises:
            NormalizerError: The model has no tractable sum.
        """
        raise NormalizerError(
            f"{type(self).__name__}: log Z cannot be computed exactly; estimate it with "
            "ebm.evidence.ais."
        )

    def with_normalizer(self, normalizer: str) -> Self:
        """Return the same model with another ``normalizer``, which is no array."""
        model = copy.copy(self)
        model._normalizer, model._log_z = normalizer, None
        return model

    @property
    def normalizer(self) -> str:
        """One of ``"guard"``, ``"exact"``, ``"ignore"``, or ``"known"`` for an array."""
        return self._normalizer

    @property
    def log_normalizer(self) -> Float[Array, "*batch"]:
        """What ``log_prob`` subtracts, in nats; raises :class:`NormalizerError` if unknown."""
        if self._normalizer == "exact":
            return self.exact_log_z()
        if self._normalizer == "known":
            return jnp.broadcast_to(self._log_z, self.batch_shape)
        raise NormalizerError(
            f'{type(self).__name__}: log Z is unknown with normalizer="{self._normalizer}"; '
            'pass normalizer="exact", or estimate it with ebm.evidence.'
        )

    def log_prob(
        self, value: Num[ArrayLike, "*shape"], intermediates: list[Any] | None = None
    ) -> Float[Array, "*batch"]:
        r"""Return :math:`-E(x) - \log Z` in nats; see ``normalizer`` for what is known of log Z.

        Args:
            value: Values of shape ``batch + event_shape``.
            intermediates: Unused; part of NumPyro's signature.

        Raises:
            ValueError: ``value`` has the wrong shape or lies outside the support.
            NormalizerError: Differentiated with respect to a parameter while log Z is unknown.
        """
        inside = self.check_value(value)
        if self._normalizer == "exact":
            log_prob = -self.energy(value) - self.exact_log_z()
        elif self._normalizer == "ignore":
            log_prob = -self.energy(value)
        else:
            guarded = self._guarded()
            log_prob = -guarded.energy(value)
            if self._normalizer == "known":
                log_prob = log_prob - guarded._log_z
        if self._normalizer in ("guard", "ignore") and in_host_log_likelihood():
            warn_unnormalized(type(self).__name__)
            return jnp.full_like(log_prob, jnp.nan)
        return log_prob if inside is True else jnp.where(inside, log_prob, -jnp.inf)

    @property
    def unit_states(self) -> UnitStates | None:
        """States of the units of a discrete value; ``None`` for a continuous one."""
        return unit_states(self.support, self.event_shape)

    @classmethod
    def gather_pytree_data_fields(cls) -> tuple[str, ...]:
        """Names of the fields with arrays, in an order that is the same in every process."""
        return tuple(sorted(super().gather_pytree_data_fields()))

    def _guarded(self) -> Self:
        """The same distribution, its parameters behind the gradient guard."""
        named = {name: self.__dict__.get(name) for name in type(self).gather_pytree_data_fields()}
        paths, _ = jax.tree.flatten_with_path({k: v for k, v in named.items() if v is not None})
        label_of = {
            id(leaf): jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in paths
        }
        leaves, treedef = jax.tree.flatten(self)
        real = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
        labels = tuple(label_of.get(id(leaves[i]), "parameter") for i in real)
        guarded = guard(type(self).__name__, labels, tuple(leaves[i] for i in real))
        for i, leaf in zip(real, guarded, strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(treedef, leaves)

    def check_value(
        self, value: Num[ArrayLike, "*shape"], name: str = "value", *, as_rows: bool = False
    ) -> Any:
        """Check shape and support of a value.

        Args:
            value: Values of shape ``batch + event_shape``.
            name: What the error calls it.
            as_rows: Whether leading dimensions are rows of data, of no batch.

        Returns:
            ``True`` for a value known to be in the support (or when validation is off), else the
            traced mask of shape ``batch`` under a JAX transformation.

        Raises:
            ValueError: Wrong shape, or a concrete value outside the support.
        """
        shape, event = jnp.shape(value), self.event_shape
        label = f"{type(self).__name__}: expected `{name}`"
        if shape[len(shape) - len(event) :] != event:
            sizes = ", ".join(map(str, event))
            raise ValueError(f"{label} of shape (..., {sizes}); got {shape}.")
        try:
            batch = () if as_rows else self.batch_shape
            jnp.broadcast_shapes(shape[: len(shape) - len(event)], batch)
        except ValueError as error:
            raise ValueError(
                f"{label} with leading dimensions that broadcast with the batch shape "
                f"{self.batch_shape}; got {shape}."
            ) from error
        if not self._validate_args:
            return True
        inside = self.support(value) if self.support is not None else True
        if not not_jax_tracer(inside):
            return inside
        if not np.all(inside):
            flat = np.asarray(value)[~np.asarray(inside)].ravel()
            raise ValueError(
                f"{label} in the support {self.support}; got {np.unique(flat)[:6]} in "
                f"{int(np.size(inside) - np.sum(inside))} of {np.size(inside)} values."
            )
        return True

    # ----- chain protocol ------------------------------------------------------------------

    def init_chain(self, rng_key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Chain:
        """Start chains of shape ``shape + batch_shape`` at independent random states."""
        raise TypeError(f"{type(self).__name__} does not define `init_chain`.")

    def chain_at(self, value: Num[Array, "*shape"]) -> Chain:
        """Start chains at given values of the visible units."""
        raise TypeError(f"{type(self).__name__} does not define `chain_at`.")

    def gibbs_step(
        self,
        rng_key: Key[Array, ""],
        chain: Chain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> Chain:
        """One sweep that leaves the distribution invariant.

        Args:
            rng_key: Random key.
            chain: The current chain.
            mask: True where a visible unit is clamped; broadcasts against the visible units.
            values: What the clamped units are held at.
        """
        raise TypeError(f"{type(self).__name__} does not define `gibbs_step`.")

    def clamped_step(self, rng_key: Key[Array, ""], chain: Chain) -> Chain:
        """One Gibbs sweep of the hidden units given the visible ones, which stay.

        Args:
            rng_key: Random key.
            chain: The current chain.
        """
        held = jnp.ones(self.event_shape, bool)
        return self.gibbs_step(rng_key, chain, mask=held, values=self.visible(chain))

    def low_precision_step(
        self,
        rng_key: Key[Array, ""],
        chain: Chain,
        *,
        mask: Bool[Array, "*event"] | None = None,
        values: Num[Array, "*event"] | None = None,
    ) -> Chain:
        """One sweep in low precision, for speed; see :class:`~numpyro_ebm.BlockGibbs`.

        Raises:
            ValueError: The model has no such sweep.
        """
        raise self._no_low_precision()

    def low_precision_refresh(self, chain: Chain) -> Chain:
        """Recompute what low-precision sweeps cache for the present parameters.

        Raises:
            ValueError: The model has no such sweep.
        """
        raise self._no_low_precision()

    def _no_low_precision(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__} has no low-precision sweep; leave `low_precision` off."
        )

    def backward_gibbs_step(self, rng_key: Key[Array, ""], chain: Chain) -> Chain:
        r"""One sweep with the time reversed: the units in the opposite order.

        It is the adjoint :math:`T^*` of ``gibbs_step``, without clamped units:
        :math:`p(x) T(x, y) = p(y) T^*(y, x)`.

        Args:
            rng_key: Random key.
            chain: The current chain.

        Raises:
            ValueError: The model has no such sweep.
        """
        if self.has_reversible_gibbs:
            return self.gibbs_step(rng_key, chain)
        raise ValueError(f"{type(self).__name__} has no Gibbs sweep with the time reversed.")

    def monotone_states(self) -> tuple[Chain, Chain, Bool[Array, "*batch"]]:
        """Largest and smallest state of an order that Gibbs sweeps with the same key keep.

        Returns:
            Chains of the batch shape at the largest and at the smallest state, and whether the
            sweeps of each member are monotone at all.

        Raises:
            ValueError: No such order of the states is known for models of this class.
        """
        raise ValueError(
            f"{type(self).__name__} has no order of its states in which Gibbs sweeps are known to "
            "be monotone; Ising and BoltzmannMachine have one, without frustration."
        )

    @property
    def has_reversible_gibbs(self) -> bool:
        """Whether ``gibbs_step`` is known to be reversible, for each chain independently.

        Sweeps in a fixed order, or in a random one that chains share, are not.
        """
        return False

    def visible(self, chain: Chain) -> Num[Array, "*shape"]:
        """Values of the visible units of a chain."""
        return chain

    def refresh(self, chain: Chain) -> Chain:
        """Recompute what a chain caches for the present parameters (identity by default)."""
        return chain

    def chain_energy(self, chain: Chain) -> Float[Array, "*batch"]:
        """Energy of a chain's visible units in nats, from what the chain has cached."""
        return self.energy(self.visible(chain))

    def tilt(
        self, log_factor: Callable[[Array], Array], shape: tuple[int, ...] | None = None
    ) -> EnergyDistribution:
        """Multiply the density by a factor that is a product over visible units.

        Args:
            log_factor: Maps values to the log factor of each unit, of the same shape.
            shape: Shape of the values, ``batch_shape + event_shape`` by default.

        Raises:
            ValueError: No distribution of this class has that product as its density.
        """
        raise ValueError(
            f"{type(self).__name__} cannot absorb a likelihood term on its visible units."
        )

    def default_path(self, rng_key: Key[Array, ""], base: Any = None) -> Path:
        """The path from a tractable base (beta = 0) to this model (beta = 1)."""
        raise ValueError(f"{type(self).__name__} has no default path; pass one explicitly.")

    # ----- draws ---------------------------------------------------------------------------

    @property
    def exact_terms(self) -> dict[str, int]:
        """Terms that each way to draw exactly sums, the whole batch together; cheapest first."""
        return {}

    @property
    def exact_sampler(self) -> str | None:
        """How :meth:`exact_sample` draws: ``"enumeration"``, ``"transfer_matrix"`` or ``None``.

        It depends on shapes alone. Closed forms count as enumeration.
        """
        return next(iter(self.exact_terms), None)

    def exact_sample(
        self,
        rng_key: Key[Array, ""],
        sample_shape: tuple[int, ...] = (),
        *,
        method: str | None = None,
    ) -> Num[Array, "*shape"]:
        """Draw independent values from exactly this distribution.

        Args:
            rng_key: Random key.
            sample_shape: Shape of the draws.
            method: One of :attr:`exact_terms`; by default the cheapest.

        Returns:
            Values of shape ``sample_shape + batch_shape + event_shape``.

        Raises:
            NormalizerError: The model cannot be drawn exactly, or not in this way.
        """
        ways, name = tuple(self.exact_terms), type(self).__name__
        if not ways:
            raise NormalizerError(
                f"{name}: no exact draws, which sum at most {MAX_TERMS} terms: there are more, or "
                "no such sum is known. Run chains instead, as `sample` does, or couple them from "
                "the past: ebm.perfect_sample."
            )
        if method not in (None, *ways):
            raise NormalizerError(
                f"{name}: expected `method` to be None or one of {ways}; got {method!r}."
            )
        method = ways[0] if method is None else method
        return widen(self._draw_exactly(require_key(rng_key), tuple(sample_shape), method))

    def _draw_exactly(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
    ) -> Num[Array, "*shape"]:
        """Exact draws, by one of :attr:`exact_terms`."""
        raise TypeError(f"{type(self).__name__} does not define `_draw_exactly`.")

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape"]:
        """Draw values.

        Exact where :meth:`exact_sample` sums at most 2^14 terms; otherwise by ``num_sweeps``
        Gibbs sweeps from independent random starts, approximate where these mix slowly.
        """
        shape, rng_key = tuple(sample_shape), require_key(key)
        if next(iter(self.exact_terms.values()), math.inf) <= _SAMPLE_TERMS:
            return self.exact_sample(rng_key, shape)
        return sample_by_gibbs(self, rng_key, shape, self.num_sweeps)


def enumerable(num_terms: int, batch_shape: tuple[int, ...]) -> dict[str, int]:
    """What ``exact_terms`` is of a model whose members sum ``num_terms`` terms each."""
    total = num_terms * max(1, math.prod(batch_shape))
    return {"enumeration": total} if total <= MAX_TERMS else {}


@partial(jax.jit, static_argnums=(2, 3))
def sample_by_gibbs(
    distribution: EnergyDistribution,
    rng_key: Key[Array, ""],
    shape: tuple[int, ...],
    num_sweeps: int,
) -> Num[Array, "*shape"]:
    """Run ``num_sweeps`` sweeps from random starts and return the visible units."""
    key_init, key_run = jax.random.split(rng_key)
    chain = distribution.init_chain(key_init, shape)

    def sweep(i, chain):
        return distribution.gibbs_step(jax.random.fold_in(key_run, i), chain)

    chain = jax.lax.fori_loop(0, num_sweeps, sweep, chain)
    return widen(distribution.visible(chain))


def widen(value: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """Cast 8-bit states to NumPyro's integer type, in which arithmetic does not wrap."""
    if jnp.issubdtype(value.dtype, jnp.integer) and value.dtype.itemsize < 4:
        return value.astype(jnp.int32)
    return value


def unwrap(fn: Distribution) -> EnergyDistribution | None:
    """Find the energy-based model under ``expand``, ``to_event`` and ``mask``, if there is one."""
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn if isinstance(fn, EnergyDistribution) else None


def rewrap(
    fn: Distribution, make: Callable[[EnergyDistribution, bool], Distribution], masked: bool = False
) -> Distribution | None:
    """Replace the energy-based model under ``expand``, ``to_event`` and ``mask``.

    Args:
        fn: The distribution at a site.
        make: Returns the replacement of a model, told whether there is a mask around it.
        masked: Whether there is one around ``fn``.

    Returns:
        The distribution with the replacement in it; ``None`` if there is no such model.
    """
    if isinstance(fn, EnergyDistribution):
        return make(fn, masked)
    if not isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        return None
    inner = rewrap(fn.base_dist, make, masked or isinstance(fn, MaskedDistribution))
    if inner is None:
        return None
    if isinstance(fn, ExpandedDistribution):
        return inner.expand(fn.batch_shape)
    if isinstance(fn, Independent):
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return inner.mask(jnp.asarray(fn._mask))


def mask_of(fn: Distribution) -> Any:
    """The product of the masks around a distribution; ``True`` if there are none."""
    mask: Any = True
    inner: Any = fn
    while hasattr(inner, "base_dist"):
        if isinstance(inner, MaskedDistribution):
            mask = jnp.logical_and(mask, inner._mask)
        inner = inner.base_dist
    return mask
