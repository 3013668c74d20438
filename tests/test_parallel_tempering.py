"""Parallel tempering leaves every temperature invariant, and crosses between modes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import Posterior, assert_chain_means, assert_posterior, run
from registry import KINDS, Case
from tempered_models import (
    PATTERN,
    assert_same_moments,
    bimodal,
    bimodal_model,
    exact_replicas,
    in_rare_mode,
    plain,
    rare_probability,
)

from numpyro_ebm import RBM, BlockGibbs, ParallelTempering
from numpyro_ebm.kernels import GibbsSweeps, ParallelTemperingStep, parallel_tempering
from numpyro_ebm.kernels.ladder import equalize, round_ends
from numpyro_ebm.kernels.swaps import exchange, travelled
from numpyro_ebm.kernels.tempering import path_base

NUM = 20_000
BETAS = (0.0, 0.3, 0.6, 1.0)
PAIRS = {
    "Bernoulli": "Bernoulli",
    "Spin": "Bernoulli",
    "Gaussian": "Spin",
    "Categorical": "Bernoulli",
    "Gaussian+Bernoulli": "Spin",
}


@cache
def strong(visible):
    """An RBM with weights large enough for swaps to be refused often."""
    rbm = Case(visible, PAIRS[visible], 950).build()
    return RBM(3 * rbm.weights, rbm.visible_units, rbm.hidden_units)


@cache
def starts(visible):
    rbm = strong(visible)
    path = path_base("test", None, None, rbm).path(rbm)
    return exact_replicas(path, BETAS, NUM)


class Still(GibbsSweeps):
    """Does not move, so that nothing but swaps can change a distribution."""

    def step(self, rng_key, state, target, **held):
        return state, None


def positions(kernel, target, values, num_steps):
    """Positions of all replicas after some steps."""

    def step(i, state):
        return kernel.step(jax.random.fold_in(jax.random.key(1), i), state, target)[0]

    state = jax.lax.fori_loop(0, num_steps, step, kernel.init_at(values, target))
    return state.replicas.visible


compiled = jax.jit(positions, static_argnums=0)


def check_invariance(visible, num_steps, inner=None, advance=compiled):
    rbm, start = strong(visible), starts(visible)
    kernel = ParallelTemperingStep(inner or GibbsSweeps(), betas=BETAS)
    after = advance(kernel, rbm, start, num_steps)
    for before, now in zip(start, after, strict=True):
        features = (rbm.visible_units.features(jnp.asarray(x)) for x in (before, now))
        assert_same_moments(*features)


@pytest.mark.parametrize("visible", PAIRS)
def test_every_temperature_is_left_invariant(visible):
    for num_steps in (1, 4):
        check_invariance(visible, num_steps)


WRONG = {
    "temperatures exchanged": lambda low, high: high - low,
    "only one replica counted": lambda low, high: low,
    "one temperature wrong": lambda low, high: low - 0.5 * high,
    "always accepted": lambda low, high: jnp.zeros_like(low),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_swap_is_caught(fault, monkeypatch):
    check = partial(check_invariance, "Bernoulli", 4, Still())
    check()
    monkeypatch.setattr(parallel_tempering, "swap_log_ratio", WRONG[fault])
    with pytest.raises(AssertionError):
        check(jax.jit(lambda *args: positions(*args), static_argnums=0))  # traced anew


def test_swaps_use_each_replicas_own_temperature():
    rbm, betas = strong("Categorical"), np.float32(BETAS)
    values = starts("Categorical")[:, :50]
    kernel = ParallelTemperingStep(betas=BETAS)
    state = kernel.init_at(values, rbm)
    path = state.base.path(rbm)
    ratio = kernel._log_ratio(path, betas, state.replicas)
    energy = [[plain(path.at(b)).energy(v) for v in values] for b in betas]
    for k in range(3):
        now = energy[k][k] + energy[k + 1][k + 1]
        swapped = energy[k][k + 1] + energy[k + 1][k]
        np.testing.assert_allclose(ratio[k], now - swapped, rtol=1e-4, atol=1e-5)


# ----- modes -------------------------------------------------------------------------------


def test_block_gibbs_stays_in_one_mode():
    options = {"num_chains": 2, "num_warmup": 0, "num_samples": 10_000}
    start = {"v": np.stack([PATTERN, 1 - PATTERN]).astype(int)}
    mcmc = run(BlockGibbs(bimodal_model), init_params=start, **options)
    modes = in_rare_mode(mcmc.get_samples(group_by_chain=True)["v"])
    np.testing.assert_array_equal(modes.mean(1), [1, 0])


@cache
def tempered():
    kernel = ParallelTempering(bimodal_model, num_temperatures=8)
    fields = ("swap_rate", "swap_prob", "betas", "round_trips", "round_trip_rate", "energy")
    options = {"num_chains": 32, "num_warmup": 1024, "num_samples": 2000}
    return run(kernel, extra_fields=fields, **options)


@pytest.mark.slow
def test_both_modes_are_visited_with_their_weights():
    modes = in_rare_mode(tempered().get_samples(group_by_chain=True)["v"])
    assert_chain_means(modes[..., None], np.array([rare_probability()]))
    assert (modes.any(1) & ~modes.all(1)).mean() > 0.9


def test_samples_within_the_modes():
    assert_posterior(tempered(), Posterior(bimodal()))


def test_the_ladder_adapts_to_equal_swap_rates():
    fields = tempered().get_extra_fields(group_by_chain=True)
    rate = np.asarray(fields["swap_prob"], float).mean(1)  # chain, pair
    error = rate.std(0, ddof=1) / len(rate) ** 0.5
    assert np.all(np.abs(rate.mean(0) - rate.mean()) < 4 * error + 0.03), rate.mean(0)
    betas = np.asarray(fields["betas"])
    assert np.all(np.diff(betas, axis=-1) > 0)
    np.testing.assert_array_equal(betas[..., [0, -1]], [[[0, 1]]] * np.ones((32, 2000, 1)))
    assert np.all(betas == betas[:, :1])  # frozen


def test_round_trips_are_counted():
    fields = tempered().get_extra_fields(group_by_chain=True)
    trips = np.asarray(fields["round_trips"])
    assert trips.shape == (32, 2000)
    assert np.all(np.diff(trips, axis=1) >= 0)
    assert trips[:, -1].min() > 20
    rate = np.asarray(fields["round_trip_rate"])[:, -1]
    np.testing.assert_allclose(rate, trips[:, -1] / 2000, rtol=1e-6)


def test_discrete_units_start_uniform():
    rbm = strong("Categorical")
    path = path_base("test", None, None, rbm).path(rbm)
    np.testing.assert_allclose(path.base.logits, path.base.logits[..., :1] * np.ones(3), atol=0.01)
    spins = path_base("test", None, None, strong("Spin"))
    np.testing.assert_allclose(spins.leaves[0], 0, atol=0.01)
    data = np.array([[1, 1, 0], [1, 0, 0]])
    own = ParallelTemperingStep(num_temperatures=2, base=data).init(data[0], strong("Bernoulli"))
    assert np.all(np.asarray(own.base.leaves[0])[[0, 2]] * [1, -1] > 0.3)


# ----- pieces ------------------------------------------------------------------------------


def test_neighbours_exchange_places():
    x = np.arange(10).reshape(5, 2)
    swapped = np.array([[True, False], [False, False], [False, True], [False, False]])
    expected = [[2, 1], [0, 3], [4, 7], [6, 5], [8, 9]]
    np.testing.assert_array_equal(exchange(jnp.asarray(x), jnp.asarray(swapped)), expected)
    counter = jnp.zeros(5)
    assert exchange(counter, jnp.asarray(swapped)) is counter


def test_a_round_trip_is_down_and_up():
    travel, trips = jnp.int8([1, 0, 0]), 0
    swaps = [(0,), (1,), (1,), (0,)]  # the replica climbs to the top, then returns
    for pairs in swaps:
        swapped = jnp.isin(jnp.arange(2), jnp.asarray(pairs))
        travel, done = travelled(exchange(travel, swapped))
        trips += int(done)
    assert trips == 1
    travel, done = travelled(exchange(travel, jnp.bool_([True, False])))
    assert int(done) == 0  # from the middle back: no trip


def test_ladder_rounds_double():
    assert round_ends(1024) == (8, 16, 32, 64, 128, 256, 512, 1024)
    assert round_ends(100) == (12, 25, 50, 100)
    assert round_ends(5) == ()


def test_equal_rates_are_a_fixed_point_of_the_ladder():
    betas = jnp.float32([0, 0.1, 0.4, 1])
    np.testing.assert_allclose(equalize(betas, jnp.full(3, 0.6)), betas, atol=1e-6)
    moved = equalize(betas, jnp.float32([0.9, 0.9, 0.3]))
    assert np.all(np.diff(moved) > 0)
    assert moved[1] > betas[1]  # away from where rejections are rare


# ----- one target after another ------------------------------------------------------------


def test_batches_swap_by_themselves():
    case = Case("Bernoulli", "Bernoulli", 200, ((3,), (3,), (3,)))
    rbm, kernel = case.build(), ParallelTemperingStep(num_temperatures=4)
    state = kernel.init(jnp.zeros((5, 3, 3), jnp.uint8), rbm)
    state, info = jax.jit(kernel.step)(jax.random.key(0), state, rbm)
    assert kernel.value(state, rbm).shape == (5, 3, 3)
    assert kernel.value(state, rbm).dtype == "uint8"
    assert info.swapped.shape == (3, 5, 3)
    assert state.round_trips.shape == (5, 3)
    np.testing.assert_allclose(
        kernel.energy(state, rbm), rbm.energy(kernel.value(state, rbm)), rtol=1e-5
    )


def test_refresh_follows_the_target():
    rbm, kernel = strong("Bernoulli"), ParallelTemperingStep(num_temperatures=3)
    state = kernel.init(jnp.ones((2, 3), jnp.uint8), rbm)
    other = RBM(-rbm.weights, rbm.visible_units, rbm.hidden_units)
    state = kernel.refresh(state, other)
    np.testing.assert_allclose(kernel.energy(state, other), other.energy(jnp.ones((2, 3))), 1e-5)
    sizes = {leaf.size for leaf in jax.tree.leaves(state.base)}
    assert sizes == {3}  # the base only, not the weights


def test_states_are_pytrees_that_scan():
    rbm, kernel = strong("Bernoulli"), ParallelTemperingStep(num_temperatures=3)
    state = kernel.init(jnp.ones(3, jnp.uint8), rbm)
    leaves, treedef = jax.tree.flatten(state)
    again = jax.tree.unflatten(treedef, leaves)
    assert jax.tree.structure(again) == treedef
    assert hash(treedef) == hash(jax.tree.structure(again))


# ----- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_temperatures": 1}, "`num_temperatures` to be an integer of 2 or more.*got 1"),
        ({}, "`num_temperatures` to be an integer of 2 or more.*got None"),
        ({"num_temperatures": 2.0}, "`num_temperatures` to be an integer"),
        ({"betas": [0, 0.5]}, "`betas` to increase strictly from 0 to 1"),
        ({"betas": [0.1, 1]}, "`betas` to increase strictly from 0 to 1"),
        ({"betas": [0, 0.6, 0.5, 1]}, "`betas` to increase"),
        ({"betas": [1]}, "`betas` to increase"),
        ({"betas": [0, 0.5, 1], "num_temperatures": 4}, "number of `betas`, 3; got 4"),
        ({"betas": [0, float("nan"), 1]}, "`betas` to increase"),
    ],
)
def test_ladders_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ParallelTempering(bimodal_model, **options)


@pytest.mark.parametrize("thing", [bimodal(), 3, RBM, None])
def test_the_first_argument_is_a_model_or_kernel(thing):
    with pytest.raises(TypeError, match="ParallelTempering: expected"):
        ParallelTempering(thing, num_temperatures=3)


def test_the_inner_kernel_is_checked():
    with pytest.raises(TypeError, match="without init, step, value, refresh, energy"):
        ParallelTemperingStep(kernel=object(), num_temperatures=3)


def test_values_for_every_temperature():
    with pytest.raises(ValueError, match="`values` for 3 temperatures"):
        ParallelTemperingStep(num_temperatures=3).init_at(np.zeros((2, 3)), strong("Bernoulli"))


def test_visible_kinds_cover_the_registry():
    assert set(PAIRS) <= set(KINDS) | {"Gaussian+Bernoulli"}
    assert ParallelTemperingStep(num_temperatures=2).kernel == GibbsSweeps()
