"""The likelihood along a training run, validation, and stopping by them."""

import jax
import numpy as np
import numpyro
import optax
import pytest
from fit_models import (
    BATCH,
    DATA,
    SHARED,
    TRACKER,
    VALIDATION,
    assert_same,
    cd,
    fit,
    initial,
    mean_log_likelihood,
    rbm_of,
    scripted,
    with_prior,
)
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta, AutoNormal

import numpyro_ebm as ebm
from numpyro_ebm.evidence import LogZTracker


@pytest.mark.slow
def test_the_tracked_likelihood_is_that_of_the_model():
    rows = []

    def keep(epoch, state, row):
        params = SHARED.get_params(state)
        truth = [mean_log_likelihood(params, x) for x in (DATA, VALIDATION)]
        log_z = ebm.evidence.exact(rbm_of(params)).log_evidence
        found = np.array([row[f"{name}_log_likelihood"] for name in ("train", "validation")])
        rows.append((row["log_z"] - log_z, row["log_z_std_error"]))
        np.testing.assert_allclose(found + row["log_z"], np.add(truth, log_z), atol=1e-4)

    result = fit(num_epochs=20, track=TRACKER, validation=VALIDATION, callback=keep)
    errors, std_errors = np.array(rows).T
    assert np.all(np.abs(errors) < 4 * std_errors)
    assert np.all(std_errors < 0.3)
    assert result.log_z.log_evidence == result.history["log_z"].iloc[-1]
    improvement = result.history["validation_log_likelihood"].iloc[[0, -1]].to_numpy()
    assert improvement[1] > improvement[0] + 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numpyro_ebm.evidence.EvidenceWarning")
def test_starting_the_tracker_anew():
    calls = []

    class Counted(LogZTracker):
        def restart(self, rng_key, state):
            calls.append(1)
            return super().restart(rng_key, state)

    fit(num_epochs=4, track=Counted(num_particles=200, init_every=2))
    assert len(calls) == 2


def masked(batch):
    rbm = initial()
    with numpyro.plate("rows", len(batch)), numpyro.handlers.mask(mask=batch[:, 0] == 1):
        numpyro.sample("v", rbm, obs=batch)


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
def test_latent_parameters_are_at_the_median_of_the_guide(guide):
    auto = guide(with_prior)
    svi = SVI(with_prior, auto, optax.adam(0.05), ebm.ContrastiveDivergence())
    result = fit(svi, num_epochs=2, track=TRACKER)
    median = auto.median(result.params)["weights"]
    rbm = ebm.distribution_of(svi, result.state, DATA[:BATCH])
    np.testing.assert_array_equal(rbm.weights, median)
    energy = -result.history["train_log_likelihood"] - result.history["log_z"]
    np.testing.assert_allclose(energy.iloc[-1], rbm.energy(DATA).mean(), rtol=1e-5)


@pytest.mark.slow
def test_masked_rows_do_not_count():
    svi = cd(model=masked)
    result = fit(svi, num_epochs=1, track=TRACKER)
    expected = rbm_of(result.params).energy(DATA[DATA[:, 0] == 1]).mean()
    energy = -result.history["train_log_likelihood"] - result.history["log_z"]
    np.testing.assert_allclose(energy[0], expected, rtol=1e-5)


def test_a_model_built_by_hand():
    result = fit(num_epochs=2, track=TRACKER, distribution=rbm_of)
    automatic = fit(num_epochs=2, track=TRACKER)
    np.testing.assert_allclose(
        result.history["train_log_likelihood"],
        automatic.history["train_log_likelihood"],
        rtol=1e-5,
    )
    with pytest.raises(TypeError, match="`distribution` to return an energy-based model"):
        fit(track=TRACKER, distribution=lambda params: params)


# ----- validation and stopping -------------------------------------------------------------


@pytest.mark.slow
def test_validation_loss_of_a_loss_without_state():
    svi = cd()
    result = fit(svi, num_epochs=2, validation=VALIDATION)
    key = jax.random.split(jax.random.key(0), 4)[3]
    losses = [
        svi.evaluate(
            result.state._replace(rng_key=jax.random.fold_in(key, i)),
            VALIDATION[BATCH * i : BATCH * (i + 1)],
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(
        result.history["validation_loss"].iloc[-1], np.mean(losses), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="expected `track` with `validation`"):
        fit(validation=VALIDATION)


@pytest.mark.parametrize(
    ("settings", "epochs", "best"),
    [
        ({"patience": 1}, 3, 2),
        ({"patience": 2}, 6, 4),
        ({"patience": 2, "min_delta": 0.1}, 4, 2),
        ({"patience": 3}, 7, 7),
        ({"patience": 3, "mode": "min"}, 4, 1),
    ],
)
def test_early_stopping_returns_the_best_epoch(settings, epochs, best):
    states = {}
    result = fit(
        num_epochs=7,
        early_stopping=scripted(**settings),
        callback=lambda epoch, state, row: states.update({epoch: state}),
    )
    assert (len(result.history), result.epoch) == (epochs, best)
    assert result.stopped_early == (epochs < 7)
    assert_same(result.state, states[best])
    assert_same(result.params, SHARED.get_params(states[best]))


def test_early_stopping_by_columns():
    result = fit(
        num_epochs=3,
        track=TRACKER,
        validation=VALIDATION,
        early_stopping=ebm.EarlyStopping(patience=10),
    )
    column = result.history["validation_log_likelihood"]
    assert result.epoch == int(np.argmax(column)) + 1
    assert result.log_z.log_evidence == result.history["log_z"][result.epoch - 1]
    by_loss = fit(num_epochs=3, early_stopping=ebm.EarlyStopping(monitor="loss"))
    assert by_loss.epoch == int(np.argmin(by_loss.history["loss"])) + 1
    with pytest.raises(ValueError, match="expected `monitor` among the columns"):
        fit(early_stopping=ebm.EarlyStopping())
