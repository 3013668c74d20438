"""Differences of a log density against evaluating every change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import NUM_STATES, Case
from relaxed_programs import (
    COUPLED,
    COUPLINGS,
    DESIGN,
    REFUSED,
    STATES,
    SUMS_OVER_PAIRS,
    SUMS_OVER_UNITS,
    VALUES,
    Y,
    target_of,
    true_differences,
)
from test_separable import STATES as ALL_VALUES
from test_separable import decompose
from test_separable_random import random_program

from numpyro_ebm import RBM, NormalizerError, units
from numpyro_ebm.kernels.relaxation import differences


def compare(log_density, values=VALUES, tolerance=1e-4):
    target = target_of(log_density, num_units=values.shape[1])
    energy, d = jax.jit(lambda x: differences(target, x))(values)
    expected = true_differences(log_density, values)
    known = ~np.isnan(expected)  # from one impossible state to another
    np.testing.assert_allclose(np.asarray(d)[known], expected[known], rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose(energy, -jax.vmap(log_density)(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*SUMS_OVER_UNITS, *SUMS_OVER_PAIRS])
def test_differences_are_exact_in_units_and_in_pairs(name):
    compare((SUMS_OVER_UNITS | SUMS_OVER_PAIRS)[name])


@pytest.mark.parametrize("name", COUPLED)
def test_differences_of_coupled_units_are_the_slope_times_the_change(name):
    log_density = COUPLED[name]
    if name == "square of counts":
        counts = np.eye(3)[VALUES].sum(1)
        slope = np.tile(0.2 * counts[:, None], (1, 6, 1))
        expected = slope - np.take_along_axis(slope, VALUES[..., None], -1)
    else:
        slope = jax.vmap(jax.grad(log_density))(VALUES.astype(np.float32))
        expected = slope[..., None] * (STATES - VALUES[..., None])
    d = differences(target_of(log_density), VALUES)[1]
    np.testing.assert_allclose(d, expected, rtol=1e-4, atol=1e-4)
    truth = true_differences(log_density, VALUES)
    assert np.corrcoef(np.ravel(d), truth.ravel())[0, 1] > 0.6


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_derivative_is_refused(name):
    with pytest.raises(ValueError, match=f"me: .*non-differentiable.*{name}.*DiscreteGibbs"):
        differences(target_of(REFUSED[name]), VALUES[0], "me")


@pytest.mark.parametrize("name", [k for k in REFUSED if k != "stop_gradient"])
def test_a_differentiable_part_beside_it_does_not_hide_it(name):
    """As the prior of the units always is."""

    def both(z):
        return REFUSED[name](z) + (z * Y).sum()

    with pytest.raises(ValueError, match=f"me: .*non-differentiable.*{name}"):
        differences(target_of(both), VALUES[0], "me")


def test_a_condition_beside_a_derivative_is_let_pass():
    def log_density(z):
        total = (z * Y).sum()
        return jnp.where(total > 0, total, 0.1 * total)

    d = differences(target_of(log_density), VALUES)[1]
    slope = np.where((VALUES * np.asarray(Y)).sum(1) > 0, 1, 0.1)[:, None, None]
    expected = slope * np.asarray(Y)[:, None] * (STATES - VALUES[..., None])
    np.testing.assert_allclose(d, expected, atol=1e-5)


def compare_random_program(seed):
    """Whether it is a sum over units, and then its differences are exact."""
    log_density = random_program(seed)
    target = target_of(log_density, num_units=4)
    values = ALL_VALUES.astype(np.int32)
    is_constant = np.ptp(jax.vmap(log_density)(values)) == 0  # its units may be lost in dead code
    if decompose(log_density) is not None and not is_constant:
        compare(log_density, values[::5], tolerance=3e-4)
        return True
    try:
        d = differences(target, ALL_VALUES[0])[1]
    except ValueError as error:
        if "non-differentiable" not in str(error):
            raise
    else:
        np.testing.assert_array_equal(np.isfinite(d), True)
    return False


@pytest.mark.slow
def test_random_programs_that_are_sums_have_exact_differences():
    assert 0 < sum(compare_random_program(seed) for seed in range(4)) < 4


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1200, 50))
def test_many_random_programs(start):
    assert sum(compare_random_program(seed) for seed in range(start, start + 50)) > 10


# ----- energy-based distributions ----------------------------------------------------------------


@pytest.mark.parametrize("visible", ["Bernoulli", "Categorical+Spin"])
def test_differences_of_an_rbm_are_slopes_of_its_free_energy(visible):
    rbm = Case(visible, "Bernoulli", 31, ((2,), (), ())).build()
    start = rbm.sample(jax.random.key(0), (3,))
    states, allowed = rbm.unit_states
    energy, d = jax.jit(differences)(rbm, start)
    assert energy.shape == (3, 2)
    assert d.shape == (*start.shape, states.shape[-1])
    np.testing.assert_allclose(energy, rbm.energy(start), rtol=1e-5)
    features = rbm.visible_units.features
    mean = jax.nn.sigmoid(rbm.input_to_hidden(start) + rbm.hidden_units.logits)
    at = np.tile(np.asarray(start)[..., None, None, :], (1, 1, states.shape[0], states.shape[1], 1))
    for i in range(len(states)):
        at[..., i, :, i] = states[i]
    change = features(jnp.asarray(at)) - features(start)[..., None, None, :]
    back = jnp.einsum("bfj,...bj->...bf", rbm.weight_matrix, mean)
    expected = (change * back[..., None, None, :]).sum(-1)
    own = rbm.visible_units.energy
    expected -= own(jnp.asarray(at)) - own(start)[..., None, None]
    np.testing.assert_allclose(np.asarray(d)[..., allowed], expected[..., allowed], atol=1e-5)


def test_a_potts_layer_without_couplings_is_exact():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, NUM_STATES)), jnp.float32)
    rbm = RBM(jnp.zeros((4, NUM_STATES, 1)), units.Categorical(logits), jnp.zeros(1))
    d = jax.jit(differences)(rbm, jnp.array([0, 1, 2, 0], jnp.uint8))[1]
    np.testing.assert_allclose(d, logits - logits[jnp.arange(4), jnp.array([0, 1, 2, 0])][:, None],
                               atol=1e-6)  # fmt: skip


def test_differences_go_through_transformations_in_either_precision():
    log_density = COUPLED["softplus"]
    eager = differences(target_of(log_density), VALUES)[1]
    assert eager.dtype == jnp.float32
    mapped = jax.vmap(lambda x: differences(target_of(log_density), x)[1])(VALUES)
    np.testing.assert_allclose(mapped, eager, atol=1e-6)
    with jax.enable_x64(True):
        design = jnp.asarray(np.asarray(DESIGN, np.float64))
        wide = target_of(lambda z: jax.nn.softplus(z @ design.T).sum())
        energy, d = differences(wide, jnp.asarray(VALUES))
    assert energy.dtype == d.dtype == np.float64
    np.testing.assert_allclose(d, eager, atol=1e-5)


def test_parameters_may_be_traced():
    def of(couplings, x):
        return differences(target_of(lambda z: 0.5 * (z @ couplings @ z)), x)[1]

    expected = true_differences(SUMS_OVER_PAIRS["quadratic"], VALUES)
    np.testing.assert_allclose(jax.jit(of)(COUPLINGS, VALUES), expected, atol=1e-5)


def test_units_in_the_parameters_of_an_unnormalized_model_are_refused():
    def log_density(z):
        weights = 0.1 * z[:, None].astype(jnp.float32)
        return RBM(weights, jnp.zeros(6), jnp.zeros(1)).log_prob(jnp.ones(6))

    with pytest.raises(NormalizerError, match="weights"):
        differences(target_of(log_density), VALUES[0])


def test_continuous_targets_are_refused():
    rbm = RBM(jnp.zeros((2, 1)), units.Gaussian(jnp.zeros(2), jnp.ones(2)), jnp.zeros(1))
    with pytest.raises(ValueError, match="me: expected a target with discrete units"):
        differences(rbm, jnp.zeros(2), "me")
