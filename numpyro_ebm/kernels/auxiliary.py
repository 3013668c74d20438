"""Auxiliary data: draws of the observed energy-based sites at other parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Int, Key, Num

from numpyro_ebm.base import EnergyDistribution, unwrap, widen
from numpyro_ebm.kernels.gibbs import GibbsSweeps
from numpyro_ebm.kernels.perfect import CoalescenceError, CouplingFromThePast, ExactDraws
from numpyro_ebm.protocols import Kernel

DEFAULT_SWEEPS = 100
"""Sweeps of an auxiliary chain that nobody chose."""
_FEW_TERMS = 2**16
"""Sums of so many terms cost less than coupling from the past; longer ones may not."""
_LONG_BUDGET = 2**18
"""Sweeps after which a run stops: a rare proposal at strong couplings should not stop it."""
Sites = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class AuxiliaryChain:
    r"""Auxiliary data from a Markov chain that starts at the data.

    With a finite chain an exchange kernel is the double Metropolis-Hastings algorithm, whose bias
    falls to zero as the chain grows: the auxiliary data must have forgotten the data they start at.
    :func:`~numpyro_ebm.auxiliary_drift` says whether they have.

    Attributes:
        num_steps: Steps of the kernel. The default of 100 sweeps is enough away from critical
            points; near one the chain needs of the order of :math:`L^2` sweeps on a lattice of
            side L, or cluster moves.
        kernel: Moves the chain; the model's own Gibbs sweeps by default.

    References:
        Liang (2010), "A double Metropolis-Hastings sampler for spatial models with intractable
        normalizing constants", Journal of Statistical Computation and Simulation 80.
    """

    num_steps: int = DEFAULT_SWEEPS
    kernel: Kernel = GibbsSweeps()

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 2:
            raise ValueError(
                "AuxiliaryChain: expected `num_steps` to be an integer of at least 2; got "
                f"{self.num_steps!r}."
            )


Method = ExactDraws | CouplingFromThePast | AuxiliaryChain | None


class Auxiliary(NamedTuple):
    """Auxiliary data of all sites.

    Attributes:
        values: Draws by site, each of the shape of its data.
        halfway: The same in the middle of a chain; ``values`` where draws are exact.
        num_sweeps: Sweeps that the slowest draw took.
        complete: Whether the draws may be used.
    """

    values: dict[str, Num[Array, "*shape"]]
    halfway: dict[str, Num[Array, "*shape"]]
    num_sweeps: Int[Array, ""]
    complete: Bool[Array, ""]


@dataclass(frozen=True)
class AuxiliarySampler:
    """Draws auxiliary data of several sites, each by a method of its own.

    Attributes:
        owner: The kernel, for error messages.
        methods: How each site is drawn.
    """

    owner: str
    methods: tuple[tuple[str, Any], ...]

    @property
    def is_exact(self) -> bool:
        """Whether no site is drawn by a chain."""
        return not any(isinstance(method, AuxiliaryChain) for _, method in self.methods)

    @property
    def can_fail(self) -> bool:
        """Whether a draw may not end."""
        return any(isinstance(method, CouplingFromThePast) for _, method in self.methods)

    def draw(
        self, rng_key: Key[Array, ""], sites: Sites, sample_shape: tuple[int, ...] = ()
    ) -> Auxiliary:
        """Draw values of all sites like their data.

        Args:
            rng_key: Random key.
            sites: Sites of a trace at the parameters to draw at.
            sample_shape: Shape of the draws, in front of that of the data.
        """
        values, halfway = {}, {}
        num_sweeps, complete = jnp.zeros((), jnp.int32), jnp.ones((), bool)
        for number, (name, method) in enumerate(self.methods):
            key, site = jax.random.fold_in(rng_key, number), sites[name]
            model: Any = unwrap(site["fn"])
            data = jnp.asarray(site["value"])
            if isinstance(method, AuxiliaryChain):
                start = jnp.broadcast_to(data, sample_shape + data.shape)
                values[name], halfway[name] = _run(key, method, model, start)
                continue
            draws, shape = _independent(key, method, model, sample_shape + data.shape)
            values[name] = halfway[name] = shape
            num_sweeps = jnp.maximum(num_sweeps, draws.num_sweeps)
            complete = complete & draws.complete
        if self.can_fail:
            io_callback(self._check, None, complete, num_sweeps)
        return Auxiliary(values, halfway, num_sweeps, complete)

    def _check(self, complete: Any, num_sweeps: Any) -> None:
        """Raise, from inside a compiled program, where a draw could not be completed."""
        if not np.all(complete):
            raise CoalescenceError(
                f"{self.owner}: coupling from the past has not met within "
                f"{int(np.max(num_sweeps))} sweeps, or the couplings at a proposal are frustrated, "
                "and no exact draw exists. Strong couplings make it exponentially slow: use a "
                "prior that excludes them, auxiliary=CouplingFromThePast(max_sweeps=...), or "
                "auxiliary=AuxiliaryChain(num_steps=...), which is approximate."
            )


def _run(
    rng_key: Key[Array, ""], method: AuxiliaryChain, model: Any, start: Num[Array, "*shape"]
) -> tuple[Array, Array]:
    """A chain from ``start``: its last value, and the one halfway."""
    kernel, half = method.kernel, method.num_steps // 2

    def step(i: Any, state: Any) -> Any:
        return kernel.step(jax.random.fold_in(rng_key, i), state, model)[0]

    middle = jax.lax.fori_loop(0, half, step, kernel.init(start, model))
    last = jax.lax.fori_loop(half, method.num_steps, step, middle)
    return widen(kernel.value(last, model)), widen(kernel.value(middle, model))


def _independent(
    rng_key: Key[Array, ""], method: Any, model: EnergyDistribution, shape: tuple[int, ...]
) -> tuple[Any, Num[Array, "*shape"]]:
    """Independent draws for every entry of a shape into which the model's batch broadcasts."""
    num_event = len(model.event_shape)
    lead, event = shape[: len(shape) - num_event], shape[len(shape) - num_event :]
    batch = (1,) * (len(lead) - len(model.batch_shape)) + model.batch_shape
    repeated = [i for i, (n, m) in enumerate(zip(lead, batch, strict=True)) if m == 1 < n]
    kept = [i for i in range(len(lead)) if i not in repeated]
    draws = method.draw(rng_key, model, tuple(lead[i] for i in repeated))
    value = draws.value.reshape(*(lead[i] for i in repeated + kept), *event)
    order = np.argsort(repeated + kept).tolist()
    return draws, value.transpose(*order, *range(len(lead), len(lead) + num_event))


# ----- choice of the method ------------------------------------------------------------------


def choose(
    owner: str, auxiliary: Any, sites: Sites, obstacle: Callable[[str], str]
) -> AuxiliarySampler:
    """How to draw every site.

    Args:
        owner: The kernel that asks.
        auxiliary: ``None`` for the best exact method there is and a chain otherwise, or a method
            for all sites.
        sites: Sites of a trace.
        obstacle: Why coupling from the past cannot draw a site; empty if it can.

    Raises:
        TypeError: ``auxiliary`` is no method.
        ValueError: The method cannot draw a site exactly.
    """
    known = (ExactDraws, CouplingFromThePast, AuxiliaryChain)
    if auxiliary is not None and not isinstance(auxiliary, known):
        raise TypeError(
            f"{owner}: expected `auxiliary` to be None, ebm.kernels.ExactDraws(), "
            "ebm.kernels.CouplingFromThePast() or ebm.kernels.AuxiliaryChain(num_steps); got "
            f"{auxiliary!r}."
        )
    methods = tuple(
        (name, _choose(owner, name, auxiliary, unwrap(site["fn"]), obstacle))
        for name, site in sites.items()
    )
    return AuxiliarySampler(owner, methods)


def _choose(owner: str, name: str, auxiliary: Any, model: Any, obstacle: Any) -> Any:
    if isinstance(auxiliary, AuxiliaryChain):
        return auxiliary
    if isinstance(auxiliary, ExactDraws) and model.exact_sampler is None:
        raise ValueError(
            f"{owner}: expected few enough states at '{name}' to draw exactly; "
            f"{type(model).__name__} of shape {model.event_shape} has too many. Use "
            "auxiliary=CouplingFromThePast() or AuxiliaryChain(num_steps)."
        )
    fewest = min(model.exact_terms.values(), default=math.inf)
    if isinstance(auxiliary, ExactDraws) or (auxiliary is None and fewest <= _FEW_TERMS):
        return auxiliary or ExactDraws()
    reason = obstacle(name)
    if auxiliary is None:
        slow = AuxiliaryChain() if model.exact_sampler is None else ExactDraws()
        return slow if reason else CouplingFromThePast(_LONG_BUDGET)
    if reason:
        raise ValueError(
            f"{owner}: coupling from the past cannot draw site '{name}' exactly: {reason} Use "
            "auxiliary=AuxiliaryChain(num_steps=...), which is approximate, or "
            'normalizer="exact" and NUTS if the model is small.'
        )
    return auxiliary
