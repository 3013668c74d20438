"""Log Z from both sides: calibration where they agree, doubt where they do not."""

import jax
import numpy as np
import pytest
from evidence_models import (
    MODELS,
    calibration,
    distribution,
    doubtful,
    known,
    log_z_of,
    true_log_z,
)
from helpers import BruteForce

from numpyro_ebm import kernels, units
from numpyro_ebm.evidence import Evidence, EvidenceWarning, bracket


def seed_of(key):
    return int(jax.random.randint(key, (), 0, 2**30))


@doubtful
@pytest.mark.parametrize(
    ("name", "kernel"),
    [("strong", None), ("Gaussian visible", None), ("strong", "irreversible")],
)
def test_calibrated(name, kernel):
    rbm, log_z = MODELS[name](), true_log_z(name)
    brute, settings = BruteForce(rbm), {"num_temperatures": 20, "num_particles": 200}
    if kernel is not None:
        settings["kernel"] = Anonymous(2)

    def estimate(key):
        draws = brute.draw(np.random.default_rng(seed_of(key)), 200)
        return bracket(key, rbm, draws, **settings)

    rms, _ = calibration(estimate, log_z)
    assert 0.7 < rms < 1.5


class Anonymous(kernels.GibbsSweeps):
    """Sweeps of which nothing is known."""


@pytest.mark.slow
@doubtful
def test_calibrated_for_a_model():
    model, args, log_evidence, draw = known("regression")

    def estimate(key):
        draws = draw(np.random.default_rng(seed_of(key)), (1, 100))
        return bracket(key, model, draws, model_args=args, num_temperatures=40)

    rms, _ = calibration(estimate, log_evidence, num_seeds=30)
    assert 0.7 < rms < 1.5


def test_what_it_reports():
    rbm = distribution("strong")
    draws = BruteForce(rbm).draw(np.random.default_rng(0), 100)
    found = bracket(jax.random.key(0), rbm, draws, num_temperatures=100)
    assert isinstance(found, Evidence)
    assert found.ok
    assert abs(found.log_evidence - log_z_of("strong")) < 4 * found.std_error
    report = found.diagnostics
    np.testing.assert_allclose(report["gap"], report["upper"] - report["lower"])
    low, high = found.interval(0.95)
    assert low < report["lower"] - 1.9 * report["lower_std_error"]
    assert high > report["upper"] + 1.9 * report["upper_std_error"]
    assert found.std_error < min(report["lower_std_error"], report["upper_std_error"])
    assert "lower=" in repr(found)
    assert "lower" in found.to_datatree()["evidence"].data_vars
    with pytest.raises(ValueError, match="`prob` between 0 and 1; got 2"):
        found.interval(2)


def test_draws_of_one_mode_are_seen():
    """From a mode that weighs more in the base the upper bound ends up below the lower."""
    rbm = distribution("bimodal")
    brute = BruteForce(rbm)
    lighter = brute.visible.values.sum(1) < 0
    assert brute.probs[lighter].sum() < 0.45
    draws = brute.draw(np.random.default_rng(0), 400, lighter)
    base = units.Spin(np.full(7, -0.3))
    settings = {"num_temperatures": 300, "num_particles": 400, "base": base}
    with pytest.warns(EvidenceWarning, match="the draws are not from the target"):
        found = bracket(jax.random.key(0), rbm, draws, **settings)
    assert not found.ok
    assert found.diagnostics["gap"] < 0


@pytest.mark.slow
def test_fewer_draws_than_particles():
    rbm = distribution("weak")
    draws = rbm.sample(jax.random.key(0), (30,))
    found = bracket(jax.random.key(1), rbm, draws, num_temperatures=30, num_particles=60)
    assert abs(found.log_evidence - log_z_of("weak")) < 4 * found.std_error
