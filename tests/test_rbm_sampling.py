from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_moments, moments
from registry import (
    BATCHED,
    MULTIMODAL,
    PAIRINGS,
    SINGLE,
    Case,
    brute_force,
    brute_force_of_members,
    parametrize,
)

from numpyro_ebm import RBM

NUM_CHAINS = 40_000


@jax.jit
def drawn_features(rbm, rng_key):
    draws = rbm.sample(rng_key, (NUM_CHAINS,))
    return rbm.visible_units.features(draws), rbm.energy(draws)


@parametrize(SINGLE)
def test_samples_have_the_exact_moments(case):
    rbm, brute = case.build(), brute_force(case)
    features, energies = drawn_features(rbm, jax.random.key(1))
    assert_moments(moments(features, energies), brute.moments())


@partial(jax.jit, static_argnames="clamped")
def run_chain(rng_key, rbm, chain, values, num_steps, clamped=False):
    kwargs = {}
    if clamped:
        kwargs = {"mask": jnp.arange(values.size) == 0, "values": values}

    def step(i, chain):
        return rbm.gibbs_step(jax.random.fold_in(rng_key, i), chain, **kwargs)

    chain = jax.lax.fori_loop(0, num_steps, step, chain)
    return chain, rbm.visible_units.features(rbm.visible(chain)), rbm.chain_energy(chain)


def assert_no_drift(case, clamped):
    """Chains from exact draws keep every moment after 1, 4 and 16 steps."""
    rbm, brute = case.build(), brute_force(case)
    states, where = brute.visible.values, slice(None)
    if clamped:  # the first unit is held at one of its states, the others are free
        held = states[np.argsort(brute.probs)[-len(states) // 4], 0]
        where = np.flatnonzero(states[:, 0] == held)
    start = brute.draw(np.random.default_rng(case.seed), NUM_CHAINS, where)
    chain, values, expected = rbm.chain_at(start), jnp.asarray(start[0]), brute.moments(where)
    for block, num_steps in enumerate((1, 3, 12)):  # 1, 4 and 16 steps in all
        key = jax.random.fold_in(jax.random.key(2), block)
        chain, *sampled = run_chain(key, rbm, chain, values, num_steps, clamped=clamped)
        assert_moments(moments(*sampled), expected)
    if clamped:
        np.testing.assert_allclose(np.asarray(chain.visible)[:, 0], held, rtol=1e-6)


@parametrize(SINGLE)
def test_no_drift_from_an_exact_start(case):
    assert_no_drift(case, clamped=False)


@parametrize(PAIRINGS[::4] + MULTIMODAL)
def test_clamped_units_leave_the_conditional_of_the_rest(case):
    assert_no_drift(case, clamped=True)


@pytest.mark.parametrize("case", [PAIRINGS[0], PAIRINGS[13], MULTIMODAL[0]], ids=lambda c: c.name)
def test_a_cached_field_changes_nothing(case):
    rbm = case.build()
    plain = rbm.init_chain(jax.random.key(0), (5,))
    cached = rbm.refresh(plain)
    np.testing.assert_allclose(rbm.chain_energy(cached), rbm.energy(rbm.visible(plain)), rtol=1e-5)
    for seed in range(3):
        plain, cached = (rbm.gibbs_step(jax.random.key(seed), c) for c in (plain, cached))
        np.testing.assert_allclose(cached.visible, plain.visible, rtol=1e-5)
        np.testing.assert_allclose(rbm.chain_energy(cached), rbm.energy(plain.visible), rtol=1e-5)


@pytest.mark.parametrize("case", [PAIRINGS[0], PAIRINGS[13], MULTIMODAL[0]], ids=lambda c: c.name)
def test_a_cached_field_has_the_derivatives_of_the_product(case):
    rbm = case.build()
    chain = rbm.init_chain(jax.random.key(0), (5,))
    weights = jnp.arange(1.0, 6.0)

    @jax.jit
    @jax.grad
    def gradient(rbm, chain):
        return weights @ rbm.chain_energy(chain)

    plain, cached = gradient(rbm, chain), gradient(rbm, rbm.refresh(chain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), cached, plain)
    assert np.abs(plain.weights).max() > 0.1


def test_sample_by_gibbs_where_states_are_too_many(monkeypatch):
    case = Case("Bernoulli", "Spin", 300)
    monkeypatch.setattr("numpyro_ebm.base._SAMPLE_TERMS", 0)
    monkeypatch.setattr(RBM, "num_sweeps", 50)
    rbm, brute = case.build(), brute_force(case)
    draws = rbm.sample(jax.random.key(3), (NUM_CHAINS,))
    assert draws.dtype == jnp.int32
    assert_moments(moments(draws, rbm.energy(draws)), brute.moments())


@jax.jit
def draw_and_step(rbm, rng_key):
    draws = rbm.sample(rng_key, (NUM_CHAINS // 2,))
    stepped = rbm.gibbs_step(jax.random.fold_in(rng_key, 1), rbm.chain_at(draws)).visible
    return [(rbm.visible_units.features(v), rbm.energy(v)) for v in (draws, stepped)]


@parametrize(BATCHED)
def test_batches_of_draws_and_of_chains(case):
    rbm = case.build()
    for features, energies in draw_and_step(rbm, jax.random.key(6)):
        features, energies = np.asarray(features), np.asarray(energies)
        for index, brute in brute_force_of_members(case).items():
            at = (slice(None), *index)
            assert_moments(moments(features[at], energies[at]), brute.moments())
