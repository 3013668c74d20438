import subprocess
import sys
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from numpyro.infer import MCMC, NUTS

from numpyro_ebm.convert import from_numpyro, pareto_k, to_datatree


class Unnormalized(dist.Normal):
    """A normal distribution that hides its log density, as one with an unknown log Z does."""

    def log_prob(self, value, intermediates=None):
        return super().log_prob(value) * (jnp.nan if self.hidden else 1.0)

    hidden = False


def run(model, *args, num_chains=2):
    mcmc = MCMC(
        NUTS(model),
        num_warmup=100,
        num_samples=100,
        num_chains=num_chains,
        chain_method="sequential" if num_chains == 1 else "vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *args)
    return mcmc


def model(y, second=None):
    loc = numpyro.sample("loc", dist.Normal())
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", Unnormalized(loc, 1.0), obs=y)
        if second is not None:
            numpyro.sample("z", dist.Normal(loc, 1.0), obs=second)


@pytest.fixture
def unnormalized(monkeypatch):
    """Run the sampler with the density known, then convert with it unknown."""

    def convert(*args, **kwargs):
        mcmc = run(model, *args)
        monkeypatch.setattr(Unnormalized, "hidden", True)
        jax.clear_caches()
        return from_numpyro(mcmc, log_likelihood=True, **kwargs)

    return convert


# --- pareto_k


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_pareto_k_recovers_the_tail_index(k):
    draws = np.random.default_rng(0).exponential(size=20_000)
    estimate = pareto_k(k * draws - 450.0)  # exp(k * exponential) has tail index k
    assert isinstance(estimate, float)
    assert abs(estimate - k) < 0.12


def test_pareto_k_of_light_tailed_weights_is_small():
    weights = np.random.default_rng(0).uniform(0.5, 1.0, size=5000)
    assert pareto_k(np.log(weights)) < 0


def test_pareto_k_does_not_depend_on_constants_order_or_kind_of_array():
    weights = np.random.default_rng(1).normal(size=400)
    k = pareto_k(weights)
    before = weights.copy()
    np.testing.assert_allclose(pareto_k(weights[::-1] + 1000.0), k, rtol=1e-6)
    np.testing.assert_allclose(pareto_k(jnp.asarray(weights)), k, rtol=1e-3)
    np.testing.assert_allclose(pareto_k(list(weights)), k)
    np.testing.assert_array_equal(weights, before)


def test_pareto_k_accepts_weights_of_zero():
    weights = np.random.default_rng(2).normal(size=500)
    weights[::3] = -np.inf
    assert np.isfinite(pareto_k(weights))


@pytest.mark.parametrize("spread", [0.0, 1e-7])
@pytest.mark.parametrize("offset", [0.0, 451.0])
def test_pareto_k_of_equal_weights_is_minus_infinity(spread, offset):
    weights = offset + spread * np.random.default_rng(0).normal(size=100)
    assert pareto_k(weights) == -np.inf


@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_pareto_k_of_weights_beyond_float64_is_infinite(scale):
    assert pareto_k(scale * np.random.default_rng(0).normal(size=100)) == np.inf


@pytest.mark.parametrize("scale", [10.0, 50.0, 150.0, 300.0, 600.0])
def test_pareto_k_of_a_very_wide_spread_is_large(scale):
    assert pareto_k(scale * np.random.default_rng(0).normal(size=200)) > 1.0


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros(0),
        np.arange(29.0),
        np.full(100, -np.inf),
        np.append(np.arange(50.0), np.nan),
        np.append(np.arange(50.0), np.inf),
        np.repeat([0.0, 1.0], 50),
    ],
    ids=["none", "too few", "all zero", "NaN", "infinite", "tied tail"],
)
def test_pareto_k_is_nan_where_there_is_no_fit(weights):
    assert np.isnan(pareto_k(weights))


def test_pareto_k_of_the_fewest_weights_is_a_number():
    assert np.isfinite(pareto_k(np.random.default_rng(0).normal(size=30)))


def test_pareto_k_rejects_a_matrix():
    with pytest.raises(ValueError, match=r"1-d array of `log_weights`; got shape \(4, 30\)"):
        pareto_k(np.zeros((4, 30)))


# --- to_datatree


def test_datatree_holds_groups_dims_coords_and_attrs(tmp_path):
    rng = np.random.default_rng(0)
    trajectory = rng.normal(size=(5, 3))
    tree = to_datatree(
        {
            "evidence": {"log_weight": trajectory[:, -1], "trajectory": trajectory, "log_z": 1.5},
            "posterior": {"v": np.zeros((2, 4, 6), np.uint8)},
        },
        coords={"temperature": [0.0, 0.5, 1.0], "chain": [0, 1]},
        dims={
            "log_weight": ["particle"],
            "trajectory": ["particle", "temperature"],
            "v": ["chain", "draw", "unit"],
        },
        attrs={"evidence": {"method": "ais"}, "/": {"library": "numpyro_ebm"}},
    )
    assert isinstance(tree, xarray.DataTree)
    assert set(tree.children) == {"evidence", "posterior"}
    assert tree["evidence"]["trajectory"].dims == ("particle", "temperature")
    np.testing.assert_array_equal(tree["evidence"]["temperature"], [0.0, 0.5, 1.0])
    assert "temperature" not in tree["posterior"].coords
    assert tree["evidence"]["log_z"].item() == 1.5
    assert tree["posterior"]["v"].dtype == np.uint8
    assert tree["evidence"].attrs == {"method": "ais"}
    assert tree.attrs == {"library": "numpyro_ebm"}


def test_datatree_of_draws_is_understood_by_arviz():
    draws = np.random.default_rng(0).normal(size=(4, 200, 2))
    tree = to_datatree({"posterior": {"x": draws}}, dims={"x": ["chain", "draw", "axis"]})
    data = az.InferenceData.from_datatree(tree) if az.__version__ < "1" else tree
    assert np.all(np.asarray(az.rhat(data)["x"]) < 1.05)


def test_datatree_names_the_axes_of_unlisted_variables():
    tree = to_datatree({"g": {"x": np.zeros((2, 3))}})
    assert tree["g"]["x"].dims == ("x_dim_0", "x_dim_1")


def test_datatree_rejects_what_does_not_fit():
    groups = {"g": {"x": np.zeros((2, 3))}}
    with pytest.raises(ValueError, match=r"expected 2 names in `dims\['x'\]`.*\(2, 3\); got"):
        to_datatree(groups, dims={"x": ["row"]})
    with pytest.raises(ValueError, match=r"keys of `dims` among \['x'\]; got \['y'\]"):
        to_datatree(groups, dims={"y": ["row"]})
    with pytest.raises(ValueError, match=r"keys of `attrs` among \['/', 'g'\]; got \['h'\]"):
        to_datatree(groups, attrs={"h": {}})
    with pytest.raises(ValueError, match="row"):
        to_datatree(groups, dims={"x": ["row", "column"]}, coords={"row": [1, 2, 3]})


# --- from_numpyro


@pytest.mark.slow
def test_from_numpyro_is_that_of_arviz_for_an_ordinary_model():
    y = np.random.default_rng(0).normal(size=8)
    mcmc = run(model, y, num_chains=1)
    data = from_numpyro(mcmc, log_likelihood=True, coords={"row": np.arange(8) * 10})
    assert type(data) is type(az.from_numpyro(mcmc))
    draws = np.asarray(mcmc.get_samples()["loc"])
    np.testing.assert_array_equal(np.asarray(data["posterior"]["loc"])[0], draws)
    expected = np.asarray(dist.Normal(draws[:, None], 1.0).log_prob(y))
    log_likelihood = data["log_likelihood"]["y"]
    np.testing.assert_allclose(np.asarray(log_likelihood)[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(log_likelihood["row"], np.arange(8) * 10)
    assert np.isfinite(az.loo(data).elpd_loo if az.__version__ < "1" else az.loo(data).elpd)


@pytest.mark.slow
def test_from_numpyro_without_observations_or_log_likelihood():
    mcmc = run(lambda: numpyro.sample("x", dist.Normal()), num_chains=1)
    assert "log_likelihood" not in from_numpyro(mcmc)
    mcmc = run(model, np.zeros(3), num_chains=1)
    assert "log_likelihood" not in from_numpyro(mcmc, log_likelihood=False)


@pytest.mark.slow
def test_from_numpyro_leaves_out_an_unnormalized_log_likelihood(unnormalized):
    with pytest.warns(UserWarning, match=r"log likelihood of 'y', which is NaN everywhere"):
        data = unnormalized(np.zeros(3))
    assert "log_likelihood" not in data
    assert data["posterior"]["loc"].shape == (2, 100)
    with pytest.raises((TypeError, KeyError, ValueError), match="log.?likelihood"):
        az.loo(data)


@pytest.mark.slow
def test_from_numpyro_keeps_the_other_log_likelihoods(unnormalized):
    with pytest.warns(UserWarning, match="log likelihood of 'y', which"):
        data = unnormalized(np.zeros(3), np.ones(3))
    assert list(data["log_likelihood"].data_vars) == ["z"]
    assert np.isfinite(np.asarray(data["log_likelihood"]["z"])).all()
    assert data["log_likelihood"]["z"].shape == (2, 100, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what leave-one-out says of ArviZ's own accord
        az.loo(data, var_name="z")


def test_module_imports_neither_arviz_nor_xarray():
    code = "import sys, numpyro_ebm.convert; print({'arviz', 'xarray'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
