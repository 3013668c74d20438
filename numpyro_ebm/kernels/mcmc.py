"""The one adapter between this package's kernels and NumPyro's ``MCMCKernel``."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key
from numpyro.distributions import Distribution
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.gibbs import (
    conditioned,
    latent_sample_sites,
    subsample_plate_sizes,
    with_conditioning,
)
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_ebm.base import Chain, EnergyDistribution, Kernel, widen
from numpyro_ebm.kernels.bounds import type_bound
from numpyro_ebm.kernels.clamp import check_clamp, parse_clamp
from numpyro_ebm.kernels.likelihood import check_site, conditional
from numpyro_ebm.kernels.sites import (
    EnergyKernelState,
    WideModel,
    WideSites,
    energy_sites,
    start_value,
)

Model = Callable[..., Any]


class EnergyKernel(MCMCKernel):
    """A NumPyro MCMC kernel that updates energy-based sites by a :class:`~base.Kernel`.

    Args:
        model: A NumPyro model.
        kernel: Pure ``init`` and ``step`` functions of a target distribution.
        clamp: Units held fixed, ``{site: (mask, values)}``.
    """

    sample_field = "z"

    def __init__(
        self,
        model: Model,
        kernel: Kernel,
        *,
        clamp: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    ) -> None:
        if not callable(model) or isinstance(model, Distribution):
            raise TypeError(
                f"{type(self).__name__}: expected `model` to be a NumPyro model (a callable that "
                f"calls numpyro.sample); got {type(model).__name__}. Wrap a distribution in one: "
                'lambda: numpyro.sample("v", distribution).'
            )
        self._model = model
        self._kernel = kernel
        self._clamp = parse_clamp(type(self).__name__, clamp)
        self._sites: tuple[str, ...] = ()
        self._dtypes: dict[str, Any] = {}
        self._has_deterministic = False
        self._is_block = self._is_nested = False
        self._sample_fn: Callable[..., EnergyKernelState] | None = None

    @property
    def model(self) -> Model:
        """The model, equal to that given; it can also be run on the samples collected."""
        return WideModel(self._model)

    # ----- NumPyro's interface -------------------------------------------------------------

    def init(
        self,
        rng_key: Key[Array, ""],
        num_warmup: int,
        init_params: Mapping[str, Array] | None,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> EnergyKernelState:
        """Start the chain (or, given a batch of keys, one chain for each key)."""
        self._sample_fn = self._sample_one
        if is_prng_key(rng_key):
            return self._init_one(rng_key, init_params, model_args, model_kwargs)
        self._sample_fn = jax.vmap(self._sample_one, in_axes=(0, None, None))
        if init_params:  # under vmap only their shapes could be checked
            z, models = self._start(rng_key[0], model_args, model_kwargs)
            self._checked(init_params, models, z, rng_key.shape[:1])

        def init_one(key, params):
            return self._init_one(key, params, model_args, model_kwargs)

        return jax.vmap(init_one)(rng_key, init_params)

    def sample(
        self,
        state: EnergyKernelState,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> EnergyKernelState:
        """Advance the chain by one step."""
        if self._sample_fn is None:
            raise RuntimeError(f"{type(self).__name__}: call `init` before `sample`.")
        return self._sample_fn(state, model_args, model_kwargs)

    def refresh(
        self,
        state: EnergyKernelState,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> EnergyKernelState:
        """Recompute what the chains cache, after parameters of the sites have changed."""
        model_trace = self._trace(state.z, model_args, model_kwargs)
        models = {name: check_site(name, model_trace[name]) for name in self._sites}
        chains = {name: models[name].refresh(state.chains[name]) for name in self._sites}
        return state._replace(chains=chains, energy=_total_energy(models, chains))

    def wrap_model(self, wrapper: Callable[[Model], Model]) -> EnergyKernel:
        """Return a copy of this kernel over ``wrapper(model)``."""
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel._sites, kernel._sample_fn = (), None
        kernel._is_block, kernel._is_nested = True, self._is_block
        return kernel

    def get_constrain_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[[dict[str, Array]], dict[str, Array]]:
        """Values are constrained already; those collected are narrowed to 8 bits.

        But not where ``Gibbs`` runs a model on them that does not expect it: for deterministic
        sites, or to condition the blocks of an enclosing ``Gibbs``.
        """
        if self._has_deterministic or self._is_nested:
            return dict
        return lambda z: dict(z) if isinstance(z, WideSites) else self._narrow(z)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[[dict[str, Array]], dict[str, Array]]:
        """Narrow the samples and add the model's deterministic sites."""
        if not self._has_deterministic:
            return self._narrow

        def collect(z):
            model_trace = self._trace(z, model_args, model_kwargs)
            deterministic = {
                name: site["value"]
                for name, site in model_trace.items()
                if site["type"] == "deterministic"
            }
            return {**self._narrow(z), **deterministic}

        return collect

    def get_diagnostics_str(self, state: EnergyKernelState) -> str:
        """Energy of the sites, for the progress bar."""
        return f"energy={float(state.energy):.2f}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sample_fn": None}

    # ----- one chain -----------------------------------------------------------------------

    def _narrow(self, z: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: value.astype(self._dtypes.get(name, value.dtype)) for name, value in z.items()
        }

    def _trace(
        self, z: Mapping[str, Array], model_args: Any, model_kwargs: Any
    ) -> OrderedDict[str, dict[str, Any]]:
        model = seed(conditioned(self._model), jax.random.key(0))
        return trace(model).get_trace(*model_args, **with_conditioning(model_kwargs, dict(z)))

    def _start(self, rng_key, model_args, model_kwargs):
        """Resolve the sites, and return their starting values and their models."""
        model = substitute(seed(conditioned(self._model), rng_key), substitute_fn=start_value)
        model_trace = trace(model).get_trace(*model_args, **(model_kwargs or {}))
        self._resolve(model_trace)
        z = WideSites((name, model_trace[name]["value"]) for name in self._sites)
        return z, {name: check_site(name, model_trace[name]) for name in self._sites}

    def _init_one(self, rng_key, init_params, model_args, model_kwargs) -> EnergyKernelState:
        rng_key, key_start = jax.random.split(rng_key)
        z, models = self._start(key_start, model_args, model_kwargs)
        for name, value in self._checked(init_params, models, z).items():
            z[name] = value
        for name, (mask, values) in self._clamp.items():
            check_clamp(type(self).__name__, name, (mask, values), models[name], z[name].shape)
            z[name] = jnp.where(mask, values, z[name]).astype(z[name].dtype)
        chains = {name: self._kernel.init(z[name], models[name]) for name in self._sites}
        for name in self._sites:
            visible = self._kernel.value(chains[name], models[name])
            self._dtypes[name] = visible.dtype
            z[name] = widen(visible)
            self._conditional(name, z, model_args, model_kwargs)  # raises before the run starts
        return EnergyKernelState(z, chains, _total_energy(models, chains), rng_key)

    def _resolve(self, model_trace: OrderedDict[str, dict[str, Any]]) -> None:
        """Find the sites of the block and refuse models that it cannot sample."""
        name = type(self).__name__
        self._sites = energy_sites(model_trace)
        others = [s for s in latent_sample_sites(model_trace) if s not in self._sites]
        if others:
            raise ValueError(
                f"{name}: expected every latent site to be an energy-based model; got {others}. "
                f"Sample them by another block: numpyro.infer.Gibbs([({name}(model), "
                "ebm.energy_sites), (NUTS(model), None)])."
            )
        if not self._sites:
            raise ValueError(
                f"{name}: expected a latent site with an energy-based model such as ebm.RBM; "
                "the model has none."
            )
        if subsample_plate_sizes(model_trace):
            raise ValueError(
                f"{name}: expected a model without subsampled plates; a minibatch changes the "
                "posterior from step to step."
            )
        unknown = [site for site in self._clamp if site not in self._sites]
        if unknown:
            raise ValueError(
                f"{name}: expected `clamp` to name latent energy-based sites {self._sites}; got "
                f"{unknown}."
            )
        self._has_deterministic = any(s["type"] == "deterministic" for s in model_trace.values())

    def _checked(self, init_params, models, z, num_chains=()) -> dict[str, Array]:
        """Check starting values against the sites' shapes and supports."""
        label = f"{type(self).__name__}: expected `init_params`"
        out = {}
        for name, value in (init_params or {}).items():
            if name not in models:
                raise ValueError(f"{label} for sites among {self._sites}; got {name!r}.")
            shape = num_chains + z[name].shape
            if jnp.shape(value) != shape:
                raise ValueError(
                    f"{label} of shape {shape} for site '{name}'; got {jnp.shape(value)}."
                )
            models[name].check_value(value, f"init_params['{name}']")
            out[name] = jnp.asarray(value).astype(z[name].dtype)
        return out

    def _conditional(self, name, z, model_args, model_kwargs) -> EnergyDistribution:
        def trace_at(value):
            return self._trace({**z, name: value}, model_args, model_kwargs)

        return conditional(name, trace_at, z[name], type_bound(self._dtypes[name]))

    def _sample_one(self, state, model_args, model_kwargs) -> EnergyKernelState:
        rng_key, *keys = jax.random.split(state.rng_key, 1 + len(self._sites))
        z, chains = WideSites(state.z), dict(state.chains)
        for name, key in zip(self._sites, keys, strict=True):
            target = self._conditional(name, z, model_args, model_kwargs)
            mask, values = self._clamp.get(name, (None, None))
            held = {} if mask is None else {"mask": mask, "values": values}
            if len(self._sites) > 1:  # another site of the block may have changed its parameters
                chains[name] = target.refresh(chains[name])
            chains[name], _ = self._kernel.step(key, chains[name], target, **held)
            z[name] = widen(self._kernel.value(chains[name], target))
        model_trace = self._trace(z, model_args, model_kwargs)
        models = {name: check_site(name, model_trace[name]) for name in self._sites}
        if len(self._sites) > 1:
            chains = {name: models[name].refresh(chains[name]) for name in self._sites}
        return EnergyKernelState(z, chains, _total_energy(models, chains), rng_key)


def _total_energy(
    models: Mapping[str, EnergyDistribution], chains: Mapping[str, Chain]
) -> Float[Array, ""]:
    return sum(
        (models[name].chain_energy(chain).sum() for name, chain in chains.items()),
        start=jnp.zeros(()),
    )
