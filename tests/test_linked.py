"""Linked importance sampling against known log Z: error, calibration, unbiasedness."""

import jax
import numpy as np
import pytest
from evidence_models import (
    FlipOne,
    calibration,
    distribution,
    doubtful,
    known,
    log_z_of,
    z_of_mean,
    z_of_mean_weight,
)

from numpyro_ebm import kernels
from numpyro_ebm.evidence import EvidenceWarning, linked


@doubtful
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("strong", {}),
        ("Gaussian visible", {}),
        ("bimodal", {}),
        ("frustrated", {"num_draws": 4}),
        ("Potts 3x3", {"num_draws": 4}),
        ("Ising 8x8", {"num_temperatures": 8, "kernel": kernels.SwendsenWangStep()}),
    ],
)
def test_calibrated_and_unbiased(name, settings):
    target, log_z, ratios = distribution(name), log_z_of(name), []
    settings = {"num_temperatures": 5, "num_draws": 8, "num_chains": 100} | settings

    def estimate(key):
        evidence = linked(key, target, **settings)
        ratios.append(np.exp(evidence.log_weights + evidence.log_z0 - log_z))
        return evidence

    rms, mean = calibration(estimate, log_z)
    assert 0.7 < rms < 1.5
    assert abs(mean) < 0.7
    assert abs(z_of_mean(ratios)) < 4


@pytest.mark.slow
@doubtful
def test_calibrated_for_a_model():
    model, args, log_evidence, _ = known("regression")
    settings = {"num_temperatures": 25, "num_draws": 8, "num_chains": 100}
    rms, mean = calibration(
        lambda key: linked(key, model, model_args=args, **settings), log_evidence, num_seeds=30
    )
    assert 0.7 < rms < 1.5
    assert abs(mean) < 0.7


def test_few_temperatures_with_long_chains_do_well():
    """Three temperatures, of which plain annealing would make nothing."""
    evidence = linked(jax.random.key(0), distribution("strong"), num_temperatures=3, num_draws=200)
    assert evidence.ok
    assert evidence.std_error < 0.1
    assert abs(evidence.log_evidence - log_z_of("strong")) < 4 * evidence.std_error
    assert evidence.trajectory.shape == (100, 3)
    np.testing.assert_array_equal(evidence.trajectory[:, -1], evidence.log_weights)


class Reversible(FlipOne):
    """A single-flip Metropolis kernel that says that it is reversible."""

    is_reversible = True


@doubtful
@pytest.mark.parametrize(("boost", "is_right"), [(0.0, True), (1.0, False)])
def test_a_kernel_of_your_own(boost, is_right):
    settings = {"num_temperatures": 4, "num_draws": 30, "num_chains": 4000}
    evidence = linked(
        jax.random.key(0), distribution("strong"), kernel=Reversible(boost), **settings
    )
    assert (abs(z_of_mean_weight(evidence, log_z_of("strong"))) < 4) == is_right


def test_kernels_that_are_not_reversible_are_refused():
    rbm, lattice = distribution("weak"), distribution("Ising 8x8")
    with pytest.raises(ValueError, match="linked: expected a reversible `kernel`.*got FlipOne"):
        linked(jax.random.key(0), rbm, kernel=FlipOne())
    with pytest.raises(ValueError, match="got GibbsSweeps for Ising"):
        linked(jax.random.key(0), lattice, kernel=kernels.GibbsSweeps())


@pytest.mark.slow
def test_single_flips_where_sweeps_are_not_reversible():
    evidence = linked(jax.random.key(0), distribution("Ising 8x8"), num_temperatures=6, num_draws=4)
    assert abs(evidence.log_evidence - log_z_of("Ising 8x8")) < 4 * evidence.std_error


def test_one_chain_has_no_error_bar():
    with pytest.warns(EvidenceWarning, match="one chain gives no standard error. Use more chains"):
        evidence = linked(jax.random.key(0), distribution("weak"), num_chains=1)
    assert np.isnan(evidence.std_error)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_draws": 0}, ValueError, "linked: expected `num_draws` of at least 1; got 0"),
        ({"num_chains": 0}, ValueError, "`num_chains` of at least 1; got 0"),
        ({"num_temperatures": 1}, ValueError, "`num_temperatures` of at least 2; got 1"),
        ({"betas": [0.5, 1]}, ValueError, "`betas` to increase from 0 to 1"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        linked(jax.random.key(0), distribution("weak"), **settings)
