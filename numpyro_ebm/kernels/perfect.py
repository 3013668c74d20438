"""Perfect sampling: independent draws from exactly the distribution of a model."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import Chain, EnergyDistribution, widen
from numpyro_ebm.random_key import require_key

COUPLING = "coupling_from_the_past"
_MOST_SWEEPS = 2**30
METHODS = ("enumeration", "transfer_matrix", COUPLING)


class CoalescenceError(RuntimeError):
    """Raised where coupling from the past has not coalesced within its budget of sweeps."""


class Draws(NamedTuple):
    """Draws of a sampler, and whether they may be used.

    Attributes:
        value: Values of shape ``shape + batch_shape + event_shape``.
        num_sweeps: Sweeps from the past that were needed; 0 where none are run.
        complete: False where the budget ended or the model is not monotone: ``value`` is then no
            draw.
    """

    value: Num[Array, "*shape"]
    num_sweeps: Int[Array, ""]
    complete: Bool[Array, ""]


@dataclass(frozen=True)
class ExactDraws:
    """Draws by the model's ``exact_sample``: sums over states, or a transfer matrix.

    Attributes:
        method: How, one of the model's ``exact_terms``; by default the cheapest.
    """

    method: str | None = None

    def draw(
        self, rng_key: Key[Array, ""], model: EnergyDistribution, shape: tuple[int, ...]
    ) -> Draws:
        """Draw independent values.

        Args:
            rng_key: Random key.
            model: The model.
            shape: Shape of the draws.

        Raises:
            NormalizerError: The model cannot be drawn in this way.
        """
        value = model.exact_sample(rng_key, shape, method=self.method)
        return Draws(value, jnp.zeros((), jnp.int32), jnp.ones((), bool))


@dataclass(frozen=True)
class CouplingFromThePast:
    r"""Monotone coupling from the past with the model's own Gibbs sweeps.

    Two chains start T sweeps before time 0 at the largest and at the smallest state of an order
    that sweeps with the same random numbers keep. If they have met at time 0, so have chains from
    every state, and where they are is a draw from exactly the stationary distribution. If not, T
    is doubled; the random numbers of a sweep belong to its time and are used again. The draws of
    one call share the number of sweeps, which leaves each of them as it is.

    Attributes:
        max_sweeps: Most sweeps from the past; beyond it the draws are reported as not complete.

    References:
        Propp & Wilson (1996), "Exact Sampling with Coupled Markov Chains and Applications to
        Statistical Mechanics", sections 2 and 3.
    """

    max_sweeps: int = 2**16

    def __post_init__(self) -> None:
        try:
            fits = 0 < operator.index(self.max_sweeps) <= _MOST_SWEEPS
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(
                "CouplingFromThePast: expected `max_sweeps` to be a positive integer up to "
                f"{_MOST_SWEEPS}; got {self.max_sweeps!r}."
            )

    def draw(
        self, rng_key: Key[Array, ""], model: EnergyDistribution, shape: tuple[int, ...]
    ) -> Draws:
        """Draw independent values.

        Args:
            rng_key: Random key.
            model: The model.
            shape: Shape of the draws.

        Raises:
            ValueError: No order of the states is known for models of this class.
        """
        top, bottom, monotone = model.monotone_states()
        start = jax.tree.map(
            lambda *ends: jnp.stack([jnp.broadcast_to(end, (*shape, *end.shape)) for end in ends]),
            *(top, bottom),
        )
        sweep_both = jax.vmap(model.gibbs_step, (None, 0))  # random numbers are made once

        def sweep(i, state):
            ends, window = state
            return sweep_both(jax.random.fold_in(rng_key, window - i), ends), window

        def from_the_past(state):
            _, window, _ = state
            window = jnp.minimum(2 * window, self.max_sweeps)
            ends, _ = jax.lax.fori_loop(0, window, sweep, (start, window))
            return ends, window, _have_met(ends)

        def goes_on(state):
            _, window, met = state
            return jnp.all(monotone) & ~met & (window < self.max_sweeps)

        first = (sweep_both(jax.random.fold_in(rng_key, 1), start), jnp.ones((), jnp.int32))
        ends, window, met = jax.lax.while_loop(
            goes_on, from_the_past, (*first, _have_met(first[0]))
        )
        value = model.visible(jax.tree.map(lambda pair: pair[0], ends))
        return Draws(widen(value), window, met & jnp.all(monotone))


def _have_met(ends: Chain) -> Bool[Array, ""]:
    """Whether both chains are in the same state, in every draw."""
    return jnp.all(jnp.array([jnp.all(pair[0] == pair[1]) for pair in jax.tree.leaves(ends)]))


# ----- for users ---------------------------------------------------------------------------


class PerfectSample(NamedTuple):
    """Exact draws and how they were made.

    Attributes:
        value: Values of shape ``sample_shape + batch_shape + event_shape``.
        num_sweeps: Sweeps from the past that were needed; 0 for other methods.
        method: How they were drawn.
    """

    value: Num[Array, "*shape"]
    num_sweeps: int
    method: str


def perfect_sample(
    rng_key: Key[Array, ""],
    distribution: EnergyDistribution,
    sample_shape: tuple[int, ...] = (),
    *,
    method: str | None = None,
    max_sweeps: int = 2**16,
) -> PerfectSample:
    r"""Draw independent values from exactly the distribution of a model.

    The draws are exact up to rounding, whatever the mixing time of chains. By
    ``"enumeration"`` all states are summed (up to 2^20), by ``"transfer_matrix"`` a narrow lattice
    is summed row by row (up to :math:`q^w = 2^{12}` states of its cross-section of w sites), and
    by ``"coupling_from_the_past"`` two coupled chains of an Ising model or Boltzmann machine
    without frustration are started so long ago that they have met. The time that this takes grows
    steeply at low temperature; where the budget ends there is an error and no draw. Do not try
    again with another key until it works, which would prefer states that are reached soon: raise
    the budget.

    Args:
        rng_key: Random key.
        distribution: The model.
        sample_shape: Shape of the draws.
        method: One of the three; by default the first that the model allows.
        max_sweeps: Most sweeps from the past, for coupling from the past.

    Returns:
        The draws, the sweeps from the past that they needed, and the method.

    Raises:
        TypeError: ``distribution`` is no energy-based distribution, or coupling from the past is
            traced, where a budget that ends cannot raise.
        ValueError: The model cannot be drawn perfectly, or not by this method.
        CoalescenceError: The chains have not met within ``max_sweeps``.

    Example:
        >>> import jax, numpyro_ebm as ebm
        >>> ising = ebm.Ising.lattice((16, 16), 0.3)
        >>> draws = ebm.perfect_sample(jax.random.key(0), ising, (10,))
        >>> draws.value.shape, draws.method
        ((10, 16, 16), 'coupling_from_the_past')

    References:
        Propp & Wilson (1996), "Exact Sampling with Coupled Markov Chains and Applications to
        Statistical Mechanics"; Fill (1998), "An interruptible algorithm for perfect sampling via
        Markov chains" (on what impatience does to coupling from the past).
    """
    if not isinstance(distribution, EnergyDistribution):
        raise TypeError(
            "perfect_sample: expected an energy-based `distribution`; got "
            f"{type(distribution).__name__}."
        )
    rng_key, shape = require_key(rng_key), tuple(sample_shape)
    method = _choose(distribution, method)
    sampler = CouplingFromThePast(max_sweeps) if method == COUPLING else ExactDraws(method)
    draws = _draw(rng_key, distribution, sampler, shape)
    if method != COUPLING:
        return PerfectSample(draws.value, 0, method)
    if not not_jax_tracer(draws.complete):
        raise TypeError(
            "perfect_sample: coupling from the past can end without a draw and cannot raise under "
            "a JAX transformation; use ebm.kernels.CouplingFromThePast().draw, whose result says "
            "whether it is complete."
        )
    if not draws.complete:
        raise CoalescenceError(
            f"perfect_sample: the coupled chains of {type(distribution).__name__} have not met "
            f"within {max_sweeps} sweeps from the past, as near and below the critical "
            "temperature; there is no draw. Raise `max_sweeps`, or run chains, "
            "such as MCMC(ebm.SwendsenWang(model))."
        )
    return PerfectSample(draws.value, int(draws.num_sweeps), method)


@partial(jax.jit, static_argnums=(2, 3))
def _draw(rng_key: Any, model: EnergyDistribution, sampler: Any, shape: tuple[int, ...]) -> Draws:
    return sampler.draw(rng_key, model, shape)


def _choose(model: EnergyDistribution, method: str | None) -> str:
    """The method asked for, if the model allows it, or the first that it allows."""
    name, ways = type(model).__name__, tuple(model.exact_terms)
    if method not in (None, *METHODS):
        raise ValueError(
            f"perfect_sample: expected `method` to be one of {METHODS} or None; got {method!r}."
        )
    if method is None and ways:
        return ways[0]
    if method in (None, COUPLING):
        return _check_monotone(model)
    if method not in ways:
        raise ValueError(
            f"perfect_sample: {name} with event shape {model.event_shape} cannot be drawn by "
            f"{method!r}, which is for at most 2^20 joint states (enumeration) or lattices with at "
            f"most 2^12 states of their cross-section (transfer_matrix); it allows {ways}."
        )
    return method


def _check_monotone(model: EnergyDistribution) -> str:
    """Refuse a model whose Gibbs sweeps are not known to be monotone.

    Raises:
        ValueError: They are not.
    """
    out = (
        "Coupling from the past needs an Ising model or Boltzmann machine without frustration, "
        "enumeration at most 2^20 joint states, a transfer matrix a lattice with at most 2^12 "
        "states of its cross-section. Run long chains instead: "
        "`distribution.sample`, or MCMC(ebm.BlockGibbs(model)) or ebm.ParallelTempering."
    )
    try:
        _, _, monotone = model.monotone_states()
    except ValueError as error:
        raise ValueError(f"perfect_sample: {error} {out}") from error
    if not_jax_tracer(monotone) and not jnp.all(monotone):
        raise ValueError(
            f"perfect_sample: the couplings of {type(model).__name__} are frustrated: some cycle "
            f"has an odd number of negative ones. {out}"
        )
    return COUPLING
