"""Bridge sampling against known evidence, its error bar, and the traps it must not fall into."""

import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from registry import Case
from scipy import stats

import numpyro_ebm as ebm
from numpyro_ebm.evidence import EvidenceWarning, bridge, exact
from numpyro_ebm.evidence.bridging import solve_bridge

NUM_SEEDS = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 2))
Y = X @ [1.0, -0.5] + RNG.normal(size=12)
PRECISION = np.eye(2) + X.T @ X
MEAN = np.linalg.solve(PRECISION, X.T @ Y)
LOG_EVIDENCE = stats.multivariate_normal(np.zeros(12), np.eye(12) + X @ X.T).logpdf(Y)


def regression(y=Y):
    b = numpyro.sample("b", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.asarray(X) @ b, 1.0), obs=y)


def exact_draws(seed, num_chains=2, num_draws=400, persistence=0.0):
    """Posterior draws of the regression; autocorrelated if ``persistence`` is not 0."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_chains, num_draws, 2))
    for t in range(1, num_draws):
        fresh = np.sqrt(1 - persistence**2) * noise[:, t]
        noise[:, t] = persistence * noise[:, t - 1] + fresh
    return {"b": MEAN + noise @ np.linalg.cholesky(np.linalg.inv(PRECISION)).T}


def scores(**options):
    persistence = options.pop("persistence", 0.0)
    found = [
        bridge(
            jax.random.key(s),
            regression,
            exact_draws(s, num_draws=2000 if persistence else 400, persistence=persistence),
            **options,
        )
        for s in range(NUM_SEEDS)
    ]
    return np.array([(e.log_evidence - LOG_EVIDENCE) / e.std_error for e in found])


@pytest.mark.parametrize(
    ("proposal", "persistence"),
    [("normal", 0.0), ("student_t", 0.0), ("warp3", 0.0), ("student_t", 0.8)],
)
def test_error_bars_are_calibrated(proposal, persistence):
    z = scores(proposal=proposal, persistence=persistence)
    print(f"{proposal}: RMS {np.sqrt(np.mean(z**2)):.2f}, mean {z.mean():.2f}")
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.5
    assert abs(z.mean()) * NUM_SEEDS**0.5 < 4


def test_fitted_proposals():
    def fit(draws):
        assert draws.shape == (400, 2)  # the first halves
        covariance = 2 * jnp.cov(draws, rowvar=False)
        return dist.MultivariateNormal(draws.mean(0), covariance)

    for proposal in (fit, dist.MultivariateNormal(jnp.asarray(MEAN), 0.2 * jnp.eye(2))):
        found = bridge(jax.random.key(0), regression, exact_draws(0), proposal=proposal)
        assert abs(found.log_evidence - LOG_EVIDENCE) < 4 * found.std_error
        assert found.ok


@pytest.mark.slow
def test_repetitions_and_what_is_reported():
    once = bridge(jax.random.key(0), regression, exact_draws(0), num_proposals=3000)
    many = bridge(jax.random.key(0), regression, exact_draws(0), num_repetitions=3)
    assert once.diagnostics["num_proposals"] == 3000
    assert many.diagnostics["repetitions"].shape == (3,)
    np.testing.assert_allclose(many.log_evidence, many.diagnostics["repetitions"].mean())
    assert once.method == "bridge"
    assert 0.9 < once.diagnostics["overlap"] <= 1.01
    assert once.data_hash == exact(regression).data_hash is not None
    tree = once.to_datatree()["evidence"]
    assert {"log_evidence", "overlap", "rhat", "ess"} <= set(tree.data_vars)
    assert "overlap" in repr(once)


def test_root_is_found_where_fixed_points_crawl():
    """Far apart densities: the equation holds at the root to rounding."""
    rng = np.random.default_rng(0)
    own, other = rng.normal(3000, 30, 500), rng.normal(2000, 30, 500)
    log_r = solve_bridge(own, other, 0.5)
    left = 1 / (1 + np.exp(np.clip(own - log_r, -700, 700)))
    right = 1 / (1 + np.exp(np.clip(log_r - other, -700, 700)))
    np.testing.assert_allclose(left.mean(), right.mean(), rtol=1e-9)


# ----- energy-based distributions ----------------------------------------------------------


@pytest.mark.parametrize("visible", ["Bernoulli", "Spin", "Categorical", "Gaussian", "ReLU"])
def test_log_z_of_distributions(visible):
    rbm = Case(visible, "Bernoulli", 960).build()
    truth = exact(rbm).log_evidence
    found = bridge(jax.random.key(1), rbm, rbm.sample(jax.random.key(0), (4000,)))
    assert abs(found.log_evidence - truth) < 4 * found.std_error + 1e-6


# ----- models with constraints, from chains made here --------------------------------------

SCHOOLS = np.array([28, 8, -3, 7, -1, 1, 18, 12.0]), np.array([15, 10, 16, 11, 9, 11, 10, 18.0])


def schools(centred):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        if centred:
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = mu + tau * numpyro.sample("standard", dist.Normal())
        numpyro.sample("y", dist.Normal(theta, SCHOOLS[1]), obs=SCHOOLS[0])


@cache
def school_chains():
    kernel = NUTS(schools, target_accept_prob=0.95)
    mcmc = MCMC(
        kernel,
        num_warmup=500,
        num_samples=1000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), False)
    return mcmc


@pytest.mark.slow
def test_eight_schools_non_centred():
    found = bridge(jax.random.key(1), school_chains(), proposal="warp3")
    assert abs(found.log_evidence + 31.3113) < 4 * found.std_error
    assert found.std_error < 0.1


@pytest.mark.slow
def test_eight_schools_centred():
    """Draws of the centred sites, made from those of the non-centred model."""
    draws = dict(school_chains().get_samples(group_by_chain=True))
    standard = draws.pop("standard")
    draws["theta"] = draws["mu"][..., None] + draws["tau"][..., None] * standard
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)  # the funnel has heavy tails
        found = bridge(jax.random.key(1), schools, draws, proposal="warp3", model_args=(True,))
    assert abs(found.log_evidence + 31.3113) < 4 * found.std_error


# ----- traps -------------------------------------------------------------------------------


def two_modes():
    x = numpyro.sample("x", dist.Normal(0, 10))
    logits = jnp.stack([-0.5 * ((x - 8) / 0.5) ** 2, -0.5 * ((x + 8) / 0.5) ** 2])
    numpyro.factor("likelihood", jax.scipy.special.logsumexp(logits))


@pytest.mark.slow
def test_chains_stuck_in_different_modes_warn():
    draws = np.stack([8 + 0.5 * RNG.normal(size=500), -8 + 0.5 * RNG.normal(size=500)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = bridge(jax.random.key(0), two_modes, {"x": draws})
    assert not found.ok
    assert any("chains disagree" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)


def test_a_bad_proposal_warns():
    """A curved posterior against a normal proposal: right within its error, or a warning."""

    def banana():
        x = numpyro.sample("x", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(x**2, 0.05))

    rng = np.random.default_rng(1)
    x = rng.normal(0, 10, (2, 1000))
    draws = {"x": x, "y": x**2 + 0.05 * rng.normal(size=x.shape)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        found = bridge(jax.random.key(0), banana, draws)
    assert any("overlap" in doubt or "heavy tail" in doubt for doubt in found.warnings)


def test_short_and_correlated_chains_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        found = bridge(jax.random.key(0), regression, exact_draws(0, 2, 200, 0.9))
    assert any("effective sample size is" in doubt for doubt in found.warnings)


def test_large_log_densities_in_float32_warn():
    """Log densities of -28,000 nats, where float32 holds steps of 0.002."""
    y = jnp.asarray(np.random.default_rng(0).normal(size=20_000), jnp.float32)

    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    n, data = y.size, np.asarray(y, np.float64)
    draws = np.random.default_rng(1).normal(size=(2, 400)) / (n + 1) ** 0.5
    draws = {"mu": data.sum() / (n + 1) + draws}
    truth = -0.5 * (data @ data - data.sum() ** 2 / (n + 1))
    truth += -0.5 * n * np.log(2 * np.pi) - 0.5 * np.log(n + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        found = bridge(jax.random.key(0), model, draws)
    assert any("rounded to 0.00" in doubt for doubt in found.warnings)
    with jax.enable_x64(True):
        wide = bridge(jax.random.key(0), lambda: model(), draws)
    assert wide.ok
    assert wide.std_error < 0.02
    assert abs(wide.log_evidence - truth) < 4 * wide.std_error + 1e-6
    assert abs(found.log_evidence - truth) < 0.02


# ----- refusals ----------------------------------------------------------------------------


def no_latent():
    numpyro.sample("y", dist.Normal(), obs=1.0)


def discrete():
    numpyro.sample("z", dist.Bernoulli(0.5))


def subsampled():
    numpyro.sample("x", dist.Normal())
    with numpyro.plate("rows", 10, subsample_size=5):
        numpyro.sample("y", dist.Normal(), obs=jnp.zeros(5))


def unnormalized():
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("v", ebm.RBM(jnp.ones((2, 2)) * x, jnp.zeros(2), jnp.zeros(2)), obs=jnp.ones(2))


def with_a_number():
    x = numpyro.sample("x", dist.Normal())
    rbm = ebm.RBM(jnp.ones((2, 2)) * x, jnp.zeros(2), jnp.zeros(2), normalizer=np.log(16.0))
    numpyro.sample("v", rbm, obs=jnp.ones(2))


ONE = {"x": np.zeros((1, 100))}


@pytest.mark.parametrize(
    ("model", "draws", "options", "error", "message"),
    [
        (no_latent, {}, {}, ValueError, "at least one latent site; got none"),
        (discrete, {"z": np.zeros((1, 50))}, {}, ValueError, r"continuous latent.*\['z'\]"),
        (subsampled, ONE, {}, ValueError, r"without subsampled plates.*\['rows'\]"),
        (unnormalized, ONE, {}, ebm.NormalizerError, "log Z of 'v'.*unknown"),
        (with_a_number, ONE, {}, ebm.NormalizerError, r"fixed parameters of 'v'.*on \['x'\]"),
        (regression, {"b": np.zeros((1, 9, 2))}, {}, ValueError, "at least 20 draws in each half"),
        (regression, {"c": np.zeros((1, 90, 2))}, {}, ValueError, r"\['b'\] are missing"),
        (regression, None, {}, TypeError, "expected `draws` from the posterior"),
        (regression, np.zeros((1, 90, 2)), {}, TypeError, "as a dict of arrays by site"),
        (regression, exact_draws(0), {"proposal": "flow"}, ValueError, "one of.*got 'flow'"),
        (regression, exact_draws(0), {"proposal": 3}, TypeError, "`proposal` to be one of.*int"),
        (regression, exact_draws(0), {"proposal": dist.Normal()}, ValueError, r"shape \(2,\)"),
        (regression, exact_draws(0), {"num_repetitions": 0}, ValueError, "positive integer"),
        (3, exact_draws(0), {}, TypeError, "`target` to be a NumPyro model.*got int"),
    ],
)
def test_refused(model, draws, options, error, message):
    with pytest.raises(error, match=message):
        bridge(jax.random.key(0), model, draws, **options)


def test_draws_that_are_not_finite_are_refused():
    draws = exact_draws(0)
    draws["b"][0, 3, 1] = np.nan
    with pytest.raises(ValueError, match="finite draws; 1 of 800"):
        bridge(jax.random.key(0), regression, draws)
