import itertools

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
from loss_models import rbm_of
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from numpyro_ebm import RBM, EnergyDiscrepancy, units
from numpyro_ebm.losses import energy_discrepancy

NUM_NOISE, WEIGHT = 3, 0.5


def row_loss(params, data):
    rbm = rbm_of(params["weights"], params["bias"])
    copies = copies_without_noise(None, copies_without_noise(None, data, ()), (NUM_NOISE,))
    ratios = jnp.exp(rbm.energy(data) - rbm.energy(copies))
    return jnp.log((WEIGHT + ratios.sum(0)) / NUM_NOISE)


@pytest.fixture
def loss(monkeypatch):
    """The loss, with a channel without chance."""
    monkeypatch.setattr(energy_discrepancy, "channel_for", lambda *args: copies_without_noise)
    return EnergyDiscrepancy(0.2, NUM_NOISE, WEIGHT)


@pytest.mark.slow
def test_in_plates_with_masks(loss):
    check_plates(loss, row_loss)


def test_rows_that_are_not_finite():
    check_garbage(EnergyDiscrepancy(0.3, 2))


def test_subsampled(loss):
    check_subsample(loss, row_loss)


def test_evaluate(loss):
    check_evaluate(loss, row_loss)


@pytest.mark.parametrize("make_guide", [AutoDelta, AutoNormal])
def test_under_a_guide_of_several_particles(loss, make_guide):
    loss.num_particles = 1 if make_guide is AutoDelta else 3
    check_guide(loss, row_loss, make_guide)


# ----- expectation -------------------------------------------------------------------------


def enumerated(energies, channel, num_noise, weight):
    """Expected loss of every state: a sum over the perturbed state and those around it."""
    expected = np.zeros(len(energies))
    for copies in itertools.product(range(len(energies)), repeat=num_noise):
        prob = channel @ np.prod([channel[:, i] for i in copies], axis=0)
        ratios = sum(np.exp(energies - energies[i]) for i in copies)
        expected += prob * np.log((weight + ratios) / num_noise)
    return expected


@pytest.mark.parametrize(("num_noise", "weight"), [(1, 0.0), (2, 0.0), (1, 1.0), (2, 0.5)])
def test_value_is_that_of_enumerated_noise(num_noise, weight):
    family, prob = Binary(), 0.3
    model = family.build(jnp.asarray(family.truth))
    channel = channel_matrix(family.states, 2, prob)
    expected = enumerated(np.asarray(model.energy(family.states)), channel, num_noise, weight)
    loss = EnergyDiscrepancy(prob, num_noise, weight)
    assert_moments(losses_of(loss, model, jnp.asarray(family.states), 4000), expected)


def test_small_noise_is_score_matching():
    family, scale, point = Real(), 0.05, jnp.array([0.7, -0.4])
    model = family.build(jnp.asarray(family.truth))
    squared, laplacian = score_matching_terms(model.energy, point)
    num_noise = 4  # so few draws leave out a part of the squared norm
    values = losses_of(EnergyDiscrepancy(scale, num_noise, 0.0), model, point[None], 40_000)
    expected = (1 - 1 / num_noise) * squared / 2 - laplacian
    assert_moments(values / scale**2, expected)


def test_uniform_noise_is_the_likelihood():
    exact = Exact(Binary())
    states, size = jnp.asarray(exact.family.states), exact.family.states.shape[1]
    model = exact.family.build(jnp.asarray(exact.family.truth))
    values = losses_of(EnergyDiscrepancy(0.5, 4000, 0.0), model, states, 20)
    assert_moments(values, -np.log(exact.probs) - size * np.log(2))


# ----- bias --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [Binary(), Real()], ids=["binary", "real"])
@pytest.mark.parametrize("num_noise", [1, 4])
def test_expected_gradient_vanishes_at_the_truth(family, num_noise):
    """Without a bias in M, for the stabilization 1."""
    loss = EnergyDiscrepancy(family.noise_scale, num_noise, 1.0)
    assert_moments(gradients_at(loss, Exact(family), family.truth), 0.0)


@pytest.mark.slow
def test_bias_of_other_stabilizations_falls_as_one_over_m():
    exact, bias = Exact(Binary()), {}
    for num_noise in (2, 8, 32):
        loss = EnergyDiscrepancy(0.3, num_noise, 0.0)
        gradients = gradients_at(loss, exact, exact.family.truth, num_rows=2000)
        bias[num_noise] = np.linalg.norm(gradients.mean(0))
        if num_noise == 2:
            assert np.abs(z_scores(gradients, 0.0)).max() > 10
    assert 2.5 < bias[2] / bias[8] < 6
    assert 2.5 < bias[8] / bias[32] < 6


@RECOVERED
def test_consistent(family):
    assert_consistent(EnergyDiscrepancy(family.noise_scale, 2), family)


# ----- what does not fit -------------------------------------------------------------------


def test_mixed_units():
    layer = units.Concatenate([units.Gaussian(jnp.zeros(1)), units.Bernoulli(jnp.zeros(2))])
    rbm = RBM(jnp.zeros((3, 1)), layer, jnp.zeros(1))
    with pytest.raises(ValueError, match="EnergyDiscrepancy: expected a model of real or discrete"):
        EnergyDiscrepancy(0.1).surrogate(jax.random.key(0), "v", rbm, {})


ERRORS = {
    "noise_scale": (lambda: EnergyDiscrepancy(-0.1), "positive, finite `noise_scale`; got -0.1"),
    "num_noise": (lambda: EnergyDiscrepancy(0.1, 2.5), "`num_noise` to be a positive integer"),
    "stabilization": (lambda: EnergyDiscrepancy(0.1, 2, -1.0), "`stabilization` to be a nonneg"),
    "NaN": (lambda: EnergyDiscrepancy(0.1, 2, np.nan), "`stabilization` to be a nonneg"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_energies_hundreds_of_nats_apart_stay_finite():
    steep = RBM(jnp.zeros((3, 1)), 300 * jnp.ones(3), jnp.zeros(1))
    for weight in (0.0, 1.0):
        values = losses_of(EnergyDiscrepancy(0.5, 4, weight), steep, jnp.zeros((1, 3)), 20)
        assert np.isfinite(values).all()
