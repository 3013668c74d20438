"""Stein variational gradient descent: its direction, Gaussians, a known posterior, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from continuous_targets import draws_of_mixture, gaussian_moments, mixture_moments
from numpyro.contrib.einstein import IMQKernel, LinearKernel, RandomFeatureKernel, RBFKernel
from registry import Case

import numpyro_ebm as ebm
from numpyro_ebm.kernels import stein

GAUSSIAN = Case("Gaussian", "Gaussian", 910).build()
MIXTURE = Case("Gaussian", "Bernoulli", 911).build()
RECTIFIED = Case("ReLU", "Bernoulli", 912).build()
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


# ----- the direction -----------------------------------------------------------------------


def test_direction_is_the_double_sum():
    """With the radial kernel and its median bandwidth written out in NumPy."""
    x, score = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 3))
    differences = x[:, None] - x
    squares = (differences**2).sum(-1)
    bandwidth = np.median(np.sqrt(squares)) ** 2 / np.log(7)
    pairs = np.exp(-squares / bandwidth)
    pull = pairs @ score
    push = (-2 / bandwidth * differences * pairs[..., None]).sum(0)
    found = stein.direction(RBFKernel(), KEY, jnp.asarray(x), jnp.asarray(score))
    np.testing.assert_allclose(found, (pull + push) / 7, rtol=1e-4, atol=1e-5)


def test_modes_of_the_kernel():
    """A matrix kernel that is a multiple of the identity is the same as the number."""
    x, score = jnp.asarray(RNG.normal(size=(6, 2))), jnp.asarray(RNG.normal(size=(6, 2)))
    norm, matrix = (stein.direction(RBFKernel(mode), KEY, x, score) for mode in ("norm", "matrix"))
    np.testing.assert_allclose(matrix, norm, rtol=1e-5, atol=1e-6)
    diagonal = RBFKernel("matrix", matrix_mode="vector_diag")
    vector = stein.direction(RBFKernel("vector"), KEY, x, score)
    np.testing.assert_allclose(stein.direction(diagonal, KEY, x, score), vector, rtol=1e-5)
    assert not np.allclose(vector, norm)


def test_pairs_in_pieces_give_the_same(monkeypatch):
    x, score = jnp.asarray(RNG.normal(size=(9, 2))), jnp.asarray(RNG.normal(size=(9, 2)))
    whole = stein.direction(IMQKernel(), KEY, x, score)
    monkeypatch.setattr(stein, "_PAIRS", 40)
    np.testing.assert_allclose(stein.direction(IMQKernel(), KEY, x, score), whole, rtol=1e-5)


def test_linear_kernel_matches_gaussian_moments_exactly():
    """Fixed points of the kernel x^T y + 1 have the mean and covariance of a Gaussian target."""
    result = ebm.svgd(KEY, GAUSSIAN, kernel=LinearKernel(), num_particles=20, num_steps=3000)
    mean, covariance = gaussian_moments(GAUSSIAN)
    x = np.asarray(result.particles, np.float64)
    np.testing.assert_allclose(x.mean(0), mean, atol=2e-3)
    np.testing.assert_allclose(np.cov(x.T, ddof=0), covariance, atol=5e-3)
    assert result.step_norms[-1] < 1e-2 * result.step_norms[0]


# ----- targets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "moments"), [(GAUSSIAN, gaussian_moments), (MIXTURE, mixture_moments)]
)
def test_moments_of_an_rbm(target, moments):
    result = ebm.svgd(KEY, target, num_particles=100)
    mean, covariance = moments(target)
    x = np.asarray(result.particles, np.float64)
    assert x.shape == (100, 2)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.12)
    assert result.ksd < 0.1
    start = ebm.svgd(KEY, target, num_particles=100, num_steps=1)
    assert result.ksd < start.ksd / 2
    assert result.step_norms.shape == (1000,)


@pytest.mark.slow
def test_particles_stay_in_the_support():
    result = ebm.svgd(KEY, RECTIFIED, num_particles=100)
    x = np.asarray(result.particles, np.float64)
    draws = draws_of_mixture(RECTIFIED)(RNG, 100_000)
    assert np.all(x > 0)
    np.testing.assert_allclose(x.mean(0), draws.mean(0), atol=0.08)


def conjugate(counts, y):
    """Rate | counts is Gamma(8, 5); mu | y is Normal(sum(y) / 4, 1 / 4)."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("counts", dist.Poisson(rate).expand([len(counts)]).to_event(1), obs=counts)
    numpyro.sample("y", dist.Normal(mu[0], 1).expand([len(y)]).to_event(1), obs=y)


DATA = np.array([2, 0, 3, 1]), np.array([0.4, -1.0, 1.9])


@pytest.mark.slow
def test_known_posterior():
    result = ebm.svgd(KEY, conjugate, num_particles=100, model_args=DATA)
    rate, mu = (np.asarray(result.particles[name], np.float64) for name in ("rate", "mu"))
    assert rate.shape == (100,)
    assert mu.shape == (100, 2)
    np.testing.assert_allclose([rate.mean(), mu[:, 0].mean()], [1.6, 1.3 / 4], atol=0.05)
    np.testing.assert_allclose(mu[:, 1].mean(), 0, atol=0.1)
    scales = [rate.std(), mu[:, 0].std(), mu[:, 1].std()]
    np.testing.assert_allclose(scales, [8**0.5 / 5, 0.5, 1.0], rtol=0.15)
    squared = ebm.kernelized_stein_discrepancy(conjugate, result.particles, model_args=DATA)
    np.testing.assert_allclose(squared.v_statistic, result.ksd**2, rtol=1e-3)


def test_results_reach_arviz():
    result = ebm.svgd(KEY, conjugate, num_particles=40, num_steps=20, model_args=DATA)
    posterior = result.to_datatree()["posterior"]
    assert dict(posterior.sizes) == {"chain": 1, "draw": 40, "mu_dim_0": 2}
    assert posterior.attrs["inference"] == "svgd"
    np.testing.assert_array_equal(posterior["rate"][0], result.particles["rate"])


def test_loop_is_compiled_once_for_other_data():
    before = stein._descend._cache_size()
    options = {"num_particles": 10, "num_steps": 5}
    first = ebm.svgd(KEY, conjugate, model_args=DATA, **options)
    other = ebm.svgd(KEY, conjugate, model_args=(DATA[0] + 1, DATA[1]), **options)
    assert stein._descend._cache_size() == before + 1
    assert not np.allclose(first.particles["rate"], other.particles["rate"])
    for seed in (910, 913):
        ebm.svgd(KEY, Case("Gaussian", "Gaussian", seed).build(), **options)
    assert stein._descend._cache_size() == before + 2


def test_start_and_optimizer_can_be_given():
    start = RNG.normal(3, 0.1, (30, 2)).astype(np.float32)
    options = {"num_particles": 30, "num_steps": 1, "init": start}
    optim = optax.sgd(0.0)
    still = ebm.svgd(KEY, GAUSSIAN, optim=optim, **options)
    np.testing.assert_allclose(still.particles, start, rtol=1e-6)
    moved = ebm.svgd(KEY, GAUSSIAN, optim=optax.sgd(0.1), **options)
    assert not np.allclose(moved.particles, start)
    values = {"rate": np.ones(30), "mu": np.zeros((30, 2))}
    again = ebm.svgd(KEY, conjugate, optim=optim, model_args=DATA, **options | {"init": values})
    np.testing.assert_allclose(again.particles["rate"], 1, rtol=1e-5)


def test_random_kernels_depend_on_the_key():
    kernel = RandomFeatureKernel()
    options = {"num_particles": 10, "num_steps": 3, "init": RNG.normal(size=(10, 2))}
    options["kernel"] = kernel
    one, two = (ebm.svgd(jax.random.key(i), GAUSSIAN, **options).particles for i in (0, 1))
    assert not np.allclose(one, two)
    assert kernel._random_weights is None  # the user's own kernel is left alone


def test_raw_keys_and_the_guard():
    a = ebm.svgd(jax.random.PRNGKey(0), MIXTURE, num_particles=5, num_steps=2)
    assert np.all(np.isfinite(a.particles))

    def hierarchical():
        shift = numpyro.sample("shift", dist.Normal(0, 1))
        visible = ebm.units.Gaussian(shift * jnp.ones(2))
        numpyro.sample("v", ebm.RBM(jnp.ones((2, 1)), visible, jnp.zeros(1)))

    with pytest.raises(ebm.NormalizerError):
        ebm.svgd(KEY, hierarchical, num_particles=5, num_steps=2)


# ----- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_particles": 1}, ValueError, "`num_particles` of at least 2; got 1"),
        ({"num_steps": 0}, ValueError, "`num_steps` of at least 1; got 0"),
        ({"num_steps": 1.5}, TypeError, "integer `num_steps`"),
        ({"optim": 0.1}, TypeError, "`optim` to be an optax optimizer.*got float"),
        ({"kernel": "rbf"}, TypeError, "`kernel` to be a kernel of numpyro.*got str"),
        ({"init": np.zeros((7, 2))}, ValueError, "`init` of 100 particles.*got 7"),
        ({"init": np.zeros((7, 3))}, ValueError, "`init` in the form of the particles"),
        ({"model_kwargs": {"a": 1}}, TypeError, "no `model_args` or `model_kwargs`"),
    ],
)
def test_settings_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        ebm.svgd(KEY, GAUSSIAN, **options)


def test_targets_and_keys_are_checked():
    with pytest.raises(TypeError, match="svgd: expected a target with continuous units"):
        ebm.svgd(KEY, Case("Bernoulli", "Bernoulli", 1).build())
    with pytest.raises(TypeError, match="`rng_key` to be one random key"):
        ebm.svgd(0, GAUSSIAN)
    with pytest.raises(TypeError, match="or a NumPyro model; got the class RBM"):
        ebm.svgd(KEY, ebm.RBM)
    with pytest.raises(ValueError, match="continuous; got none"):
        ebm.svgd(KEY, lambda: None)


def test_divergence_is_reported():
    with pytest.raises(ValueError, match="particles left for where.*smaller step size"):
        ebm.svgd(KEY, GAUSSIAN, num_particles=5, num_steps=100, optim=optax.sgd(1e4))
