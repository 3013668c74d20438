"""Updates after which training stops, and those after which it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from fit_models import BATCH, DATA, cd, fit, initial, with_chains, without_chains
from loss_models import no_guide
from numpyro import distributions as dist
from numpyro.infer import SVI, Trace_ELBO

import numpyro_ebm as ebm


def poisoned(batch, index):
    """Energies of one row are not numbers."""
    rbm = initial()
    factor = jnp.where(index == 33, jnp.nan, 1.0)
    with numpyro.plate("rows", len(batch)), numpyro.handlers.scale(scale=factor):
        numpyro.sample("v", rbm, obs=batch)


@pytest.mark.slow
def test_a_loss_that_is_not_a_number(tmp_path):
    svi, index = cd(model=poisoned), jnp.arange(len(DATA))
    data = DATA, jnp.where(index == 33, 0, index)
    healthy = fit(svi, data=data, num_epochs=2)
    key = jax.random.fold_in(jax.random.split(jax.random.key(0), 4)[1], 1)
    order = np.asarray(jax.random.permutation(key, len(DATA)))[:100].reshape(10, BATCH)
    update = int(np.argmax((order == 33).any(1))) + 1
    assert 1 < update < 10
    with pytest.raises(ebm.DivergenceError, match="the loss became NaN at update") as caught:
        fit(svi, data=(DATA, index), num_epochs=2)
    error = caught.value
    assert (error.epoch, error.update, error.step) == (1, update, update)
    assert "Lower the learning rate" in str(error)
    assert int(error.state.optim_state[0]) == update - 1
    assert np.isfinite(svi.get_params(error.state)["weights"]).all()
    assert len(error.history) == 0
    assert np.isfinite(healthy.history["loss"]).all()


@pytest.mark.slow
def test_the_last_good_state_is_the_one_before_the_update(tmp_path):
    steps = []

    def model(batch, index):
        poisoned(batch, index)

    class Watched(ebm.ContrastiveDivergence):
        pass

    svi = SVI(model, no_guide, optax.adam(0.02), Watched())
    index = jnp.arange(len(DATA))
    with pytest.raises(ebm.DivergenceError) as caught:
        fit(svi, data=(DATA, index))
    key_init, key_shuffle, *_ = jax.random.split(jax.random.key(0), 4)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key_shuffle, 1), len(DATA)))
    state, update = svi.init(key_init, DATA[:BATCH], index[:BATCH]), jax.jit(svi.update)
    for i in range(caught.value.update - 1):
        rows = order[BATCH * i : BATCH * (i + 1)]
        state, _ = update(state, DATA[rows], index[rows])
        steps.append(i)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        svi.get_params(state),
        svi.get_params(caught.value.state),
    )
    assert steps


def schedule_that_explodes(step):
    return jnp.where(step >= 14, jnp.inf, 0.01)


def schedule_that_grows(step):
    return jnp.where(step >= 14, 1e8, 0.01)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (schedule_that_explodes, "a parameter became NaN or infinite at update 5 of epoch 2"),
        (schedule_that_grows, "the loss exploded to .* at update 6 of epoch 2"),
    ],
)
def test_parameters_that_diverge(schedule, message, tmp_path):
    path = tmp_path / "run"
    svi = SVI(with_chains, no_guide, optax.sgd(schedule), ebm.PersistentContrastiveDivergence())
    with pytest.raises(ebm.DivergenceError, match=message) as caught:
        fit(svi, checkpoint=path)
    assert "The checkpoint of epoch 1 is kept" in str(caught.value)
    assert len(caught.value.history) == 1
    assert ebm.checkpoint.load_metadata(path)["epoch"] == 1
    slow = SVI(
        with_chains,
        no_guide,
        optax.sgd(lambda step: 0.01 + 0 * step),
        ebm.PersistentContrastiveDivergence(),
    )
    assert len(fit(slow, checkpoint=path).history) == 4


def test_the_threshold_can_be_turned_off():
    svi = SVI(
        with_chains,
        no_guide,
        optax.sgd(schedule_that_grows),
        ebm.PersistentContrastiveDivergence(),
    )
    assert len(fit(svi, divergence_threshold=float("inf")).history) == 4


def test_values_outside_of_the_support_are_named_in_the_first_update():
    with pytest.raises(ebm.DivergenceError, match="very first update: look at the data"):
        fit(cd(), data=DATA.at[:, 0].set(7))


def far_data(batch):
    """Data at thousands of standard deviations: large energies that are healthy."""
    loc = numpyro.param("loc", jnp.zeros(2))
    with numpyro.plate("rows", 10**6, subsample_size=len(batch)):
        numpyro.sample("x", dist.Normal(loc, 1e-2).to_event(1), obs=batch)


@pytest.mark.slow
def test_large_losses_are_no_divergence():
    data = 50 + jax.random.normal(jax.random.key(0), (100, 2))
    svi = SVI(far_data, no_guide, optax.adam(0.5), Trace_ELBO())
    result = fit(svi, data=data, num_epochs=10)
    assert result.history["loss"].iloc[0] > 1e12
    svi = cd(model=lambda batch: numpyro.handlers.scale(without_chains, 1e6)(batch))
    assert len(fit(svi, num_epochs=10).history) == 10
