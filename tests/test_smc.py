"""Sequential Monte Carlo against known log Z and known evidence: error, calibration, doubt."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from evidence_models import (
    MODELS,
    Line,
    calibration,
    distribution,
    doubtful,
    known,
    log_z_of,
    regression_model,
)
from numpyro.infer import MCMC, NUTS

from numpyro_ebm.evidence import EvidenceWarning, smc
from numpyro_ebm.evidence.particles import _normalize, _resample


@doubtful
@pytest.mark.parametrize(
    ("name", "num_particles"),
    [
        ("strong", 400),
        ("Gaussian visible", 400),
        ("spin", 400),
        ("Ising 8x8", 400),
        ("frustrated", 400),
        ("Potts 3x3", 400),
    ],
)
def test_calibrated(name, num_particles):
    target = distribution(name)
    rms, mean = calibration(
        lambda key: smc(key, target, num_particles=num_particles, target_ess=0.8), log_z_of(name)
    )
    assert 0.7 < rms < 1.5
    assert abs(mean) < 0.7


@doubtful
@pytest.mark.parametrize("name", ["regression", "rates", "range"])
def test_calibrated_for_models(name):
    model, args, log_evidence, _ = known(name)
    rms, mean = calibration(
        lambda key: smc(key, model, model_args=args, num_particles=400, target_ess=0.8),
        log_evidence,
    )
    assert 0.7 < rms < 1.5
    assert abs(mean) < 0.7


def test_default_settings():
    evidence = smc(jax.random.key(0), distribution("strong"))
    assert evidence.ok
    assert abs(evidence.log_evidence - log_z_of("strong")) < 4 * evidence.std_error
    found = evidence.diagnostics
    assert (found["num_particles"], found["num_islands"]) == (1000, 20)
    assert evidence.trajectory.shape == (20, found["num_temperatures"])
    assert evidence.betas.shape == (found["num_temperatures"],)
    assert (evidence.betas[0], evidence.betas[-1]) == (0, 1)
    assert np.all(np.diff(evidence.betas) > 0)
    np.testing.assert_array_equal(evidence.trajectory[:, -1], evidence.log_weights)
    mean = evidence.log_z0 + np.logaddexp.reduce(evidence.log_weights) - np.log(20)
    np.testing.assert_allclose(evidence.log_evidence, mean, rtol=1e-12)


def test_a_larger_target_takes_more_temperatures():
    few, many = (
        smc(jax.random.key(0), distribution("strong"), num_particles=400, target_ess=share)
        for share in (0.8, 0.99)
    )
    assert many.betas.size > 2 * few.betas.size


@pytest.mark.slow
def test_a_finished_mcmc_brings_its_model():
    model, args, log_evidence, _ = known("regression")
    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(1), *args)
    settings = {"num_particles": 400, "target_ess": 0.8}
    plain = smc(jax.random.key(0), model, model_args=args, **settings)
    brought = smc(jax.random.key(0), mcmc, **settings)
    assert brought.log_evidence == plain.log_evidence
    assert brought.data_hash == plain.data_hash is not None
    assert abs(plain.log_evidence - log_evidence) < 4 * plain.std_error


# ----- resampling --------------------------------------------------------------------------


def test_systematic_resampling_is_unbiased_and_low_in_variance():
    rng = np.random.default_rng(0)
    log_weights, _ = _normalize(jnp.asarray(rng.normal(size=(2, 10))))
    keys = jax.random.split(jax.random.key(0), 20_000)

    def parents(key):
        return _resample(key, jnp.arange(20), log_weights, jnp.array([True, False]))

    drawn = np.asarray(jax.vmap(parents)(keys))
    counts = np.stack([(drawn[:, :10] == i).sum(1) for i in range(10)], 1)
    expected = 10 * np.exp(np.asarray(log_weights[0]))
    error = (counts.mean(0) - expected) / np.maximum(counts.std(0) / len(keys) ** 0.5, 1e-9)
    assert np.all(np.abs(error) < 4)
    assert np.all(np.abs(counts - expected) < 1)  # what makes it systematic
    np.testing.assert_array_equal(drawn[:, 10:], np.broadcast_to(np.arange(10, 20), (20_000, 10)))


def test_no_dead_particle_is_chosen():
    log_weights = jnp.log(jnp.array([[0.0, 0.5, 0.5, 0.0]]))
    for seed in range(50):
        drawn = _resample(jax.random.key(seed), jnp.arange(4), log_weights, jnp.array([True]))
        assert set(np.asarray(drawn)) <= {1, 2}


# ----- doubt and bad input -----------------------------------------------------------------


def test_temperatures_that_run_out():
    with pytest.warns(EvidenceWarning, match="the 2 temperatures ran out"):
        evidence = smc(
            jax.random.key(0), distribution("strong"), num_particles=400, max_temperatures=2
        )
    assert not evidence.ok
    assert evidence.betas.size == 3


def test_weights_that_are_not_finite_count_as_zero():
    with pytest.warns(EvidenceWarning, match="1 of 20 log-weights are not finite"):
        evidence = smc(
            jax.random.key(0),
            MODELS["weak"](),
            base=Line(1.0, num_bad=50),
            max_temperatures=5,
        )
    assert evidence.diagnostics["num_non_finite"] == 1
    np.testing.assert_allclose(evidence.log_evidence, 4 + np.log(0.95), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_particles": 2}, ValueError, "smc: expected `num_particles` of at least 4; got 2"),
        ({"target_ess": 1.0}, ValueError, "`target_ess` between 0 and 1; got 1.0"),
        ({"num_steps": 0}, ValueError, "`num_steps` of at least 1; got 0"),
        ({"num_islands": 600}, ValueError, "two particles in each of 600 islands"),
        ({"max_temperatures": 0}, ValueError, "`max_temperatures` of at least 1"),
        ({"model_args": (1,)}, TypeError, "smc: expected no `model_args`"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        smc(jax.random.key(0), distribution("weak"), **settings)


def test_models_that_cannot_be_annealed():
    def masked(y):
        with numpyro.handlers.mask(mask=False):
            mu = numpyro.sample("mu", dist.Normal())
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with pytest.raises(ValueError, match="smc: expected proper priors.*'mu' is masked"):
        smc(jax.random.key(0), masked, model_args=(np.zeros(3),))
    with pytest.raises(TypeError, match="expected no `base` with a NumPyro model"):
        smc(jax.random.key(0), regression_model, model_args=known("regression").args, base=1)
    fresh = MCMC(NUTS(regression_model), num_warmup=1, num_samples=1)
    with pytest.raises(TypeError, match="expected an MCMC that has run"):
        smc(jax.random.key(0), fresh)
