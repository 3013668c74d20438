"""Annealed importance sampling as a function: arithmetic, compilation, warnings, bad input."""

import logging

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from evidence_models import MODELS, FlipOne, Line, doubtful, normal, true_log_z, z_of_mean_weight

import numpyro_ebm as ebm
from numpyro_ebm import units
from numpyro_ebm.evidence import Evidence, EvidenceWarning, ais
from numpyro_ebm.kernels import GibbsSweeps

# ----- arithmetic --------------------------------------------------------------------------


def test_many_increments_add_up():
    """A running sum in float32 would be off by a thousandth of a nat and more."""
    rbm, path = MODELS["weak"](), Line(451.3)
    evidence = ais(jax.random.key(0), rbm, base=path, num_temperatures=14_500)
    np.testing.assert_allclose(evidence.log_evidence, 454.3, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_many_temperatures_stay_accurate():
    rbm = MODELS["categorical"]()
    evidence = ais(jax.random.key(0), rbm, num_temperatures=14_500)
    assert abs(evidence.log_evidence - true_log_z("categorical")) < 4 * evidence.std_error
    assert evidence.std_error < 0.01


def test_trajectory_accumulates_the_log_weights():
    evidence = ais(jax.random.key(0), MODELS["weak"](), num_temperatures=30, num_particles=40)
    assert isinstance(evidence, Evidence)
    assert evidence.trajectory.shape == (40, 30)
    assert evidence.trajectory.dtype == np.float64
    np.testing.assert_array_equal(evidence.trajectory[:, 0], 0)
    np.testing.assert_array_equal(evidence.trajectory[:, -1], evidence.log_weights)
    np.testing.assert_array_equal(evidence.betas, np.linspace(0, 1, 30))
    assert evidence.method == "ais"
    assert evidence.diagnostics["num_particles"] == 40


def test_log_z0_is_that_of_the_base_in_double_precision():
    rbm, base = MODELS["weak"](), np.round(normal(0, 8) * 64) / 64
    evidence = ais(jax.random.key(0), rbm, base=units.Bernoulli(base), num_temperatures=10)
    expected = np.logaddexp(0, base).sum() + 5 * np.log(2)
    np.testing.assert_allclose(evidence.log_z0, expected, rtol=1e-14)


def test_two_temperatures_are_plain_importance_sampling():
    rbm = MODELS["weak"]()
    evidence = ais(jax.random.key(0), rbm, num_temperatures=2, num_particles=20_000)
    assert evidence.trajectory.shape == (20_000, 2)
    assert abs(z_of_mean_weight(evidence, true_log_z("weak"))) < 4


def test_betas_of_your_own():
    rbm, key = MODELS["weak"](), jax.random.key(0)
    spaced = ais(key, rbm, num_temperatures=30)
    same = ais(key, rbm, betas=np.linspace(0, 1, 30), num_temperatures=7)
    np.testing.assert_array_equal(spaced.trajectory, same.trajectory)
    bent = ais(key, rbm, betas=list(np.linspace(0, 1, 30) ** 2))
    assert abs(bent.log_evidence - true_log_z("weak")) < 4 * bent.std_error


def test_schedules():
    rbm, key = MODELS["weak"](), jax.random.key(0)
    sigmoid, adaptive = (
        ais(key, rbm, schedule=name, num_temperatures=30) for name in ("sigmoid", "adaptive")
    )
    raw = 1 / (1 + np.exp(-4 * (2 * np.linspace(0, 1, 30) - 1)))
    expected = (raw - raw[0]) / (raw[-1] - raw[0])
    np.testing.assert_allclose(sigmoid.betas, expected, rtol=1e-12, atol=1e-15)
    for evidence in (sigmoid, adaptive):
        assert (evidence.betas[0], evidence.betas[-1], evidence.betas.size) == (0, 1, 30)
        assert np.all(np.diff(evidence.betas) > 0)
        assert abs(evidence.log_evidence - true_log_z("weak")) < 4 * evidence.std_error


def test_typed_and_raw_keys_agree_and_keys_matter():
    rbm = MODELS["weak"]()
    typed, raw, other = (
        ais(key, rbm, num_temperatures=30).log_evidence
        for key in (jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(4))
    )
    assert typed == raw != other


def test_double_precision():
    with jax.enable_x64(True):
        evidence = ais(jax.random.key(0), MODELS["strong"]())
    assert abs(evidence.log_evidence - true_log_z("strong")) < 4 * evidence.std_error


def test_single_precision_model_while_double_is_enabled():
    rbm = MODELS["strong"]()
    with jax.enable_x64(True):
        evidence = ais(jax.random.key(0), rbm)
    assert abs(evidence.log_evidence - true_log_z("strong")) < 4 * evidence.std_error


def compilations(caplog, function):
    """Number of programs compiled while a function runs."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        function()
    count = sum(record.getMessage().startswith("Compiling") for record in caplog.records)
    caplog.clear()
    return count


@doubtful
@pytest.mark.parametrize("kernel", [None, GibbsSweeps(2), FlipOne(0.0)])
def test_a_second_call_compiles_nothing(caplog, kernel):
    def run(seed):
        rbm = ebm.RBM(normal(seed, 6, 3), normal(seed, 6), normal(seed, 3))
        betas = np.linspace(0, 1, 23) ** (1 + 0.1 * seed)
        ais(jax.random.key(seed), rbm, kernel=kernel, betas=betas, num_particles=40)

    assert compilations(caplog, lambda: run(0)) > 0
    assert compilations(caplog, lambda: run(1)) == 0


# ----- doubt -------------------------------------------------------------------------------


def test_a_hard_model_with_few_temperatures_warns():
    rbm = ebm.RBM(normal(1, 30, 16, scale=2.0), normal(2, 30), normal(3, 16))
    far = units.Bernoulli(np.zeros(30))
    with pytest.warns(EvidenceWarning) as issued:
        evidence = ais(jax.random.key(0), rbm, base=far, num_temperatures=3)
    assert not evidence.ok
    assert [str(w.message) for w in issued] == list(evidence.warnings)
    assert evidence.warnings[0].startswith("ais: the effective sample size is")
    assert "more temperatures" in evidence.warnings[0]


def test_weights_that_are_not_finite_are_counted():
    with pytest.warns(EvidenceWarning, match="7 of 100 log-weights are not finite"):
        evidence = ais(jax.random.key(0), MODELS["weak"](), base=Line(1.0, num_bad=7))
    assert evidence.diagnostics["num_non_finite"] == 7
    np.testing.assert_allclose(evidence.log_evidence, 4 + np.log(0.93), rtol=1e-6)


def test_one_particle_has_no_error_bar():
    with pytest.warns(EvidenceWarning, match="one particle"):
        evidence = ais(jax.random.key(0), MODELS["weak"](), num_particles=1)
    assert np.isnan(evidence.std_error)
    assert np.isfinite(evidence.log_evidence)


# ----- bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "`num_particles` of at least 1; got 0"),
        ({"num_particles": 2.5}, TypeError, "an integer `num_particles`; got 2.5"),
        ({"num_temperatures": 1}, ValueError, "`num_temperatures` of at least 2; got 1"),
        ({"betas": [0, 0.5, 0.4, 1]}, ValueError, "`betas` to increase from 0 to 1"),
        ({"betas": [0, 0.5]}, ValueError, "`betas` to increase from 0 to 1"),
        ({"betas": [0, np.nan, 1]}, ValueError, "`betas` to increase from 0 to 1"),
        ({"betas": [[0, 1]]}, ValueError, "`betas` to increase from 0 to 1"),
        ({"betas": "linear"}, TypeError, "an array for `betas`; got 'linear'"),
        ({"base": "data"}, TypeError, "`base` to be data .* got str"),
        ({"base": np.zeros((5, 7))}, ValueError, r"`base` of shape \(\.\.\., 8,?\)"),
        ({"base": np.zeros(8)}, ValueError, r"`base` data of shape \(n, 8\)"),
        ({"base": np.zeros((0, 8))}, ValueError, "n >= 1"),
        ({"base": np.full((5, 8), 7)}, ValueError, "`base` in the support"),
        ({"base": units.Spin(np.zeros(8))}, ValueError, "`base` of the visible units' kind"),
        ({"base": units.Bernoulli(np.zeros(7))}, ValueError, "`base` of the visible units' kind"),
        ({"kernel": ebm.BlockGibbs(lambda: None)}, TypeError, "methods init, step, value"),
        ({"schedule": "cosine"}, ValueError, "`schedule` to be one of .* got 'cosine'"),
        ({"model_args": (1,)}, TypeError, "no `model_args`"),
        ({"model_kwargs": {"y": 1}}, TypeError, "no `model_args` or `model_kwargs`"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        ais(jax.random.key(0), MODELS["weak"](), **settings)


@pytest.mark.parametrize("rng_key", [0, None, np.zeros(3), jax.random.split(jax.random.key(0))])
def test_bad_keys(rng_key):
    with pytest.raises(TypeError, match="ais: expected `rng_key` to be one random key"):
        ais(rng_key, MODELS["weak"]())


@pytest.mark.parametrize("target", [3, dist.Normal(), ebm.RBM, np.ones(3)])
def test_other_targets_are_refused(target):
    with pytest.raises(TypeError, match="`target` to be an EnergyDistribution, a NumPyro model"):
        ais(jax.random.key(0), target)


def test_batches_are_refused():
    rbm = ebm.RBM(np.zeros((2, 8, 5)), np.zeros(8), np.zeros(5))
    with pytest.raises(ValueError, match=r"batch shape \(\); got \(2,\)"):
        ais(jax.random.key(0), rbm)


def test_transformations_are_refused():
    rbm = MODELS["weak"]()

    def estimate(scale):
        return ais(
            jax.random.key(0),
            ebm.RBM(scale * rbm.weights, rbm.visible_units, rbm.hidden_units),
        ).log_evidence

    for transform in (jax.jit, jax.grad):
        with pytest.raises(TypeError, match="outside of jit, vmap and grad"):
            transform(estimate)(1.0)
    with pytest.raises(TypeError, match="outside of jit, vmap and grad"):
        jax.jit(lambda x: x + ais(jax.random.key(0), rbm).log_evidence)(1.0)


def test_paths_that_do_not_fit_are_refused():
    class Scalar(Line):
        def log_weight_increment(self, chain, beta, beta_next):
            return beta_next - beta

    class Unhashable(Line):
        __hash__ = None

    rbm = MODELS["weak"]()
    with pytest.raises(ValueError, match=r"`log_weight_increment` of Scalar .* \(100,\)"):
        ais(jax.random.key(0), rbm, base=Scalar(1.0))
    with pytest.raises(TypeError, match="`base` to be a pytree or hashable; got Unhashable"):
        ais(jax.random.key(0), rbm, base=Unhashable(1.0))
