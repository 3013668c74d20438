"""Autoencoders and classifiers unrolled from stacks of machines."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from deep_networks import machine, network
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import SVI, Predictive, Trace_ELBO
from scipy.special import expit

from numpyro_ebm import RBM
from numpyro_ebm.models import Autoencoder, DeepClassifier
from numpyro_ebm.units import Gaussian

KEY = jax.random.key(0)
STACK = network(("Bernoulli", 4), ("Bernoulli", 3), ("Bernoulli", 2)).layers
ROWS = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]])


def logits(unit):
    return np.float64(unit.logits)


def weights(rbm):
    return np.float64(rbm.weights)


def by_hand(rows):
    """Means on the way up, and those of the visible units on the way down."""
    lower, top = STACK
    hidden = expit(rows @ weights(lower) + logits(lower.hidden_units))
    code = expit(hidden @ weights(top) + logits(top.hidden_units))
    back = expit(code @ weights(top).T + logits(top.visible_units))
    return hidden, code, back @ weights(lower).T + logits(lower.visible_units)


def no_latents(*args):
    """Guide of a model without latent sites."""


# ----- autoencoder ---------------------------------------------------------------------------


def test_unrolled_means():
    autoencoder = Autoencoder.unroll(STACK)
    _, code, output = by_hand(ROWS)
    np.testing.assert_allclose(autoencoder.encode(ROWS), code, rtol=1e-5)
    np.testing.assert_allclose(autoencoder.reconstruct(ROWS), expit(output), rtol=1e-5)
    np.testing.assert_allclose(autoencoder.decode(code), expit(output), rtol=1e-5)
    assert np.array_equal(autoencoder.codes(ROWS), code > 0.5)


@pytest.mark.parametrize("rows", [ROWS, 0.1 + 0.8 * ROWS], ids=["binary", "gray"])
def test_the_loss_is_the_cross_entropy(rows):
    _, _, output = by_hand(rows)
    entropy = np.logaddexp(0, output) - rows * output
    svi = SVI(Autoencoder.unroll(STACK).model, no_latents, optax.sgd(0.1), Trace_ELBO())
    rows = jnp.asarray(rows)
    loss = svi.evaluate(svi.init(KEY, rows), rows)
    np.testing.assert_allclose(loss, entropy.sum(), rtol=1e-5)
    with numpyro.validation_enabled():
        np.testing.assert_allclose(svi.evaluate(svi.init(KEY, rows), rows), loss, rtol=1e-6)


def test_squared_error_of_real_data_and_codes_whose_scales_stay():
    lower = machine(("Gaussian", 3), ("Bernoulli", 4))
    stack = [lower, machine(("Bernoulli", 4), ("Gaussian", 2))]
    start = Autoencoder.unroll(stack)
    rows = jax.random.normal(KEY, (20, 3))
    unit = lower.visible_units
    errors = (rows - start.reconstruct(rows)) / unit.scale
    expected = 0.5 * (errors**2).sum() + 20 * jnp.log(unit.scale * (2 * jnp.pi) ** 0.5).sum()
    svi = SVI(start.model, no_latents, optax.adam(0.02), Trace_ELBO())
    np.testing.assert_allclose(svi.evaluate(svi.init(KEY, rows), rows), expected, rtol=1e-4)
    tuned = svi.run(KEY, 100, rows, progress_bar=False).params["autoencoder"]
    before, after = (((rows - a.reconstruct(rows)) ** 2).sum() for a in (start, tuned))
    assert after < 0.8 * before
    machines = zip(start.encoder + start.decoder, tuned.encoder + tuned.decoder, strict=True)
    for before, after in machines:
        for name in ("visible_units", "hidden_units"):
            unit = getattr(before, name)
            if isinstance(unit, Gaussian):
                assert np.array_equal(unit.scale, getattr(after, name).scale)
    assert not np.array_equal(tuned.encoder[0].weights, tuned.decoder[0].weights)
    with pytest.raises(ValueError, match="expected Bernoulli code units; got Gaussian"):
        tuned.codes(rows)


def test_codes_trained_with_noise_are_bits_that_reconstruct():
    patterns = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]])
    data = jnp.asarray(np.repeat(patterns, 30, axis=0))
    start = Autoencoder.unroll([machine(("Bernoulli", 6), ("Bernoulli", 4))], code_noise=4.0)
    svi = SVI(start.model, no_latents, optax.adam(0.05), Trace_ELBO())
    tuned = svi.run(KEY, 400, data, progress_bar=False).params["autoencoder"]
    code = tuned.encode(patterns)
    assert jnp.minimum(code, 1 - code).max() < 0.1
    assert np.abs(tuned.decode(tuned.codes(patterns)) - patterns).max() < 0.1


def test_noise_is_drawn_for_each_row_and_unit():
    start = Autoencoder.unroll(STACK, code_noise=2.0)
    rows = np.tile(ROWS[:1], (4000, 1))

    def inputs(model):
        return trace(seed(model, KEY)).get_trace(rows)["x"]["fn"].base_dist.logits

    found = inputs(start.model)
    assert np.ptp(found[:, 0]) > 0.1
    assert np.ptp(inputs(Autoencoder.unroll(STACK).model)[:, 0]) == 0
    hidden, _, _ = by_hand(rows[:1])
    top = STACK[1]
    field = hidden @ weights(top) + logits(top.hidden_units)
    rng = np.random.default_rng(0)
    code = expit(field + 2 * rng.normal(size=(4000, 2)))
    back = expit(code @ weights(top).T + logits(top.visible_units))
    expected = back @ weights(STACK[0]).T + logits(STACK[0].visible_units)
    error = np.hypot(found.std(0), expected.std(0)) / 4000**0.5
    assert np.all(np.abs(found.mean(0) - expected.mean(0)) < 4 * error)


def test_what_an_autoencoder_refuses():
    with pytest.raises(ValueError, match="`code_noise` of at least 0"):
        Autoencoder.unroll(STACK, code_noise=-1.0)
    with pytest.raises(ValueError, match="kind and number"):
        Autoencoder.unroll(STACK[::-1])
    batch = RBM(jnp.zeros((2, 4, 3)), jnp.zeros(4), jnp.zeros(3))
    with pytest.raises(ValueError, match="without batch dimensions"):
        Autoencoder.unroll([batch])
    autoencoder = Autoencoder.unroll(STACK)
    with pytest.raises(ValueError, match=r"`data` of shape \(\.\.\., 4\); got \(3, 3\)"):
        autoencoder.encode(ROWS[:, :3])
    with pytest.raises(ValueError, match="`data` from 0 to 1"):
        autoencoder.reconstruct(ROWS * 255)
    with pytest.raises(ValueError, match=r"`code` of shape \(\.\.\., 2\)"):
        autoencoder.decode(np.zeros(3))


# ----- classifier ----------------------------------------------------------------------------


def test_probabilities_of_labels():
    rng = np.random.default_rng(0)
    start = DeepClassifier.on_top_of(STACK, 3)
    assert np.array_equal(start.logits(ROWS), np.zeros((3, 3)))
    values = {"weights": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)}
    values = {name: jnp.asarray(part, jnp.float32) for name, part in values.items()}
    classifier = DeepClassifier(start.encoder, **values)
    _, code, _ = by_hand(ROWS)
    expected = code @ np.float64(values["weights"]) + np.float64(values["bias"])
    np.testing.assert_allclose(classifier.logits(ROWS), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(classifier.predict(ROWS), expected.argmax(1))
    model = substitute(classifier.model, data={"classifier": classifier})
    found = trace(seed(model, KEY)).get_trace(ROWS, np.array([0, 2, 1]))["label"]
    log_probs = expected - np.log(np.exp(expected).sum(1, keepdims=True))
    np.testing.assert_allclose(
        found["fn"].log_prob(found["value"]), log_probs[[0, 1, 2], [0, 2, 1]], rtol=1e-4
    )


def test_fine_tuning_moves_all_layers():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 2, (200, 4))
    labels = data[:, 0] ^ data[:, 1]  # not linear in the data
    stack = network(("Bernoulli", 4), ("Bernoulli", 24), ("Bernoulli", 24)).layers
    start = DeepClassifier.on_top_of(stack, 2)
    svi = SVI(start.model, no_latents, optax.adam(0.05), Trace_ELBO())
    tuned = svi.run(KEY, 400, data, labels, progress_bar=False).params["classifier"]
    assert np.array_equal(tuned.predict(data), labels)
    assert not np.allclose(tuned.encoder[0].weights, stack[0].weights, atol=0.1)
    drawn = Predictive(tuned.model, params={"classifier": tuned}, num_samples=2)(KEY, data)
    assert drawn["label"].shape == (2, 200)


def test_what_a_classifier_refuses():
    with pytest.raises(ValueError, match="`num_classes` of at least 2"):
        DeepClassifier.on_top_of(STACK, 1)
    classifier = DeepClassifier.on_top_of(STACK, 2)
    for labels, message in (
        (np.zeros(2, int), r"`labels` of shape \(3,\)"),
        (np.array([0, 1, 2]), "`labels` from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            seed(classifier.model, KEY)(ROWS, labels)
