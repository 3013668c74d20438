"""Simulated tempering is exact when watched at the target, and crosses between modes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import Posterior, assert_chain_means, assert_posterior, run
from drift import assert_no_drift
from helpers import BruteForce
from registry import Case
from tempered_models import bimodal, bimodal_model, in_rare_mode, plain, rare_probability

from numpyro_ebm import RBM, Ising, SimulatedTempering
from numpyro_ebm.kernels import SimulatedTemperingStep, simulated_tempering
from numpyro_ebm.kernels.gibbs import GibbsSweeps
from numpyro_ebm.kernels.level_weights import Bridges, log_z_of


@cache
def sampled():
    kernel = SimulatedTempering(bimodal_model, num_temperatures=8)
    fields = ("occupancy", "log_z", "returned", "num_moves")
    options = {"num_chains": 16, "num_warmup": 256, "num_samples": 1500}
    return run(kernel, extra_fields=fields, **options)


@pytest.mark.slow
def test_both_modes_are_visited_with_their_weights():
    modes = in_rare_mode(sampled().get_samples(group_by_chain=True)["v"])
    assert_chain_means(modes[..., None], np.array([rare_probability()]))
    assert np.all(modes.any(1) & ~modes.all(1))
    assert_posterior(sampled(), Posterior(bimodal()))


def test_levels_are_visited_about_equally():
    fields = sampled().get_extra_fields(group_by_chain=True)
    occupancy = np.asarray(fields["occupancy"])[:, -1]
    np.testing.assert_allclose(occupancy.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(occupancy.mean(0), 1 / 8, atol=0.05)
    assert np.asarray(fields["returned"]).mean() > 0.99
    assert 4 < np.asarray(fields["num_moves"]).mean() < 16


def test_weights_are_frozen_and_near_log_z():
    log_z = np.asarray(sampled().get_extra_fields(group_by_chain=True)["log_z"])
    assert np.all(log_z == log_z[:, :1])
    path = sampled().last_state.chains["v"].base
    assert path is not None
    kernel = SimulatedTemperingStep(num_temperatures=8)
    base = kernel.init(np.zeros(12, np.uint8), bimodal()).base.path(bimodal())
    exact = np.array([BruteForce(plain(base.at(np.float32(b)))).log_z for b in kernel.betas])
    np.testing.assert_allclose(log_z[:, 0].mean(0), exact - exact[0], atol=0.3)


# ----- exactness whatever the weights ------------------------------------------------------


def strong():
    rbm = Case("Bernoulli", "Bernoulli", 950).build()
    return RBM(4 * rbm.weights, rbm.visible_units, rbm.hidden_units)


@cache
def exact_start():
    return jnp.uint8(BruteForce(strong()).draw(np.random.default_rng(0), 20_000))


class Still(GibbsSweeps):
    """Moves at other temperatures only: a good kernel at the target would hide a bad walk."""

    def step(self, rng_key, state, target, **held):
        moved, info = super().step(rng_key, state, target, **held)
        at_target = target._coupling == 1
        return jax.tree.map(lambda a, b: jnp.where(at_target, a, b), state, moved), info


class Skewed(SimulatedTemperingStep):
    """With weights that are wrong by some nats."""

    def init(self, value, target):
        state = super().init(value, target)
        return state._replace(log_z=state.log_z + jnp.asarray([0.7, -0.5, 0.0]))


@pytest.mark.parametrize("max_moves", [None, 4])
def test_wrong_weights_and_limits_do_not_bias(max_moves):
    kernel = Skewed(Still(), num_temperatures=3, max_moves=max_moves)
    assert_no_drift(kernel, strong(), exact_start(), steps=(1, 4))


WRONG = {
    "energies ignored": lambda gain, now, then: -(then - now),
    "wrong sign": lambda gain, now, then: -gain - (then - now),
    "half the gain": lambda gain, now, then: 0.5 * gain - (then - now),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_ratio_is_caught(fault, monkeypatch):
    monkeypatch.setattr(simulated_tempering, "level_log_ratio", WRONG[fault])
    faulty = type("Faulty", (SimulatedTemperingStep,), {})  # compiled anew
    kernel = faulty(Still(), num_temperatures=3)
    with pytest.raises(AssertionError):
        assert_no_drift(kernel, strong(), exact_start(), steps=(1, 4))


@pytest.mark.slow
def test_stopping_after_a_fixed_number_of_moves_is_caught():
    """Taking the end of a walk that gave up, wherever it is, samples another distribution."""

    class Hasty(SimulatedTemperingStep):
        def step(self, rng_key, state, target, **held):
            new, info = super().step(rng_key, state, target, **held)
            return new._replace(chain=new.walker[0]), info

    kernel = Hasty(Still(), num_temperatures=3, max_moves=2)
    with pytest.raises(AssertionError):
        assert_no_drift(kernel, strong(), exact_start(), steps=(1, 4))


# ----- pieces ------------------------------------------------------------------------------


def test_bridges_give_ratios_of_normalizers():
    rng = np.random.default_rng(0)
    energy = [np.array([0.0, 0.0, 0.0]), np.array([0.3, -1.0, 0.5]), np.array([1.0, -2.0, 0.1])]
    probs = [np.exp(-e) / np.exp(-e).sum() for e in energy]
    draws = [rng.choice(3, 20_000, p=p) for p in probs]
    visits, up, down = jnp.full(3, 20_000), np.full(3, -np.inf), np.full(3, -np.inf)
    for k in range(3):
        for side, out in ((1, up), (-1, down)):
            if 0 <= k + side < 3:
                gain = (energy[k] - energy[k + side])[draws[k]]
                out[k] = np.log(np.exp(gain / 2).sum())
    bridges = Bridges(visits, jnp.float32(up), jnp.float32(down))
    log_z = log_z_of(bridges, jnp.zeros(3))
    exact = [np.log(np.exp(-e).sum()) for e in energy]
    np.testing.assert_allclose(log_z, np.array(exact) - exact[0], atol=0.03)
    unseen = bridges._replace(visits=jnp.array([20_000, 20_000, 0]))
    kept = log_z_of(unseen, jnp.float32([0, 5, 7]))
    np.testing.assert_allclose(kept, [0, log_z[1], log_z[1] + 2], rtol=1e-5)


@pytest.mark.slow
def test_a_batch_shares_its_temperature():
    rbm = Case("Bernoulli", "Bernoulli", 200, ((3,), (3,), (3,))).build()
    kernel = SimulatedTemperingStep(num_temperatures=3)
    state = kernel.init(jnp.zeros((5, 3, 3), jnp.uint8), rbm)
    state, info = jax.jit(kernel.step)(jax.random.key(0), state, rbm)
    assert info.num_moves.shape == (5,)
    assert kernel.value(state, rbm).shape == (5, 3, 3)
    np.testing.assert_allclose(
        kernel.energy(state, rbm), rbm.energy(kernel.value(state, rbm)), rtol=1e-5
    )


def test_a_limit_needs_a_reversible_kernel():
    lattice, value = Ising.lattice((3, 3), 0.3), np.ones((3, 3), np.int8)
    kernel = SimulatedTemperingStep(num_temperatures=3, max_moves=5)
    with pytest.raises(ValueError, match="expected no `max_moves`.*GibbsSweeps on Ising"):
        kernel.init(value, lattice)
    SimulatedTemperingStep(num_temperatures=3).init(value, lattice)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_temperatures": 1}, "integer of 2 or more.*got 1"),
        ({"betas": [0.2, 1]}, "increase strictly from 0 to 1"),
        ({"num_temperatures": 3, "max_moves": 0}, "`max_moves` to be positive or None; got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SimulatedTempering(bimodal_model, **options)
