"""Chains of block Gibbs in ArviZ, 0.23 and 1.x."""

import warnings
from functools import lru_cache

import arviz as az
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import run
from numpyro.infer import NUTS, Gibbs
from registry import Case
from scipy import stats

from numpyro_ebm import BlockGibbs, energy_sites

RBM = Case("Bernoulli", "Bernoulli", 900).build()
Y = np.array([0.8, -0.5, 0.3])


def signs():
    v = numpyro.sample("v", RBM, infer={"event_dims": ["pixel"]})
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(2 * v - 1, 0.8), obs=Y)


def noise_scale():
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    v = numpyro.sample("v", RBM, infer={"event_dims": ["pixel"]})
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(2.0 * v - 1.0, s), obs=Y)


def noise_scale_of_integers():
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    v = numpyro.sample("v", RBM, infer={"event_dims": ["pixel"]})
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(2 * v - 1, s), obs=Y)


@lru_cache
def block_gibbs():
    return run(BlockGibbs(signs), num_chains=4, num_samples=250, extra_fields=("energy",))


@lru_cache
def gibbs(model):
    blocks = [(BlockGibbs(model), energy_sites), (NUTS(model), None)]
    options = {"num_chains": 4, "num_samples": 250, "chain_method": jax.vmap}
    return run(Gibbs(blocks), extra_fields=("block_states.0.energy",), **options)


RESULTS = {
    "BlockGibbs": block_gibbs,
    "Gibbs": lambda: gibbs(noise_scale),
}


def convert(mcmc):
    """ArviZ's own conversion, with the log likelihood."""
    return az.from_numpyro(mcmc, log_likelihood=True)


def variable(data, group, name):
    return data[group][name]


@pytest.mark.parametrize("name", RESULTS)
def test_posterior_keeps_type_and_dimensions(name):
    mcmc = RESULTS[name]()
    v = variable(convert(mcmc), "posterior", "v")
    assert v.dtype == np.uint8
    assert v.dims == ("chain", "draw", "pixel")
    np.testing.assert_array_equal(v, mcmc.get_samples(group_by_chain=True)["v"])


@pytest.mark.parametrize("name", RESULTS)
def test_energy_is_a_sample_statistic(name):
    mcmc = RESULTS[name]()
    (statistic,) = mcmc.get_extra_fields()
    energy = variable(convert(mcmc), "sample_stats", statistic)
    assert energy.shape == (4, 250)
    expected = RBM.energy(mcmc.get_samples(group_by_chain=True)["v"])
    np.testing.assert_allclose(energy, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RESULTS)
def test_diagnostics(name):
    data = convert(RESULTS[name]())
    summary = az.summary(data, var_names=["v"])
    assert list(summary.index) == ["v[0]", "v[1]", "v[2]"]
    means = np.asarray(variable(data, "posterior", "v")).mean((0, 1))
    np.testing.assert_allclose(np.float64(summary["mean"]), means, atol=0.01)
    assert np.all(np.asarray(az.rhat(data)["v"]) < 1.05)
    assert np.all(np.asarray(az.ess(data)["v"]) > 100)


def assert_log_likelihood(mcmc, scale):
    v = np.float64(mcmc.get_samples(group_by_chain=True)["v"])
    log_likelihood = variable(convert(mcmc), "log_likelihood", "y")
    assert log_likelihood.dims == ("chain", "draw", "row")
    expected = stats.norm.logpdf(Y, 2 * v - 1, scale)
    np.testing.assert_allclose(log_likelihood, expected, rtol=1e-4, atol=1e-4)


def test_log_likelihood_of_block_gibbs():
    """The model does integer arithmetic on samples of 8 bits."""
    assert_log_likelihood(block_gibbs(), 0.8)


@pytest.mark.parametrize(
    "model", [noise_scale, pytest.param(noise_scale_of_integers, marks=pytest.mark.slow)]
)
def test_log_likelihood_of_gibbs(model):
    mcmc = gibbs(model)
    assert_log_likelihood(mcmc, np.asarray(mcmc.get_samples(group_by_chain=True)["s"])[..., None])


def test_leave_one_out_runs_on_a_normalized_likelihood():
    data = convert(gibbs(noise_scale))  # with tails: a likelihood of few values has none
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what leave-one-out says of ArviZ's own accord
        result = az.loo(data)
    assert np.isfinite(getattr(result, "elpd", getattr(result, "elpd_loo", np.nan)))


@pytest.mark.slow
def test_an_unnormalized_likelihood_is_not_reported_as_one():
    def model():
        numpyro.sample("v", RBM)
        numpyro.sample("data", RBM, obs=np.array([[1, 0, 1], [0, 0, 1]]))

    mcmc = run(BlockGibbs(model), num_chains=2, num_samples=20)
    with pytest.warns(UserWarning, match="log likelihood of an observed site is not normalized"):
        data = convert(mcmc)
    assert np.isnan(np.asarray(variable(data, "log_likelihood", "data"))).all()
