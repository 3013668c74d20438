"""Probabilistic PCA and factor analysis against dense Gaussians and scikit-learn."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_moments
from numpyro.handlers import lift, seed, substitute, trace
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as Peer

from numpyro_ebm import datasets, models
from numpyro_ebm.models import PPCA, FactorAnalysis, FitWarning

BOTH = pytest.mark.parametrize("kind", [PPCA, FactorAnalysis])
D, K = 5, 2


def parameters(kind, d=D, k=K, seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.4, 0.9, () if kind.shared_noise else d)
    return {"loc": rng.normal(size=d), "loadings": rng.normal(size=(d, k)), "scale": scale}


def table(kind, rows=40, seed=1, missing=0.3):
    """Rows of the model with missing entries, NaN among them, one row of none observed."""
    params, rng = parameters(kind), np.random.default_rng(seed)
    mean = params["loc"] + rng.normal(size=(rows, K)) @ params["loadings"].T
    data = mean + params["scale"] * rng.normal(size=(rows, D))
    mask = rng.random(data.shape) > missing
    mask[0] = False
    return params, np.where(mask, data, np.nan), mask


def covariance(params):
    noise = np.broadcast_to(params["scale"] ** 2, len(params["loc"]))
    return params["loadings"] @ params["loadings"].T + np.diag(noise)


def dense_log_likelihood(params, data, mask):
    """Of every row, from the marginal of its observed entries."""
    full = covariance(params)
    return np.array(
        [
            multivariate_normal(params["loc"][o], full[np.ix_(o, o)]).logpdf(row[o])
            if o.any()
            else 0.0
            for row, o in zip(data, mask, strict=True)
        ]
    )


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# ----- given parameters --------------------------------------------------------------------


@BOTH
def test_log_likelihood_of_observed_entries(kind, double):
    params, data, mask = table(kind)
    model = kind(D, K)
    found = model.log_likelihood(params, data, mask=mask)
    expected = dense_log_likelihood(params, data, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    full = np.nan_to_num(data)
    found, everything = model.log_likelihood(params, full), np.ones_like(mask)
    np.testing.assert_allclose(found, dense_log_likelihood(params, full, everything), rtol=1e-10)
    np.testing.assert_allclose(found, model.marginal(params).log_prob(full), rtol=1e-10)
    np.testing.assert_allclose(found, model.log_likelihood(params, full, mask=everything))


@BOTH
def test_posterior_and_missing_entries(kind, double):
    """Against conditioning the dense Gaussian of factors and columns together."""
    params, data, mask = table(kind)
    model = kind(D, K)
    loc = np.concatenate([np.zeros(K), params["loc"]])
    loadings = params["loadings"]
    joint = np.block([[np.eye(K), loadings.T], [loadings, covariance(params)]])
    factors = model.posterior(params, data, mask=mask)
    rows = model.posterior_predictive(params, data, mask=mask)
    imputed = np.asarray(model.impute(params, data, mask))
    for i in (0, 1, 2, 3):
        given = np.flatnonzero(np.concatenate([np.zeros(K, bool), mask[i]]))
        gain = joint[:, given] @ np.linalg.inv(joint[np.ix_(given, given)])
        mean = loc + gain @ (np.where(mask[i], data[i], 0)[mask[i]] - loc[given])
        rest = joint - gain @ joint[given]
        np.testing.assert_allclose(factors.mean[i], mean[:K], atol=1e-10)
        np.testing.assert_allclose(factors.covariance_matrix[i], rest[:K, :K], atol=1e-10)
        missing = ~mask[i]
        np.testing.assert_allclose(imputed[i][missing], mean[K:][missing], atol=1e-10)
        np.testing.assert_array_equal(imputed[i][mask[i]], data[i][mask[i]])
        found = rows.covariance_matrix[i][np.ix_(missing, missing)]
        np.testing.assert_allclose(found, rest[K:, K:][np.ix_(missing, missing)], atol=1e-10)


@pytest.mark.slow
def test_imputed_draws():
    params, data, mask = table(FactorAnalysis)
    model = FactorAnalysis(D, K)
    data, mask = np.repeat(data[1:2], 4000, 0), np.repeat(mask[1:2], 4000, 0)
    drawn = np.asarray(model.impute(params, data, mask, rng_key=jax.random.key(0)))
    missing = ~mask[0]
    expected = model.posterior_predictive(params, data[:1], mask=mask[:1])
    assert_moments(drawn[:, missing], np.asarray(expected.mean[0])[missing])
    centred = (drawn - np.asarray(expected.mean[0]))[:, missing] ** 2
    assert_moments(centred, np.diag(expected.covariance_matrix[0])[missing])


@BOTH
def test_density_of_the_model(kind, double):
    params, data, mask = table(kind)
    factors = np.random.default_rng(2).normal(size=(len(data), K))
    model = kind(D, K)
    given = {name: jnp.asarray(value) for name, value in params.items()} | {"factors": factors}
    found, _ = log_density(seed(model.model, 0), (data,), {"mask": mask}, given)
    mean = params["loc"] + factors @ params["loadings"].T
    residual = np.where(mask, (np.nan_to_num(data) - mean) / params["scale"], 0)
    scales = np.broadcast_to(params["scale"], data.shape)
    expected = -((residual**2).sum() + (factors**2).sum()) / 2
    expected -= np.log(scales[mask]).sum() + np.log(2 * np.pi) * (mask.sum() + factors.size) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@BOTH
def test_ancestral_samples(kind):
    params = parameters(kind)
    drawn = Predictive(kind(D, K).model, params=params, num_samples=1)(
        jax.random.key(0), num_rows=5000
    )
    rows = np.asarray(drawn["visible"][0], np.float64)
    assert drawn["factors"].shape == (1, 5000, K)
    assert_moments(rows, params["loc"])
    products = (rows - params["loc"])[:, :, None] * (rows - params["loc"])[:, None, :]
    assert_moments(products.reshape(len(rows), -1), covariance(params).ravel())


# ----- inference in NumPyro ----------------------------------------------------------------


@pytest.mark.slow
def test_mcmc_over_factors_finds_their_posterior():
    params, data, mask = table(FactorAnalysis, rows=3)
    model = FactorAnalysis(D, K)
    given = substitute(model.model, data={k: jnp.asarray(v) for k, v in params.items()})
    mcmc = MCMC(NUTS(given), num_warmup=100, num_samples=300, num_chains=4, **QUIET)
    mcmc.run(jax.random.key(0), data, mask=mask)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["factors"], np.float64)
    flat = draws.reshape(*draws.shape[:2], -1)
    expected = model.posterior(params, data, mask=mask)
    assert_mcmc(flat, np.ravel(expected.mean))
    variance = np.asarray(jnp.diagonal(expected.covariance_matrix, axis1=1, axis2=2)).ravel()
    assert_mcmc((flat - np.ravel(expected.mean)) ** 2, variance)


QUIET = {"progress_bar": False, "chain_method": "vectorized"}


def assert_mcmc(draws, expected):
    """Means within four standard errors, by the effective sample size."""
    from numpyro.diagnostics import effective_sample_size

    error = draws.std((0, 1)) / np.sqrt(effective_sample_size(draws))
    assert np.all(np.abs(draws.mean((0, 1)) - expected) < 4 * error)


@pytest.mark.slow
def test_priors_on_the_parameters():
    """A lifted model is fully Bayesian."""
    _, data, mask = table(PPCA, rows=20)
    prior = {
        "loc": dist.Normal(jnp.zeros(D), 5).to_event(1),
        "loadings": dist.Normal(jnp.zeros((D, K)), 1).to_event(2),
        "scale": dist.HalfNormal(1.0),
    }
    mcmc = MCMC(NUTS(lift(PPCA(D, K).model, prior=prior)), num_warmup=5, num_samples=5, **QUIET)
    mcmc.run(jax.random.key(0), data, mask=mask)
    assert mcmc.get_samples()["loadings"].shape == (5, D, K)
    assert mcmc.get_samples()["scale"].shape == (5,)


@pytest.mark.slow
def test_svi_with_minibatches():
    data = np.asarray(dist.Normal(3.0, 2.0).sample(jax.random.key(0), (400, 4)))
    guide = AutoNormal(models.ppca)
    svi = SVI(models.ppca, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    options = {"subsample_size": 100, "mask": np.ones_like(data, bool), "num_factors": 1}
    params = svi.run(jax.random.key(1), 400, data, progress_bar=False, **options).params
    np.testing.assert_allclose(params["loc"], data.mean(0), atol=0.4)
    assert 1 < params["scale"] < 2.5
    sites = trace(seed(models.factor_analysis, 0)).get_trace(data[:10], 1, num_rows=400)
    assert sites["visible"]["scale"] == 40


def test_the_names_of_the_sites():
    for model, options in (
        (models.ppca, {"num_factors": 1}),
        (models.factor_analysis, {"num_factors": 2}),
        (models.sigmoid_belief_network, {"hidden_sizes": (2,)}),
    ):
        sites = trace(seed(model, 0)).get_trace(num_visible=3, num_rows=7, **options)
        assert sites["visible"]["value"].shape == (7, 3)


# ----- maximum likelihood ------------------------------------------------------------------


def digits():
    """Pixels that vary."""
    pixels = load_digits().data
    return pixels[:, pixels.std(0) > 0]


@pytest.mark.slow
def test_digits_against_scikit_learn():
    data = digits()
    ppca, fa = (kind(data.shape[1], 3) for kind in (PPCA, FactorAnalysis))
    params = ppca.maximum_likelihood(data)
    peer = PCA(3, svd_solver="full").fit(data)
    np.testing.assert_allclose(
        ppca.log_likelihood(params, data).mean(), peer.score(data), atol=1e-3
    )
    np.testing.assert_allclose(params["scale"] ** 2, peer.noise_variance_, rtol=1e-3)
    fit = fa.em(data)
    assert fit.converged
    assert np.all(np.diff(fit.log_likelihood) > 0)
    peer = Peer(3).fit(data)  # its own optimum takes minutes; its parameters score the same
    given = {"loc": peer.mean_, "loadings": peer.components_.T, "scale": peer.noise_variance_**0.5}
    found = fa.log_likelihood(given, data)
    np.testing.assert_allclose(found, peer.score_samples(data), atol=2e-3)
    np.testing.assert_allclose(found.mean(), peer.score(data), atol=1e-3)
    mean = fa.log_likelihood(fit.params, data).mean()
    np.testing.assert_allclose(mean, fit.log_likelihood[-1], atol=1e-3)
    start = fa.em(data, init_params=given)
    np.testing.assert_allclose(start.log_likelihood[-1], fit.log_likelihood[-1], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "digits",
        pytest.param(
            "debd_dna",
            marks=pytest.mark.skipif(
                "NUMPYRO_EBM_DATA" not in os.environ, reason="NUMPYRO_EBM_DATA is not set"
            ),
        ),
    ],
)
def test_both_optima_against_scikit_learn(name):
    data = digits() if name == "digits" else np.asarray(datasets.load(name).train, float)
    data = data[:, data.std(0) > 0]
    for k in (2, 5):
        ppca, fa = (kind(data.shape[1], k) for kind in (PPCA, FactorAnalysis))
        found = ppca.log_likelihood(ppca.maximum_likelihood(data), data).mean()
        np.testing.assert_allclose(
            found, PCA(k, svd_solver="full").fit(data).score(data), atol=1e-3
        )
        fit = fa.em(data, num_iterations=20000)
        peer = Peer(k, tol=1e-5, max_iter=3000, svd_method="lapack").fit(data)
        found = fa.log_likelihood(fit.params, data).mean()
        np.testing.assert_allclose(found, peer.score(data), atol=1e-3)


def random_start(kind, d, k, seed=3):
    return parameters(kind, d, k, seed)


@pytest.mark.slow
def test_em_reaches_the_closed_form(double):
    data = np.asarray(digits()[:400, ::4])
    model = PPCA(data.shape[1], 3)
    expected = model.maximum_likelihood(data)
    start = random_start(PPCA, data.shape[1], 3)
    fit = model.em(data, init_params=start, tolerance=1e-13, num_iterations=5000)
    assert fit.num_iterations > 10
    assert np.all(np.diff(fit.log_likelihood) > -1e-12)
    for name, value in expected.items():
        np.testing.assert_allclose(fit.params[name], value, atol=1e-5)
    gradient = jax.grad(lambda p: model.log_likelihood(p, data).mean())(expected)
    assert all(np.abs(g).max() < 1e-8 for g in jax.tree.leaves(gradient))


@BOTH
def test_em_with_missing_entries(kind, double):
    """It rises as the dense Gaussian does, to a point where the gradient vanishes."""
    _, data, mask = table(kind, rows=700)
    model = kind(D, 1)
    start = random_start(kind, D, 1)
    fit = model.em(data, mask=mask, init_params=start, tolerance=1e-11, num_iterations=5000)
    assert np.all(np.diff(fit.log_likelihood) > -1e-12)
    first = dense_log_likelihood(start, data, mask).mean()
    np.testing.assert_allclose(fit.log_likelihood[0], first, rtol=1e-9)
    params = {name: np.asarray(value) for name, value in fit.params.items()}
    last = dense_log_likelihood(params, data, mask).mean()
    np.testing.assert_allclose(fit.log_likelihood[-1], last, rtol=1e-9)
    gradient = jax.grad(lambda p: model.log_likelihood(p, data, mask=mask).mean())(fit.params)
    assert all(np.abs(g).max() < 1e-4 for g in jax.tree.leaves(gradient))


@BOTH
def test_one_iteration_with_and_without_a_mask(kind, double):
    """The covariance alone gives what the rows give, from any start."""
    data, model = np.nan_to_num(table(kind)[1]), kind(D, K)
    mask = np.ones(data.shape, bool)
    mask = np.concatenate([mask, ~mask[:1]])  # a row of which nothing is known
    more = np.concatenate([data, data[:1]])
    start = random_start(kind, D, K)
    options = {"init_params": start, "num_iterations": 1}
    with pytest.warns(FitWarning, match="still rises"):
        first = model.em(data, **options)
    with pytest.warns(FitWarning, match="still rises"):
        second = model.em(more, mask=mask, **options)
    for name in start:
        np.testing.assert_allclose(first.params[name], second.params[name], rtol=1e-9)
    share = len(data) / len(more)
    np.testing.assert_allclose(first.log_likelihood * share, second.log_likelihood, rtol=1e-9)


@pytest.mark.slow
def test_entries_are_imputed_better_than_by_column_means():
    data = digits()
    rng = np.random.default_rng(0)
    mask = rng.random(data.shape) > 0.2
    mask[:5] = True
    model = PPCA(data.shape[1], 10)
    fit = model.em(np.where(mask, data, np.nan), mask=mask, tolerance=1e-4)
    filled = np.asarray(model.impute(fit.params, data, mask))
    means = np.where(mask, data, 0).sum(0) / mask.sum(0)
    error, baseline = (((x - data)[~mask] ** 2).mean() for x in (filled, data * 0 + means))
    assert error < 0.5 * baseline


def test_columns_of_any_units(double):
    data = np.nan_to_num(table(FactorAnalysis, rows=100)[1])
    units, model = np.array([1e-3, 1.0, 1e4, 7.0, 1e-6]), FactorAnalysis(D, 1)
    fit, other = model.em(data), model.em(100 * units + data * units)
    np.testing.assert_allclose(other.params["scale"], fit.params["scale"] * units, rtol=1e-6)
    np.testing.assert_allclose(
        other.log_likelihood[-1], fit.log_likelihood[-1] - np.log(units).sum(), atol=1e-8
    )


def test_heywood_cases_warn():
    data = np.random.default_rng(0).normal(size=(50, 4))
    data[:, 1] = data[:, 0]
    with pytest.warns(FitWarning, match=r"vanished in columns \[0, 1\]"):
        fit = FactorAnalysis(4, 1).em(data)
    assert fit.heywood == (0, 1)


NORMAL = np.random.default_rng(0).normal(size=(20, 3))
FLAT = np.where(np.arange(3) == 1, 0.1, NORMAL)
HOLES = np.where(np.arange(3) == 2, np.nan, NORMAL)
FA, TINY = FactorAnalysis(3, 1), PPCA(3, 1)
GOOD = {"loc": np.zeros(3), "loadings": np.ones((3, 1)), "scale": 1.0}
ERRORS = {
    "too many factors": (lambda: PPCA(3, 3), "`num_factors` of at least 1 and less than"),
    "no factors": (lambda: FactorAnalysis(3, 0), "`num_factors` of at least 1"),
    "sizes": (lambda: PPCA(3.0, 1), "both integers; got 1 and 3.0"),
    "init scale": (lambda: PPCA(3, 1, init_scale=-1.0), "`init_scale`"),
    "rank": (
        lambda: PPCA(3, 2).maximum_likelihood(NORMAL[:, :1] * np.array([1.0, 2.0, -1.0])),
        "in which the data vary, 1; got 2",
    ),
    "rank in EM": (lambda: FactorAnalysis(3, 2).em(NORMAL[:3]), "in which the data vary, 2"),
    "one row": (lambda: TINY.maximum_likelihood(NORMAL[:1]), "at least two rows"),
    "columns": (lambda: TINY.em(NORMAL[:, :2]), r"shape \(rows, 3\)"),
    "NaN": (lambda: TINY.em(HOLES), "mask=~np.isnan"),
    "NaN in the closed form": (lambda: TINY.maximum_likelihood(HOLES), "mask=~np.isnan"),
    "NaN in the likelihood": (lambda: TINY.log_likelihood(GOOD, HOLES), "mask=~np.isnan"),
    "NaN in the model": (lambda: seed(TINY.model, 0)(HOLES), "mask=~np.isnan"),
    "observed NaN": (lambda: TINY.em(HOLES, mask=np.ones((20, 3), bool)), "mask=~np.isnan"),
    "empty column": (lambda: FA.em(HOLES, mask=~np.isnan(HOLES)), r"columns \[2\] have fewer"),
    "constant column": (lambda: FA.em(FLAT), r"columns \[1\] have one value"),
    "mask of numbers": (lambda: FA.em(NORMAL, mask=np.ones((20, 3))), "boolean `mask`"),
    "shape of the mask": (
        lambda: TINY.log_likelihood(GOOD, NORMAL, mask=np.ones((20, 2), bool)),
        "boolean `mask`",
    ),
    "parameters": (lambda: FA.log_likelihood(GOOD, NORMAL), "`params` with the shapes"),
    "names": (lambda: TINY.marginal({"loc": np.zeros(3)}), "`params` with the shapes"),
    "start": (lambda: FA.em(NORMAL, init_params=GOOD), "`params` with the shapes"),
    "iterations": (lambda: FA.em(NORMAL, num_iterations=0), "`num_iterations` of at least 1"),
    "no data": (lambda: seed(FA.model, 0)(), "`data` or `num_rows`; got neither"),
    "mask alone": (lambda: seed(FA.model, 0)(mask=np.ones((2, 3), bool)), "with a `mask`"),
    "no columns": (lambda: seed(models.ppca, 0)(num_rows=3), "or `num_visible`; got none"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=f": expected .*{message}"):
        call()
