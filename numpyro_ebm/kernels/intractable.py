"""Posteriors of parameters whose likelihood has a log Z that depends on them and is unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro.distributions.util import is_identically_one
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from numpyro_ebm.base import rewrap, unwrap
from numpyro_ebm.kernels.density import ModelDensity, Raveled
from numpyro_ebm.kernels.pseudolikelihood import Pseudolikelihood
from numpyro_ebm.normalizer import NormalizerError

Values = dict[str, Array]
"""Values of the observed energy-based sites, by name."""
Trace = Mapping[str, dict[str, Any]]
_SCREEN_POWER = 0.5


class Unnormalized(Messenger):
    """Leaves log Z of energy-based sites out, on purpose, where the guard would raise."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Replace the distribution of such a site."""
        if msg["type"] == "sample" and is_intractable(msg):
            msg["fn"] = rewrap(msg["fn"], lambda model, masked: model.with_normalizer("ignore"))


class Pseudo(Messenger):
    """Gives energy-based sites their log pseudolikelihood in place of a density without log Z."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Replace the distribution of such a site."""
        if msg["type"] == "sample" and is_intractable(msg):
            msg["fn"] = rewrap(msg["fn"], lambda model, masked: Pseudolikelihood(model))


def is_intractable(site: dict[str, Any]) -> bool:
    """Whether a site is an observed energy-based model whose log Z is unknown."""
    if not site["is_observed"]:
        return False
    model = unwrap(site["fn"])
    return model is not None and model.normalizer == "guard"


class IntractableDensity(ModelDensity):
    r"""The joint density of a model's parameters without log Z of its likelihood.

    .. math:: E(u) = -\log p(\theta(u)) - \log \lvert \partial \theta / \partial u \rvert
        - \log f(y; \theta(u)) - \text{other likelihood terms}

    where :math:`f(y; \theta) = e^{-E(y; \theta)}` is the product over the observed energy-based
    sites with an unknown log Z, and their replicates in plates.

    Args:
        energy: E(u) in nats, differentiable.
        size: Number of unconstrained parameters.
        trace_at: Traces the model without log Z at u.
        names: The observed energy-based sites with unknown log Z.
        sampler: Draws auxiliary data; see ``auxiliary``.
        pseudo_energy: E(u) with the log pseudolikelihood in the place of log f.
    """

    def __init__(
        self,
        energy: Callable[[Raveled], Float[Array, ""]],
        size: int,
        trace_at: Callable[[Raveled], Trace],
        names: tuple[str, ...],
        sampler: Any,
        pseudo_energy: Callable[[Raveled], Float[Array, ""]],
    ) -> None:
        super().__init__(energy, size, None)
        self._trace_at, self.names, self.sampler = trace_at, names, sampler
        self.pseudo_energy = pseudo_energy

    def screen(self, vector: Raveled) -> Float[Array, ""]:
        r"""Energy in nats of a wide and cheap stand-in for the posterior, to screen proposals by.

        The square root of the pseudo-posterior where exact draws can take forever far from the
        posterior; flat elsewhere.
        """
        if not self.sampler.can_fail:
            return jnp.zeros((), vector.dtype)
        return _SCREEN_POWER * self.pseudo_energy(vector)

    def sites(self, vector: Raveled) -> dict[str, dict[str, Any]]:
        """The observed energy-based sites of the model at u."""
        model_trace = self._trace_at(vector)
        return {name: model_trace[name] for name in self.names}

    def log_terms(self, vector: Raveled, values: Values) -> list[Float[Array, "*batch"]]:
        """Log f of values at u in nats, site by site and replicate by replicate."""
        return [site["fn"].log_prob(values[name]) for name, site in self.sites(vector).items()]

    def log_factor(self, vector: Raveled, values: Values) -> Float[Array, ""]:
        r""":math:`\log f(w; \theta(u))` of values w of the sites, in nats, summed over them."""
        return sum((term.sum() for term in self.log_terms(vector, values)), jnp.zeros(()))

    def draw(self, rng_key: Key[Array, ""], vector: Raveled, sample_shape: tuple[int, ...] = ()):
        r"""Draw auxiliary data :math:`w \sim f(\cdot; \theta(u)) / Z(\theta(u))` like the data."""
        return self.sampler.draw(rng_key, self.sites(vector), sample_shape)


# ----- checks ------------------------------------------------------------------------------


def check_intractable(
    owner: str, trace_at: Callable[[dict[str, Array]], Trace], z: Mapping[str, Array]
) -> tuple[str, ...]:
    """Return the observed energy-based sites whose unknown log Z depends on the parameters.

    Args:
        owner: The kernel.
        trace_at: Traces the model with its latent sites at values.
        z: Values of these.

    Raises:
        ValueError: There is none, one is scaled, or log Z is given as a number.
    """
    model_trace = trace_at(dict(z))
    models = {
        name: unwrap(site["fn"]) for name, site in model_trace.items() if site["type"] == "sample"
    }
    models = {name: model for name, model in models.items() if model is not None}
    _check_models(owner, models, tuple(z))

    causes = causes_of(trace_at, z)
    for name, model in models.items():
        if model.normalizer == "known" and causes[name]:
            raise NormalizerError(
                f"{owner}: expected fixed parameters of '{name}', whose `normalizer` is a given "
                f"log Z; they depend on {causes[name]}, and log Z with them. Leave `normalizer` at "
                "its default, and the kernel does without log Z."
            )
    names = tuple(n for n, m in models.items() if m.normalizer == "guard" and causes[n])
    if not names:
        raise ValueError(
            f"{owner}: expected an energy-based site whose parameters depend on the latent sites "
            f"{list(z)}; those of {list(models)} are fixed. Then log Z is a constant: use NUTS."
        )
    for name in names:
        _check_scale(owner, name, model_trace[name])
    return names


def causes_of(
    trace_at: Callable[[dict[str, Array]], Trace], values: Mapping[str, Array]
) -> dict[str, list[str]]:
    """Which of some values the parameters of each energy-based site depend on.

    Args:
        trace_at: Traces the model at such values.
        values: The values.
    """
    if not values:
        return {}

    def parameters(**values: Any) -> dict[str, list[Array]]:
        models = {
            name: unwrap(site["fn"])
            for name, site in trace_at(values).items()
            if site["type"] == "sample"
        }
        return {
            name: [jnp.asarray(leaf) for leaf in jax.tree.leaves(model)]
            for name, model in models.items()
            if model is not None
        }

    sources = eval_provenance(parameters, **values)
    return {name: sorted(frozenset().union(*leaves)) for name, leaves in sources.items()}


def _check_models(owner: str, models: Mapping[str, Any], latent: tuple[str, ...]) -> None:
    if not models:
        raise ValueError(
            f"{owner}: expected an observed energy-based site, such as numpyro.sample('s', "
            "ebm.Ising.lattice((8, 8), coupling), obs=s); the model has none. Use NUTS."
        )
    if all(model.normalizer in ("exact", "ignore") for model in models.values()):
        modes = {name: model.normalizer for name, model in models.items()}
        raise ValueError(
            f"{owner}: expected an energy-based site whose log Z is unknown (the default, "
            f'normalizer="guard"); got {modes}. With normalizer="exact" use NUTS, which is exact '
            "and faster."
        )


def _check_scale(owner: str, name: str, site: dict[str, Any]) -> None:
    if site["scale"] is not None and not is_identically_one(site["scale"]):
        raise ValueError(
            f"{owner}: expected no `scale` (handlers.scale or a subsampled plate) on '{name}'; a "
            "power of a likelihood has no data to draw. Use all rows."
        )


def check_latent(owner: str, model_trace: Trace, sites: tuple[str, ...]) -> None:
    """Refuse latent sites that are no continuous parameters.

    Raises:
        ValueError: A latent site is an energy-based model or discrete, or there is none.
    """
    models = [name for name in sites if unwrap(model_trace[name]["fn"]) is not None]
    if models:
        raise ValueError(
            f"{owner}: expected energy-based sites to be observed; {models} are latent. Pass "
            "`obs`, or sample them by another block: numpyro.infer.Gibbs([(BlockGibbs(model), "
            f"ebm.energy_sites), ({owner}(model), None)])."
        )
    discrete = [name for name in sites if model_trace[name]["fn"].support.is_discrete]
    if discrete:
        raise ValueError(
            f"{owner}: expected continuous latent sites; got discrete {discrete}. Sample them by "
            "another block of numpyro.infer.Gibbs, such as (GibbsWithGradients(model), "
            "ebm.discrete_sites)."
        )
    if not sites:
        raise ValueError(
            f"{owner}: expected a model with latent parameters; it has none. Give the parameters "
            "of its energy-based sites priors: coupling = numpyro.sample('coupling', ...)."
        )
