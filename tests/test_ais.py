"""Annealed importance sampling against brute force: error, calibration, unbiasedness.

Truth is enumeration (a grid where units are continuous) in float64 NumPy; bounds are in reported
standard errors.
"""

import os

import jax
import numpy as np
import pytest
from evidence_models import (
    MODELS,
    FlipOne,
    doubtful,
    every_model,
    normal,
    true_log_z,
    z_of_mean,
    z_of_mean_weight,
)

import numpyro_ebm as ebm
from numpyro_ebm import datasets, units
from numpyro_ebm.evidence import ais, exact
from numpyro_ebm.kernels import GibbsSweeps

NUM_SEEDS = 40


# ----- right, calibrated, unbiased ---------------------------------------------------------


@doubtful
@every_model
def test_calibrated_and_unbiased_with_few_temperatures(name):
    rbm, log_z = MODELS[name](), true_log_z(name)
    scores, ratios = [], []
    for seed in range(NUM_SEEDS):
        evidence = ais(jax.random.key(seed), rbm, num_temperatures=12, num_particles=500)
        scores.append((evidence.log_evidence - log_z) / evidence.std_error)
        ratios.append(np.exp(evidence.log_weights + evidence.log_z0 - log_z))
    rms, mean, unbiased = np.sqrt(np.mean(np.square(scores))), np.mean(scores), z_of_mean(ratios)
    print(
        f"{name}: (estimate - truth) / se has RMS {rms:.2f}, mean {mean:.2f}; Z {unbiased:.1f} se"
    )
    assert abs(scores[0]) < 4
    assert 0.7 < rms < 1.5
    assert abs(unbiased) < 4


def test_default_settings():
    evidence = ais(jax.random.key(0), MODELS["strong"]())
    assert evidence.ok
    assert abs(evidence.log_evidence - true_log_z("strong")) < 4 * evidence.std_error
    assert evidence.trajectory.shape == (100, 1000)
    assert evidence.std_error < 0.2


@doubtful
@pytest.mark.parametrize(
    "base",
    [
        None,
        np.random.default_rng(0).integers(0, 2, (50, 8)),
        np.zeros((1, 8), np.uint8),
        units.Bernoulli(np.linspace(-1, 1, 8)),
        MODELS["strong"]().default_path(jax.random.key(5), np.ones((2, 8))),
    ],
    ids=["own mean", "data", "one row", "unit", "path"],
)
def test_any_base_is_unbiased(base):
    evidence = ais(
        jax.random.key(1),
        MODELS["strong"](),
        base=base,
        num_temperatures=20,
        num_particles=20_000,
    )
    assert abs(z_of_mean_weight(evidence, true_log_z("strong"))) < 4


def test_target_whose_weights_are_scaled():
    """The model half way along a path is itself a target."""
    half = MODELS["strong"]().default_path(jax.random.key(0)).at(0.5)
    evidence = ais(jax.random.key(1), half, num_temperatures=200)
    assert abs(evidence.log_evidence - exact(half).log_evidence) < 4 * evidence.std_error


def test_model_without_interaction_is_exact_from_its_own_units():
    rbm = ebm.RBM(np.zeros((8, 5)), normal(2, 8), np.zeros(5))
    evidence = ais(jax.random.key(0), rbm, base=rbm.visible_units, num_temperatures=10)
    np.testing.assert_allclose(evidence.log_evidence, exact(rbm).log_evidence, rtol=1e-7)
    assert evidence.std_error < 1e-6


# ----- kernels -----------------------------------------------------------------------------


@doubtful
@pytest.mark.parametrize("kernel", [GibbsSweeps(2), FlipOne()])
def test_other_kernels_are_unbiased(kernel):
    evidence = ais(
        jax.random.key(0),
        MODELS["strong"](),
        kernel=kernel,
        num_temperatures=20,
        num_particles=20_000,
    )
    assert abs(z_of_mean_weight(evidence, true_log_z("strong"))) < 4


@doubtful
def test_a_wrong_kernel_would_be_seen():
    rbm, settings = MODELS["strong"](), {"num_temperatures": 20, "num_particles": 20_000}
    evidence = ais(jax.random.key(0), rbm, kernel=FlipOne(boost=1.0), **settings)
    assert abs(z_of_mean_weight(evidence, true_log_z("strong"))) > 4


# ----- published model ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    "NUMPYRO_EBM_DATA" not in os.environ, reason="NUMPYRO_EBM_DATA names no data directory"
)
def test_published_rbm():
    """Hidden biases up to 23 nats: a path that does not anneal them ends 15 nats too low."""
    rbm = ebm.RBM(**datasets.load_rbm("rbm_salakhutdinov_murray_toy_15"))
    data = datasets.load("mnist_fixed_binarized").train[:10_000]
    evidence = ais(jax.random.key(0), rbm, base=data)
    assert evidence.ok
    assert abs(evidence.log_evidence - 216.061544) < 4 * evidence.std_error
