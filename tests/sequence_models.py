"""Sequences of frames of small size, and their densities by sums over all states in NumPy.

A new sequence model is one row in ``MODELS``.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import energy, features, layer
from registry import UNITS, dyadic
from scipy.special import logsumexp
from scipy.stats import chi2

from numpyro_ebm import AutoregressiveRBM, RecurrentTemporalRBM, TemporalRBM

NUM_FRAMES = 3
ORDER = 2


class Frame:
    """One frame: an RBM whose features have extra fields, by sums over its joint states."""

    def __init__(self, visible, hidden, weights, visible_field, hidden_field):
        self.units = visible, hidden
        self.hidden = layer(hidden)
        self.weights = np.asarray(weights, np.float64).reshape(
            layer(visible).features.shape[1], self.hidden.features.shape[1]
        )
        self.fields = visible_field, hidden_field
        states = layer(visible)
        terms = self.log_joint(states.values) + states.log_weight[:, None]
        self.log_z = logsumexp(terms + self.hidden.log_weight)

    def log_joint(self, value):
        """Minus the energies of values with every hidden state."""
        phi = features(self.units[0], value)
        own = phi @ self.fields[0] - energy(self.units[0], value)
        others = self.hidden.features @ self.fields[1] - self.hidden.energy
        return own[..., None] + others + phi @ self.weights @ self.hidden.features.T

    def log_prob(self, value):
        """Log density of a value."""
        return logsumexp(self.log_joint(value) + self.hidden.log_weight, axis=-1) - self.log_z

    def hidden_mean(self, value):
        """Mean features of the hidden units."""
        terms = self.log_joint(value) + self.hidden.log_weight
        return np.exp(terms - logsumexp(terms)) @ self.hidden.features


def flat(array, rows):
    return np.asarray(array, np.float64).reshape(rows, -1)


# ----- the three models --------------------------------------------------------------------


def windows(model, frames):
    """Log density of an autoregressive RBM."""
    past, total = [np.asarray(row) for row in model.history], 0.0
    num_features = features(model.visible_units, past[0]).size
    for frame in frames:
        fields = [0.0, 0.0]
        for lag in range(ORDER):
            phi = features(model.visible_units, past[-1 - lag])
            fields[0] += phi @ flat(model.visible_weights[lag], num_features)
            fields[1] += phi @ flat(model.hidden_weights[lag], num_features)
        now = Frame(model.visible_units, model.hidden_units, model.weights, *fields)
        total += now.log_prob(frame)
        past.append(frame)
    return total


def given(model, state, before):
    """A frame given the features of the hidden state and of the frame before it."""
    size = [layer(unit).features.shape[1] for unit in (model.visible_units, model.hidden_units)]
    fields = [np.zeros(size[0]), state @ flat(model.hidden_to_hidden, size[1])]
    links = (
        (0, state, model.hidden_to_visible),
        (0, before, model.visible_to_visible),
        (1, before, model.visible_to_hidden),
    )
    for target, source, weights in links:
        if weights is not None:
            fields[target] = fields[target] + source @ flat(weights, source.size)
    return Frame(model.visible_units, model.hidden_units, model.weights, *fields)


def recurrent(model, frames):
    """Log density of a recurrent temporal RBM."""
    state, total = np.asarray(model.initial, np.float64).ravel(), 0.0
    before = np.zeros(layer(model.visible_units).features.shape[1])
    for frame in frames:
        now = given(model, state, before)
        total += now.log_prob(frame)
        state, before = now.hidden_mean(frame), features(model.visible_units, frame)
    return total


def paths(model, frames):
    """Every path of hidden states, and the log density of each with the frames."""
    hidden = layer(model.hidden_units)
    start = np.asarray(model.initial, np.float64).ravel()
    nothing = np.zeros(layer(model.visible_units).features.shape[1])
    before = [nothing, *(features(model.visible_units, frame) for frame in frames[:-1])]
    steps = [
        [given(model, state, before[t]) for state in ([start] if t == 0 else hidden.features)]
        for t in range(len(frames))
    ]
    tables = [
        np.array([now.log_joint(frame) - now.log_z for now in step])
        for step, frame in zip(steps, frames, strict=True)
    ]
    numbers = list(itertools.product(range(len(hidden.values)), repeat=len(frames)))
    log_probs = [
        tables[0][0, path[0]] + sum(tables[t][path[t - 1], path[t]] for t in range(1, len(frames)))
        for path in numbers
    ]
    return hidden.values[np.array(numbers)], np.array(log_probs)


def temporal(model, frames):
    """Log density of a temporal RBM."""
    return logsumexp(paths(model, frames)[1])


# ----- registry ----------------------------------------------------------------------------


class Entry(NamedTuple):
    """How to make a model, and its log density of one sequence."""

    make: Callable[..., Any]
    log_prob: Callable[[Any, Any], float]


def parts(visible, hidden, dtype):
    rng = np.random.default_rng(3)
    units = UNITS[visible].make(rng, 2, dtype), UNITS[hidden].make(rng, 2, dtype)
    return rng, *units


def normal(rng, dtype, *shape):
    return jnp.asarray(dyadic(rng.normal(0, 0.7, shape)), dtype)


def _window(visible, hidden):
    def make(dtype="float32", num_frames=NUM_FRAMES, **kwargs):
        rng, v, h = parts(visible, hidden, dtype)
        f, g = v.feature_shape, h.feature_shape
        weights = normal(rng, dtype, *f, *g)
        directed = normal(rng, dtype, ORDER, *f, *f), normal(rng, dtype, ORDER, *f, *g)
        zeros = jnp.zeros((ORDER, v.num_features), dtype)
        history = v.sample(jax.random.key(2), zeros)
        return AutoregressiveRBM(weights, v, h, *directed, history, num_frames, **kwargs)

    return Entry(make, windows)


def _chain(kind, visible, hidden, *links):
    def make(dtype="float32", num_frames=NUM_FRAMES, **kwargs):
        rng, v, h = parts(visible, hidden, dtype)
        shapes = {"visible": v.feature_shape, "hidden": h.feature_shape}
        weights = normal(rng, dtype, *shapes["visible"], *shapes["hidden"])
        if visible != "Gaussian":
            weights = 2 * weights
        recurrent = 2 * normal(rng, dtype, *shapes["hidden"], *shapes["hidden"])
        directed = {}
        for link in links:
            source, target = link.split("_to_")
            directed[link] = 2 * normal(rng, dtype, *shapes[source], *shapes[target])
        initial = normal(rng, dtype, *shapes["hidden"])
        return kind(weights, v, h, recurrent, num_frames, initial=initial, **directed, **kwargs)

    return Entry(make, temporal if kind is TemporalRBM else recurrent)


V_TO_V, V_TO_H, H_TO_V = "visible_to_visible", "visible_to_hidden", "hidden_to_visible"
MODELS = {
    "window": _window("Bernoulli", "Bernoulli"),
    "window Categorical-Gaussian": _window("Categorical", "Gaussian"),
    "window Gaussian-Bernoulli": _window("Gaussian", "Bernoulli"),
    "recurrent": _chain(RecurrentTemporalRBM, "Bernoulli", "Bernoulli", H_TO_V),
    "recurrent Spin-Categorical": _chain(RecurrentTemporalRBM, "Spin", "Categorical", V_TO_H),
    "recurrent Gaussian-Spin": _chain(RecurrentTemporalRBM, "Gaussian", "Spin", V_TO_V),
    "temporal": _chain(TemporalRBM, "Bernoulli", "Bernoulli", H_TO_V),
    "temporal Spin-Categorical": _chain(TemporalRBM, "Spin", "Categorical", H_TO_V, V_TO_V, V_TO_H),
    "temporal Gaussian-Bernoulli": _chain(TemporalRBM, "Gaussian", "Bernoulli", V_TO_V),
}
BINARY = ("window", "recurrent", "temporal")
DISCRETE = [name for name in MODELS if "Gaussian-" not in name]


def over(names, fast=None):
    """Run a test over models, by name; those that are not among ``fast`` are slow ones."""
    params = [
        pytest.param(name, marks=() if fast is None or name in fast else pytest.mark.slow)
        for name in names
    ]
    return pytest.mark.parametrize("name", params)


def all_sequences(model):
    """Every sequence of a discrete model."""
    frames = layer(model.visible_units).values
    count = model.event_shape[0]
    return np.array(list(itertools.product(frames, repeat=count)))


def log_probs(name, model, sequences):
    """Log densities by the sums of this file."""
    return np.array([MODELS[name].log_prob(model, list(frames)) for frames in sequences])


def assert_drawn_from(draws, sequences, probs):
    """Pearson's test of counts, rare sequences taken together."""
    code = {tuple(s.ravel().astype(int)): i for i, s in enumerate(sequences)}
    numbers = [code[tuple(d.ravel())] for d in np.asarray(draws, int)]
    counts, expected = np.bincount(numbers, minlength=len(probs)), len(draws) * probs
    order = np.argsort(expected)
    cells = np.cumsum(expected[order]) // 10  # at least ten expected in each
    groups = np.unique(np.minimum(cells, cells[-1] - 1), return_inverse=True)[1]
    counts, expected = (np.bincount(groups, x[order]) for x in (counts, expected))
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, len(expected) - 1) > 1e-4, statistic / len(expected)
