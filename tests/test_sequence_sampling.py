"""Draws, continuations, chains and imputation of sequences against sums over all states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import z_scores
from sequence_models import BINARY, MODELS, all_sequences, assert_drawn_from, log_probs, over

NUM_DRAWS = 4000
FAST = "window", "recurrent", "temporal Spin-Categorical"
EXACT = (*BINARY, "recurrent Spin-Categorical", "temporal Spin-Categorical")


def distribution(name):
    """A model, its sequences and their probabilities."""
    model = MODELS[name].make()
    sequences = all_sequences(model)
    return model, sequences, np.exp(log_probs(name, model, sequences))


@over(EXACT, fast=FAST[1:2])
def test_draws_have_the_density(name):
    model, sequences, probs = distribution(name)
    assert_drawn_from(model.sample(jax.random.key(0), (NUM_DRAWS,)), sequences, probs)


@over(EXACT, fast=FAST[2:])
def test_chains_stay_at_the_density(name):
    model, sequences, probs = distribution(name)
    rng = np.random.default_rng(0)
    chain = model.chain_at(sequences[rng.choice(len(probs), NUM_DRAWS, p=probs / probs.sum())])
    step = jax.jit(model.gibbs_step)
    for key in jax.random.split(jax.random.key(1), 3):
        chain = step(key, chain)
    assert_drawn_from(model.visible(chain), sequences, probs)


@pytest.mark.slow
@over(["recurrent Gaussian-Spin", "temporal Gaussian-Bernoulli", "window Gaussian-Bernoulli"])
def test_chains_of_real_frames_stay_at_the_density(name):
    model = MODELS[name].make()
    chain, others = (model.sample(jax.random.key(i), (NUM_DRAWS,)) for i in range(2))
    step = jax.jit(model.gibbs_step)
    for key in jax.random.split(jax.random.key(2), 2):
        chain = step(key, chain)
    first, second = (x.reshape(NUM_DRAWS, -1) for x in (chain, others))
    pairs = [jnp.concatenate([x, x[:, :-1] * x[:, 1:], x**2], axis=1) for x in (first, second)]
    assert np.abs(z_scores(pairs[0] - pairs[1], 0.0)).max() < 4


@over(EXACT, fast=FAST[:1])
def test_continuations_have_the_conditional_density(name):
    model, sequences, probs = distribution(name)
    start = sequences[len(sequences) // 3, :1]
    follows = (sequences[:, :1] == start).all((1, 2))
    history = jnp.broadcast_to(start, (NUM_DRAWS, 1, 2))
    draws = model.generate(jax.random.key(0), history, 2)
    wanted = probs[follows] / probs[follows].sum()
    assert_drawn_from(draws, sequences[follows][:, 1:], wanted)


# ----- imputation --------------------------------------------------------------------------

MASK = np.array([[True, False], [False, False], [True, True]])


@over(EXACT, fast=FAST[1:])
def test_imputation_has_the_posterior_given_past_and_future(name):
    model, sequences, probs = distribution(name)
    data = sequences[len(sequences) // 3]
    agrees = ((sequences == data) | ~MASK).all((1, 2))
    wanted = probs[agrees] / probs[agrees].sum()
    draws = model.impute(jax.random.key(0), data, MASK, num_samples=NUM_DRAWS, num_sweeps=25)
    assert draws.shape == (NUM_DRAWS, 3, 2)
    assert_drawn_from(draws, sequences[agrees], wanted)


@pytest.mark.slow
@over(BINARY)
def test_filtering_knows_the_past_alone(name):
    model, sequences, probs = distribution(name)
    known, table = np.array([True, False, True]), probs.reshape(4, 4, 4)
    filtered = table.sum(2) / table.sum((1, 2))[:, None]
    smoothed = table / table.sum(1, keepdims=True)
    gaps = np.abs(filtered[:, :, None] - smoothed).max(1)
    first, last = np.unravel_index(gaps.argmax(), gaps.shape)
    assert gaps.max() > 0.05  # or the test could not tell one from the other
    frames = sequences.reshape(4, 4, 4, 3, 2)[first, :, last]
    draws = model.impute(
        jax.random.key(0),
        frames[0],
        known,
        num_samples=NUM_DRAWS,
        num_sweeps=25,
        method="filtering",
    )
    assert_drawn_from(draws, frames, filtered[first])


@pytest.mark.slow
def test_known_units_of_batches_are_kept():
    model = MODELS["recurrent"].make()
    frames = np.array(model.sample(jax.random.key(0), (5,)))
    mask = np.random.default_rng(0).uniform(size=frames.shape) < 0.5
    broken = np.where(mask, frames, 7)
    for method in ("smoothing", "filtering"):
        filled = model.impute(
            jax.random.key(1), broken, mask, num_samples=2, num_sweeps=3, method=method
        )
        assert filled.shape == (2, 5, 3, 2)
        assert (np.asarray(filled) == frames)[:, mask].all()
        assert set(np.unique(filled)) <= {0, 1}


# ----- refusals ----------------------------------------------------------------------------


def test_bad_arguments_are_refused():
    model, key = MODELS["recurrent"].make(), jax.random.key(0)
    frames = np.zeros((3, 2), int)
    known = np.array([True, False, True])
    with pytest.raises(ValueError, match='"smoothing" or "filtering"; got'):
        model.impute(key, frames, known, method="both")
    with pytest.raises(ValueError, match=r"`mask` of shape \(3,\)"):
        model.impute(key, frames, known[:2])
    with pytest.raises(ValueError, match="outside it"):
        model.impute(key, frames + 2, known)
    with pytest.raises(ValueError, match="positive integer; got 0"):
        model.impute(key, frames, known, num_sweeps=0)
    with pytest.raises(ValueError, match=r"`history` of shape \(..., num_frames, 2\)"):
        model.generate(key, frames[0], 2)
    with pytest.raises(ValueError, match="`num_frames` to be a positive integer"):
        model.generate(key, frames, 0)
