"""The path from prior to posterior of NumPyro models: densities, AIS, kernels, doubt."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from evidence_models import calibration, doubtful, known, z_of_mean
from numpyro.infer import HMC, MCMC, NUTS
from numpyro.infer.util import potential_energy
from scipy import stats

import numpyro_ebm as ebm
from numpyro_ebm.evidence import EvidenceWarning, ais, bracket, linked, smc
from numpyro_ebm.evidence.model import ModelTarget
from numpyro_ebm.evidence.model_path import PriorToPosterior
from numpyro_ebm.evidence.schedule import resample_schedule
from numpyro_ebm.kernels import MALAStep


def path_of(name):
    found = known(name)
    return PriorToPosterior(ModelTarget("test", found.model, found.args, needs_prior=True))


# ----- the path ----------------------------------------------------------------------------


@pytest.mark.slow
def test_energy_is_prior_and_scaled_likelihood():
    path, (successes, trials) = path_of("rates"), known("rates").args
    logit = np.array([[-0.7], [0.2], [1.9]])
    rate = 1 / (1 + np.exp(-logit[:, 0]))
    log_prior = stats.beta.logpdf(rate, 2, 3) + np.log(rate * (1 - rate))
    log_likelihood = stats.binom.logpmf(successes, trials, rate[:, None]).sum(1)
    for beta in (0.0, 0.3, 1.0):
        energy = path.at(beta).energy(jnp.asarray(logit, jnp.float32))
        np.testing.assert_allclose(energy, -log_prior - beta * log_likelihood, rtol=1e-5)
    chain = path.at(0.5).chain_at(jnp.asarray(logit, jnp.float32))
    increment = path.log_weight_increment(chain, 0.25, 0.5)
    np.testing.assert_allclose(increment, 0.25 * log_likelihood, rtol=1e-5)


@pytest.mark.slow
def test_draws_at_zero_are_the_prior():
    path = path_of("rates")
    chain = path.sample(jax.random.key(0), 20_000)
    rate = 1 / (1 + np.exp(-np.asarray(chain.value[:, 0], np.float64)))
    assert stats.kstest(rate, stats.beta(2, 3).cdf).pvalue > 1e-3
    assert path.log_z0 == 0.0


def test_zero_likelihood_is_no_trouble_at_zero():
    path = path_of("range")
    outside = jnp.array([[-3.0]])
    assert np.isneginf(path.at(0.0).chain_at(outside).log_likelihood).all()
    assert np.isfinite(path.at(0.0).energy(outside)).all()
    assert np.isposinf(path.at(0.5).energy(outside)).all()


@pytest.mark.slow
def test_constrained_sites_in_plates():
    """The density is NumPyro's, with one Jacobian for each element of a plate."""

    def model():
        with numpyro.plate("rows", 3):
            scale = numpyro.sample("scale", dist.HalfNormal(1.0))
            shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
            with numpyro.plate("columns", 2):
                numpyro.sample("bound", dist.Uniform(0.0, scale))
            numpyro.sample("y", dist.Normal(shares.sum(-1), scale), obs=jnp.zeros(3))

    target = ModelTarget("test", model)
    value = jnp.asarray(np.random.default_rng(0).normal(size=target.event_shape), jnp.float32)
    expected = potential_energy(model, (), {}, target.unravel(value))
    np.testing.assert_allclose(target.energy(value), expected, rtol=1e-5)


def test_round_trips_and_transformations():
    path = path_of("regression")
    leaves, treedef = jax.tree.flatten(path)
    again = jax.tree.unflatten(treedef, leaves)
    value = jnp.ones((2, 5, 3))
    expected = path.at(0.5).energy(value)
    assert expected.shape == (2, 5)
    energy = jax.jit(lambda path, beta, value: path.at(beta).energy(value))
    np.testing.assert_allclose(energy(again, 0.5, value), expected, rtol=1e-6)
    mapped = jax.vmap(energy, (None, 0, None))(again, jnp.array([0.2, 0.5]), value)
    np.testing.assert_allclose(mapped[1], expected, rtol=1e-6)


# ----- annealed importance sampling --------------------------------------------------------


@doubtful
@pytest.mark.parametrize("name", ["regression", "rates", "range"])
def test_calibrated_and_unbiased(name):
    model, args, log_evidence, _ = known(name)
    ratios = []

    def estimate(key):
        evidence = ais(key, model, model_args=args, num_temperatures=25, num_particles=200)
        ratios.append(np.exp(evidence.log_weights - log_evidence))
        return evidence

    rms, _ = calibration(estimate, log_evidence, num_seeds=30)
    assert 0.7 < rms < 1.5
    assert abs(z_of_mean(ratios)) < 4


@pytest.mark.slow
@doubtful
@pytest.mark.parametrize(
    "kernel",
    [MALAStep(0.05, num_steps=2), HMC(lambda: None, trajectory_length=2.0), NUTS(lambda: None)],
    ids=["MALA", "HMC", "NUTS"],
)
def test_other_kernels_are_unbiased(kernel):
    model, args, log_evidence, _ = known("rates")
    evidence = ais(
        jax.random.key(0),
        model,
        model_args=args,
        kernel=kernel,
        num_temperatures=15,
        num_particles=2000,
        schedule="adaptive",
    )
    assert abs(z_of_mean(np.exp(evidence.log_weights - log_evidence))) < 4


@pytest.mark.slow
def test_nuts_on_a_distribution():
    rbm = ebm.RBM(0.5 * np.ones((2, 3)), ebm.units.Gaussian([0.5, -1.0], [0.7, 1.2]), -np.ones(3))
    evidence = ais(
        jax.random.key(0), rbm, kernel=NUTS(lambda: None, step_size=0.5), num_temperatures=30
    )
    truth = ebm.evidence.exact(rbm).log_evidence
    assert abs(evidence.log_evidence - truth) < 4 * evidence.std_error


@pytest.mark.slow
def test_default_settings_and_a_second_call_compiles_nothing(caplog):
    model, args, log_evidence, _ = known("regression")
    evidence = ais(jax.random.key(0), model, model_args=args)
    assert evidence.ok
    assert evidence.std_error < 0.1
    assert abs(evidence.log_evidence - log_evidence) < 4 * evidence.std_error
    assert evidence.trajectory.shape == (100, 1000)
    assert evidence.betas[1] < 0.01  # the likelihood of 30 data is far from flat
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        ais(jax.random.key(1), model, model_args=args)
    assert not [r for r in caplog.records if r.getMessage().startswith("Compiling")]


def test_zero_likelihood_at_prior_draws_counts_as_weight_zero():
    model, args, log_evidence, _ = known("range")
    with pytest.warns(EvidenceWarning, match="log-weights are not finite"):
        evidence = ais(
            jax.random.key(0), model, model_args=args, num_temperatures=50, num_particles=1000
        )
    share = evidence.diagnostics["num_non_finite"] / 1000
    assert abs(share - 2.5 / 4) < 0.07
    assert np.isfinite(evidence.log_evidence)
    assert abs(evidence.log_evidence - log_evidence) < 4 * evidence.std_error


@pytest.mark.slow
def test_a_finished_mcmc_in_either_precision():
    model, args, log_evidence, _ = known("rates")
    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(1), *args)
    single = ais(jax.random.key(0), mcmc, num_temperatures=100)
    with jax.enable_x64(True):
        double = ais(jax.random.key(0), mcmc, num_temperatures=100)
    for evidence in (single, double):
        assert abs(evidence.log_evidence - log_evidence) < 4 * evidence.std_error
    assert single.data_hash is not None


def test_large_log_likelihoods_warn_of_rounding():
    shift = 5e6

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        numpyro.factor("constant", -shift)

    with pytest.warns(EvidenceWarning, match=r"in float32 are rounded to 0\..* nats.*enable_x64"):
        evidence = smc(jax.random.key(0), model, model_args=(jnp.array(0.5),), num_particles=200)
    assert not evidence.ok


# ----- what is refused ---------------------------------------------------------------------


def guarded(y):
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("v", ebm.RBM(weights, jnp.zeros(3), jnp.zeros(2)), obs=y)


def discrete():
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=0.3)


def subsampled(y):
    mu = numpyro.sample("mu", dist.Normal())
    with numpyro.plate("rows", 10, subsample_size=5) as rows:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


@pytest.mark.parametrize(
    ("model", "args", "error", "message"),
    [
        (guarded, (np.zeros((4, 3), int),), ebm.NormalizerError, "log Z of 'v' .* is unknown"),
        (discrete, (), ValueError, "continuous latent sites; got discrete ones"),
        (subsampled, (np.zeros(10),), ValueError, "without subsampled plates"),
        (lambda: None, (), ValueError, "at least one latent site"),
    ],
)
@pytest.mark.parametrize("method", [ais, smc, linked])
def test_models_that_are_refused(method, model, args, error, message):
    with pytest.raises(error, match=f"{method.__name__}: .*{message}"):
        method(jax.random.key(0), model, model_args=args)


def test_kernels_that_are_refused():
    model, args, _, draw = known("rates")
    with pytest.raises(TypeError, match="ais: a NumPyro model has no Gibbs step"):
        ais(jax.random.key(0), model, model_args=args, kernel=ebm.kernels.GibbsSweeps())
    with pytest.raises(TypeError, match="bracket: expected `draws`"):
        bracket(jax.random.key(0), model, model_args=args)


# ----- schedules ---------------------------------------------------------------------------


def test_resampled_schedules_keep_their_density():
    betas = np.concatenate([[0.0], np.geomspace(1e-4, 1, 30)])
    finer = resample_schedule(betas, 301)
    assert (finer[0], finer[-1], finer.size) == (0, 1, 301)
    assert np.all(np.diff(finer) > 0)
    np.testing.assert_allclose(finer[::10], betas, rtol=1e-9)
    np.testing.assert_allclose(resample_schedule(np.array([0.0, 1.0]), 5), np.linspace(0, 1, 5))
