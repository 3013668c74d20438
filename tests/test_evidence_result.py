"""Evidence as a container, and what importance weights are made to say."""

import pickle
import warnings

import arviz as az
import jax
import numpy as np
import pytest

from numpyro_ebm.evidence import Evidence, EvidenceWarning
from numpyro_ebm.evidence.weights import summarize_weights


def summary(log_weights):
    return summarize_weights(log_weights, "test", "Do better.")


def lognormal(scale, size=1000, seed=0):
    return scale * np.random.default_rng(seed).normal(size=size)


@pytest.fixture
def estimate():
    """An estimate with everything there is in one."""
    steps = np.random.default_rng(0).normal(0.01, 0.1, size=(50, 9))
    trajectory = np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1)
    return Evidence.from_log_weights(
        trajectory[:, -1], "ais", log_z0=5.0, betas=np.linspace(0, 1, 10), trajectory=trajectory
    )


# ----- weights -----------------------------------------------------------------------------


def test_mean_error_and_effective_sample_size_by_their_definitions():
    weights = np.random.default_rng(0).uniform(0.5, 2.0, size=400)
    result = summary(np.log(weights))
    error = weights.std(ddof=1) / weights.mean() / 20
    np.testing.assert_allclose(result.log_mean, np.log(weights.mean()), rtol=1e-12)
    np.testing.assert_allclose(result.std_error, error, rtol=1e-12)
    ess = weights.sum() ** 2 / (weights**2).sum()
    np.testing.assert_allclose(result.diagnostics["ess"], ess, rtol=1e-12)
    assert result.diagnostics["num_particles"] == 400
    assert result.diagnostics["num_non_finite"] == 0
    assert result.warnings == ()


@pytest.mark.parametrize("constant", [-50_000.0, 0.0, 50_000.0])
def test_a_constant_only_shifts_the_mean(constant):
    log_weights = lognormal(0.5)
    plain, shifted = summary(log_weights), summary(log_weights + constant)
    np.testing.assert_allclose(shifted.log_mean - constant, plain.log_mean, atol=1e-10)
    np.testing.assert_allclose(shifted.std_error, plain.std_error, rtol=1e-9)


def test_equal_weights_are_certain():
    result = summary(np.full(100, 451.0))
    assert (result.log_mean, result.std_error) == (451.0, 0.0)
    assert result.diagnostics["ess"] == 100
    assert result.warnings == ()


def test_standard_error_is_calibrated_where_nothing_warns():
    scores = []
    for seed in range(1000):
        result = summary(lognormal(0.7, size=100, seed=seed) - 0.7**2 / 2)  # mean weight 1
        scores += [] if result.warnings else [result.log_mean / result.std_error]
    assert len(scores) > 900
    assert 0.9 < np.sqrt(np.mean(np.square(scores))) < 1.2


@pytest.mark.parametrize(
    ("log_weights", "reason"),
    [
        (lognormal(2.5), "effective sample size"),
        (lognormal(4.0, size=100), "effective sample size"),
        (np.random.default_rng(0).exponential(size=1000), "heavy tail"),  # k = 1
        (np.zeros(9), "9 particles are too few"),
        (np.zeros(1), "one particle gives no standard error"),
        (np.append(np.zeros(99), np.nan), "1 of 100 log-weights are not finite"),
        (np.append(np.zeros(99), np.inf), "1 of 100 log-weights are not finite"),
        (np.append(np.zeros(98), [-np.inf, -np.inf]), "2 of 100 log-weights are not finite"),
        (np.full(3, np.nan), "no weight is left"),
    ],
)
def test_doubt_is_a_warning_and_an_entry(log_weights, reason):
    def estimator():
        return Evidence.from_log_weights(log_weights, "test")

    with pytest.warns(EvidenceWarning) as issued:
        evidence = estimator()
    assert any(reason in message for message in evidence.warnings)
    assert [str(w.message) for w in issued] == list(evidence.warnings)
    assert all(w.filename == __file__ for w in issued)  # where the estimator was called
    assert not evidence.ok


def test_weights_that_are_not_finite_count_as_zero():
    good = np.random.default_rng(0).uniform(0.5, 2.0, size=90)
    bad = [np.nan, np.inf, -np.inf, np.nan, -np.inf]
    result = summary(np.append(np.log(good), bad))
    np.testing.assert_allclose(result.log_mean, np.log(good.sum() / 95), rtol=1e-12)
    assert result.diagnostics["num_non_finite"] == 5
    assert np.isfinite(result.diagnostics["pareto_k"])


def test_no_error_bar_where_none_can_be_given():
    for log_weights in (np.zeros(1), np.full(5, np.nan), np.full(5, -np.inf)):
        assert np.isnan(summary(log_weights).std_error)
    assert summary(np.full(1, 3.5)).log_mean == 3.5
    assert np.isnan(summary(np.full(5, np.nan)).log_mean)


# ----- container ---------------------------------------------------------------------------


def test_estimate_adds_log_z0_to_the_mean_weight(estimate):
    expected = 5.0 + np.log(np.mean(np.exp(estimate.log_weights)))
    np.testing.assert_allclose(estimate.log_evidence, expected, rtol=1e-12)
    assert estimate.log_weights.dtype == np.float64
    assert estimate.ok


def test_interval_is_normal_on_the_log_scale():
    low, high = Evidence(2.0, 0.5, "ais").interval(0.95)
    np.testing.assert_allclose([low, high], [2 - 1.959964 * 0.5, 2 + 1.959964 * 0.5], rtol=1e-6)
    assert Evidence(2.0, 0.0, "exact").interval() == (2.0, 2.0)
    assert np.isnan(Evidence(2.0, float("nan"), "ais").interval()).all()
    low, high = Evidence(np.arange(3.0), np.ones(3), "exact").interval(0.5)
    np.testing.assert_allclose(high - low, np.full(3, 2 * 0.67449), rtol=1e-4)


@pytest.mark.parametrize("prob", [0.0, 1.0, 95, -0.1])
def test_interval_refuses_what_is_no_probability(prob):
    with pytest.raises(ValueError, match="expected `prob` between 0 and 1"):
        Evidence(2.0, 0.5, "ais").interval(prob)


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (Evidence(216.0615437, 0.0, "exact"), "216.061544 ± 0 nats, method='exact', ok=True"),
        (Evidence(451.2351, 0.08, "ais"), "451.235 ± 0.080 nats, method='ais', ok=True"),
        (Evidence(-1.5, 0.00042, "ais"), "-1.50000 ± 0.00042 nats"),
        (Evidence(-1.5, 12.0, "ais"), "-1.50 ± 12.00 nats"),
        (Evidence(-1.5, float("nan"), "ais"), "-1.500000 ± unknown nats"),
        (Evidence(np.array([1.0, 2.0]), np.zeros(2), "exact"), "[1. 2.] ± [0. 0.] nats"),
        (Evidence(1.0, 0.1, "ais", diagnostics={"ess": 12.5}), "ess=12.5"),
        (Evidence(1.0, 0.1, "ais", warnings=("ais: <doubt>",)), "\n  warning: ais: <doubt>"),
    ],
)
def test_repr_can_be_read(evidence, text):
    assert text in repr(evidence)


def test_html_repr_is_an_escaped_table():
    evidence = Evidence(1.0, 0.1, "ais", diagnostics={"ess": 5.0}, warnings=("ais: <b>doubt</b>",))
    text = evidence._repr_html_()
    assert text.startswith("<table>")
    assert text.endswith("</table>")
    assert "1.00 ± 0.10 nats" in text
    assert "&lt;b&gt;doubt" in text
    assert "<b>" not in text


def test_repr_under_a_transformation():
    def show(x):
        assert "Evidence(log_evidence=" in repr(Evidence(x, x, "exact"))
        return x

    jax.jit(show)(1.0)


def test_it_is_frozen_hashable_and_pickles(estimate):
    with pytest.raises(AttributeError):
        estimate.log_evidence = 0.0
    assert len({estimate, estimate}) == 1
    copy = pickle.loads(pickle.dumps(estimate))
    assert repr(copy) == repr(estimate)


# ----- ArviZ -------------------------------------------------------------------------------


def in_arviz(tree):
    """The tree as the installed generation of ArviZ holds it."""
    if not az.__version__.startswith("0."):
        return tree
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "evidence group is not defined", UserWarning)
        return az.InferenceData.from_datatree(tree)


def test_tree_has_one_group_with_named_dimensions(estimate):
    group = in_arviz(estimate.to_datatree())["evidence"]
    assert group["log_weight"].dims == ("particle",)
    assert group["trajectory"].dims == ("particle", "temperature")
    assert group["beta"].dims == ("temperature",)
    assert dict(group.sizes) == {"particle": 50, "temperature": 10}
    assert float(group["log_evidence"]) == estimate.log_evidence
    assert float(group["std_error"]) == estimate.std_error
    assert float(group["log_z0"]) == 5.0
    assert float(group["ess"]) == estimate.diagnostics["ess"]
    np.testing.assert_array_equal(group["trajectory"], estimate.trajectory)
    assert group.attrs["method"] == "ais"
    assert group.attrs["warnings"] == ""


def test_tree_of_an_exact_result_has_only_what_there_is():
    group = in_arviz(Evidence(np.arange(3.0), np.zeros(3), "exact").to_datatree())["evidence"]
    assert set(group.data_vars) == {"log_evidence", "std_error", "log_z0"}
    assert group["log_evidence"].shape == (3,)


def test_tree_keeps_the_warnings_and_can_be_stored(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf", reason="nothing here writes netCDF files")
    evidence = Evidence(1.0, 0.1, "ais", warnings=("ais: first", "ais: second"))
    evidence.to_datatree().to_netcdf(tmp_path / "evidence.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "evidence.nc", engine="h5netcdf") as tree:
        assert tree["evidence"].attrs["warnings"].splitlines() == ["ais: first", "ais: second"]
        assert float(tree["evidence"]["log_evidence"]) == 1.0
