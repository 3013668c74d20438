import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import optimizers
from loss_models import (
    CD,
    DATA,
    NUM_CHAINS,
    NUM_ROWS,
    PARAMS,
    PCD,
    chains_in,
    no_guide,
    rbm_of,
    recorder,
    trained,
    update_with_known,
    with_chains,
    without_chains,
)
from numpyro import handlers, optim
from numpyro.infer import SVI

from numpyro_ebm import persistent_chains


def pcd_svi():
    return SVI(with_chains, no_guide, optim.Adam(0.05), PCD)


def assert_same(a, b):
    a, b = (x._replace(rng_key=jax.random.key_data(x.rng_key)) for x in (a, b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def assert_same_update(a, b):
    assert_same(a[0], b[0])
    np.testing.assert_allclose(a[1], b[1], rtol=1e-4)


@pytest.mark.slow
def test_resuming_is_the_same_as_not_stopping():
    svi, key = pcd_svi(), jax.random.key(3)
    part = svi.run(key, 4, DATA, progress_bar=False)
    rest = svi.run(jax.random.key(9), 3, DATA, init_state=part.state, progress_bar=False)
    state, losses, update = svi.init(key, DATA), [], jax.jit(svi.update)
    for _ in range(7):
        state, value = update(state, DATA)
        losses.append(value)
    assert_same(rest.state, state)
    np.testing.assert_allclose([*part.losses, *rest.losses], losses, rtol=1e-4, atol=1e-4)


def test_chains_are_compact_and_advance():
    svi = pcd_svi()
    state, seen, update = svi.init(jax.random.key(0), DATA), [], jax.jit(svi.update)
    for _ in range(3):
        seen.append(np.asarray(chains_in(state).visible))
        assert seen[-1].shape == (NUM_CHAINS, NUM_ROWS)
        assert {leaf.dtype for leaf in chains_in(state)[:2]} == {np.dtype("uint8")}
        state, _ = update(state, DATA)
    assert 0.1 < np.mean(seen[0] != seen[1]) < 0.9
    assert 0.1 < np.mean(seen[1] != seen[2]) < 0.9


def test_persistent_chains_returns_the_chains_before_the_update():
    state = pcd_svi().init(jax.random.key(0), DATA)
    with handlers.seed(rng_seed=1), handlers.substitute(data=state.mutable_state):
        start = persistent_chains("chains", NUM_CHAINS, trained())
    np.testing.assert_array_equal(start, chains_in(state).visible)


def test_no_recompilation_from_step_to_step():
    calls = []

    def counted(data):
        calls.append(len(data))
        with_chains(data)

    svi = SVI(counted, no_guide, optim.Adam(0.05), PCD)
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    state, _ = update(state, DATA)
    num_calls = len(calls)
    for _ in range(3):
        state, _ = update(state, DATA)
    assert len(calls) == num_calls


def test_evaluate_is_the_loss_of_the_next_update():
    svi = SVI(without_chains, no_guide, recorder(), CD)
    state = svi.init(jax.random.key(0), DATA)
    np.testing.assert_allclose(
        svi.evaluate(state, DATA), jax.jit(svi.update)(state, DATA)[1], rtol=1e-5
    )


def test_raw_keys():
    result = pcd_svi().run(jax.random.PRNGKey(0), 2, DATA, progress_bar=False)
    assert np.isfinite(result.losses).all()


ROWS = jnp.tile(jnp.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]), (15, 1))
NUM_UNITS = ROWS.shape[1]


@jax.jit
def mean_log_likelihood(params):
    return rbm_of(**params, normalizer="exact").log_prob(ROWS).mean()


OPTIMIZERS = {
    "numpyro Adam": optim.Adam(0.02),
    "numpyro SGD": optim.SGD(0.005),
    "jax momentum": optimizers.momentum(0.002, 0.5),
    "optax adam": optax.adam(optax.linear_schedule(0.1, 0.0, 100)),
    "optax chain": optax.chain(optax.clip(10.0), optax.sgd(0.005)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_learn_more_than_independent_units(optimizer):
    svi = SVI(with_chains, no_guide, optimizer, PCD)
    params = svi.run(jax.random.key(0), 100, ROWS, progress_bar=False).params
    independent_units = -NUM_UNITS * np.log(2)
    assert mean_log_likelihood(PARAMS) < independent_units < mean_log_likelihood(params)


def test_stable_update_keeps_the_parameters_where_data_are_invalid():
    svi = pcd_svi()
    state, stable = svi.init(jax.random.key(0), DATA), jax.jit(svi.stable_update)
    kept, loss = stable(state, 7 * DATA)
    assert np.isnan(loss)
    jax.tree.map(np.testing.assert_array_equal, kept.optim_state, state.optim_state)
    assert_same_update(stable(state, DATA), jax.jit(svi.update)(state, DATA))


def test_masked_rows_may_hold_anything():
    keep = jnp.arange(NUM_ROWS) % 3 != 0
    garbage = jnp.where(jnp.arange(NUM_ROWS) % 2 == 0, 7, jnp.nan)
    data = jnp.where(keep[:, None], DATA, garbage[:, None])
    svi = SVI(handlers.mask(without_chains, keep), no_guide, optim.SGD(0.1), CD)
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    expected = update(state, DATA)
    assert_same_update(update(state, data), expected)
    assert_same_update(update_with_known(data, svi, state), expected)
