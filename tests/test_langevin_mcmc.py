"""MALA and ULA in MCMC: models with constraints, chain methods, Gibbs blocks, losses."""

import pickle

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from chains import assert_chain_means, run
from continuous_targets import mixture_moments
from numpyro.infer import MCMC, NUTS, SVI, Gibbs
from registry import Case

import numpyro_ebm as ebm
from numpyro_ebm.kernels import MALAStep

MIXTURE = Case("Gaussian", "Bernoulli", 911).build()
BINARY = Case("Bernoulli", "Bernoulli", 900).build()
COUNTS, Y = np.array([2, 0, 3, 1]), np.array([0.4, -1.0, 1.9])


def conjugate(counts=COUNTS, y=Y):
    """Rate | counts is Gamma(2 + 6, 1 + 4); mu | y is Normal(sum(y) / 4, 1 / 4)."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.deterministic("twice", 2 * rate)
    numpyro.sample("counts", dist.Poisson(rate).expand([len(counts)]).to_event(1), obs=counts)
    numpyro.sample("y", dist.Normal(mu[0], 1).expand([len(y)]).to_event(1), obs=y)


def statistics(samples):
    rate = np.asarray(samples["rate"])
    first, second = np.moveaxis(np.asarray(samples["mu"]), -1, 0)
    return np.stack([rate, rate**2, first, first**2, second, second**2, rate * first], -1)


MEAN = Y.sum() / 4
EXPECTED = np.array([1.6, 8 * 9 / 25, MEAN, MEAN**2 + 0.25, 0.0, 1.0, 1.6 * MEAN])
OPTIONS = {"num_warmup": 400, "num_samples": 2000, "num_chains": 2}


@pytest.mark.filterwarnings("ignore:Some donated buffers")  # NumPyro's, of constant fields
@pytest.mark.parametrize("method", ["vectorized", "sequential", "parallel", jax.vmap])
def test_posterior_of_constrained_sites(method):
    kernel = ebm.MALA(conjugate, 0.5, num_steps=2)
    mcmc = run(kernel, chain_method=method, extra_fields=("accept_prob", "step_size"), **OPTIONS)
    samples = mcmc.get_samples(group_by_chain=True)
    assert_chain_means(statistics(samples), EXPECTED)
    np.testing.assert_allclose(samples["twice"], 2 * samples["rate"], rtol=1e-6)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    np.testing.assert_allclose(fields["accept_prob"].mean(), 0.574, atol=0.1)
    assert all(np.unique(steps).size == 1 for steps in fields["step_size"])


@pytest.mark.slow
def test_summary_and_pickle():
    mcmc = run(ebm.MALA(conjugate), COUNTS, Y, num_warmup=20, num_samples=20)
    mcmc = pickle.loads(pickle.dumps(mcmc))
    assert "rate" in az.summary(az.from_numpyro(mcmc, log_likelihood=False)).index
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(jax.random.key(1), COUNTS, Y)
    assert mcmc.last_state.chains["joint"].warmup.count == 20


def mixture_site():
    with numpyro.plate("copies", 2):
        numpyro.sample("v", MIXTURE)


@pytest.mark.slow
def test_energy_based_site_in_a_plate():
    mcmc = run(ebm.MALA(mixture_site, 1.0), extra_fields=("energy",), **OPTIONS)
    v = np.asarray(mcmc.get_samples(group_by_chain=True)["v"], np.float64)
    mean, covariance = mixture_moments(MIXTURE)
    products = v[..., [0, 0, 1]] * v[..., [0, 1, 1]]
    second = (covariance + np.outer(mean, mean))[[0, 0, 1], [0, 1, 1]]
    both = np.concatenate([v, products], -1).reshape(*v.shape[:2], -1)
    assert_chain_means(both, np.tile(np.concatenate([mean, second]), 2))
    energy = mcmc.get_extra_fields(group_by_chain=True)["energy"]
    np.testing.assert_allclose(energy, MIXTURE.energy(v).sum(-1), rtol=1e-4, atol=1e-4)


def noisy_units():
    s = numpyro.sample("s", dist.Normal(0, 1))
    v = numpyro.sample("v", BINARY)
    with numpyro.plate("unit", 3):
        numpyro.sample("y", dist.Normal(s + v, 1.0), obs=Y)


def posterior_mean_of_s():
    """By enumeration of v: s | v, y is Normal(sum(y - v) / 4, 1 / 4)."""
    states = np.array(list(np.ndindex(2, 2, 2)))
    residual = Y - states
    log_evidence = residual.sum(1) ** 2 / 8 - (residual**2).sum(1) / 2
    log_weights = log_evidence - np.asarray(BINARY.energy(states), np.float64)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    return weights @ (residual.sum(1) / 4), weights @ states


@pytest.mark.slow
def test_block_of_gibbs_beside_binary_units():
    kernel = Gibbs([(ebm.BlockGibbs(noisy_units), ebm.energy_sites), (ebm.MALA(noisy_units), None)])
    samples = run(kernel, chain_method=jax.vmap, **OPTIONS).get_samples(group_by_chain=True)
    both = np.concatenate([samples["s"][..., None], samples["v"]], -1)
    s, v = posterior_mean_of_s()
    assert_chain_means(both, np.concatenate([[s], v]))


@pytest.mark.slow
def test_block_of_gibbs_beside_nuts():
    blocks = [(ebm.MALA(conjugate), ["rate"]), (NUTS(conjugate), None)]
    samples = run(Gibbs(blocks), chain_method=jax.vmap, **OPTIONS).get_samples(group_by_chain=True)
    assert_chain_means(statistics(samples), EXPECTED)


def test_ula_has_the_closed_form_bias():
    """Variance 1 / (1 - h / 4) for a standard normal."""
    step_size = 1.0

    def model():
        numpyro.sample("x", dist.Normal(0, 1).expand([5]).to_event(1))

    x = run(ebm.ULA(model, step_size), **OPTIONS).get_samples(group_by_chain=True)["x"]
    x = np.asarray(x, np.float64)
    assert_chain_means(x**2, np.full(5, 1 / (1 - step_size / 4)))


@pytest.mark.parametrize("kernel", [ebm.MALA, ebm.ULA])
def test_discrete_sites_are_refused(kernel):
    with pytest.raises(ValueError, match=r"expected continuous latent sites.*\['v'\].*Gibbs"):
        run(kernel(noisy_units), num_samples=2)


def test_contrastive_divergence_with_mala():
    data = jnp.asarray(np.random.default_rng(0).normal(1.0, 0.7, (400, 2)), jnp.float32)

    def model(data):
        loc = numpyro.param("loc", jnp.zeros(2))
        visible = ebm.units.Gaussian(loc, 0.7)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", ebm.RBM(jnp.zeros((2, 1)), visible, jnp.zeros(1)), obs=data)

    loss = ebm.ContrastiveDivergence(10, kernel=MALAStep(0.3))
    svi = SVI(model, lambda data: None, optax.adam(0.05), loss)
    loc = svi.run(jax.random.key(0), 300, data, progress_bar=False).params["loc"]
    np.testing.assert_allclose(loc, data.mean(0), atol=0.1)


@pytest.mark.slow
def test_runs_are_reproducible_and_raw_keys_work():
    def collect(key):
        mcmc = MCMC(ebm.MALA(conjugate), num_warmup=5, num_samples=5, progress_bar=False)
        mcmc.run(key)
        return mcmc.get_samples()["rate"]

    np.testing.assert_array_equal(collect(jax.random.key(3)), collect(jax.random.PRNGKey(3)))
