"""Gibbs sampling of the hidden units of a sigmoid belief network in a NumPyro model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key
from numpyro.infer.gibbs import latent_sample_sites

from numpyro_ebm.base import widen
from numpyro_ebm.kernels.adapter import SiteKernel, Trace
from numpyro_ebm.kernels.gibbs import GibbsSweeps
from numpyro_ebm.kernels.sites import EnergyKernelState, WideSites
from numpyro_ebm.models.belief_posterior import BeliefPosterior


class BeliefGibbs(SiteKernel):
    """Gibbs sweeps over the hidden units of a sigmoid belief network, given its visible units.

    Each sweep draws every hidden unit of every row from its exact conditional given its parents
    and children. Leaves the posterior invariant; mixes slowly where weights are large. Use it
    alone on a network with given parameters,
    ``MCMC(BeliefGibbs(numpyro.handlers.substitute(sbn.model, data=params)), ...)``, or, where
    parameters have priors, as a block of ``numpyro.infer.Gibbs`` beside NUTS, with
    ``ebm.discrete_sites``.

    Samples are collected as uint8: cast before doing arithmetic with them. The extra field
    ``"energy"`` is minus log p(x, h) in nats, summed over rows.

    Args:
        model: The ``model`` of a :class:`~numpyro_ebm.models.SigmoidBeliefNetwork`, or a handler
            around it.
        num_sweeps: Sweeps in one MCMC step.

    Raises:
        ValueError: ``num_sweeps`` is not positive, the visible units are not observed, or the
            model has other sites than those of the network.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> from numpyro.handlers import substitute
        >>> from numpyro.infer import MCMC
        >>> sbn = ebm.models.SigmoidBeliefNetwork(3, [2])
        >>> params = {"weights_1": jnp.ones((3, 2)), "bias_0": -jnp.ones(3), "bias_1": jnp.zeros(2)}
        >>> kernel = ebm.models.BeliefGibbs(substitute(sbn.model, data=params))
        >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=50, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.array([[1, 1, 0], [0, 0, 0]]))
        >>> mcmc.get_samples()["hidden_1"].shape
        (50, 2, 2)

    References:
        Neal (1992), "Connectionist Learning of Belief Networks", Artificial Intelligence 56.
    """

    def __init__(self, model: Callable[..., Any], *, num_sweeps: int = 1) -> None:
        super().__init__(model, GibbsSweeps(num_sweeps))

    def _select(self, model_trace: Trace) -> tuple[str, ...]:
        hidden = tuple(sorted(name for name in model_trace if name.startswith("hidden_")))
        if not hidden or "visible" not in model_trace or "bias_0" not in model_trace:
            raise ValueError(
                "BeliefGibbs: expected the model of a SigmoidBeliefNetwork; got one with the sites "
                f"{list(model_trace)}."
            )
        if not model_trace["visible"]["is_observed"]:
            raise ValueError("BeliefGibbs: expected observed visible units; pass `data`.")
        others = [site for site in latent_sample_sites(model_trace) if site not in hidden]
        if others:
            raise ValueError(
                f"BeliefGibbs: expected hidden units to be the only latent sites; got {others}. "
                "Sample them by another block: numpyro.infer.Gibbs([(BeliefGibbs(model), "
                "ebm.discrete_sites), (NUTS(model), None)])."
            )
        own = ("hidden_", "weights_", "bias_")
        unknown = [
            name
            for name, site in model_trace.items()
            if site["type"] == "sample" and name != "visible" and not name.startswith(own)
        ]
        if unknown:
            raise ValueError(
                f"BeliefGibbs: expected a model without other observed sites; got {unknown}, which "
                "may depend on the hidden units."
            )
        return tuple(f"hidden_{k}" for k in range(1, len(hidden) + 1))

    def _start_value(self, site: dict[str, Any]) -> None:
        return None

    def _target(self, z: Any, args: Any, kwargs: Any) -> tuple[BeliefPosterior, Array]:
        """The posterior for the present parameters, and the units of all layers."""
        found = self._trace(dict(z), args, kwargs)
        num = len(self._sites)
        weights = [found[f"weights_{k}"]["value"] for k in range(1, num + 1)]
        biases = [found[f"bias_{k}"]["value"] for k in range(num + 1)]
        target = BeliefPosterior(weights, biases, found["visible"]["value"], validate_args=False)
        return target, jnp.concatenate([z[name] for name in self._sites], axis=-1)

    def _begin(
        self, rng_key: Key[Array, ""], z: WideSites, model_trace: Trace, args: Any, kwargs: Any
    ) -> tuple[WideSites, dict[str, Any], Array]:
        target, value = self._target(z, args, kwargs)
        self._dtypes.update(dict.fromkeys(self._sites, target.chain_dtype))
        return z, {}, target.energy(value).sum()

    def _advance(
        self, rng_key: Key[Array, ""], state: EnergyKernelState, args: Any, kwargs: Any
    ) -> tuple[WideSites, dict[str, Any], Array]:
        target, value = self._target(state.z, args, kwargs)
        chain, info = self._kernel.step(rng_key, self._kernel.init(value, target), target)
        layers = target.split(widen(chain))
        z = WideSites(zip(self._sites, layers, strict=True))
        return z, {}, info.energy.sum()

    def _refreshed(
        self, state: EnergyKernelState, args: Any, kwargs: Any
    ) -> tuple[dict[str, Any], Array]:
        target, value = self._target(state.z, args, kwargs)
        return {}, target.energy(value).sum()
