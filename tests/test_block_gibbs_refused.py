"""Models that block Gibbs must not sample: refused before the chain starts."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from registry import Case

from numpyro_ebm import RBM, BlockGibbs, NormalizerError

Y, BITS = np.array([0.8, -0.5, 0.3]), np.array([1, 0, 1])
BITS_PRIOR = Case("Bernoulli", "Bernoulli", 600).build()
REALS_PRIOR = Case("Gaussian", "Bernoulli", 600).build()


def observe(make, prior=BITS_PRIOR):
    """A model with the site "v" and whatever depends on it."""

    def model():
        make(numpyro.sample("v", prior))

    return model


def another(normalizer, obs=None):
    def make(v):
        prior = BITS_PRIOR
        logits = prior.visible_units.logits + v
        other = RBM(prior.weights, logits, prior.hidden_units, normalizer=normalizer)
        numpyro.sample("w", other, obs=obs)

    return make


def in_minibatches(v):
    with numpyro.plate("row", 10, subsample_size=5):
        numpyro.sample("y", dist.Normal(v[0], 1.0), obs=jnp.zeros(5))


def with_mutable_array(v):
    memory = jax.new_ref(jnp.zeros(3))
    memory[...] = 1.0 * v
    numpyro.sample("y", dist.Normal(memory[...], 1.0).to_event(1), obs=Y)


def scaled():
    with numpyro.handlers.scale(scale=2.0):
        numpyro.sample("v", BITS_PRIOR)


def hidden_from_view():
    with numpyro.handlers.mask(mask=jnp.array(False)):
        numpyro.sample("v", BITS_PRIOR)


def nothing_latent():
    numpyro.sample("v", BITS_PRIOR, obs=BITS)


COUPLES = (ValueError, r"terms that depend on site 'v' \((y|w)\) to be a product over its units")
UNKNOWN_LOG_Z = (NormalizerError, "'v' enters the parameters of the energy-based model at 'w'")
REFUSED = {
    "sum": (observe(lambda v: numpyro.sample("y", dist.Normal(v.sum(), 1.0), obs=1.0)), *COUPLES),
    "regression": (
        observe(lambda v: numpyro.sample("y", dist.Bernoulli(logits=v @ jnp.arange(3.0)), obs=1)),
        *COUPLES,
    ),
    "guard": (observe(another("guard")), *UNKNOWN_LOG_Z),
    "known log Z": (observe(another(1.5)), *UNKNOWN_LOG_Z),
    "guard, observed": (observe(another("guard", BITS)), *UNKNOWN_LOG_Z),
    "exact": (observe(another("exact")), *COUPLES),
    "StudentT": (
        observe(lambda v: numpyro.sample("y", dist.StudentT(3.0, v[0]), obs=1.0), REALS_PRIOR),
        ValueError,
        "Gaussian: the likelihood term on these units is not Gaussian.*Sample.*with NUTS",
    ),
    "improper": (
        observe(lambda v: numpyro.factor("f", 5.0 * (v**2).sum()), REALS_PRIOR),
        ValueError,
        "leaves the precision of each unit positive",
    ),
    "mask": (hidden_from_view, ValueError, "Site 'v': expected an unmasked latent"),
    "scale": (scaled, ValueError, "Site 'v': expected no `scale`.*Scale the likelihood instead"),
    "minibatch": (observe(in_minibatches), ValueError, "without subsampled plates"),
    "other latent": (
        observe(lambda v: numpyro.sample("s", dist.Normal())),
        ValueError,
        r"got \['s'\].*numpyro.infer.Gibbs\(\[\(BlockGibbs\(model\), ebm.energy_sites\)",
    ),
    "no site": (nothing_latent, ValueError, "a latent site with an energy-based model.*has none"),
    "mutable array": (observe(with_mutable_array), ValueError, "without side effects"),
}


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, vectorized):
    model, error, message = REFUSED[name]
    key = jax.random.key(0)
    with pytest.raises(error, match=message):
        BlockGibbs(model).init(jax.random.split(key) if vectorized else key, 0, None, (), {})
