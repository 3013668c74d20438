"""Small RBMs of different character with known log Z, and what a test moves along their paths."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BruteForce

import numpyro_ebm as ebm
from numpyro_ebm import units

doubtful = pytest.mark.filterwarnings("ignore::numpyro_ebm.evidence.EvidenceWarning")


def normal(seed, *shape, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape)


def _bernoulli(scale):
    return ebm.RBM(normal(1, 8, 5, scale=scale), normal(2, 8), normal(3, 5))


def _biased_hidden():
    """Hidden units that are on alone, and switched off by the visible units."""
    return ebm.RBM(-1.5 + normal(1, 8, 5), normal(2, 8), np.full(5, 6.0))


def _bimodal():
    """Two modes, all up and all down, of unequal weight."""
    return ebm.RBM(np.full((7, 5), 0.35), units.Spin(np.full(7, 0.03)), units.Spin(np.zeros(5)))


def _concatenated():
    visible = [
        units.Gaussian(normal(1, 1), 0.8),
        units.Bernoulli(normal(2, 3)),
        units.Categorical(normal(3, 2, 3)),
    ]
    hidden = units.Concatenate([units.Spin(normal(4, 2)), units.Bernoulli(normal(5, 2))])
    return ebm.RBM(normal(6, 10, 4, scale=0.7), units.Concatenate(visible), hidden)


MODELS = {
    "weak": lambda: _bernoulli(0.3),
    "strong": lambda: _bernoulli(2.0),
    "biased hidden": _biased_hidden,
    "bimodal": _bimodal,
    "spin": lambda: ebm.RBM(
        normal(1, 7, 5, scale=0.6), units.Spin(normal(2, 7)), units.Spin(normal(3, 5))
    ),
    "categorical": lambda: ebm.RBM(
        normal(1, 4, 3, 5), units.Categorical(normal(2, 4, 3)), normal(3, 5)
    ),
    "Gaussian visible": lambda: ebm.RBM(
        normal(1, 2, 5), units.Gaussian([0.5, -1.0], [0.7, 1.2]), normal(3, 5)
    ),
    "ReLU hidden": lambda: ebm.RBM(
        normal(1, 6, 2, scale=0.6), normal(2, 6), units.ReLU([0.3, -0.5], [1.0, 0.8])
    ),
    "ReLU visible": lambda: ebm.RBM(
        normal(1, 2, 4, scale=0.6), units.ReLU([0.3, -0.5], [1.0, 0.8]), units.Spin(normal(3, 4))
    ),
    "Gaussian both": lambda: ebm.RBM(
        [[0.6, -0.2], [0.1, 0.5]], units.Gaussian([0.5, -1.0]), units.Gaussian([1.0, 0.0], 1.1)
    ),
    "concatenated": _concatenated,
}
every_model = pytest.mark.parametrize("name", MODELS)


@cache
def true_log_z(name):
    return BruteForce(MODELS[name]()).log_z


def z_of_mean_weight(evidence, log_z):
    """How far the mean of Z-hat / Z is from 1, in standard errors."""
    ratio = np.exp(evidence.log_weights + evidence.log_z0 - log_z)
    assert evidence.diagnostics["ess"] > 100  # enough for the mean to be normal
    return (ratio.mean() - 1) / (ratio.std(ddof=1) / ratio.size**0.5)


class FlipOne(NamedTuple):
    """Metropolis step that flips one unit of each particle; ``boost`` breaks it on purpose."""

    boost: Any = 0.0

    def init(self, value, target):
        return value

    def step(self, rng_key, state, target):
        key_unit, key_accept = jax.random.split(rng_key)
        index = jax.random.randint(key_unit, (len(state),), 0, state.shape[-1])
        proposal = jnp.where(jnp.arange(state.shape[-1]) == index[:, None], 1 - state, state)
        log_ratio = target.energy(state) - target.energy(proposal) + self.boost
        accept = jnp.log(jax.random.uniform(key_accept, log_ratio.shape)) < log_ratio
        return jnp.where(accept[:, None], proposal, state), None

    def value(self, state, target):
        return state


@dataclass(frozen=True)
class Line:
    """A path along which every particle gains the same: log Z grows from ``log_z0`` by ``rise``."""

    rise: float
    num_bad: int = 0
    log_z0: float = 3.0

    def at(self, beta):
        return self

    def sample(self, rng_key, num_samples):
        return jnp.arange(num_samples)

    def gibbs_step(self, rng_key, chain):
        return chain

    def log_weight_increment(self, chain, beta, beta_next):
        return jnp.where(chain < self.num_bad, jnp.nan, (beta_next - beta) * self.rise)
