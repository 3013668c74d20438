"""Denoising score matching: one scale, several, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from helpers import assert_moments, z_scores
from jax import flatten_util  # noqa: F401  used as an attribute of jax
from loss_models import no_guide, recorder
from neural_energies import quartic
from numpyro.distributions import constraints
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from score_models import (
    DATA,
    INDEPENDENT,
    assert_every_way,
    assert_rate,
    assert_subsampling_is_unbiased,
    assert_under_guides,
    fixed,
    independent,
    rows_of,
)

from numpyro_ebm import RBM, DenoisingScoreMatching, NeuralEnergy, units, update_counter

SCALES = (0.5, 1.0, 2.0)
VALUE = np.array([[0.3, -1.0], [2.0, 0.5], [-1.5, 0.1]], np.float32)


def gaussian(params, x):
    """Independent units of one precision."""
    return 0.5 * params["precision"] * jnp.sum((x - params["loc"]) ** 2)


def conditional(params, x, noise_scale):
    """The Gaussian of a variance, with that of the noise added."""
    return 0.5 * jnp.sum(x**2) / (params["variance"] + noise_scale**2)


PARAMS = {"precision": jnp.array(0.8), "loc": jnp.array([0.5, -0.25])}


def expected_rows(params, scale, factor, target):
    """Mean over the noise of |factor * gradient - target * noise|^2 / 2 of every row."""
    precision, offset = params["precision"], VALUE - params["loc"]
    signal = (factor * precision * offset) ** 2
    noise = (factor * precision * scale - target) ** 2
    return 0.5 * (signal + noise).sum(-1)


CASES = {
    "one scale": (
        DenoisingScoreMatching(0.7),
        lambda params: expected_rows(params, 0.7, 1.0, 1 / 0.7),
    ),
    "several, smallest reference": (
        DenoisingScoreMatching(SCALES),
        lambda params: sum(expected_rows(params, s, 0.25 / s, 1.0) for s in SCALES) / 3,
    ),
    "several, reference": (
        DenoisingScoreMatching(SCALES, reference_scale=0.8),
        lambda params: sum(expected_rows(params, s, 0.64 / s, 1.0) for s in SCALES) / 3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mean_over_the_noise_in_closed_form(name):
    loss, expected = CASES[name]

    def vector(rows):
        def of(params):
            gradient = jax.grad(lambda p: rows(p).sum())(params)
            return jnp.concatenate([rows(params), jax.flatten_util.ravel_pytree(gradient)[0]])

        return of

    def mine(key):
        def rows(params):
            return rows_of(loss, NeuralEnergy(gaussian, params, event_shape=(2,)), VALUE, key)

        return vector(rows)(PARAMS)

    draws = jax.jit(jax.vmap(mine))(jax.random.split(jax.random.key(0), 5000))
    assert_moments(draws, np.asarray(vector(expected)(PARAMS)))


@pytest.mark.slow
def test_gradient_is_that_of_the_fisher_divergence_to_the_smoothed_data():
    """A quartic energy, by quadrature against the mixture that noise makes of the data."""
    scale, data = 0.6, np.array([-1.0, -0.2, 1.4])
    params = jnp.array([0.5, -1.0, 0.3])
    grid = jnp.linspace(-8, 8, 4001)

    def divergence(params):
        def log_smoothed(x):
            return jax.nn.logsumexp(-0.5 * ((x - data) / scale) ** 2)

        def log_model(x):
            return -quartic(params, x[None])

        gap = jax.vmap(jax.grad(log_model))(grid) - jax.vmap(jax.grad(log_smoothed))(grid)
        density = jnp.exp(jax.vmap(log_smoothed)(grid))
        return 0.5 * (density * gap**2).sum() / density.sum()

    expected = jax.grad(divergence)(params)
    loss = DenoisingScoreMatching(scale)

    def gradient(key):
        def mean(params):
            model = NeuralEnergy(quartic, params, event_shape=(1,))
            return rows_of(loss, model, data[:, None].astype(np.float32), key).mean()

        return jax.grad(mean)(params)

    draws = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(1), 5000))
    assert_moments(draws, np.asarray(expected))
    assert np.abs(z_scores(draws, 0.0)).max() > 10


@pytest.mark.slow
def test_gaussian_data_gain_the_variance_of_the_noise():
    draws = {"precision": jnp.array([1 / 1.49]), "slope": jnp.array([0.5 / 1.49])}

    def data(rng, shape):
        return rng.normal(0.5, 1.0, (*shape, 1))

    assert_rate(DenoisingScoreMatching(0.7), independent, draws, data)


@pytest.mark.parametrize("loss", [DenoisingScoreMatching(SCALES), DenoisingScoreMatching(0.8)])
def test_a_conditional_energy_has_a_score_for_every_scale(loss):
    """The gradient in the variance vanishes at that of the data, whatever the scale."""
    data = np.random.default_rng(0).normal(0, 1.3, (50, 1)).astype(np.float32)

    def gradient(variance, key):
        def mean(variance):
            model = NeuralEnergy(
                conditional, {"variance": variance}, event_shape=(1,), noise_scale=1.0
            )
            return rows_of(loss, model, data, key).mean()

        return jax.grad(mean)(variance)

    keys = jax.random.split(jax.random.key(2), 3000)
    at = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))
    assert_moments(at(jnp.array((data**2).mean()), keys)[:, None], 0.0)
    assert np.abs(z_scores(at(jnp.array(1.0), keys)[:, None], 0.0)) > 10


def test_each_row_draws_its_scale():
    def slope(params, x, noise_scale):
        return params * noise_scale * jnp.sum(x)

    loss, num = DenoisingScoreMatching((1e-3, 10.0)), 2000
    model = NeuralEnergy(slope, jnp.array(100.0), event_shape=(1,), noise_scale=1.0)
    rows = rows_of(loss, model, np.zeros((num, 1), np.float32))
    large = np.asarray(rows) > 1e4
    assert_moments(large[:, None].astype(float), 0.5)


# ----- a schedule --------------------------------------------------------------------------

SCHEDULE = optax.exponential_decay(2.0, 1, 0.5, end_value=0.5)


def counted(data, observed=True):
    params = {name: numpyro.param(name, value) for name, value in INDEPENDENT.items()}
    energy = NeuralEnergy(independent, params, event_shape=(2,))
    if observed:
        numpyro.deterministic("so far", update_counter("updates", energy))
    with numpyro.plate("rows", len(data)):
        numpyro.sample("x", energy, obs=data)


def scheduled_rows(scale):
    """The loss at one scale, weighted by its square."""
    model = NeuralEnergy(independent, INDEPENDENT, event_shape=(2,))
    return scale**2 * rows_of(DenoisingScoreMatching(scale), model, DATA)


def test_the_scale_follows_the_schedule():
    svi = SVI(counted, no_guide, recorder(), fixed(DenoisingScoreMatching(SCHEDULE)))
    state, update, losses = svi.init(jax.random.key(0), DATA), jax.jit(svi.update), []
    for count in range(4):
        assert state.mutable_state["updates"]["count"] == count
        state, value = update(state, DATA)
        losses.append(value)
    expected = [scheduled_rows(scale).sum() for scale in (2.0, 1.0, 0.5, 0.5)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_run_and_resume():
    svi = SVI(counted, no_guide, numpyro.optim.Adam(0.01), DenoisingScoreMatching(SCHEDULE))
    first = svi.run(jax.random.key(0), 3, DATA, progress_bar=False)
    second = svi.run(jax.random.key(1), 2, DATA, init_state=first.state, progress_bar=False)
    assert second.state.mutable_state["updates"]["count"] == 5
    assert np.isfinite([*first.losses, *second.losses]).all()


def test_a_conditional_energy_under_a_schedule():
    def model(data):
        params = {"variance": numpyro.param("variance", 1.0)}
        energy = NeuralEnergy(conditional, params, event_shape=(2,), noise_scale=1.0)
        update_counter("updates", energy)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("x", energy, obs=data)

    loss = fixed(DenoisingScoreMatching(SCHEDULE))
    svi = SVI(model, no_guide, recorder(), loss)
    _, value = jax.jit(svi.update)(svi.init(jax.random.key(0), DATA), DATA)
    at = NeuralEnergy(conditional, {"variance": 1.0}, event_shape=(2,), noise_scale=1.0)
    expected = 4.0 * rows_of(DenoisingScoreMatching(2.0), at, DATA).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_without_a_counter():
    svi = SVI(
        lambda data: counted(data, False), no_guide, recorder(), DenoisingScoreMatching(SCHEDULE)
    )
    state = svi.init(jax.random.key(0), DATA)
    with pytest.raises(ValueError, match="update_counter"):
        svi.update(state, DATA)
    with pytest.raises(ValueError, match="no count of updates"):
        svi.evaluate(state, DATA)
    with pytest.raises(TypeError, match="update_counter.*energy-based"):
        update_counter("updates", numpyro.distributions.Normal())
    loss = DenoisingScoreMatching(SCHEDULE, num_particles=2)
    svi = SVI(counted, no_guide, recorder(), loss)
    with pytest.raises(ValueError, match="num_particles=1"):
        svi.update(svi.init(jax.random.key(0), DATA), DATA)


# ----- in a model --------------------------------------------------------------------------

LOSSES = {
    "one": lambda **kw: DenoisingScoreMatching(0.5, **kw),
    "several": lambda **kw: DenoisingScoreMatching(SCALES, **kw),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_way_to_observe_data(name):
    assert_every_way(LOSSES[name](), constraints.real)


def test_subsampled_plates():
    assert_subsampling_is_unbiased(LOSSES["several"](), constraints.real)


@pytest.mark.parametrize(
    ("make_guide", "particles"),
    [
        (AutoDelta, {}),
        (AutoNormal, {"num_particles": 3}),
        (AutoNormal, {"num_particles": 3, "vectorize_particles": False}),
    ],
)
def test_guides_and_particles(make_guide, particles):
    assert_under_guides(LOSSES["several"](**particles), particles, constraints.real, make_guide)


def test_noise_is_drawn_anew_at_each_update():
    svi = SVI(counted, no_guide, recorder(), DenoisingScoreMatching(0.5))
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    state, first = update(state, DATA)
    _, second = update(state, DATA)
    assert first != second
    evaluated = jax.jit(svi.evaluate)(state, DATA)
    np.testing.assert_allclose(evaluated, second, rtol=1e-5)


# ----- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: DenoisingScoreMatching(0.0), ValueError, "positive"),
        (lambda: DenoisingScoreMatching([0.1, -1.0]), ValueError, "positive"),
        (lambda: DenoisingScoreMatching([]), ValueError, "positive"),
        (lambda: DenoisingScoreMatching("small"), TypeError, "sequence.*schedule"),
        (lambda: DenoisingScoreMatching(0.1, reference_scale=0.1), ValueError, "without"),
        (lambda: DenoisingScoreMatching(SCALES, reference_scale=0), ValueError, "positive"),
    ],
)
def test_settings_that_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_discrete_models_are_refused():
    rbm = RBM(jnp.zeros((2, 1)), units.Bernoulli(jnp.zeros(2)), jnp.zeros(1))
    with pytest.raises(ValueError, match="DenoisingScoreMatching.*'x'.*PseudoLikelihood"):
        rows_of(DenoisingScoreMatching(0.1), rbm, jnp.ones((3, 2)))
