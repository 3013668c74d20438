"""Simulation-based calibration, and how near the noisy kernels come."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import chain_z_scores
from intractable_models import lattice_data, lattice_grid, lattice_model, sample
from scipy import stats

import numpyro_ebm as ebm

PRIOR = dist.Normal(0.1, 0.15)
NUM_SETS, NUM_DRAWS, THIN, NUM_WARMUP = 150, 49, 10, 100


def ranks(kernel, shape):
    """Rank of the coupling that made each data set among draws from its posterior."""
    key_prior, key_data, key_run = jax.random.split(jax.random.key(0), 3)
    couplings = PRIOR.sample(key_prior, (NUM_SETS,))

    def one(coupling, key_data, key_run):
        s = ebm.Ising.lattice(shape, coupling).exact_sample(key_data)
        state = kernel.init(key_run, NUM_WARMUP, None, (s, PRIOR), {})

        def step(state, _):
            return kernel.sample(state, (s, PRIOR), {}), None

        def kept(state, _):
            state, _ = jax.lax.scan(step, state, length=THIN)
            return state, state.z["coupling"]

        state, _ = jax.lax.scan(step, state, length=NUM_WARMUP)
        _, draws = jax.lax.scan(kept, state, length=NUM_DRAWS)
        return (draws < coupling).sum()

    keys = (jax.random.split(key, NUM_SETS) for key in (key_data, key_run))
    return np.asarray(jax.jit(jax.vmap(one))(couplings, *keys))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [ebm.Exchange(lattice_model), ebm.PseudoMarginal(lattice_model)])
def test_ranks_are_uniform(kernel):
    counts = np.bincount(ranks(kernel, (6, 6)) // 5, minlength=10)
    assert counts.sum() == NUM_SETS
    assert stats.chisquare(counts).pvalue > 2 * stats.norm.sf(4)


@pytest.mark.parametrize(
    "kernel", [pytest.param(ebm.NoisyMALA, marks=pytest.mark.slow), ebm.NoisyHMC]
)
def test_noisy_kernels_are_near_the_posterior(kernel):
    """Approximate: with many draws their error is below the noise of a run of this length."""
    s, prior = lattice_data((3, 4), 0.2), dist.Normal(0, 0.3)
    mcmc = sample(kernel(lattice_model, num_draws=200), s, prior, num_samples=500)
    grid = lattice_grid(s, prior)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["coupling"], np.float64)
    both = np.stack([draws, (draws - grid.mean) ** 2], -1)
    assert np.all(np.abs(chain_z_scores(both, [grid.mean[0], grid.variance[0]])) < 4)


def test_scores_average_to_the_gradient_of_the_log_posterior():
    """Against the derivative of the enumerated log posterior, in standard errors."""
    from numpyro_ebm.kernels.intractable_step import stochastic_score

    s, prior = lattice_data((3, 3), 0.2), dist.Normal(0, 0.3)
    kernel = ebm.Exchange(lattice_model, proposal="langevin")
    state = kernel.init(jax.random.key(0), 0, None, (s, prior), {})
    model_trace = kernel._trace(state.z, (s, prior), {})
    target, flat = kernel._target(state.z, model_trace, (s, prior), {})
    keys = jax.random.split(jax.random.key(1), 4000)
    draw = jax.jit(jax.vmap(lambda key: stochastic_score(key, flat, target, 1)[1][0]))
    scores = np.asarray(draw(keys), np.float64)

    def log_posterior(coupling):
        ising = ebm.Ising.lattice((3, 3), coupling, normalizer="exact")
        return prior.log_prob(coupling) + ising.log_prob(s)

    exact = float(jax.grad(log_posterior)(flat[0]))
    error = scores.std(ddof=1) / len(scores) ** 0.5
    assert abs(scores.mean() - exact) < 4 * error


def test_several_sites_and_a_constrained_parameter_in_arviz():
    """Fields reach sample_stats, and deterministic sites are collected."""
    import arviz as az

    def model(s):
        coupling = numpyro.sample("coupling", dist.HalfNormal(0.3))
        numpyro.deterministic("inverse_temperature", 2 * coupling)
        numpyro.sample("s", ebm.Ising.lattice((3, 3), coupling), obs=s)

    s = lattice_data((3, 3), 0.2)
    mcmc = sample(ebm.Exchange(model), s, num_samples=100, num_warmup=50, num_chains=2)
    with pytest.warns(UserWarning, match="not normalized"):
        data = az.from_numpyro(mcmc)
    assert {"coupling", "inverse_temperature"} <= set(data.posterior)
    assert "acceptance_rate" in data.sample_stats or "accept_prob" in data.sample_stats
    assert bool((data.posterior["coupling"] > 0).all())
    assert jnp.all(mcmc.get_extra_fields()["auxiliary_drift"] == 0)
