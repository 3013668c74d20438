"""The training loop: the same updates, nothing compiled again, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from fit_models import (
    BATCH,
    DATA,
    NUM_HIDDEN,
    NUM_UNITS,
    TRACKER,
    VALIDATION,
    assert_same,
    cd,
    fit,
    initial,
    pcd,
    rbm_of,
    with_chains,
    with_prior,
    without_chains,
)
from loss_models import no_guide
from numpyro import distributions as dist
from numpyro.infer import SVI, Trace_ELBO

import numpyro_ebm as ebm


@pytest.mark.slow
def test_updates_are_those_of_svi_on_whole_shuffled_batches():
    seen = []

    def model(batch, index):
        jax.debug.callback(lambda i: seen.append(np.asarray(i)), index, ordered=True)
        without_chains(batch)

    svi = cd(model=model)
    result = fit(svi, data=(DATA, jnp.arange(len(DATA))), num_epochs=2)
    jax.effects_barrier()
    batches = [rows for rows in seen if rows.shape == (BATCH,)][-20:]
    assert [len(set(np.concatenate(batches[i : i + 10]))) for i in (0, 10)] == [100, 100]
    assert not np.array_equal(batches[0], batches[10])
    plain = cd()
    state = plain.init(jax.random.split(jax.random.key(0), 4)[0], DATA[:BATCH])
    update, losses = jax.jit(plain.update), []
    for rows in batches:
        state, loss = update(state, DATA[rows])
        losses.append(float(loss))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        result.params,
        plain.get_params(state),
    )
    np.testing.assert_allclose(
        result.history["loss"], np.reshape(losses, (2, 10)).mean(1), rtol=1e-4, atol=1e-4
    )
    assert result.history["step"].tolist() == [10, 20]
    assert result.history["epoch"].tolist() == [1, 2]
    assert np.all(np.diff(result.history["seconds"]) > 0)


def test_rows_left_out_change_from_epoch_to_epoch():
    orders = []
    for epoch in (1, 2, 3):
        key = jax.random.fold_in(jax.random.split(jax.random.key(0), 4)[1], epoch)
        orders.append(frozenset(np.asarray(jax.random.permutation(key, 105))[100:].tolist()))
    assert len(set(orders)) == 3


@pytest.mark.slow
def test_nothing_is_compiled_again():
    calls = []

    def counted(batch):
        calls.append(1)
        with_chains(batch)

    svi = pcd(model=counted)
    fit(svi, num_epochs=2, track=TRACKER, validation=VALIDATION)
    first = len(calls)
    fit(svi, num_epochs=5, track=TRACKER, validation=VALIDATION, seed=1)
    second = len(calls)
    fit(svi, num_epochs=1, track=TRACKER, validation=VALIDATION, seed=2)
    assert second - first == len(calls) - second <= 2 < first  # what starts a run is not compiled
    svi.loss = ebm.PersistentContrastiveDivergence(2)
    before = len(calls)
    fit(svi, num_epochs=1)
    assert len(calls) - before > 2  # another loss is compiled anew


@pytest.mark.slow
def test_keyword_arguments_of_the_model():
    def exact(batch, size):
        bias = numpyro.param("bias", jnp.zeros(NUM_UNITS))
        rbm = rbm_of(
            {"weights": jnp.zeros((NUM_UNITS, NUM_HIDDEN)), "bias": bias}, normalizer="exact"
        )
        with numpyro.plate("rows", size, subsample_size=len(batch)):
            numpyro.sample("v", rbm, obs=batch)

    def model(batch, shift, size, flag):
        assert flag is True
        exact((batch + shift) % 2, size)

    kwargs = {"shift": jnp.zeros((), jnp.uint8), "size": 1050, "flag": True}
    svi, once = SVI(model, no_guide, optax.adam(0.02), Trace_ELBO()), {"num_epochs": 1}
    result = fit(svi, model_kwargs=kwargs, batch_size=105, **once)
    np.testing.assert_allclose(result.history["loss"], 1050 * NUM_UNITS * np.log(2), rtol=1e-4)
    flipped = fit(svi, model_kwargs=kwargs | {"shift": jnp.ones((), jnp.uint8)}, **once)
    assert not np.array_equal(flipped.params["bias"], result.params["bias"])
    with pytest.raises(TypeError, match="hashable"):
        fit(svi, model_kwargs=kwargs | {"flag": {1, 2}})


@pytest.mark.slow
def test_raw_keys_and_continued_states():
    options = {"batch_size": BATCH, "progress_bar": False}
    first = ebm.fit(jax.random.PRNGKey(0), pcd(), DATA, num_epochs=1, **options)
    svi = pcd()
    second = ebm.fit(
        jax.random.PRNGKey(1), svi, DATA, num_epochs=1, init_state=first.state, **options
    )
    assert int(second.state.optim_state[0]) == 20
    given = fit(num_epochs=1, init_params={"bias": jnp.full(NUM_UNITS, 3.0)})
    assert np.all(given.params["bias"] > 2)


def test_callback_and_progress_bar(capsys):
    seen = []

    def callback(epoch, state, row):
        seen.append((epoch, state, row))

    result = fit(num_epochs=2, callback=callback, progress_bar=True)
    assert [epoch for epoch, *_ in seen] == [1, 2]
    assert_same(seen[-1][1], result.state)
    assert seen[-1][2] == result.history.iloc[-1].to_dict()
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert f"loss={result.history['loss'].iloc[-1]:.4g}" in shown


# ----- arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 200}, ValueError, "at most the 105 rows"),
        ({"batch_size": 0}, ValueError, "`batch_size` to be a positive integer"),
        ({"num_epochs": 1.5}, ValueError, "`num_epochs` to be a positive integer"),
        ({"data": (DATA, DATA[:3])}, ValueError, "common leading axis"),
        ({"data": "text"}, TypeError, "`data` to be an array"),
        ({"data": None}, TypeError, "got None"),
        ({"validation": DATA[:0]}, ValueError, "at least one row"),
        ({"validation": (DATA,)}, ValueError, "of the form of `data`"),
        ({"track": True}, TypeError, "`track` to be an ebm.evidence.LogZTracker; got bool"),
        ({"early_stopping": 3}, TypeError, "`early_stopping` to be an ebm.EarlyStopping"),
        ({"svi": 3}, TypeError, "`svi` to be a numpyro.infer.SVI"),
        ({"divergence_threshold": 1}, ValueError, "`divergence_threshold` above 1"),
        ({"site": "u", "track": TRACKER}, ValueError, r"`site` among .*\['v'\]; got 'u'"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        fit(**change)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"patience": 0}, ValueError, "`patience` to be a positive integer"),
        ({"monitor": 3}, TypeError, "`monitor` to be a column"),
        ({"min_delta": -1.0}, ValueError, "`min_delta` of at least 0"),
        ({"mode": "best"}, ValueError, '"max" or "min"'),
    ],
)
def test_bad_early_stopping(settings, error, message):
    with pytest.raises(error, match=message):
        ebm.EarlyStopping(**settings)


def test_models_that_cannot_be_followed():
    def two(batch):
        rbm = initial()
        numpyro.sample("a", rbm, obs=batch[0])
        numpyro.sample("b", rbm, obs=batch[1])

    def batched(batch):
        rbm = ebm.RBM(jnp.zeros((BATCH, NUM_UNITS, 2)), jnp.zeros(NUM_UNITS), jnp.zeros(2))
        numpyro.sample("v", rbm, obs=batch)

    def random_guide(batch):
        shape = [NUM_UNITS, NUM_HIDDEN]
        numpyro.sample("weights", dist.Normal(0, 1).expand(shape).to_event(2))

    def state_of(svi):
        return svi, svi.init(jax.random.key(0), DATA[:BATCH])

    with pytest.raises(ValueError, match=r"one observed energy-based site; got \['a', 'b'\]"):
        ebm.distribution_of(*state_of(cd(model=two)), DATA[:BATCH])
    found = ebm.distribution_of(*state_of(cd(model=two)), DATA[:BATCH], site="b")
    assert isinstance(found, ebm.RBM)
    with pytest.raises(ValueError, match="a batch of models"):
        ebm.distribution_of(*state_of(cd(model=batched)), DATA[:BATCH])
    svi = SVI(with_prior, random_guide, optax.adam(0.1), ebm.ContrastiveDivergence())
    with pytest.raises(ValueError, match="draws site 'weights' at random"):
        ebm.distribution_of(*state_of(svi), DATA[:BATCH])
