"""Gibbs with gradients: what it proposes, and that its acceptance is right."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drift import drift
from kernel_cases import exact_start, target
from registry import Case
from relaxed_programs import SUMS_OVER_PAIRS, target_of
from transitions import Chain, all_states

from numpyro_ebm.kernels import GibbsWithGradientsStep
from numpyro_ebm.kernels.relaxation import differences


@dataclass(frozen=True)
class WithoutWayBack(GibbsWithGradientsStep):
    """Planted: the proposal is taken to be symmetric."""

    def _correction(self, forward, backward):
        return jnp.zeros_like(forward)


@dataclass(frozen=True)
class WayBackReversed(GibbsWithGradientsStep):
    """Planted: a wrong sign."""

    def _correction(self, forward, backward):
        return forward - backward


@pytest.mark.parametrize("wrong", [WithoutWayBack, WayBackReversed])
def test_a_wrong_acceptance_drifts(wrong):
    case = target("RBM binary")
    assert np.abs(drift(wrong(), case.distribution, exact_start("RBM binary"))).max() > 8


@pytest.mark.parametrize("balancing", ["sqrt", "barker", "min", "max"])
def test_transitions_are_those_of_the_formula(balancing):
    """One step from every state, many times, against the matrix of transitions."""
    potts = target_of(lambda z: 2 * SUMS_OVER_PAIRS["transitions"](z), num_units=3)
    states = all_states(potts)
    energy, d = (np.asarray(x, np.float64) for x in differences(potts, states))
    weight = {
        "sqrt": np.exp(d / 2),
        "barker": 1 / (1 + np.exp(-d)),
        "min": np.minimum(np.exp(d), 1),
        "max": np.maximum(np.exp(d), 1),
    }[balancing]
    weight = np.where(states[..., None] == np.arange(3), 0, weight)
    index = {tuple(state): i for i, state in enumerate(states)}
    proposal = np.zeros((len(states), len(states)))
    for row, state in enumerate(states):
        for unit in range(3):
            for new in range(3):
                changed = state.copy()
                changed[unit] = new
                proposal[row, index[tuple(changed)]] += weight[row, unit, new] / weight[row].sum()
    chain = Chain.of_proposal(proposal, energy)
    chain.assert_simulates(GibbsWithGradientsStep(balancing), potts, states)
    np.testing.assert_allclose(chain.stationary(), chain.target, atol=1e-12)


def test_several_flips_are_several_steps():
    case = target("RBM Potts").distribution
    start = exact_start("RBM Potts")[:50]
    one, three = GibbsWithGradientsStep(), GibbsWithGradientsStep(num_flips=3)
    key, state = jax.random.key(0), jax.jit(one.init)(start, case)
    together, info = jax.jit(three.step)(key, state, case)
    probs, step = [], jax.jit(one.step)
    for i in range(3):
        state, alone = step(jax.random.fold_in(key, i), state, case)
        probs.append(alone.accept_prob)
    np.testing.assert_array_equal(state.value, together.value)
    np.testing.assert_allclose(info.accept_prob, np.mean(probs, 0), rtol=1e-5)
    np.testing.assert_allclose(together.energy, case.energy(together.value), rtol=1e-5)


@pytest.mark.slow
def test_one_decision_for_each_chain_and_member_of_the_batch():
    rbm = Case("Bernoulli", "Bernoulli", 5, ((4,), (4,), (4,))).build()
    kernel = GibbsWithGradientsStep()
    start = rbm.sample(jax.random.key(0), (30,)).astype(jnp.uint8)
    state, info = jax.jit(kernel.step)(jax.random.key(1), jax.jit(kernel.init)(start, rbm), rbm)
    assert state.value.dtype == jnp.uint8
    assert info.accept_prob.shape == info.energy.shape == (30, 4)
    flips = (state.value != start).sum(-1)
    assert set(np.unique(flips)) == {0, 1}
    np.testing.assert_allclose(state.energy, rbm.energy(state.value), rtol=1e-5)
    refresh = jax.jit(kernel.refresh)
    fresh = refresh(state, rbm)
    np.testing.assert_allclose(fresh.differences, state.differences, atol=1e-5)
    np.testing.assert_allclose(kernel.energy(state, rbm), state.energy, rtol=1e-5)
    doubled = refresh(state, rbm.with_visible(rbm.visible_units, 2.0))
    assert np.abs(doubled.differences - state.differences).max() > 0.1


def test_a_chain_leaves_an_impossible_state_and_never_enters_one():
    hard = target_of(
        lambda z: jnp.where(z == 2, -jnp.inf, 0.0).sum() + (z[1:] * z[:-1]).sum(), num_units=4
    )
    kernel = GibbsWithGradientsStep(num_flips=20)
    start = jnp.tile(jnp.array([2, 2, 0, 1]), (100, 1))
    step = jax.jit(lambda key, x: kernel.step(key, kernel.init(x, hard), hard)[0])
    state = step(jax.random.key(0), start)
    assert (state.value < 2).all()
    assert np.isfinite(state.energy).all()
