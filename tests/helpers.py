"""Plain NumPy answers to compare with, in float64, and scores of samples against them.

Nothing here uses the package's own formulas: discrete layers are enumerated, continuous ones put
on a dense grid, and every quantity is a sum over the joint states of both layers.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy.special import gammaln, logsumexp

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Relative error allowed in each precision."""
LARGEST_COUNT = 48
"""Larger counts have next to no probability at the rates of the registry."""
SMALLEST_ERROR = 1e-5
"""Standard errors below this are rounding: the quantity does not vary."""


class Layer(NamedTuple):
    """All states of a layer, with the log weight of each in a sum or an integral."""

    values: np.ndarray
    log_weight: np.ndarray
    energy: np.ndarray
    features: np.ndarray


def arrays(unit):
    """Parameters of a unit as float64 arrays."""
    return [np.asarray(getattr(unit, field), np.float64) for field in unit.fields]


def _axes(unit):
    """The states of every unit of a layer, and their weights."""
    kind, shape = type(unit).__name__, arrays(unit)[0].shape
    if kind == "Gaussian":  # the trapezoidal rule converges faster than any power
        nodes = np.linspace(-13, 13, 53)
        return [(nodes, np.full(53, 0.5))] * shape[0]
    if kind == "ReLU":
        nodes, weights = leggauss(48)
        return [(6.5 * (nodes + 1), 6.5 * weights)] * shape[0]
    if kind == "Poisson":
        return [(np.arange(LARGEST_COUNT + 1), np.ones(LARGEST_COUNT + 1))] * shape[0]
    states = {"Bernoulli": [0, 1], "Spin": [-1, 1], "Categorical": range(shape[-1])}[kind]
    return [(np.asarray(states), np.ones(len(states)))] * shape[0]


def _pieces(unit, value):
    """The units of a concatenation, each with its stretch of the values."""
    stops = np.cumsum([part.shape[0] for part in unit.units])[:-1]
    return zip(unit.units, np.split(value, stops, axis=-1), strict=True)


def features(unit, value):
    """Features of values, flat."""
    value, kind = np.asarray(value), type(unit).__name__
    if kind == "Concatenate":
        return np.concatenate([features(*piece) for piece in _pieces(unit, value)], -1)
    if kind == "Categorical":
        one_hot = np.eye(arrays(unit)[0].shape[-1])[value.astype(int)]
        return one_hot.reshape(*value.shape[:-1], -1)
    return value.astype(np.float64)


def energy(unit, value):
    """Energies of values in nats."""
    value, kind = np.asarray(value), type(unit).__name__
    if kind == "Concatenate":
        return sum(energy(*piece) for piece in _pieces(unit, value))
    if kind in ("Gaussian", "ReLU"):
        loc, scale = arrays(unit)
        return (((value - loc) / scale) ** 2 / 2).sum(-1)
    own = gammaln(value + 1).sum(-1) if kind == "Poisson" else 0
    return own - features(unit, value) @ arrays(unit)[0].ravel()


def layer(unit):
    """Every state of a layer, on a grid where it is continuous."""
    parts = unit.units if type(unit).__name__ == "Concatenate" else [unit]
    axes = [axis for part in parts for axis in _axes(part)]
    values = np.array(list(itertools.product(*(nodes for nodes, _ in axes))))
    weights = np.array(list(itertools.product(*(weights for _, weights in axes))))
    return Layer(values, np.log(weights).sum(-1), energy(unit, values), features(unit, values))


class BruteForce:
    """An RBM by sums over the joint states of its layers."""

    def __init__(self, rbm):
        self.rbm = rbm
        self.visible, self.hidden = layer(rbm.visible_units), layer(rbm.hidden_units)
        shape = (self.visible.features.shape[1], self.hidden.features.shape[1])
        self.weights = np.asarray(rbm.weights, np.float64).reshape(shape)
        log_joint = self.visible.features @ self.weights @ self.hidden.features.T
        log_joint += (self.visible.log_weight - self.visible.energy)[:, None]
        log_joint += self.hidden.log_weight - self.hidden.energy
        self._log_visible = logsumexp(log_joint, axis=1)
        self.log_z = logsumexp(self._log_visible)
        self.probs = np.exp(self._log_visible - self.log_z)
        """Probability of each visible state (density times weight where continuous)."""
        joint = np.exp(log_joint - self.log_z)
        self.mean_coupling = self.visible.features.T @ joint @ self.hidden.features
        self.mean_visible = self.probs @ self.visible.features
        self.mean_hidden = joint.sum(0) @ self.hidden.features

    def log_hidden(self, value):
        """Log of the unnormalized terms exp(-E(v, h)) for every hidden state, with weights."""
        field = features(self.rbm.visible_units, value) @ self.weights
        own = self.hidden.log_weight - self.hidden.energy
        return (
            own + field @ self.hidden.features.T - energy(self.rbm.visible_units, value)[..., None]
        )

    def log_visible(self, hidden):
        """Likewise for every visible state."""
        field = features(self.rbm.hidden_units, hidden) @ self.weights.T
        own = self.visible.log_weight - self.visible.energy
        back = field @ self.visible.features.T
        return own + back - energy(self.rbm.hidden_units, hidden)[..., None]

    def energy(self, value):
        """Free energy."""
        return -logsumexp(self.log_hidden(value), axis=-1)

    def joint_energy(self, value, hidden):
        """E(v, h)."""
        visible_units, hidden_units = self.rbm.visible_units, self.rbm.hidden_units
        coupling = features(visible_units, value) @ self.weights * features(hidden_units, hidden)
        return energy(visible_units, value) + energy(hidden_units, hidden) - coupling.sum(-1)

    def draw(self, rng, size, where=slice(None)):
        """Exact visible states, of those selected by ``where``."""
        probs = self.probs[where] / self.probs[where].sum()
        return self.visible.values[where][rng.choice(probs.size, size, p=probs)]

    def moments(self, where=slice(None)):
        """Exact moments of the visible states selected by ``where``, as :func:`moments`."""
        probs = self.probs[where] / self.probs[where].sum()
        states = self.visible.values[where]
        return probs @ moments(self.visible.features[where], self.energy(states))


def moments(feature, energies):
    """First and second moments of features, and the energy, of each row."""
    feature = np.asarray(feature, np.float64)
    rows, columns = np.triu_indices(feature.shape[1])
    products = feature[:, rows] * feature[:, columns]
    return np.column_stack([feature, products, np.asarray(energies, np.float64)])


def z_scores(samples, expected):
    """Errors of column means of independent rows, in standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.mean(0) - expected
    standard = samples.std(0, ddof=1) / np.sqrt(len(samples))
    constant = standard < SMALLEST_ERROR * (1 + np.abs(expected)) / np.sqrt(len(samples))
    assert np.all(np.abs(error[constant]) < SMALLEST_ERROR)
    return np.where(constant, 0, error / np.where(constant, 1, standard))


def assert_moments(samples, expected):
    """Every column mean lies within four standard errors."""
    z = z_scores(samples, expected)
    assert np.all(np.abs(z) < 4), np.round(z, 1)


def assert_close(actual, expected, dtype, name=""):
    """Agreement to what is asked of each precision, and that it really is this precision."""
    assert actual.dtype == dtype
    tolerance = TOLERANCE[str(np.dtype(dtype))]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance / 10, err_msg=name)
