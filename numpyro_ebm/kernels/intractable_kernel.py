"""The adapter of kernels for parameters with an intractable likelihood to NumPyro's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key
from numpyro.distributions import biject_to
from numpyro.handlers import seed, trace
from numpyro.infer.gibbs import (
    conditioned,
    latent_sample_sites,
    prototype_trace,
    with_conditioning,
)
from numpyro.infer.util import potential_energy
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import unwrap
from numpyro_ebm.kernels.adapter import SiteKernel, Trace
from numpyro_ebm.kernels.auxiliary import AuxiliarySampler, choose
from numpyro_ebm.kernels.density import DensityKernel, Raveled, unravel
from numpyro_ebm.kernels.intractable import (
    IntractableDensity,
    Pseudo,
    Unnormalized,
    check_intractable,
    check_latent,
)
from numpyro_ebm.kernels.modes import Mode, find_mode
from numpyro_ebm.kernels.sites import WideSites

_NUM_PILOTS = 8
_SPREAD = 2.0
"""Standard deviations of the starting points, in units of those of the pseudolikelihood."""


class IntractableKernel(DensityKernel):
    """A kernel over the parameters of energy-based sites, whose log Z is never computed.

    Chains start around the mode of the pseudo-posterior, where the units are discrete.

    Args:
        model: A NumPyro model.
        kernel: Pure ``init`` and ``step`` functions of an ``IntractableDensity``.
        auxiliary: How auxiliary data are drawn; see ``auxiliary.choose``.
    """

    _kernel: Any

    def __init__(self, model: Callable[..., Any], kernel: Any, auxiliary: Any) -> None:
        super().__init__(model, kernel, sites="continuous")
        self._auxiliary = auxiliary
        self._names: tuple[str, ...] = ()
        self._sampler: AuxiliarySampler | None = None
        self._mode: Mode | None = None

    def _select(self, model_trace: Trace) -> tuple[str, ...]:
        sites = latent_sample_sites(model_trace)
        check_latent(type(self).__name__, model_trace, sites)
        return sites

    def _start(self, rng_key: Key[Array, ""], model_args: Any, model_kwargs: Any):
        z, model_trace = SiteKernel._start(self, rng_key, model_args, model_kwargs)
        self._resolve(z, model_args, model_kwargs)
        self._mode = None  # that of the data of an earlier run
        target, flat = self._target(z, model_trace, model_args, model_kwargs)
        mode = self._find_mode(target, flat)
        if mode is None:
            return super()._start(rng_key, model_args, model_kwargs)
        root = jnp.linalg.cholesky(mode.covariance)
        away = mode.value + _SPREAD * root @ jax.random.normal(rng_key, flat.shape, flat.dtype)
        flat = jnp.where(jnp.isfinite(target.energy(away)), away, mode.value)
        return self._sites_at(flat, z, model_trace, model_args, model_kwargs), model_trace

    def _begin(
        self, rng_key: Key[Array, ""], z: WideSites, model_trace: Trace, args: Any, kwargs: Any
    ) -> tuple[WideSites, dict[str, Any], Array]:
        target, flat = self._target(z, model_trace, args, kwargs)
        chain = self._kernel.init(flat, target, self._find_mode(target, flat), rng_key)
        return z, {"joint": chain}, self._kernel.energy(chain, target)

    def _resolve(self, z: Mapping[str, Array], args: Any, kwargs: Any) -> None:
        """Find the sites with unknown log Z, and how to draw data like theirs."""
        owner = type(self).__name__
        model_trace = self._trace(dict(z), args, kwargs)
        self._names = check_intractable(owner, lambda z: self._trace(z, args, kwargs), z)
        sites = {name: model_trace[name] for name in self._names}
        obstacle = partial(self._obstacle, args, kwargs)
        self._sampler = choose(owner, self._auxiliary, sites, obstacle)

    def _obstacle(self, args: Any, kwargs: Any, name: str) -> str:
        """Why coupling from the past cannot draw a site, looked for at draws from the prior."""

        def holds(key: Key[Array, ""]) -> Bool[Array, ""]:
            model_trace = prototype_trace(conditioned(self._model), key, args, kwargs)
            model: Any = unwrap(model_trace[name]["fn"])
            return jnp.all(model.monotone_states()[2])

        keys = jax.random.split(jax.random.key(0), _NUM_PILOTS)
        try:
            with jax.ensure_compile_time_eval():
                found = jax.jit(jax.vmap(holds))(keys)
        except ValueError as error:
            return str(error)
        if not not_jax_tracer(found) or np.all(found):
            return ""
        return (
            "its couplings are frustrated (a cycle of bonds whose signs cannot all be satisfied) "
            f"in {np.sum(~np.asarray(found))} of {_NUM_PILOTS} draws from the prior."
        )

    def _target(
        self, z: Mapping[str, Array], model_trace: Trace, args: Any, kwargs: Any
    ) -> tuple[IntractableDensity, Raveled]:
        """The density of the parameters without log Z, and their present values in one vector."""
        model, shapes = conditioned(self._model), {}
        pieces = []
        for name in self._sites:
            value = biject_to(model_trace[name]["fn"].support)._inverse(jnp.asarray(z[name]))
            shapes[name] = value.shape
            pieces.append(value.reshape(-1))
        flat = jnp.concatenate(pieces)

        def energy(handler: Any, vector: Raveled) -> Float[Array, ""]:
            sites = unravel(vector, shapes)
            return potential_energy(handler(model), args, kwargs or {}, sites)

        def trace_at(vector: Raveled) -> Trace:
            sites = self._sites_at(vector, z, model_trace, args, kwargs)
            program = Unnormalized(seed(model, jax.random.key(0)))
            return trace(program).get_trace(*args, **with_conditioning(kwargs, dict(sites)))

        target = IntractableDensity(
            partial(energy, Unnormalized),
            flat.size,
            trace_at,
            self._names,
            self._sampler,
            partial(energy, Pseudo),
        )
        return target, flat

    def _find_mode(self, target: IntractableDensity, flat: Raveled) -> Mode | None:
        """Mode of the pseudo-posterior; ``None`` where units are continuous."""
        if self._mode is not None:
            return self._mode
        models = [unwrap(site["fn"]) for site in target.sites(flat).values()]
        if not all(model is not None and _is_discrete(model) for model in models):
            return None
        find = jax.jit(partial(find_mode, target.pseudo_energy))
        with jax.ensure_compile_time_eval():
            mode = find(jnp.zeros(flat.shape, flat.dtype))
        if not any(not not_jax_tracer(leaf) for leaf in jax.tree.leaves(mode)):
            self._mode = mode
        return mode

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_mode": None}


def _is_discrete(model: Any) -> bool:
    try:
        return model.unit_states is not None
    except ValueError:
        return False
