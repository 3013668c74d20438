"""Tempered transitions are exact for reversible moves, and cross between modes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import Posterior, assert_chain_means, assert_posterior, run
from drift import assert_no_drift
from registry import Case
from tempered_models import (
    bimodal,
    bimodal_answer,
    bimodal_model,
    in_rare_mode,
    rare_probability,
)

from numpyro_ebm import RBM, Ising, TemperedTransitions, units
from numpyro_ebm.kernels import (
    DiscreteLangevinStep,
    GibbsWithGradientsStep,
    MALAStep,
    TemperedTransitionsStep,
    ULAStep,
    tempered_transitions,
)
from numpyro_ebm.kernels.gibbs import GibbsSweeps
from numpyro_ebm.kernels.tempering import is_reversible, path_base


@cache
def sampled():
    kernel = TemperedTransitions(bimodal_model, num_temperatures=30)
    options = {"num_chains": 16, "num_warmup": 100, "num_samples": 1000}
    return run(kernel, extra_fields=("energy",), **options)


@pytest.mark.slow
def test_both_modes_are_visited_with_their_weights():
    modes = in_rare_mode(sampled().get_samples(group_by_chain=True)["v"])
    assert_chain_means(modes[..., None], np.array([rare_probability()]))
    assert np.all(modes.any(1) & ~modes.all(1))
    assert_posterior(sampled(), Posterior(bimodal()))


@pytest.mark.slow
def test_acceptance_is_reported_unasked():
    accept_prob = np.asarray(sampled().get_extra_fields(group_by_chain=True)["accept_prob"])
    assert accept_prob.shape == (16, 1000)
    assert 0.3 < accept_prob.mean() < 1


# ----- the acceptance ratio ----------------------------------------------------------------


def strong():
    rbm = Case("Bernoulli", "Bernoulli", 950).build()
    return RBM(4 * rbm.weights, rbm.visible_units, rbm.hidden_units)


@pytest.mark.slow
def test_two_temperatures_are_an_independence_sampler():
    """Up to the base and back: the exact draw is accepted by the ratio of densities."""
    rbm, kernel = strong(), TemperedTransitionsStep(num_temperatures=2)
    values = jnp.asarray(bimodal_answer().visible.values[:50, :3], jnp.uint8)
    state = kernel.init(values, rbm)
    path = path_base("test", None, None, rbm).path(rbm)
    stay = type("Stay", (GibbsSweeps,), {"step": lambda self, key, s, t, **held: (s, None)})()
    kernel = TemperedTransitionsStep(stay, num_temperatures=2)
    new, info = kernel.step(jax.random.key(0), state, rbm)
    base = path.at(0.0)
    accepted = np.asarray(info.accepted)
    old, now = values[accepted], kernel.value(new, rbm)[accepted]
    log_ratio = base.energy(now) - base.energy(old) - rbm.energy(now) + rbm.energy(old)
    np.testing.assert_allclose(
        info.accept_prob[accepted], np.minimum(1, np.exp(log_ratio)), rtol=1e-4
    )
    assert accepted.any()
    assert not accepted.all()
    np.testing.assert_array_equal(kernel.value(new, rbm)[~accepted], values[~accepted])


WRONG = {
    "up only": lambda up, down: up,
    "wrong sign": lambda up, down: -up - down,
    "always": lambda up, down: jnp.zeros_like(up),
    "temperature of one level off": lambda up, down: up + 0.7 * down,
}


@cache
def exact_start():
    return jnp.uint8(_brute().draw(np.random.default_rng(0), 20_000))


@cache
def _brute():
    from helpers import BruteForce

    return BruteForce(strong())


@pytest.mark.parametrize("fault", [None, *WRONG])
def test_a_wrong_ratio_is_caught(fault, monkeypatch):
    class Still(GibbsSweeps):  # at the target only, where a good kernel would repair a bad one
        def step(self, rng_key, state, target, **held):
            moved, info = super().step(rng_key, state, target, **held)
            at_target = target._coupling is None
            return (state if at_target else moved), info

    kernel = TemperedTransitionsStep(Still(), num_temperatures=3)
    if fault is None:
        assert_no_drift(kernel, strong(), exact_start(), steps=(1, 4))
        return
    monkeypatch.setattr(tempered_transitions, "acceptance_log_ratio", WRONG[fault])
    with pytest.raises(AssertionError):
        assert_no_drift(kernel, strong(), exact_start(), steps=(1, 4))


# ----- reversibility -----------------------------------------------------------------------


def test_what_is_reversible():
    rbm, gaussian = strong(), RBM(np.ones((2, 2)), units.Gaussian(np.zeros(2)), np.zeros(2))
    lattice = Ising.lattice((3, 3), 0.3)
    in_random_order = Ising(np.zeros((3, 3)), np.zeros(3), scan="random")
    assert is_reversible(GibbsSweeps(3), rbm)
    assert not is_reversible(GibbsSweeps(), lattice)
    assert not is_reversible(GibbsSweeps(), in_random_order)  # an order that chains share
    assert is_reversible(GibbsWithGradientsStep(num_flips=2), lattice)
    assert is_reversible(MALAStep(0.1), gaussian)
    assert is_reversible(DiscreteLangevinStep(0.1), rbm)
    assert not is_reversible(DiscreteLangevinStep(0.1, adjusted=False), rbm)
    assert not is_reversible(ULAStep(0.1), gaussian)
    assert not is_reversible(TemperedTransitionsStep(num_temperatures=2), rbm)


def test_sweeps_in_a_fixed_order_are_refused():
    with pytest.raises(ValueError, match="a reversible inner kernel.*GibbsSweeps on Ising"):
        TemperedTransitionsStep(num_temperatures=3).init(
            np.ones((3, 3), np.int8), Ising.lattice((3, 3), 0.3)
        )


def test_batches_are_accepted_by_themselves():
    rbm = Case("Bernoulli", "Bernoulli", 200, ((3,), (3,), (3,))).build()
    kernel = TemperedTransitionsStep(num_temperatures=3)
    state = kernel.init(jnp.zeros((20, 3, 3), jnp.uint8), rbm)
    state, info = jax.jit(kernel.step)(jax.random.key(0), state, rbm)
    assert info.accepted.shape == (20, 3)
    assert kernel.value(state, rbm).dtype == "uint8"
    np.testing.assert_allclose(
        kernel.energy(state, rbm), rbm.energy(kernel.value(state, rbm)), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_temperatures": 1}, "integer of 2 or more.*got 1"),
        ({"num_temperatures": 3, "min_beta": 1.0}, "`min_beta` from 0 to below 1; got 1.0"),
        ({"num_temperatures": 3, "min_beta": -0.5}, "`min_beta` from 0"),
        ({"betas": [0.5, 1], "min_beta": 0.1}, "increase strictly from 0.1 to 1"),
        ({"betas": [0, 1], "num_temperatures": 3}, "number of `betas`"),
    ],
)
def test_ladders_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TemperedTransitions(bimodal_model, **options)
    assert TemperedTransitionsStep(betas=(0.5, 1.0), min_beta=0.5).num_temperatures == 2
