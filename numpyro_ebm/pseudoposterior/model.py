"""The NumPyro model whose energy-based sites count by their pseudolikelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import EnergyDistribution, rewrap, unwrap
from numpyro_ebm.kernels.pseudolikelihood import Pseudolikelihood


class _PseudolikelihoodModel(Messenger):
    """Gives every observed energy-based site of unknown log Z its pseudolikelihood."""

    found: bool = False

    def __enter__(self) -> None:
        self.found = False
        super().__enter__()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = super().__call__(*args, **kwargs)
        if not self.found:
            raise ValueError(
                "pseudolikelihood: expected a model with an energy-based site whose log Z is "
                'unknown, numpyro.sample("s", ebm.Ising(...), obs=data); this model has none. '
                "A site of known log Z has a likelihood: use the model as it is."
            )
        return result

    def process_message(self, msg: dict[str, Any]) -> None:
        model = unwrap(msg["fn"]) if msg["type"] == "sample" else None
        if model is None or model.normalizer != "guard":
            return
        self.found = True
        if msg["is_observed"]:  # without data, as in Predictive, the site is drawn
            _check_discrete(msg["name"], model)
            msg["fn"] = rewrap(msg["fn"], lambda model, masked: _replacement(msg, model, masked))


def pseudolikelihood(model: Callable[..., Any]) -> Callable[..., Any]:
    r"""The NumPyro model in which pseudolikelihoods stand for likelihoods of unknown log Z.

    Each observed energy-based site whose log Z is unknown contributes

    .. math:: \sum_i \log p(x_i \mid x_{-i}, \theta)

    in nats for each observation in place of its log density; every other site, plates,
    subsampling, ``scale`` and masks stay as they are. Its posterior is a pseudo-posterior:
    an approximation that needs no log Z, is differentiable (``NUTS``, ``SVI``), and centres on the
    true parameters as observations grow. Its spread is not calibrated, as the units are counted as
    if each were a fresh observation: for couplings it is usually narrower than the error of its
    centre (by :math:`\sqrt 2` where they are weak, as every pair counts twice), for the field of
    units that attract each other it is wider. Near a critical point it can be wider than the
    posterior itself too, because it uses the data less well.
    :func:`godambe_adjustment` corrects it to first order; :class:`Exchange` samples the posterior
    itself.

    Sites without data are left as they are, so that ``Predictive`` draws from the model.

    Args:
        model: A NumPyro model.

    Returns:
        The model, with the same arguments.

    Raises:
        ValueError: When it runs: no energy-based site of unknown log Z; units that are not
            discrete; data outside the support.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC, NUTS
        >>> def model(spins=None):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 1))
        ...     numpyro.sample("spins", ebm.Ising.lattice((8, 8), coupling), obs=spins)
        >>> spins = ebm.Ising.lattice((8, 8), 0.2).sample(jax.random.key(0))
        >>> kernel = NUTS(ebm.pseudolikelihood(model))
        >>> mcmc = MCMC(kernel, num_warmup=200, num_samples=200, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), spins)
        >>> bool(abs(mcmc.get_samples()["coupling"].mean() - 0.2) < 0.4)
        True

    References:
        Besag (1975), "Statistical Analysis of Non-Lattice Data", The Statistician 24; Ribatet,
        Cooley & Davison (2012), "Bayesian inference from composite likelihoods, with an
        application to spatial extremes", Statistica Sinica 22.
    """
    return _PseudolikelihoodModel(model)


def _check_discrete(name: str, model: EnergyDistribution) -> None:
    if model.unit_states is None:
        raise ValueError(
            f"pseudolikelihood: expected discrete units at site '{name}'; the support of "
            f"{type(model).__name__} is {model.support}. For continuous units train by "
            'ebm.ScoreMatching or ebm.NoiseContrastiveEstimation, or pass normalizer="exact" '
            "where the model has its log Z."
        )


def _replacement(msg: dict[str, Any], model: EnergyDistribution, masked: bool) -> Distribution:
    """The pseudolikelihood of the model at a site, its data checked where they all count."""
    value = msg["value"]
    if not masked and not_jax_tracer(value):  # under jit, JAX would trace known data
        model.check_value(np.asarray(value), f"obs of site '{msg['name']}'")
    return Pseudolikelihood(model)
