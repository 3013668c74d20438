"""Which NumPyro models have a marginal likelihood that the estimators can find."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, ImproperUniform, MaskedDistribution
from numpyro.distributions.util import is_identically_one
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.gibbs import latent_sample_sites, subsample_plate_sizes
from numpyro.ops.provenance import eval_provenance

from numpyro_ebm.base import unwrap
from numpyro_ebm.evidence.enumeration import marked_sites
from numpyro_ebm.kernels.pseudolikelihood import has_pseudolikelihood
from numpyro_ebm.normalizer import NormalizerError


def check_model(
    caller: str,
    model_trace: OrderedDict[str, Any],
    *,
    needs_prior: bool,
    needs_likelihood: bool = True,
) -> tuple[str, ...]:
    """Return the latent sites of a model that are not summed out.

    Args:
        caller: The function that asks.
        model_trace: A trace of the model.
        needs_prior: Whether the prior must be proper and can be drawn from.
        needs_likelihood: Whether a pseudolikelihood is refused.

    Raises:
        ValueError: The model has no latent sites, subsampled plates, discrete latent sites that
            are not marked for enumeration, or an improper or altered prior where a proper one is
            needed.
        NormalizerError: Log Z of an energy-based site is unknown, or a pseudolikelihood stands for
            its likelihood.
    """
    latent = check_sites(caller, model_trace, needs_likelihood=needs_likelihood)
    marked = marked_sites(model_trace)
    sites = tuple(name for name in latent if name not in marked)
    discrete = [name for name in sites if model_trace[name]["fn"].support.is_discrete]
    if discrete:
        raise ValueError(
            f"{caller}: expected continuous latent sites; got discrete ones: {discrete}. Mark them "
            'infer={"enumerate": "parallel"} (numpyro.contrib.funsor.config_enumerate(model)), or '
            "sum them out in the model (numpyro.distributions.Mixture..., or a factor with "
            "logsumexp)."
        )
    if marked and not sites:
        raise ValueError(
            f"{caller}: expected a model with at least one continuous latent site; got none beside "
            f"{list(marked)}, which it marks for enumeration. Its log evidence is "
            "numpyro.contrib.funsor.log_density(enum(model), args, kwargs, {})[0]."
        )
    if not sites:
        raise ValueError(
            f"{caller}: expected a model with at least one latent site; got none. Its log evidence "
            "is its log likelihood: numpyro.infer.util.log_density(model, args, kwargs, {})[0]."
        )
    if needs_prior:
        for name in latent:
            _check_prior(caller, name, model_trace[name])
    return sites


def check_sites(
    caller: str, model_trace: OrderedDict[str, Any], *, needs_likelihood: bool = True
) -> tuple[str, ...]:
    """Return the latent sites of a model, of any kind.

    Raises:
        ValueError: The model has subsampled plates.
        NormalizerError: Log Z of an energy-based site is unknown, or a pseudolikelihood stands for
            its likelihood.
    """
    subsampled = subsample_plate_sizes(model_trace)
    if subsampled:
        raise ValueError(
            f"{caller}: expected a model without subsampled plates, because the marginal "
            f"likelihood is that of all data; got {sorted(subsampled)}. Use the whole data set."
        )
    for name, site in model_trace.items():
        if site["type"] == "sample":
            _check_normalizer(caller, name, site)
            if needs_likelihood and has_pseudolikelihood(site):
                raise NormalizerError(
                    f"{caller}: expected a likelihood at every observed site; '{name}' has a "
                    "pseudolikelihood, which does not integrate to one over data. Use "
                    "ebm.evidence.extended_bridge with the model itself."
                )
    return latent_sample_sites(model_trace)


def _check_normalizer(caller: str, name: str, site: dict[str, Any]) -> None:
    model = unwrap(site["fn"])
    if model is not None and model.normalizer == "guard":
        raise NormalizerError(
            f"{caller}: expected every energy-based site to be normalized; log Z of '{name}' "
            f"({type(model).__name__}) is unknown, and would be missing from the evidence. "
            "Use ebm.evidence.extended_bridge, which does without it; pass "
            'normalizer="exact" or its log Z, or normalizer="ignore" for a plain factor. If this '
            "log Z is what you want, pass the distribution (and draws of the site, grouped by "
            "chain) instead of the model."
        )


def check_known_normalizers(
    caller: str, program: Callable[[], Any], model_trace: Mapping[str, Any], latent: Sequence[str]
) -> None:
    """Refuse a log Z given as a number where the parameters it belongs to are unknown.

    Args:
        caller: The function that asks.
        program: The model with its arguments.
        model_trace: A trace of it.
        latent: All its latent sites.

    Raises:
        NormalizerError: The parameters of an energy-based site with ``normalizer`` an array depend
            on a latent site.
    """
    fixed = [
        name
        for name, site in model_trace.items()
        if site["type"] == "sample" and _normalizer_of(site) == "known"
    ]
    if not fixed:
        return

    def parameters(**values: Any) -> dict[str, list[Any]]:
        again = trace(substitute(seed(program, jax.random.key(0)), data=values)).get_trace()
        leaves = {name: jax.tree.leaves(unwrap(again[name]["fn"])) for name in fixed}
        return {name: [jnp.asarray(leaf) for leaf in found] for name, found in leaves.items()}

    values = {name: model_trace[name]["value"] for name in latent if name not in fixed}
    for name, leaves in eval_provenance(parameters, **values).items():
        causes = sorted(frozenset().union(*leaves))
        if causes:
            raise NormalizerError(
                f"{caller}: expected fixed parameters of '{name}', whose `normalizer` is a given "
                f"log Z; they depend on {causes}, and log Z with them. Pass normalizer="
                '"exact"; or normalizer="ignore" and log Z as a function of the parameters in '
                "numpyro.factor."
            )


def _normalizer_of(site: dict[str, Any]) -> str | None:
    model = unwrap(site["fn"])
    return None if model is None else model.normalizer


def _check_prior(caller: str, name: str, site: dict[str, Any]) -> None:
    """Refuse priors that do not integrate to one."""
    fn: Distribution = site["fn"]
    reason = None
    if _contains(fn, ImproperUniform):
        reason = "is improper (ImproperUniform)"
    elif _is_masked(fn):
        reason = "is masked, which makes it improper"
    elif site["scale"] is not None and not is_identically_one(site["scale"]):
        reason = "is scaled, and its power does not integrate to one"
    if reason:
        raise ValueError(
            f"{caller}: expected proper priors to draw from; that of '{name}' {reason}. Use "
            "ebm.evidence.bridge, which needs draws from the posterior only."
        )


def _contains(fn: Any, kind: type) -> bool:
    while fn is not None:
        if isinstance(fn, kind):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def _is_masked(fn: Any) -> bool:
    while fn is not None:
        if isinstance(fn, MaskedDistribution):
            mask = fn._mask
            return mask is False or (mask is not True and not np.all(np.asarray(mask)))
        fn = getattr(fn, "base_dist", None)
    return False
