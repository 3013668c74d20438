import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrast_models import (
    RECOVERED,
    Binary,
    Exact,
    Real,
    assert_consistent,
    channel_matrix,
    check_evaluate,
    check_garbage,
    check_guide,
    check_plates,
    check_subsample,
    copies_without_noise,
    gradients_at,
    losses_of,
    score_matching_terms,
)
from helpers import assert_moments, z_scores
from loss_models import PARAMS, rbm_of
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from numpyro_ebm import RBM, ConditionalNoiseContrastiveEstimation, Potts, units
from numpyro_ebm.losses import conditional_noise_contrastive
from numpyro_ebm.losses.perturbation import channel_for

NUM_NOISE = 3


def row_loss(params, data):
    rbm = rbm_of(params["weights"], params["bias"])
    copies = copies_without_noise(None, data, (NUM_NOISE,))
    ratio = jnp.exp(rbm.energy(data) - rbm.energy(copies))
    return 2 / NUM_NOISE * jnp.log(1 + ratio).sum(0)


@pytest.fixture
def loss(monkeypatch):
    """The loss, with a channel without chance."""
    monkeypatch.setattr(
        conditional_noise_contrastive, "channel_for", lambda *args: copies_without_noise
    )
    return ConditionalNoiseContrastiveEstimation(0.2, NUM_NOISE)


@pytest.mark.slow
def test_in_plates_with_masks(loss):
    check_plates(loss, row_loss)


def test_rows_that_are_not_finite():
    check_garbage(ConditionalNoiseContrastiveEstimation(0.3, 2))


def test_subsampled(loss):
    check_subsample(loss, row_loss)


def test_evaluate(loss):
    check_evaluate(loss, row_loss)


@pytest.mark.parametrize("make_guide", [AutoDelta, AutoNormal])
def test_under_a_guide_of_several_particles(loss, make_guide):
    loss.num_particles = 1 if make_guide is AutoDelta else 3
    check_guide(loss, row_loss, make_guide)


# ----- the channel -------------------------------------------------------------------------

LAYERS = {
    "bits": units.Bernoulli(jnp.zeros(3)),
    "spins": units.Spin(jnp.zeros(3)),
    "Potts": units.Categorical(jnp.zeros((3, 4))),
    "unequal": units.Concatenate([units.Categorical(jnp.zeros((1, 3))), units.Spin(jnp.zeros(2))]),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_units_change_with_the_probability_to_each_other_state(layer):
    rbm, prob = RBM(jnp.zeros((*layer.feature_shape, 1)), layer, jnp.zeros(1)), 0.3
    values, allowed = rbm.unit_states
    perturb = channel_for(None, "v", rbm, prob)
    for index in range(allowed.shape[-1]):
        start = jnp.asarray(values[:, index])
        moved = perturb(jax.random.key(index), start, (4000,))
        assert moved.dtype == start.dtype
        num_states = allowed.sum(-1, keepdims=True)
        expected = np.where(values == values[:, [index]], 1 - prob, prob / (num_states - 1))
        arrived = (np.asarray(moved)[..., None] == values) & allowed
        assert_moments(arrived.reshape(4000, -1), (expected * allowed).ravel())


def test_gaussian_noise_has_its_scale_in_every_unit():
    rbm = RBM(jnp.zeros((2, 1)), units.Gaussian(jnp.zeros(2)), jnp.zeros(1))
    scale, start = jnp.array([0.5, 2.0]), jnp.array([1.0, -1.0])
    noise = channel_for(None, "v", rbm, scale)(jax.random.key(0), start, (4000,)) - start
    moments = np.column_stack([noise, noise**2, noise[:, 0] * noise[:, 1]])
    assert_moments(moments, np.array([0, 0, 0.25, 4, 0]))


def test_values_keep_their_type_and_shape():
    potts = Potts.lattice((2, 3), 0.5, 3)
    value = jnp.ones((4, 2, 3), jnp.uint8)
    moved = channel_for(None, "v", potts, 0.5)(jax.random.key(0), value, (5,))
    assert (moved.shape, moved.dtype) == ((5, 4, 2, 3), jnp.uint8)
    assert set(np.unique(moved)) == {0, 1, 2}


# ----- expectation -------------------------------------------------------------------------


@pytest.mark.parametrize("num_noise", [1, 3])
def test_value_is_that_of_enumerated_noise(num_noise):
    family, prob = Binary(), 0.3
    energies = np.asarray(family.build(jnp.asarray(family.truth)).energy(family.states))
    terms = 2 * np.log(1 + np.exp(energies[:, None] - energies))
    expected = (channel_matrix(family.states, 2, prob) * terms).sum(1)
    loss = ConditionalNoiseContrastiveEstimation(prob, num_noise)
    model = family.build(jnp.asarray(family.truth))
    assert_moments(losses_of(loss, model, jnp.asarray(family.states), 2000), expected)


@pytest.mark.slow
def test_small_noise_is_score_matching():
    family, scale, point = Real(), 0.05, jnp.array([0.7, -0.4])
    model = family.build(jnp.asarray(family.truth))
    squared, laplacian = score_matching_terms(model.energy, point)
    loss = ConditionalNoiseContrastiveEstimation(scale, 20)
    values = losses_of(loss, model, point[None], 20_000)
    assert_moments((values - 2 * np.log(2)) / scale**2, (squared / 2 - laplacian) / 2)


def test_constant_energy():
    loss = ConditionalNoiseContrastiveEstimation(0.5, 2)
    flat = RBM(jnp.zeros((3, 1)), jnp.zeros(3), jnp.zeros(1))
    np.testing.assert_allclose(losses_of(loss, flat, jnp.eye(3), 1), 2 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("family", [Binary(), Real()], ids=["binary", "real"])
def test_expected_gradient_vanishes_at_the_truth_only(family):
    exact, loss = Exact(family), ConditionalNoiseContrastiveEstimation(family.noise_scale, 2)
    assert_moments(gradients_at(loss, exact, family.truth), 0.0)
    elsewhere = gradients_at(loss, exact, 0.7 * family.truth)
    assert np.abs(z_scores(elsewhere, 0.0)).max() > 10


@RECOVERED
def test_consistent(family):
    assert_consistent(ConditionalNoiseContrastiveEstimation(family.noise_scale, 2), family)


# ----- what does not fit -------------------------------------------------------------------


def surrogate(noise_scale, layer):
    rbm = RBM(jnp.zeros((*layer.feature_shape, 1)), layer, jnp.zeros(1))
    loss = ConditionalNoiseContrastiveEstimation(noise_scale)
    loss.surrogate(jax.random.key(0), "v", rbm, {})


MIXED = units.Concatenate([units.Gaussian(jnp.zeros(1)), units.Bernoulli(jnp.zeros(2))])
ERRORS = {
    "mixed": (lambda: surrogate(0.1, MIXED), "real or discrete units at site 'v'.*is mixed"),
    "nonnegative": (lambda: surrogate(0.1, units.ReLU(jnp.zeros(2))), "GeneralizedScoreMatching"),
    "probability": (lambda: surrogate(1.0, LAYERS["bits"]), "`noise_scale` below 1 at site 'v'"),
    "shape": (
        lambda: surrogate(0.1 * jnp.ones(4), LAYERS["bits"]),
        r"broadcast to the event shape \(3,\) of site 'v'; got \(4,\)",
    ),
    "zero": (lambda: ConditionalNoiseContrastiveEstimation(0.0), "positive, finite `noise_scale`"),
    "NaN": (lambda: ConditionalNoiseContrastiveEstimation(np.nan), "finite `noise_scale`"),
    "num_noise": (
        lambda: ConditionalNoiseContrastiveEstimation(0.1, 0),
        "`num_noise` to be a positive integer; got 0",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_log_z_is_asked_for():
    loss = ConditionalNoiseContrastiveEstimation(0.2)
    assert jnp.isfinite(losses_of(loss, rbm_of(**PARAMS), jnp.eye(6), 2)).all()
