"""Small deep Boltzmann machines, and NumPy answers for them by sums over all layers."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import energy, features, layer
from scipy.special import logsumexp

from numpyro_ebm import DBM, units

KINDS = {"Bernoulli": units.Bernoulli, "Spin": units.Spin, "Categorical": units.Categorical}


def unit(rng, kind, size, dtype, batch=()):
    """A layer with random parameters; ``kind`` may be several joined by a plus, size 1 each."""
    if "+" in kind:
        parts = kind.split("+")
        return units.Concatenate([unit(rng, part, size, dtype, batch) for part in parts])
    if kind == "Gaussian":
        loc, scale = rng.uniform(-0.6, 0.6, (*batch, size)), rng.uniform(0.7, 1.2, size)
        return units.Gaussian(jnp.asarray(loc, dtype), jnp.asarray(scale, dtype))
    shape = (*batch, size, 3) if kind == "Categorical" else (*batch, size)
    return KINDS[kind](jnp.asarray(rng.normal(0, 0.6, shape), dtype))


class Case(NamedTuple):
    """A machine of layers (kind, size), the visible units first."""

    layers: tuple[tuple[str, int], ...]
    seed: int
    scale: float = 0.8
    batch: tuple[int, ...] = ()

    def build(self, dtype="float32", **kwargs):
        """Return the DBM; keyword arguments go to its constructor."""
        rng = np.random.default_rng(self.seed)
        parts = [unit(rng, *part, dtype, self.batch) for part in self.layers]
        weights = [
            rng.normal(0, self.scale, self.batch + a.feature_shape + b.feature_shape)
            for a, b in zip(parts[:-1], parts[1:], strict=True)
        ]
        return DBM([jnp.asarray(w, dtype) for w in weights], parts, **kwargs)


CASES = {
    "two": Case((("Bernoulli", 3), ("Bernoulli", 3), ("Bernoulli", 2)), 0),
    "two wide": Case((("Bernoulli", 3), ("Bernoulli", 2), ("Bernoulli", 4)), 1),
    "three": Case((("Bernoulli", 3), ("Bernoulli", 2), ("Bernoulli", 3), ("Bernoulli", 2)), 2),
    "one": Case((("Bernoulli", 3), ("Bernoulli", 2)), 3),
    "kinds": Case((("Categorical", 2), ("Spin", 3), ("Categorical", 1), ("Spin", 2)), 4),
    "Gaussian visible": Case((("Gaussian", 1), ("Bernoulli", 3), ("Bernoulli", 2)), 5),
    "Gaussian hidden": Case((("Spin", 3), ("Bernoulli", 3), ("Gaussian", 1)), 6, 0.5),
    "multimodal": Case((("Gaussian+Bernoulli", 1), ("Bernoulli+Spin", 1), ("Bernoulli", 2)), 7),
}


class BruteDBM:
    """A DBM by sums over the joint states of its layers, without a batch."""

    def __init__(self, dbm):
        self.dbm = dbm
        self.layers = [layer(u) for u in dbm.units]
        self.weights = [
            np.asarray(w, np.float64).reshape(a.features.shape[1], b.features.shape[1])
            for w, a, b in zip(dbm.weights, self.layers[:-1], self.layers[1:], strict=True)
        ]
        count = len(self.layers)
        self.log_joint = np.zeros((1,) * count)
        for k, own in enumerate(self.layers):
            shape = [1] * count
            shape[k] = -1
            self.log_joint = self.log_joint + (own.log_weight - own.energy).reshape(shape)
        for k, weights in enumerate(self.weights):
            shape = [1] * count
            below, above = self.layers[k].features, self.layers[k + 1].features
            shape[k : k + 2] = len(below), len(above)
            self.log_joint = self.log_joint + (below @ weights @ above.T).reshape(shape)
        self.log_z = logsumexp(self.log_joint)
        self.joint = np.exp(self.log_joint - self.log_z)
        self.values = self.layers[0].values
        self.log_probs = logsumexp(self.log_joint, axis=tuple(range(1, count))) - self.log_z
        self.probs = np.exp(self.log_probs)
        self.energies = -(self.log_probs + self.log_z - self.layers[0].log_weight)

    def joint_energy(self, states):
        """Energies of values of all layers, by the definition."""
        phi = [features(u, x) for u, x in zip(self.dbm.units, states, strict=True)]
        own = sum(energy(u, x) for u, x in zip(self.dbm.units, states, strict=True))
        pairs = zip(phi[:-1], self.weights, phi[1:], strict=True)
        return own - sum((a @ w * b).sum(-1) for a, w, b in pairs)

    def draw(self, rng, size, where=slice(None)):
        """Exact states of all layers, of those whose visible states are selected."""
        joint = np.zeros_like(self.joint)
        joint[where] = self.joint[where]
        flat = rng.choice(joint.size, size, p=joint.ravel() / joint.sum())
        picks = np.unravel_index(flat, joint.shape)
        return [own.values[pick] for own, pick in zip(self.layers, picks, strict=True)]

    def mean_products(self, where=None):
        """Means of the products of features of neighbouring layers, and of all features.

        Args:
            where: Probabilities of the visible states; those of the model by default.
        """
        joint = self.joint
        if where is not None:
            shape = (-1,) + (1,) * (joint.ndim - 1)
            joint = joint / self.probs.reshape(shape) * np.reshape(where, shape)
        axes = range(joint.ndim)
        pairs = [joint.sum(tuple(set(axes) - {k, k + 1})) for k in range(joint.ndim - 1)]
        single = [joint.sum(tuple(set(axes) - {k})) for k in axes]
        products = [
            self.layers[k].features.T @ pair @ self.layers[k + 1].features
            for k, pair in enumerate(pairs)
        ]
        return products, [p @ own.features for p, own in zip(single, self.layers, strict=True)]


@cache
def model(name):
    """The machine of that name."""
    return CASES[name].build()


@cache
def brute(name):
    """Its answers."""
    return BruteDBM(model(name))


@dataclass(frozen=True, eq=False)
class ExactLayers:
    """A kernel whose chains start with hidden layers drawn exactly given the visible units.

    Attributes:
        kernel: The kernel, whose states are chains.
        name: The case.
    """

    kernel: Any
    name: str

    def init(self, value, target):
        """Chains at ``value``, from the posterior of the hidden layers by enumeration."""
        with jax.ensure_compile_time_eval():  # though the caller traces; the start is known
            hidden = [jnp.asarray(x) for x in self.hidden(value.shape[0])]
        chain = self.kernel.init(value, target)
        layers = [x.astype(old.dtype) for x, old in zip(hidden, chain.hidden, strict=True)]
        return self.kernel.refresh(chain._replace(hidden=tuple(layers)), target)

    @cache  # noqa: B019
    def hidden(self, num):
        """Hidden layers of the draws that :func:`draw_visible` makes with the generator of 7."""
        return brute(self.name).draw(np.random.default_rng(7), num)[1:]

    def __getattr__(self, name):
        return getattr(self.kernel, name)


def draw_visible(name):
    """Maps a NumPy generator and a number to exact visible values."""
    return lambda rng, size: brute(name).draw(rng, size)[0]
