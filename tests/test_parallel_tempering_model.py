"""Tempering kernels as NumPyro kernels: chain methods, blocks, plates, clamps, likelihoods."""

import pickle
from functools import cache

import arviz as az
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from chains import Posterior, assert_chain_means, assert_posterior, run
from numpyro.infer import NUTS, SVI, Gibbs
from registry import Case
from scipy import stats

import numpyro_ebm as ebm
from numpyro_ebm import RBM, BlockGibbs

BASE = Case("Bernoulli", "Bernoulli", 950).build()
STRONG = RBM(3 * BASE.weights, BASE.visible_units, BASE.hidden_units)
Y = np.array([0.8, -0.5, 0.3])
SNAPSHOTS = [RBM(c * STRONG.weights, STRONG.visible_units, STRONG.hidden_units) for c in (0.0, 0.5)]
SHORT = {"num_warmup": 10, "num_samples": 20, "num_chains": 2}


def signs(y=Y):
    v = numpyro.sample("v", STRONG)
    numpyro.sample("y", dist.Normal(2 * v - 1, 1.0).to_event(1), obs=y)


def noise(y=Y):
    scale = numpyro.sample("scale", dist.Gamma(4.0, 4.0))
    v = numpyro.sample("v", STRONG)
    numpyro.sample("y", dist.Normal(2 * v - 1, scale).to_event(1), obs=y)


def rows():
    with numpyro.plate("rows", 3):
        numpyro.sample("v", STRONG)


KERNELS = {
    "ParallelTempering": lambda m: ebm.ParallelTempering(m, num_temperatures=4),
    "TemperedTransitions": lambda m: ebm.TemperedTransitions(m, num_temperatures=4),
    "SimulatedTempering": lambda m: ebm.SimulatedTempering(m, num_temperatures=3),
    "ParallelTrajectoryTempering": lambda m: ebm.ParallelTrajectoryTempering(
        m, ebm.Trajectory([*SNAPSHOTS, STRONG])
    ),
}
SHORT_NAMES = {"PT": "ParallelTempering", "TT": "TemperedTransitions", "ST": "SimulatedTempering"}


def kernels(*quick):
    """Run a test over every kernel, others than those named only among the slow tests."""
    names = [SHORT_NAMES.get(name, "ParallelTrajectoryTempering") for name in quick]
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in KERNELS if name not in names]
    return pytest.mark.parametrize("name", names + slow)


@cache
def posterior():
    def log_likelihood(states):
        return stats.norm.logpdf(Y, 2 * states - 1, 1.0).sum(-1)

    return Posterior(STRONG, log_likelihood)


@kernels("PT", "TT", "ST", "PTT")
def test_a_likelihood_on_the_units(name):
    options = {"num_chains": 16, "num_samples": 500}
    assert_posterior(run(KERNELS[name](signs), **options), posterior())


@kernels("PT", "ST")
def test_parallel_chains(name):
    check_chain_method(name, "parallel")


@kernels("TT", "PTT")
def test_sequential_chains(name):
    check_chain_method(name, "sequential")


def check_chain_method(name, chain_method):
    mcmc = run(KERNELS[name](signs), chain_method=chain_method, **SHORT)
    samples = mcmc.get_samples(group_by_chain=True)["v"]
    assert samples.shape == (2, 20, 3)
    assert samples.dtype == "uint8"
    copy = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(copy.get_samples(group_by_chain=True)["v"], samples)
    copy.post_warmup_state = copy.last_state
    copy.run(copy.last_state.rng_key)
    assert len(copy.get_samples()["v"]) == 40


def second_moment_of_scale():
    """Posterior mean of the scale and of the units, by quadrature over the scale."""
    grid = np.linspace(0.02, 6, 3000)
    states = posterior().states
    log_joint = stats.gamma.logpdf(grid, 4, scale=0.25)[:, None] - posterior().energy
    log_joint = log_joint + stats.norm.logpdf(Y, 2 * states - 1, grid[:, None, None]).sum(-1)
    probs = np.exp(log_joint - log_joint.max())
    probs /= probs.sum()
    return np.array([probs.sum(1) @ grid, *(probs.sum(0) @ states)])


@kernels("PT", "ST")
def test_as_a_block_of_gibbs(name):
    kernel = Gibbs([(KERNELS[name](noise), ebm.energy_sites), (NUTS(noise), None)])
    options = {"num_chains": 8, "num_warmup": 200, "num_samples": 400, "chain_method": jax.vmap}
    mcmc = run(kernel, extra_fields=("block_states.0.energy",), **options)
    draws = mcmc.get_samples(group_by_chain=True)
    both = np.concatenate([draws["scale"][..., None], np.float64(draws["v"])], -1)
    assert_chain_means(both, second_moment_of_scale())


@kernels("ST")
def test_rows_of_a_plate(name):
    mcmc = run(KERNELS[name](rows), num_chains=4, num_samples=400)
    samples = mcmc.get_samples(group_by_chain=True)["v"]
    assert samples.shape == (4, 400, 3, 3)
    together = np.concatenate(list(np.moveaxis(np.asarray(samples), 2, 0)), 0)
    prior = Posterior(STRONG)
    assert_chain_means(np.float64(together), prior.probs @ prior.states)


@kernels("PT", "TT")
def test_clamped_units(name):
    inner = BlockGibbs(lambda: numpyro.sample("v", STRONG), clamp={"v": ([True, False, False], 1)})
    mcmc = run(KERNELS[name](inner), num_chains=16, num_samples=400)
    samples = np.asarray(mcmc.get_samples(group_by_chain=True)["v"], float)
    assert np.all(samples[..., 0] == 1)
    prior = Posterior(STRONG)
    held = prior.states[:, 0] == 1
    expected = prior.probs[held] @ prior.states[held] / prior.probs[held].sum()
    assert_chain_means(samples[..., 1:], expected[1:])


@pytest.mark.slow
def test_diagnostics_reach_arviz():
    kernel = ebm.ParallelTempering(signs, num_temperatures=4)
    fields = ("energy", "swap_rate", "round_trip_rate", "betas")
    mcmc = run(kernel, extra_fields=fields, **SHORT)
    stats_group = az.from_numpyro(mcmc, log_likelihood=False)["sample_stats"]
    assert stats_group["swap_rate"].shape == (2, 20, 3)
    assert stats_group["swap_prob"].shape == (2, 20, 3)
    assert stats_group["round_trips"].shape == (2, 20)
    assert stats_group["betas"].shape == (2, 20, 4)
    np.testing.assert_allclose(
        stats_group["energy"],
        STRONG.energy(mcmc.get_samples(group_by_chain=True)["v"]),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
def test_other_inner_kernels():
    inner = ebm.GibbsWithGradients(signs, num_flips=3)
    kernel = ebm.ParallelTempering(inner, num_temperatures=3)
    assert_posterior(run(kernel, num_chains=8, num_samples=600), posterior())


@pytest.mark.slow
def test_a_continuous_model_by_langevin_moves():
    case = Case("Gaussian", "Bernoulli", 911)
    rbm = case.build()
    kernel = ebm.ParallelTempering(
        ebm.MALA(lambda: numpyro.sample("v", rbm), 0.5), num_temperatures=3
    )
    mcmc = run(kernel, num_chains=16, num_warmup=200, num_samples=500)
    assert_posterior(mcmc, Posterior(rbm))
    step_size = np.asarray(mcmc.last_state.chains["v"].replicas.step_size)
    assert step_size.shape == (16, 3)
    assert len(np.unique(step_size[0])) == 3  # each temperature has its own


@pytest.mark.slow
def test_as_the_moves_of_annealing_and_learning():
    inner = ebm.kernels.ParallelTemperingStep(num_temperatures=2)
    evidence = ebm.evidence.ais(
        jax.random.key(0), STRONG, kernel=inner, num_temperatures=8, num_particles=2000
    )
    assert abs(evidence.log_evidence - Posterior(STRONG).log_evidence) < 4 * evidence.std_error

    def model(data):
        weights = numpyro.param("weights", STRONG.weights)
        rbm = RBM(weights, STRONG.visible_units, STRONG.hidden_units)
        numpyro.sample("v", rbm, obs=data)

    loss = ebm.ContrastiveDivergence(1, kernel=inner)
    svi = SVI(model, lambda data: None, optax.sgd(0.1), loss)
    state = svi.init(jax.random.key(0), np.eye(3))
    state, _ = jax.jit(svi.update)(state, np.eye(3))
    assert np.all(np.isfinite(svi.get_params(state)["weights"]))


@pytest.mark.slow
def test_raw_keys():
    kernel = ebm.ParallelTempering(signs, num_temperatures=3)
    mcmc = run(kernel, **SHORT)
    typed = np.asarray(mcmc.get_samples()["v"])
    mcmc.run(jax.random.PRNGKey(0))
    np.testing.assert_array_equal(mcmc.get_samples()["v"], typed)


def test_models_that_cannot_be_tempered():
    def no_site():
        numpyro.sample("x", dist.Normal(0, 1))

    with pytest.raises(ValueError, match="energy-based"):
        run(ebm.ParallelTempering(no_site, num_temperatures=3), **SHORT)

    other = RBM(np.ones((2, 2)), np.zeros(2), np.zeros(2))
    kernel = ebm.ParallelTrajectoryTempering(
        lambda: numpyro.sample("v", other), ebm.Trajectory([BASE, BASE])
    )
    with pytest.raises(ValueError, match="structure of the trajectory"):
        run(kernel, **SHORT)
