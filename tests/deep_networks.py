"""Small deep belief networks, and NumPy answers for them by sums over all states."""

import itertools

import numpy as np
from helpers import energy, features, layer
from scipy.special import logsumexp

from numpyro_ebm import DBN, RBM, units

KINDS = {"Bernoulli": units.Bernoulli, "Spin": units.Spin, "Categorical": units.Categorical}


def unit(rng, kind, size, dtype="float32"):
    if kind == "Gaussian":
        loc, scale = rng.uniform(-0.6, 0.6, size), rng.uniform(0.7, 1.2, size)
        return units.Gaussian(loc.astype(dtype), scale.astype(dtype))
    shape = (size, 3) if kind == "Categorical" else size
    return KINDS[kind](rng.normal(0, 0.6, shape).astype(dtype))


def machine(visible, hidden, scale=0.7, dtype="float32", seed=0):
    """A machine between layers given as (kind, size)."""
    rng = np.random.default_rng(seed)
    visible, hidden = unit(rng, *visible, dtype), unit(rng, *hidden, dtype)
    weights = rng.normal(0, scale, visible.feature_shape + hidden.feature_shape)
    return RBM(weights.astype(dtype), visible, hidden)


def network(*sizes, recognition=False, dtype="float32"):
    """A network of layers given as (kind, size) from the visible units up."""
    pairs = list(enumerate(itertools.pairwise(sizes)))
    layers = [machine(*pair, dtype=dtype, seed=k) for k, pair in pairs]
    untied = [machine(*pair, seed=100 + k) for k, pair in pairs[:-1]] if recognition else None
    return DBN(layers, recognition=untied)


NETWORKS = {
    "two": network(("Bernoulli", 4), ("Bernoulli", 3), ("Bernoulli", 3)),
    "three": network(("Bernoulli", 4), ("Bernoulli", 3), ("Bernoulli", 2), ("Bernoulli", 3)),
    "one": network(("Bernoulli", 4), ("Bernoulli", 3)),
    "kinds": network(("Spin", 3), ("Categorical", 2), ("Spin", 2), ("Gaussian", 2)),
    "untied": network(("Bernoulli", 4), ("Spin", 3), ("Bernoulli", 3), recognition=True),
    "gaussian": network(("Gaussian", 2), ("Bernoulli", 3), ("Bernoulli", 2)),
}


def _weights(rbm):
    shape = rbm.visible_units.num_features, rbm.hidden_units.num_features
    return np.asarray(rbm.weights, np.float64).reshape(shape)


def _log_given(own, values, other, given, weights):
    """Log probabilities of ``values`` (discrete, or on a grid) given each state of the other."""
    states = layer(own)
    field = features(other, given) @ weights
    log_norm = logsumexp(
        field @ states.features.T - states.energy + states.log_weight, axis=1, keepdims=True
    )
    return field @ features(own, values).T - energy(own, values) - log_norm


def log_down(rbm, hidden, values):
    """Log p(v | h) for pairs, of shape (hidden, values)."""
    return _log_given(rbm.visible_units, values, rbm.hidden_units, hidden, _weights(rbm).T)


def log_up(rbm, values, hidden):
    """Log p(h | v) for pairs, of shape (values, hidden)."""
    return _log_given(rbm.hidden_units, hidden, rbm.visible_units, values, _weights(rbm))


def top_energy(rbm, values):
    """Energy of values of the top machine's visible units, hidden units summed out."""
    states = layer(rbm.hidden_units)
    field = features(rbm.visible_units, values) @ _weights(rbm)
    terms = field @ states.features.T - states.energy + states.log_weight
    return energy(rbm.visible_units, values) - logsumexp(terms, axis=1)


def hidden_states(dbn):
    """States of each layer below the top one."""
    return [layer(rbm.hidden_units).values for rbm in dbn.layers[:-1]]


def joint_hidden(dbn):
    """All joint states of those layers, each an array (states, 1, units)."""
    states = hidden_states(dbn)
    index = np.stack([i.ravel() for i in np.indices([len(h) for h in states])])
    return [h[i][:, None] for h, i in zip(states, index, strict=True)]


def enumerated(dbn, data):
    """Energies and variational bounds (without log Z) of rows, every state summed."""
    states = hidden_states(dbn)
    log_joint = -top_energy(dbn.layers[-1], states[-1] if states else data)
    if not states:
        return -log_joint, log_joint
    axes, below = len(states), [*states[:-1]]
    total = log_joint
    for k in range(axes - 1, 0, -1):  # p(h_{k} | h_{k+1}), axes from the bottom up
        table = log_down(dbn.layers[k], states[k], below[k - 1]).T
        total = table.reshape(*table.shape, *[1] * (axes - k - 1)) + total
    down = log_down(dbn.layers[0], states[0], data).T
    total = down.reshape(*down.shape, *[1] * (axes - 1)) + total
    log_q = log_up(dbn.recognition[0], data, states[0])
    log_q = log_q.reshape(*log_q.shape, *[1] * (axes - 1))
    for k in range(1, axes):
        table = log_up(dbn.recognition[k], states[k - 1], states[k])
        log_q = log_q + table.reshape(*[1] * k, *table.shape, *[1] * (axes - k - 1))
    over = tuple(range(1, axes + 1))
    return -logsumexp(total, axis=over), (np.exp(log_q) * (total - log_q)).sum(over)


def log_z(dbn):
    """Log Z of the top machine."""
    states = layer(dbn.layers[-1].visible_units)
    return logsumexp(states.log_weight - top_energy(dbn.layers[-1], states.values))
