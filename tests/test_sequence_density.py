"""Densities, conditionals and gradients of sequence models against sums over all states."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from helpers import assert_close, layer
from numpyro.infer import SVI, Trace_ELBO
from sequence_models import (
    BINARY,
    DISCRETE,
    MODELS,
    all_sequences,
    assert_drawn_from,
    given,
    log_probs,
    over,
    paths,
)

from numpyro_ebm import MaximumLikelihood, NormalizerError, RecurrentTemporalRBM, TemporalRBM

FAST = "window", "recurrent Gaussian-Spin", "temporal Spin-Categorical"


@jax.jit
def log_prob(model, frames):
    return model.log_prob(frames)


@jax.jit
def everything(model, frames):
    rbm = model.conditionals(frames)
    terms = -rbm.energy(frames) - rbm.exact_log_z()
    return model.log_prob(frames), -model.energy(frames), model.log_prob(frames[0]), terms


def some_frames(model, size=4):
    rng = np.random.default_rng(1)
    if not model.is_discrete:
        return rng.normal(0, 1, (size, *model.event_shape)).astype(np.float32)
    states = layer(model.visible_units).values
    return states[rng.integers(len(states), size=(size, model.event_shape[0]))]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@over(MODELS, fast=FAST)
def test_density_is_that_of_the_sums(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        model = MODELS[name].make(dtype)
        frames = some_frames(model)
        actual, minus_energy, first, terms = everything(model, frames)
        assert_close(actual, log_probs(name, model, frames), dtype)
        np.testing.assert_allclose(first, actual[0], rtol=1e-5)
        np.testing.assert_allclose(minus_energy, actual, rtol=1e-6)
        assert terms.shape == (4, 3)
        if "temporal" not in name:  # whose frames are given approximate means
            np.testing.assert_allclose(terms.sum(-1), actual, rtol=1e-5)


@over(DISCRETE, fast=BINARY[:1])
def test_densities_sum_to_one(name):
    model = MODELS[name].make()
    total = jax.scipy.special.logsumexp(log_prob(model, all_sequences(model)))
    np.testing.assert_allclose(total, 0, atol=1e-5)
    assert model.log_normalizer == 0


# ----- gradients ---------------------------------------------------------------------------


def parameters(model):
    leaves, structure = jax.tree.flatten(model)
    return {f"p{i}": leaf for i, leaf in enumerate(leaves)}, structure


def svi_loss(loss, model, frames, rng_key=None):
    """Loss of observed sequences as a function of the model."""
    values, structure = parameters(model)

    def observed():
        params = [numpyro.param(name, value) for name, value in values.items()]
        with numpyro.plate("rows", len(frames)):
            numpyro.sample("x", structure.unflatten(params), obs=frames)

    def evaluate(params):
        key = jax.random.key(0) if rng_key is None else rng_key
        return loss.loss(key, params, observed, lambda: None)

    return jax.value_and_grad(evaluate, allow_int=True)(values)


@over(BINARY, fast=["recurrent"])
def test_gradient_of_the_likelihood_is_that_of_finite_differences(name):
    with jax.enable_x64(True):
        model = MODELS[name].make("float64")
        frames = some_frames(model)
        value, gradient = svi_loss(MaximumLikelihood(), model, frames)
        assert_close(value, -log_probs(name, model, frames).sum(), "float64")
        values, structure = parameters(model)
        rng = np.random.default_rng(0)
        for key, leaf in values.items():
            if leaf.dtype != "float64":
                continue
            direction = rng.normal(size=leaf.shape)
            ends = []
            for sign in (1, -1):
                moved = {**values, key: leaf + sign * 1e-5 * direction}
                there = structure.unflatten(list(moved.values()))
                ends.append(-log_probs(name, there, frames).sum())
            slope = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose((gradient[key] * direction).sum(), slope, rtol=1e-5)


@pytest.mark.slow
@over(BINARY)
def test_elbo_and_exact_likelihood_agree(name):
    model = MODELS[name].make()
    frames = some_frames(model)
    exact, by_elbo = (svi_loss(loss, model, frames) for loss in (MaximumLikelihood(), Trace_ELBO()))
    np.testing.assert_allclose(exact[0], by_elbo[0], rtol=1e-5)


# ----- temporal RBM: hidden states ----------------------------------------------------------


@over(["temporal Spin-Categorical"])
def test_hidden_paths_are_drawn_from_their_posterior(name):
    model = MODELS[name].make()
    frames = some_frames(model)[0]
    states, terms = paths(model, list(frames))
    expected = np.exp(terms - terms.max())
    expected /= expected.sum()
    many = jnp.broadcast_to(frames, (20_000, *frames.shape))
    draws = jax.jit(model.sample_hidden)(jax.random.key(1), many)
    assert_drawn_from(draws, states, expected)


def test_inferred_means_are_passed_forward():
    model = MODELS["temporal"].make()
    frames = some_frames(model)[0]
    state, before = np.asarray(model.initial, np.float64), np.zeros(2)
    for mean, frame in zip(model.infer_hidden(frames), frames, strict=True):
        state = given(model, state, before).hidden_mean(frame)
        np.testing.assert_allclose(mean, state, rtol=1e-5)


def test_recurrent_state_is_the_inferred_mean_of_a_temporal_rbm():
    temporal = MODELS["temporal"].make()
    recurrent = MODELS["recurrent"].make()
    frames = some_frames(temporal)
    means = recurrent.conditions(frames)[..., 1:, :]
    np.testing.assert_allclose(means, temporal.infer_hidden(frames), rtol=1e-6)


# ----- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [RecurrentTemporalRBM, pytest.param(TemporalRBM, marks=pytest.mark.slow)]
)
def test_what_cannot_be_summed_is_refused(kind):
    model = kind(jnp.zeros((30, 30)), jnp.zeros(30), jnp.zeros(30), jnp.zeros((30, 30)), 2)
    frames = model.sample(jax.random.key(0))
    calls = [
        lambda: model.log_prob(frames),
        lambda: model.gibbs_step(jax.random.key(0), frames),
        lambda: model.impute(jax.random.key(0), frames, jnp.array([True, False])),
    ]
    for call in calls:
        with pytest.raises(NormalizerError, match="states"):
            call()
    filled = model.impute(
        jax.random.key(0), frames, jnp.array([True, False]), method="filtering", num_sweeps=2
    )
    assert filled.shape == (1, 2, 30)


@pytest.mark.slow
def test_optimizers_run():
    frames = np.eye(2, dtype=np.uint8)[np.array([[0, 1, 0], [1, 0, 1]])]

    def model():
        u = numpyro.param("u", jnp.zeros((2, 2)))
        w = numpyro.param("w", 0.1 * jnp.ones((2, 2)))
        with numpyro.plate("rows", 2):
            numpyro.sample(
                "x", RecurrentTemporalRBM(w, jnp.zeros(2), jnp.zeros(2), u, 3), obs=frames
            )

    svi = SVI(model, lambda: None, numpyro.optim.Adam(0.01), Trace_ELBO())
    losses = svi.run(jax.random.key(0), 30, progress_bar=False).losses
    assert losses[-1] < losses[0]
