"""Kernels that move several sites of a model jointly, through the model's log density."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num
from numpyro.distributions import biject_to, constraints
from numpyro.infer.gibbs import conditioned, latent_sample_sites, with_conditioning
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import constrain_fn, log_density, potential_energy

from numpyro_ebm.base import unwrap
from numpyro_ebm.kernels.adapter import SiteKernel, Trace
from numpyro_ebm.kernels.likelihood import check_normalizers
from numpyro_ebm.kernels.sites import EnergyKernelState, WideSites, start_value
from numpyro_ebm.protocols import Kernel, UnitStates, unit_states

_MAX_STARTS = 100
Raveled = Num[Array, "*batch n"]


class ModelDensity:
    """The joint density of a NumPyro model as a function of some of its sites, in one vector.

    Attributes:
        event_shape: ``(n,)``, the number of units of all the sites.
        batch_shape: ``()``.
        support: Of the vector; ``None`` for discrete units, see ``unit_states``.
        unit_states: States of every unit; ``None`` for continuous sites.
    """

    batch_shape: tuple[int, ...] = ()

    def __init__(
        self,
        energy: Callable[[Raveled], Float[Array, ""]],
        size: int,
        states: UnitStates | None,
    ) -> None:
        self._energy = energy
        self.event_shape = (size,)
        self.unit_states = states
        self.support = constraints.real_vector if states is None else None

    def energy(self, value: Raveled) -> Float[Array, "*batch"]:
        """Negative log joint density in nats, of the unconstrained vector if continuous."""
        return jnp.vectorize(self._energy, signature="(n)->()")(jnp.asarray(value))


class DensityKernel(SiteKernel):
    """A NumPyro MCMC kernel that moves all latent sites of a model jointly.

    Continuous sites move in unconstrained space.

    Args:
        model: A NumPyro model.
        kernel: Pure ``init`` and ``step`` functions of a :class:`ModelDensity`.
        sites: Which kind of sites the kernel moves.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        kernel: Kernel,
        *,
        sites: Literal["discrete", "continuous"],
    ) -> None:
        super().__init__(model, kernel)
        self._kind = sites

    def _select(self, model_trace: Trace) -> tuple[str, ...]:
        name, sites = type(self).__name__, latent_sample_sites(model_trace)
        is_discrete = {s: model_trace[s]["fn"].support.is_discrete for s in sites}
        others = [s for s in sites if is_discrete[s] != (self._kind == "discrete")]
        if others or not sites:
            block = (
                f"[({name}(model), ebm.discrete_sites), (NUTS(model), None)]"
                if self._kind == "discrete"
                else f"[(GibbsWithGradients(model), ebm.discrete_sites), ({name}(model), None)]"
            )
            raise ValueError(
                f"{name}: expected {self._kind} latent sites only, and at least one; got "
                f"{others or 'none'}{' of another kind' if others else ''}. Sample sites of "
                f"different kinds by different blocks: numpyro.infer.Gibbs({block})."
            )
        return sites

    def _start_value(self, site: dict[str, Any]) -> Array | None:
        started = start_value(site)
        if started is not None or site["type"] != "sample" or site["value"] is not None:
            return started
        is_latent = not site["is_observed"]
        return init_to_uniform(site) if is_latent and self._kind == "continuous" else None

    def _start(self, rng_key: Key[Array, ""], model_args: Any, model_kwargs: Any):
        z, model_trace = super()._start(rng_key, model_args, model_kwargs)
        models = [unwrap(model_trace[name]["fn"]) for name in self._sites]
        if self._kind == "discrete" or any(model is not None for model in models):
            return z, model_trace
        target, flat = self._target(z, model_trace, model_args, model_kwargs)

        def again(carry):
            i, vector, _ = carry
            key = jax.random.fold_in(rng_key, i)
            vector = jax.random.uniform(key, vector.shape, vector.dtype, -2, 2)
            return i + 1, vector, target.energy(vector)

        def is_bad(carry):
            return (carry[0] < _MAX_STARTS) & ~jnp.isfinite(carry[2])

        _, flat, _ = jax.lax.while_loop(is_bad, again, (0, flat, target.energy(flat)))
        return self._sites_at(flat, z, model_trace, model_args, model_kwargs), model_trace

    def _begin(
        self, rng_key: Key[Array, ""], z: WideSites, model_trace: Trace, args: Any, kwargs: Any
    ) -> tuple[WideSites, dict[str, Any], Array]:
        for name in self._sites:
            model = unwrap(model_trace[name]["fn"])
            if model is not None:
                self._dtypes[name] = model.visible(model.chain_at(z[name])).dtype
        target, flat = self._target(z, model_trace, args, kwargs)
        self._check_normalizers(z, args, kwargs)
        chain = self._kernel.init(flat, target)
        return z, {"joint": chain}, self._kernel.energy(chain, target)

    def _advance(
        self, rng_key: Key[Array, ""], state: EnergyKernelState, args: Any, kwargs: Any
    ) -> tuple[WideSites, dict[str, Any], Array]:
        model_trace = self._trace(state.z, args, kwargs)
        target, _ = self._target(state.z, model_trace, args, kwargs)
        chain, _ = self._kernel.step(rng_key, state.chains["joint"], target)
        flat = self._kernel.value(chain, target)
        z = self._sites_at(flat, state.z, model_trace, args, kwargs)
        return z, {"joint": chain}, self._kernel.energy(chain, target)

    def _refreshed(
        self, state: EnergyKernelState, args: Any, kwargs: Any
    ) -> tuple[dict[str, Any], Array]:
        target, _ = self._target(state.z, self._trace(state.z, args, kwargs), args, kwargs)
        chain = self._kernel.refresh(state.chains["joint"], target)
        return {"joint": chain}, self._kernel.energy(chain, target)

    # ----- the joint density ---------------------------------------------------------------

    def _target(
        self, z: Mapping[str, Array], model_trace: Trace, args: Any, kwargs: Any
    ) -> tuple[ModelDensity, Raveled]:
        """The density of all sites in one vector, and the vector of their present values."""
        names, model = self._sites, conditioned(self._model)
        if self._kind == "continuous":
            parts = {
                name: biject_to(model_trace[name]["fn"].support)._inverse(jnp.asarray(z[name]))
                for name in names
            }
            states = None
        else:
            parts = {name: jnp.asarray(z[name]).astype(jnp.int32) for name in names}
            states = _joint_states([self._states_of(model_trace[name]) for name in names])
        shapes = {name: part.shape for name, part in parts.items()}

        def energy(vector: Raveled) -> Float[Array, ""]:
            sites = unravel(vector, shapes)
            if self._kind == "continuous":
                return potential_energy(model, args, kwargs or {}, sites)
            settled = with_conditioning(kwargs, sites)
            return -jnp.asarray(log_density(model, args, settled, {})[0])

        flat = jnp.concatenate([part.reshape(-1) for part in parts.values()])
        return ModelDensity(energy, flat.size, states), flat

    def _sites_at(
        self, flat: Raveled, z: Mapping[str, Array], model_trace: Trace, args: Any, kwargs: Any
    ) -> WideSites:
        """Values of the sites from the vector of all of them."""
        if self._kind == "discrete":
            return WideSites(unravel(flat, {name: jnp.shape(z[name]) for name in self._sites}))
        shapes = {
            name: biject_to(model_trace[name]["fn"].support).inverse_shape(jnp.shape(z[name]))
            for name in self._sites
        }
        model = conditioned(self._model)
        sites = constrain_fn(model, args, kwargs or {}, unravel(flat, shapes))
        return WideSites((name, sites[name].astype(z[name].dtype)) for name in self._sites)

    def _states_of(self, site: dict[str, Any]) -> UnitStates:
        """States of the units of one discrete site."""
        fn, shape = site["fn"], jnp.shape(site["value"])
        model = unwrap(fn)
        try:
            states = unit_states(fn.support, shape) if model is None else model.unit_states
        except (ValueError, jax.errors.ConcretizationTypeError) as error:
            raise ValueError(
                f"{type(self).__name__}: expected site '{site['name']}' to have finitely many "
                f"states, known before the run; its support is {fn.support}."
            ) from error
        values, allowed = cast(UnitStates, states)
        full = (*shape, values.shape[-1])
        return UnitStates(np.broadcast_to(values, full), np.broadcast_to(allowed, full))

    def _check_normalizers(self, z: Mapping[str, Array], args: Any, kwargs: Any) -> None:
        """Refuse sites that enter the parameters of a model whose log Z is unknown."""
        for name in self._sites:

            def trace_at(value, name=name):
                return self._trace({**z, name: value}, args, kwargs)

            check_normalizers(name, trace_at, z[name])


def unravel(vector: Raveled, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Values by site from the vector of all of them."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    pieces = jnp.split(vector, np.cumsum(sizes)[:-1])
    return {
        name: piece.reshape(shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def _joint_states(parts: list[UnitStates]) -> UnitStates:
    """States of several sites in one vector."""
    most = max(part.values.shape[-1] for part in parts)

    def padded(array: np.ndarray, mode: Any) -> np.ndarray:
        flat = array.reshape(-1, array.shape[-1])
        return np.pad(flat, [(0, 0), (0, most - flat.shape[1])], mode=mode)

    return UnitStates(
        np.concatenate([padded(part.values, "edge") for part in parts]),
        np.concatenate([padded(part.allowed, "constant") for part in parts]),
    )
