"""Estimates of log Z at many parameters, by a run of annealed importance sampling at each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Key, Num
from numpyro.distributions.util import is_identically_one
from numpyro.handlers import seed, trace

from numpyro_ebm.base import EnergyDistribution, mask_of, unwrap
from numpyro_ebm.evidence.annealing import is_reversible, move
from numpyro_ebm.evidence.model import ModelTarget
from numpyro_ebm.kernels.auxiliary import AuxiliaryChain, choose
from numpyro_ebm.kernels.intractable import is_intractable
from numpyro_ebm.protocols import Kernel, Path

_CHUNK = 2**19
"""Units that are moved at once."""
_NUM_PILOTS = 8
_NUM_STEPS = 1000
"""Steps of a chain where nothing is exact and nobody says how many."""
Trace = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class ParameterPaths:
    r"""Unbiased estimates of :math:`\prod Z(\theta)` and of its inverse, for any parameters.

    The sites are those of unknown log Z. Each replicate has a path of its own, from the same base
    for all parameters to the model at these.

    Attributes:
        target: The model, log Z of these sites left out.
        paths: A path for each site, whatever it leads to.
        counts: Which replicates count, of shape ``(replicates, *batch)``.
        sampler: Draws values of the sites at parameters.
        kernel: Moves them; ``None`` for the models' own Gibbs sweeps.
        betas: Inverse temperatures, from 0 to 1.
        num_sweeps: Moves at each.
        centre: The mean of posterior draws.
    """

    target: ModelTarget
    paths: Mapping[str, Path]
    counts: Mapping[str, Bool[np.ndarray, "*shape"]]
    sampler: Any
    kernel: Kernel | None
    betas: Float[np.ndarray, " num_temperatures"]
    num_sweeps: int
    centre: Float64[np.ndarray, " n"]

    @property
    def is_exact(self) -> bool:
        """Whether values are drawn exactly."""
        return self.sampler.is_exact

    def doubts(self) -> list[str]:
        """Why estimates may be biased."""
        if self.is_exact:
            return []
        chains = [name for name, way in self.sampler.methods if isinstance(way, AuxiliaryChain)]
        return [
            f"values of {chains} at proposed parameters are drawn by Markov chains, not exactly: "
            "the result is biased unless they have converged. Raise the number of steps, "
            "auxiliary=ebm.kernels.AuxiliaryChain(num_steps), and see whether it changes."
        ]

    def log_z_upward(
        self, rng_key: Key[Array, ""], vectors: Float64[np.ndarray, "m n"]
    ) -> Float64[np.ndarray, " m"]:
        r"""Estimates :math:`Z_0 v` of Z, logarithms in nats, from the base up to the model."""
        return self._over(self._up, rng_key, vectors)

    def log_z_downward(
        self, rng_key: Key[Array, ""], vectors: Float64[np.ndarray, "m n"]
    ) -> Float64[np.ndarray, " m"]:
        r"""Estimates :math:`Z_0 / w` of Z from draws of the model down to the base."""
        return self._over(self._down, rng_key, vectors)

    def _over(
        self,
        one: Callable[..., Array],
        rng_key: Key[Array, ""],
        vectors: Float64[np.ndarray, "m n"],
    ) -> Float64[np.ndarray, " m"]:
        sites = self._sites(vectors[0])
        num_units = sum(math.prod(full_shape(site)) for site in sites.values())
        batch = int(np.clip(_CHUNK // max(1, num_units), 1, len(vectors)))
        run = jax.jit(partial(jax.lax.map, lambda pair: one(*pair), batch_size=batch))
        inputs = jax.random.split(rng_key, len(vectors)), jnp.asarray(vectors, float)
        return np.asarray(run(inputs), np.float64)

    def _sites(self, vector: Float[Any, " n"]) -> Trace:
        model_trace = self.target.trace_at(jnp.asarray(vector, float))
        return {name: model_trace[name] for name in self.counts}

    def _up(self, rng_key: Key[Array, ""], vector: Float[Array, " n"]) -> Float[Array, ""]:
        total = jnp.zeros(())
        for number, (name, site) in enumerate(self._sites(vector).items()):
            key_start, key_run = jax.random.split(jax.random.fold_in(rng_key, number))
            path = self.paths[name].retarget(unwrap(site["fn"]))
            chain = path.sample(key_start, len(self.counts[name]))
            log_v = self._anneal(key_run, path, chain, self.betas, downward=False)
            total = total + self._sum(name, path.log_z0 + log_v)
        return total

    def _down(self, rng_key: Key[Array, ""], vector: Float[Array, " n"]) -> Float[Array, ""]:
        key_draw, key_runs = jax.random.split(rng_key)
        sites, total = self._sites(vector), jnp.zeros(())
        values = self.sampler.draw(key_draw, _with_full_data(sites)).values
        for number, (name, site) in enumerate(sites.items()):
            model: Any = unwrap(site["fn"])
            path = self.paths[name].retarget(model)
            first = path.at(1.0)
            chain = first.refresh(first.chain_at(by_replicate(values[name], model)))
            key = jax.random.fold_in(key_runs, number)
            log_w = self._anneal(key, path, chain, self.betas[::-1], downward=True)
            total = total + self._sum(name, path.log_z0 - log_w)
        return total

    def _sum(self, name: str, terms: Float[Array, "*shape"]) -> Float[Array, ""]:
        return jnp.where(self.counts[name], terms, 0.0).sum()

    def _anneal(
        self,
        rng_key: Key[Array, ""],
        path: Path,
        chain: Any,
        betas: Float[np.ndarray, " num_temperatures"],
        *,
        downward: bool,
    ) -> Float[Array, "*shape"]:
        """Log-weights along temperatures: upward with sweeps, downward with their adjoints."""

        def step(chain: Any, inputs: Any) -> tuple[Any, Array]:
            key, beta, beta_next = inputs
            increment = path.log_weight_increment(chain, beta, beta_next)
            model = path.at(beta_next)
            for i in range(self.num_sweeps):
                chain = self._move(jax.random.fold_in(key, i), chain, model, downward)
            return chain, increment

        keys = jax.random.split(rng_key, len(betas) - 2)
        inputs = keys, jnp.asarray(betas[:-2]), jnp.asarray(betas[1:-1])
        chain, increments = jax.lax.scan(step, chain, inputs)
        return increments.sum(0) + path.log_weight_increment(chain, betas[-2], betas[-1])

    def _move(self, rng_key: Key[Array, ""], chain: Any, model: Any, downward: bool) -> Any:
        if self.kernel is not None or not downward or model.has_reversible_gibbs:
            return move(rng_key, chain, model, self.kernel)
        key_hidden, key_sweep = jax.random.split(rng_key)
        if getattr(model, "num_hidden", 0):  # an upward sweep draws them first, so does its adjoint
            chain = model.clamped_step(key_hidden, chain)
        return model.backward_gibbs_step(key_sweep, chain)


def by_replicate(value: Any, model: EnergyDistribution) -> Num[Any, "replicates *shape"]:
    """Data of a site with its replicates first, then batch and event dimensions of the model."""
    num_event = len(model.event_shape)
    lead, event = value.shape[: value.ndim - num_event], value.shape[value.ndim - num_event :]
    batch = (1,) * (len(lead) - len(model.batch_shape)) + model.batch_shape
    repeated = [i for i, (n, m) in enumerate(zip(lead, batch, strict=True)) if m == 1 < n]
    kept = [i for i in range(len(lead)) if i not in repeated]
    moved = value.transpose(*repeated, *kept, *range(len(lead), value.ndim))
    num = math.prod(lead[i] for i in repeated)
    return moved.reshape(num, *model.batch_shape, *event)


def _with_full_data(sites: Trace) -> Trace:
    """Sites whose data have every dimension of their distributions."""
    return {
        name: site | {"value": jnp.broadcast_to(site["value"], full_shape(site))}
        for name, site in sites.items()
    }


def full_shape(site: dict[str, Any]) -> tuple[int, ...]:
    """Shape of the data of a site, with every dimension of its distribution."""
    return jnp.broadcast_shapes(jnp.shape(site["value"]), site["fn"].shape())


def parameter_paths(
    caller: str,
    rng_key: Key[Array, ""],
    program: Callable[[], Any],
    target: ModelTarget,
    draws: Float64[np.ndarray, "chain draw n"],
    kernel: Kernel | None,
    betas: Float64[np.ndarray, " num_temperatures"],
    num_sweeps: int,
    auxiliary: Any,
) -> ParameterPaths:
    """Paths for the sites of unknown log Z, from a base that suits the mean of posterior draws.

    Args:
        caller: The function that asks.
        rng_key: Random key.
        program: The model with its arguments.
        target: The same without log Z.
        draws: Posterior draws.
        kernel: Moves; ``None`` for Gibbs sweeps.
        betas: Inverse temperatures.
        num_sweeps: Moves at each.
        auxiliary: How values are drawn; ``None`` for the best way.

    Raises:
        ValueError: There is no such site, one is scaled or has no path, or moves have no known
            time reversal.
    """
    flat = draws.reshape(-1, draws.shape[-1])
    centre = flat.mean(0)
    names = _intractable(caller, program)

    model_trace = target.trace_at(jnp.asarray(centre, float))
    sites, paths, counts = {name: model_trace[name] for name in names}, {}, {}
    for number, (name, site) in enumerate(sites.items()):
        model: Any = unwrap(site["fn"])
        _check_scale(caller, name, site)
        _check_moves(caller, kernel, model, name)
        paths[name] = _path_of(caller, jax.random.fold_in(rng_key, number), name, model)
        counts[name] = _counts(site)
    pilots = flat[:: max(1, len(flat) // _NUM_PILOTS)][:_NUM_PILOTS]
    obstacle = partial(_obstacle, target, pilots)
    sampler = choose(caller, auxiliary, _with_full_data(sites), obstacle)
    if auxiliary is None and not sampler.is_exact:
        longer = AuxiliaryChain(_NUM_STEPS)
        ways = [(n, longer if isinstance(w, AuxiliaryChain) else w) for n, w in sampler.methods]
        sampler = replace(sampler, methods=tuple(ways))
    return ParameterPaths(target, paths, counts, sampler, kernel, betas, num_sweeps, centre)


def _path_of(caller: str, rng_key: Key[Array, ""], name: str, model: EnergyDistribution) -> Path:
    """The default path to a model, which must be able to start from values drawn from it."""
    try:
        path = model.default_path(rng_key)
        value = jnp.zeros(model.batch_shape + model.event_shape, jnp.int32)
        jax.eval_shape(lambda value: path.at(1.0).chain_at(value), value)
    except ValueError as error:
        raise ValueError(
            f"{caller}: expected a path between a tractable base and site '{name}' that can be run "
            f"down from values of {type(model).__name__}; {error}"
        ) from error
    return path


def _intractable(caller: str, program: Callable[[], Any]) -> list[str]:
    """Observed energy-based sites of unknown log Z."""
    model_trace = trace(seed(program, jax.random.key(0))).get_trace()
    names = [n for n, s in model_trace.items() if s["type"] == "sample" and is_intractable(s)]
    if not names:
        raise ValueError(
            f"{caller}: expected an observed energy-based site whose log Z is unknown; the model "
            "has none. Use ebm.evidence.bridge."
        )
    return names


def _obstacle(target: ModelTarget, vectors: Float64[np.ndarray, "m n"], name: str) -> str:
    """Why coupling from the past cannot draw a site at parameters; empty if it can."""

    def holds(vector: Float[Array, " n"]) -> Bool[Array, ""]:
        model: Any = unwrap(target.trace_at(vector)[name]["fn"])
        return jnp.all(model.monotone_states()[2])

    try:
        found = np.asarray(jax.jit(jax.vmap(holds))(jnp.asarray(vectors, float)))
    except ValueError as error:
        return str(error)
    if found.all():
        return ""
    return f"its couplings are frustrated at {np.sum(~found)} of {found.size} posterior draws."


def _counts(site: dict[str, Any]) -> Bool[np.ndarray, "*shape"]:
    """Which replicates of a site count, of shape ``(replicates, *batch)``."""
    model: Any = unwrap(site["fn"])
    num_event = len(model.event_shape)
    shape = full_shape(site)
    lead = shape[: len(shape) - num_event]
    mask = np.broadcast_to(np.asarray(mask_of(site["fn"])), lead).reshape(*lead, *(1,) * num_event)
    rows = by_replicate(mask, model)
    return np.asarray(rows).reshape(rows.shape[: rows.ndim - num_event])


def _check_scale(caller: str, name: str, site: dict[str, Any]) -> None:
    if site["scale"] is not None and not is_identically_one(site["scale"]):
        raise ValueError(
            f"{caller}: expected no `scale` on '{name}': the power of a likelihood has no paths."
        )


def _check_moves(caller: str, kernel: Kernel | None, model: EnergyDistribution, name: str) -> None:
    """Refuse moves whose time reversal is not known."""
    if kernel is not None and not is_reversible(kernel, model):
        raise ValueError(
            f"{caller}: expected a reversible `kernel`, such as kernels.SwendsenWangStep(), or "
            f"None for Gibbs sweeps and their adjoints; got {type(kernel).__name__}."
        )
    if kernel is None and not model.has_reversible_gibbs:
        try:
            jax.eval_shape(
                lambda key: model.backward_gibbs_step(key, model.init_chain(key)), jax.random.key(0)
            )
        except ValueError as error:
            raise ValueError(
                f"{caller}: expected Gibbs sweeps of site '{name}' to have a known time reversal; "
                f"those of {type(model).__name__} have none. Pass a reversible `kernel`, such as "
                "kernels.GibbsWithGradientsStep()."
            ) from error
