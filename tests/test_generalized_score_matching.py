"""Score matching of nonnegative data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_moments
from jax import flatten_util  # noqa: F401  used as an attribute of jax
from neural_energies import exponential, tilted_half_normal
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from registry import Case
from scipy import stats
from score_models import (
    assert_every_way,
    assert_rate,
    assert_subsampling_is_unbiased,
    assert_under_guides,
    independent,
    rows_of,
)

from numpyro_ebm import RBM, GeneralizedScoreMatching, NeuralEnergy, units


def cubic(x):
    return x**3 / (1 + x)


WEIGHTS = {
    "square": ("square", lambda x: x**2, {}),
    "min": ("min", lambda x: jnp.minimum(x, 0.75), {"cap": 0.75}),
    "function": (cubic, cubic, {}),
}


def brute_force(energy, weight, value):
    """J of one value by the full Hessian."""
    score = -jax.grad(energy)(value)
    curvature = -jnp.diag(jax.hessian(energy)(value))
    slope = jax.vmap(jax.grad(weight))(value)
    return (0.5 * weight(value) * score**2 + weight(value) * curvature + slope * score).sum()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("hidden", ["Bernoulli", "Gaussian"])
def test_rectified_rbms_against_the_full_hessian(hidden, name):
    argument, weight, kwargs = WEIGHTS[name]
    with jax.enable_x64(True):
        rbm = Case("ReLU", hidden, 17).build("float64")
        value = np.random.default_rng(1).gamma(1.0, 1.0, size=(5, *rbm.event_shape))
        loss = GeneralizedScoreMatching(argument, **kwargs)

        def mine(rbm):
            return rows_of(loss, rbm, value).sum()

        def reference(rbm):
            return jax.vmap(lambda x: brute_force(rbm.energy, weight, x))(value).sum()

        actual, expected = (jax.jit(jax.value_and_grad(f))(rbm) for f in (mine, reference))
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_rate_of_exponential_data_in_closed_form():
    with jax.enable_x64(True):
        data = np.random.default_rng(0).exponential(0.4, (30, 1))
        best = 2 * data.mean() / (data**2).mean()

        def mean(rate):
            model = NeuralEnergy(
                exponential, rate, event_shape=(1,), support=constraints.nonnegative
            )
            return rows_of(GeneralizedScoreMatching(), model, data).mean()

        np.testing.assert_allclose(jax.grad(mean)(best), 0, atol=1e-12)
        np.testing.assert_allclose(
            mean(best), best**2 * (data**2).mean() / 2 - 2 * best * data.mean()
        )


@pytest.mark.parametrize("laplacian", ["exact", "hutchinson"])
def test_random_signs_are_unbiased(laplacian):
    with jax.enable_x64(True):
        rbm = Case("ReLU", "Bernoulli", 17).build("float64")
        value = np.random.default_rng(1).gamma(1.0, 1.0, size=(3, *rbm.event_shape))
        exact = rows_of(GeneralizedScoreMatching("min"), rbm, value)
        loss = GeneralizedScoreMatching("min", laplacian=laplacian, num_projections=2)
        keys = jax.random.split(jax.random.key(0), 2000)
        draws = jax.jit(jax.vmap(lambda key: rows_of(loss, rbm, value, key)))(keys)
        assert (np.asarray(draws).std(0).max() > 1e-3) == (laplacian == "hutchinson")
        assert_moments(draws, np.asarray(exact))


TRUNCATED = (1.0, -0.5)
"""Precision and slope: a normal density of mean -0.5 where it is positive."""


def as_tuple(params, x):
    return tilted_half_normal((params["precision"], params["slope"]), x)


@pytest.mark.parametrize("name", WEIGHTS)
def test_truncated_normal_at_the_usual_rate(name):
    argument, _, kwargs = WEIGHTS[name]
    precision, slope = TRUNCATED

    def draw(rng, shape):
        loc, scale = slope / precision, precision**-0.5
        limits = -loc / scale, np.inf
        return stats.truncnorm.rvs(*limits, loc, scale, (*shape, 1), random_state=rng)

    loss = GeneralizedScoreMatching(argument, **kwargs)
    truth = {"precision": jnp.array([precision]), "slope": jnp.array([slope])}
    assert_rate(loss, independent, truth, draw, support=constraints.positive)


@pytest.mark.slow
def test_every_way_to_observe_data():
    assert_every_way(GeneralizedScoreMatching(), constraints.positive)


def test_subsampled_plates():
    assert_subsampling_is_unbiased(GeneralizedScoreMatching("min"), constraints.nonnegative)


@pytest.mark.parametrize(
    ("make_guide", "particles"),
    [(AutoDelta, {}), (AutoNormal, {"num_particles": 3})],
)
def test_guides_and_particles(make_guide, particles):
    loss = GeneralizedScoreMatching("min", **particles)
    assert_under_guides(loss, particles, constraints.positive, make_guide)


@pytest.mark.parametrize(
    ("visible", "match"),
    [
        (units.Bernoulli(jnp.zeros(2)), "PseudoLikelihood"),
        (units.Gaussian(jnp.zeros(2), jnp.ones(2)), "ScoreMatching"),
    ],
)
def test_models_that_it_does_not_fit(visible, match):
    rbm = RBM(jnp.zeros((2, 1)), visible, jnp.zeros(1))
    with pytest.raises(ValueError, match=f"GeneralizedScoreMatching.*'x'.*fit it:.*{match}"):
        rows_of(GeneralizedScoreMatching(), rbm, jnp.ones((3, 2)))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"weight": "log"},
        {"cap": 0.0},
        {"cap": "one"},
        {"laplacian": "trace"},
        {"num_projections": 0},
    ],
)
def test_settings_that_are_refused(kwargs):
    with pytest.raises(ValueError, match=f"expected .*{next(iter(kwargs))}"):
        GeneralizedScoreMatching(**kwargs)
