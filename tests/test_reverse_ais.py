"""Annealing from draws down to the base, and what it says of data: error, calibration, bounds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_models import (
    MODELS,
    FlipOne,
    calibration,
    distribution,
    doubtful,
    known,
    log_z_of,
    true_log_z,
    z_of_mean,
)
from helpers import BruteForce
from numpyro.infer import MCMC, NUTS

import numpyro_ebm as ebm
from numpyro_ebm.evidence import EvidenceWarning, ais, exact, log_likelihood, reverse_ais
from numpyro_ebm.evidence.log_likelihood import _raise
from numpyro_ebm.evidence.problem import problem_of

# ----- log Z from above --------------------------------------------------------------------


@doubtful
@pytest.mark.parametrize("name", ["strong", "Gaussian visible", "bimodal"])
def test_calibrated_and_unbiased_for_the_inverse(name):
    rbm, log_z, ratios = MODELS[name](), true_log_z(name), []
    brute = BruteForce(rbm)

    def estimate(key):
        seed = int(jax.random.randint(key, (), 0, 2**30))
        draws = brute.draw(np.random.default_rng(seed), 500)
        evidence = reverse_ais(key, rbm, draws, num_temperatures=12, num_particles=500)
        ratios.append(np.exp(evidence.log_weights - (evidence.log_z0 - log_z)))
        return evidence

    rms, _ = calibration(estimate, log_z)
    assert 0.7 < rms < 1.5
    assert abs(z_of_mean(ratios)) < 4


def pairs(log_weights):
    """Log of the mean weight of every two particles."""
    return np.logaddexp(log_weights[::2], log_weights[1::2]) - np.log(2)


def z_of(values, truth):
    return (np.mean(values) - truth) / (np.std(values, ddof=1) / len(values) ** 0.5)


@doubtful
def test_few_particles_are_low_forwards_and_high_backwards():
    rbm, log_z = distribution("strong"), log_z_of("strong")
    draws = BruteForce(rbm).draw(np.random.default_rng(0), 4000)
    settings = {"num_temperatures": 3, "num_particles": 4000}
    below = ais(jax.random.key(0), rbm, **settings)
    above = reverse_ais(jax.random.key(0), rbm, draws, **settings)
    assert z_of(below.log_z0 + pairs(below.log_weights), log_z) < -4
    assert z_of(above.log_z0 - pairs(above.log_weights), log_z) > 4


@pytest.mark.slow
@doubtful
def test_calibrated_from_posterior_draws():
    model, args, log_evidence, draw = known("regression")

    def estimate(key):
        draws = draw(np.random.default_rng(int(jax.random.randint(key, (), 0, 2**30))), (1, 100))
        return reverse_ais(key, model, draws, model_args=args, num_temperatures=250)

    rms, _ = calibration(estimate, log_evidence, num_seeds=30)
    assert 0.7 < rms < 1.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numpyro_ebm.evidence.EvidenceWarning")  # few temperatures
def test_a_finished_mcmc_brings_model_and_draws():
    model, args, log_evidence, _ = known("rates")
    kernel = NUTS(model)
    mcmc = MCMC(
        kernel,
        num_warmup=300,
        num_samples=200,
        num_chains=2,
        progress_bar=False,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(1), *args)
    evidence = reverse_ais(jax.random.key(0), mcmc, num_temperatures=100)
    assert abs(evidence.log_evidence - log_evidence) < 4 * evidence.std_error
    assert evidence.log_weights.shape == (100,)
    assert evidence.data_hash is not None


def test_trajectory_and_log_weights_go_down():
    rbm = distribution("weak")
    draws = rbm.sample(jax.random.key(0), (40,))
    evidence = reverse_ais(jax.random.key(1), rbm, draws, num_temperatures=30)
    np.testing.assert_allclose(evidence.betas, np.linspace(1, 0, 30), atol=1e-15)
    assert evidence.trajectory.shape == (40, 30)
    mean = np.logaddexp.reduce(evidence.log_weights) - np.log(40)
    np.testing.assert_allclose(evidence.log_evidence, evidence.log_z0 - mean, rtol=1e-12)


def test_draws_of_slow_chains_widen_the_error():
    """Fifty copies of each of eight draws are eight draws."""
    rbm = distribution("strong")
    few = BruteForce(rbm).draw(np.random.default_rng(0), 8)
    copies = np.repeat(few, 50, axis=0)[None]
    settings = {"num_temperatures": 3, "num_particles": 400}
    sticky = reverse_ais(jax.random.key(1), rbm, copies, **settings)
    independent = BruteForce(rbm).draw(np.random.default_rng(1), 400)
    fresh = reverse_ais(jax.random.key(1), rbm, independent, **settings)
    assert sticky.std_error > 2 * fresh.std_error


@pytest.mark.parametrize(
    ("draws", "settings", "error", "message"),
    [
        (None, {}, TypeError, "reverse_ais: expected `draws` from the target"),
        (np.zeros((5, 7)), {}, ValueError, r"event shape \(8,\); got \(5, 7\)"),
        (np.zeros((0, 8)), {}, ValueError, r"got \(0, 8\)"),
        (np.full((5, 8), 7), {}, ValueError, "`draws` in the support"),
        (np.zeros((5, 8)), {"num_particles": 6}, ValueError, "got 5 draws for 6 particles"),
        ({"v": np.zeros((5, 8))}, {}, (TypeError, ValueError), "`draws`"),
    ],
)
def test_bad_draws(draws, settings, error, message):
    with pytest.raises(error, match=message):
        reverse_ais(jax.random.key(0), distribution("weak"), draws, **settings)


def test_bad_draws_of_a_model():
    model, args, _, draw = known("regression")
    with pytest.raises(TypeError, match="`draws` of a model as a dict.*got ndarray"):
        reverse_ais(jax.random.key(0), model, np.zeros((1, 5, 3)), model_args=args)
    with pytest.raises(ValueError, match="'slopes'.* are missing"):
        reverse_ais(jax.random.key(0), model, {"b": np.zeros((1, 5, 3))}, model_args=args)
    broken = {"slopes": np.full((1, 5, 3), np.nan)}
    with pytest.raises(ValueError, match="expected finite draws; 5 of 5"):
        reverse_ais(jax.random.key(0), model, broken, model_args=args)


# ----- log-likelihood of data --------------------------------------------------------------

EVERY_VALUE = np.array(list(itertools.product([0, 1], repeat=8)), np.int32)


class Reversible(FlipOne):
    """Single flips, which know that they are reversible."""

    is_reversible = True


def probabilities(kernel=None, num_chains=400):
    """Probability of every value under annealing in four temperatures, estimated by RAISE."""
    rbm, key = distribution("strong"), jax.random.key(0)
    problem = problem_of("test", rbm, (), None, base=None, kernel=kernel, rng_key=key)
    return np.exp(_raise(problem, key, np.linspace(0, 1, 4), EVERY_VALUE, num_chains))


def test_probabilities_of_the_annealing_process_add_up_to_one():
    assert abs(probabilities().sum() - 1) < 0.03
    assert abs(probabilities(Reversible()).sum() - 1) < 0.03
    assert abs(probabilities(Reversible(boost=3.0)).sum() - 1) > 0.06


@pytest.mark.slow
def test_both_sides_meet():
    rbm = distribution("strong")
    log_z = exact(rbm).log_evidence
    data = BruteForce(rbm).draw(np.random.default_rng(0), 300)
    truth = float(np.mean(-np.asarray(rbm.energy(data)) - log_z))
    found = log_likelihood(
        jax.random.key(0), rbm, data, num_temperatures=300, num_rows=300, num_chains=20
    )
    assert found.ok
    low, high = found.interval(0.9999)
    assert low < truth < high
    assert high - low < 0.2
    assert found.log_weights.shape == (300,)


@doubtful
def test_the_annealing_process_is_worse_than_the_model_on_its_own_data():
    rbm = distribution("strong")
    data = BruteForce(rbm).draw(np.random.default_rng(0), 2000)
    truth = -np.asarray(rbm.energy(data)) - exact(rbm).log_evidence
    settings = {"num_temperatures": 3, "num_rows": 2000, "num_chains": 1}
    found = log_likelihood(jax.random.key(0), rbm, data, **settings)
    z = (found.diagnostics["lower"] - truth.mean()) / found.diagnostics["lower_std_error"]
    assert z < -4


def test_log_z_of_your_own():
    rbm = distribution("weak")
    data = rbm.sample(jax.random.key(1), (50,))
    log_z = exact(rbm)
    found = log_likelihood(jax.random.key(0), rbm, data, num_temperatures=20, log_z=log_z)
    expected = np.mean(-np.asarray(rbm.energy(data), np.float64)) - log_z.log_evidence
    np.testing.assert_allclose(found.diagnostics["upper"], expected, rtol=1e-6)
    assert found.diagnostics["upper_std_error"] == 0


def test_data_and_kernels_that_do_not_fit():
    rbm, key = distribution("weak"), jax.random.key(0)
    with pytest.raises(ValueError, match=r"`data` of shape \(rows, \*event\)"):
        log_likelihood(key, rbm, np.zeros(8))
    with pytest.raises(ValueError, match="expected a reversible kernel"):
        log_likelihood(key, rbm, np.zeros((5, 8)), kernel=FlipOne())
    with pytest.raises(TypeError, match="log_likelihood: expected `target` to be an Energy"):
        log_likelihood(key, lambda: None, np.zeros((5, 8)))


# ----- a first-order transition ------------------------------------------------------------


def trap():
    """All of 40 units on together has most of the mass, and no short chain finds it."""
    return ebm.RBM(jnp.full((40, 10), 6.0), jnp.zeros(40), jnp.full(10, -6.0 * 39.2))


@pytest.mark.slow
@doubtful
def test_forward_annealing_alone_is_sure_and_wrong():
    rbm = trap()
    truth = exact(rbm).log_evidence
    settings = {"num_temperatures": 200}
    forward = ais(jax.random.key(0), rbm, **settings)
    assert forward.ok
    assert forward.diagnostics["ess"] > 70
    assert truth - forward.log_evidence > 5
    draws = rbm.sample(jax.random.key(1), (200,))  # exact: 2^10 hidden states
    with pytest.warns(EvidenceWarning, match="the bounds are .* nats apart"):
        found = ebm.evidence.bracket(jax.random.key(2), rbm, draws, **settings)
    low, high = found.interval()
    assert low < truth < high
    assert found.diagnostics["gap"] > 5
    assert abs(found.log_evidence - truth) < 2 * found.std_error
