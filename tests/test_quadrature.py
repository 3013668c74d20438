"""Exact evidence of small models, importance sampling and Savage-Dickey ratios."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from registry import Case
from scipy import stats
from scipy.special import betaln, gammaln
from test_bridge import (
    LOG_EVIDENCE,
    MEAN,
    PRECISION,
    SCHOOLS,
    X,
    Y,
    exact_draws,
    regression,
    two_modes,
)

import numpyro_ebm as ebm
from numpyro_ebm.evidence import EvidenceWarning, bridge, exact, importance, savage_dickey, smc


def beta_binomial():
    p = numpyro.sample("p", dist.Beta(2.0, 0.5))
    numpyro.sample("k", dist.Binomial(10, p), obs=jnp.array(9))


def poisson_gamma():
    rate = numpyro.sample("rate", dist.Gamma(0.5, 2.0))
    numpyro.sample("n", dist.Poisson(rate), obs=jnp.array([0, 3]))


def two_rates():
    with numpyro.plate("sites", 2):
        rate = numpyro.sample("rate", dist.Gamma(0.5, 2.0))
        with numpyro.plate("times", 2):
            numpyro.sample("n", dist.Poisson(rate), obs=jnp.array([[0, 3], [3, 0]]))


def wide_prior():
    x = numpyro.sample("x", dist.Cauchy(0, 1))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=jnp.array(3.0))


def school_scales():
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    y, s = map(jnp.asarray, SCHOOLS)
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(tau**2 + s**2)), obs=y)


def voigt():
    grid = np.linspace(-200, 200, 2_000_001)
    density = stats.cauchy.pdf(grid) * stats.norm.pdf(3.0, grid, 0.5)
    return np.log(np.trapezoid(density, grid))


BETA = betaln(2 + 9, 0.5 + 1) - betaln(2, 0.5) + np.log(10)
GAMMA = (
    gammaln(3.5) - 3.5 * np.log(4) - gammaln(0.5) + 0.5 * np.log(2) - gammaln(4)
)  # counts 0 and 3


@pytest.mark.parametrize(
    ("model", "truth"),
    [
        (regression, LOG_EVIDENCE),
        (beta_binomial, BETA),
        (poisson_gamma, GAMMA),
        (two_rates, 2 * GAMMA),
        (wide_prior, voigt()),
        (school_scales, -31.3113),
    ],
)
def test_quadrature(model, truth):
    found = exact(model)
    assert found.std_error == 0
    assert found.ok
    np.testing.assert_allclose(found.log_evidence, truth, atol=1e-4)


def test_quadrature_sees_both_of_two_far_modes():
    one = stats.norm.pdf(8, 0, np.hypot(10, 0.5)) * np.sqrt(2 * np.pi) * 0.5
    np.testing.assert_allclose(exact(two_modes).log_evidence, np.log(2 * one), atol=1e-4)


@pytest.mark.slow
def test_energy_based_sites():
    """A log Z given for fixed parameters is as good as the exact one; one that moves needs it."""
    rbm = Case("Bernoulli", "Bernoulli", 970).build()
    log_z = exact(rbm).log_evidence
    v = jnp.array([1, 0, 1])

    def observed(normalizer):
        x = numpyro.sample("x", dist.Normal())
        units = rbm.visible_units, rbm.hidden_units
        numpyro.sample("v", ebm.RBM(rbm.weights, *units, normalizer=normalizer), obs=v)
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.5)

    expected = -float(rbm.energy(v)) - log_z + stats.norm.logpdf(0.5, 0, np.sqrt(2))
    for normalizer in (log_z, "exact"):
        found = exact(observed, model_args=(normalizer,))
        np.testing.assert_allclose(found.log_evidence, expected, atol=1e-4)

    def at(x, normalizer):
        units = rbm.visible_units, rbm.hidden_units
        return ebm.RBM(rbm.weights * x, *units, normalizer=normalizer)

    def moving(normalizer):
        numpyro.sample("v", at(numpyro.sample("x", dist.Normal()), normalizer), obs=v)

    nodes = np.linspace(-8, 8, 161)
    log_prob = jax.jit(jax.vmap(lambda x: at(x, "exact").log_prob(v)))(nodes)
    truth = np.log(np.trapezoid(np.exp(log_prob) * stats.norm.pdf(nodes), nodes))
    np.testing.assert_allclose(exact(moving, model_args=("exact",)).log_evidence, truth, atol=1e-4)
    with pytest.raises(ebm.NormalizerError, match=r"exact: .*parameters of 'v'.*depend on \['x'\]"):
        exact(moving, model_args=(log_z,))


@pytest.mark.slow
def test_quadrature_in_float64():
    with jax.enable_x64(True):
        found = exact(lambda: beta_binomial())
    np.testing.assert_allclose(found.log_evidence, BETA, atol=1e-8)


def improper():
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(0 * x, 1), obs=jnp.array(0.0))


def test_an_integral_that_diverges_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        found = exact(improper)
    assert any("diverge" in doubt for doubt in found.warnings)


def test_too_many_dimensions_are_refused():
    def model():
        numpyro.sample("x", dist.Normal().expand([4]).to_event(1))

    with pytest.raises(ValueError, match="at most 3 unconstrained latent dimensions.*got 4"):
        exact(model)


# ----- importance sampling -----------------------------------------------------------------


@pytest.mark.slow
def test_importance_is_calibrated():
    proposal = dist.MultivariateStudentT(
        5.0, jnp.asarray(MEAN), jnp.asarray(np.linalg.cholesky(np.linalg.inv(PRECISION)))
    )
    z = []
    for seed in range(40):
        found = importance(jax.random.key(seed), regression, proposal, num_particles=500)
        z.append((found.log_evidence - LOG_EVIDENCE) / found.std_error)
    assert 0.7 < np.sqrt(np.mean(np.square(z))) < 1.5
    assert abs(np.mean(z)) * 40**0.5 < 4
    assert found.data_hash == exact(regression).data_hash


@pytest.mark.slow
def test_guides():
    guide = AutoMultivariateNormal(regression)
    svi = SVI(regression, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    params = svi.run(jax.random.key(0), 1000, progress_bar=False).params

    def by_hand():
        numpyro.sample("b", dist.MultivariateNormal(jnp.asarray(MEAN), 0.3 * jnp.eye(2)))

    for proposal, options in ((guide, {"guide_params": params}), (by_hand, {})):
        found = importance(jax.random.key(0), regression, proposal, **options)
        assert abs(found.log_evidence - LOG_EVIDENCE) < 4 * found.std_error
    posterior = guide.get_posterior(params)
    found = importance(jax.random.key(0), regression, posterior)
    assert abs(found.log_evidence - LOG_EVIDENCE) < 4 * found.std_error


def test_importance_of_a_distribution():
    rbm = Case("Bernoulli", "Bernoulli", 970).build()
    found = importance(jax.random.key(0), rbm, dist.Bernoulli(0.5 * jnp.ones(3)).to_event(1))
    assert abs(found.log_evidence - exact(rbm).log_evidence) < 4 * found.std_error


def lacking():
    numpyro.sample("c", dist.Normal())


@pytest.mark.parametrize(
    ("target", "proposal", "error", "message"),
    [
        (regression, lacking, ValueError, r"samples every latent site.*\['b'\] are missing"),
        (regression, dist.Normal(), ValueError, r"event shape \(2,\)"),
        (regression, 3, TypeError, "a NumPyro distribution or a guide; got int"),
        (regression, AutoMultivariateNormal(regression), ValueError, "has been fitted"),
        (3, lacking, TypeError, "`target` to be an EnergyDistribution"),
        (Case("Spin", "Spin", 1).build(), lacking, TypeError, "distribution over the values"),
        (Case("Spin", "Spin", 1).build(), dist.Normal(), ValueError, r"values of shape \(3,\)"),
    ],
)
def test_importance_refuses(target, proposal, error, message):
    with pytest.raises(error, match=message):
        importance(jax.random.key(0), target, proposal)


# ----- Savage-Dickey -----------------------------------------------------------------------


def separate():
    b = numpyro.sample("b", dist.Normal(0, 1))
    c = numpyro.sample("c", dist.Normal(0, 1))
    design = jnp.asarray(X)
    numpyro.sample("y", dist.Normal(design[:, 0] * b + design[:, 1] * c, 1.0), obs=jnp.asarray(Y))


RESTRICTED = stats.multivariate_normal(
    np.zeros(12), np.eye(12) + np.outer(X[:, 0], X[:, 0])
).logpdf(Y)


@pytest.mark.slow
def test_savage_dickey_is_calibrated():
    z = []
    for seed in range(30):
        b = exact_draws(seed)["b"]
        draws = {"b": b[..., 0], "c": b[..., 1]}
        found = savage_dickey(jax.random.key(seed), separate, {"c": 0.0}, draws)
        z.append((found.log_evidence - (RESTRICTED - LOG_EVIDENCE)) / found.std_error)
    assert 0.7 < np.sqrt(np.mean(np.square(z))) < 1.5
    assert abs(np.mean(z)) * 30**0.5 < 4


def test_savage_dickey_with_a_prior_given_other_sites_and_a_constraint():
    """The density ratio does not depend on the parametrization."""

    def model():
        s = numpyro.sample("s", dist.LogNormal(0, 0.5))
        numpyro.sample("t", dist.LogNormal(jnp.log(s), 0.5))

    rng = np.random.default_rng(0)
    log_s = 0.5 * rng.normal(size=(2, 2000))
    draws = {"s": np.exp(log_s), "t": np.exp(log_s + 0.5 * rng.normal(size=log_s.shape))}
    found = savage_dickey(jax.random.key(0), model, {"t": 1.3}, draws)
    assert abs(found.log_evidence) < 4 * found.std_error  # there are no data
    assert found.std_error < 0.05


def test_savage_dickey_where_a_site_stands_between_the_fixed_ones():
    """The prior density of both has the site between them given the first."""

    def model():
        first = numpyro.sample("first", dist.Normal(0, 1))
        between = numpyro.sample("between", dist.Normal(first, 1))
        numpyro.sample("last", dist.Normal(between, 1))

    first, between, last = np.random.default_rng(0).normal(size=(3, 2, 4000)).cumsum(0)
    draws = {"first": first, "between": between, "last": last}
    found = savage_dickey(jax.random.key(0), model, {"first": 1.5, "last": -0.5}, draws)
    assert abs(found.log_evidence) < 4 * found.std_error  # there are no data
    assert found.std_error < 0.05
    truth = stats.norm.logpdf(1.5) + stats.norm.logpdf(-0.5, 1.5, 2**0.5)
    assert abs(found.diagnostics["log_prior"] - truth) < 4 * found.std_error


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({}, "values of latent sites among"),
        ({"d": 0.0}, r"got \['d'\]"),
        ({"c": np.zeros(2)}, r"`point\['c'\]` of shape \(\); got \(2,\)"),
        ({"c": np.inf}, "inside the support"),
    ],
)
def test_savage_dickey_refuses(point, message):
    b = exact_draws(0)["b"]
    with pytest.raises(ValueError, match=message):
        savage_dickey(jax.random.key(0), separate, point, {"b": b[..., 0], "c": b[..., 1]})


# ----- what an MCMC brings -----------------------------------------------------------------


@pytest.mark.parametrize(
    "estimate",
    [
        exact,
        lambda target, **options: importance(jax.random.key(0), target, lacking, **options),
        lambda target, **options: bridge(jax.random.key(0), target, **options),
        lambda target, **options: smc(jax.random.key(0), target, **options),
    ],
)
def test_an_mcmc_must_have_run_and_brings_its_own_arguments(estimate):
    mcmc = MCMC(NUTS(regression), num_warmup=1, num_samples=1)
    with pytest.raises(TypeError, match="an MCMC that has run; call mcmc.run first"):
        estimate(mcmc)
    with pytest.raises(TypeError, match="no `model_args` or `model_kwargs` with an MCMC"):
        estimate(mcmc, model_args=(1.0,))
