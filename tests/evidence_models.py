"""Small models of different character with known log Z, and what a test moves along paths."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import ising_exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import BruteForce
from pairwise_models import CASES
from scipy import stats
from scipy.special import betaln

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
    "counts": lambda: ebm.RBM(
        normal(1, 2, 4, scale=0.6), units.Poisson([0.3, -0.5]), units.Spin(normal(3, 4))
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


def z_of_mean(ratios):
    """How far the mean of Z-hat / Z is from 1, in standard errors."""
    ratios = np.ravel(ratios)
    assert ratios.sum() ** 2 / (ratios**2).sum() > 100  # enough for the mean to be normal
    return (ratios.mean() - 1) / (ratios.std(ddof=1) / ratios.size**0.5)


def z_of_mean_weight(evidence, log_z):
    """Likewise, for the weights of one estimate."""
    return z_of_mean(np.exp(evidence.log_weights + evidence.log_z0 - log_z))


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


# ----- pairwise models ---------------------------------------------------------------------


ISING = {
    "Ising 8x8": (8, 0.375),
    "Ising 16x16": (16, 0.375),
    "Ising 8x8 warm": (8, 0.2),
    "Ising 16x16 warm": (16, 0.1),
}
"""Periodic lattices: size and coupling."""

PAIRWISE = {
    "frustrated": CASES["BM 16 frustrated"].build,
    "Potts 3x3": CASES["Potts 3x3"].build,
}


@cache
def distribution(name):
    """Any distribution of these tests, by name."""
    if name in ISING:
        size, coupling = ISING[name]
        lattice = ebm.Ising.lattice((size, size), coupling)
        lattice.num_sweeps = 100  # enough for `sample` where it is warm
        return lattice
    return (MODELS | PAIRWISE)[name]()


@cache
def log_z_of(name):
    """Its log Z: by Kaufman's formula, or by enumeration."""
    if name in ISING:
        size, coupling = ISING[name]
        return ising_exact.log_z(size, size, coupling)
    if name in MODELS:
        return true_log_z(name)
    return CASES[{"frustrated": "BM 16 frustrated"}.get(name, name)].brute().log_z


# ----- NumPyro models ----------------------------------------------------------------------


class Known(NamedTuple):
    """A NumPyro model whose evidence is known.

    Attributes:
        model: The model.
        args: Its arguments.
        log_evidence: Log marginal likelihood, in nats.
        draw: Maps a NumPy generator and a shape to exact posterior draws by site.
    """

    model: Any
    args: tuple[Any, ...]
    log_evidence: float
    draw: Any


def regression_model(x, y):
    """Linear regression with known noise."""
    slopes = numpyro.sample("slopes", dist.Normal(0, 2).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)


def _regression():
    x = normal(70, 30, 3)
    y = x @ [1.0, -2.0, 0.5] + normal(71, 30)
    log_evidence = stats.multivariate_normal(np.zeros(30), np.eye(30) + 4 * x @ x.T).logpdf(y)
    covariance = np.linalg.inv(np.eye(3) / 4 + x.T @ x)
    mean, root = covariance @ x.T @ y, np.linalg.cholesky(covariance)

    def draw(rng, shape):
        return {"slopes": mean + rng.normal(size=(*shape, 3)) @ root.T}

    return Known(regression_model, (x, y), log_evidence, draw)


def rates_model(successes, trials):
    """Independent binomial counts of one unknown rate."""
    rate = numpyro.sample("rate", dist.Beta(2.0, 3.0))
    with numpyro.plate("groups", len(trials)):
        numpyro.sample("successes", dist.Binomial(trials, rate), obs=successes)


def _rates():
    successes, trials = np.array([3, 7, 1]), np.array([10, 9, 4])
    counts = stats.binom.logpmf(successes, trials, 0.5) + trials * np.log(2)
    total = 2 + successes.sum(), 3 + (trials - successes).sum()
    log_evidence = counts.sum() + betaln(*total) - betaln(2, 3)

    def draw(rng, shape):
        return {"rate": rng.beta(*total, shape)}

    return Known(rates_model, (successes, trials), float(log_evidence), draw)


def range_model(y):
    """Uniform data below an unknown bound: most of the prior has likelihood zero."""
    bound = numpyro.sample("bound", dist.Uniform(0.0, 4.0))
    inside = jnp.all(y < bound)
    numpyro.factor("y", jnp.where(inside, -len(y) * jnp.log(bound), -jnp.inf))


def _range():
    y = np.array([0.3, 2.5, 1.1, 1.9])
    integral = (2.5**-3 - 4.0**-3) / 3
    return Known(range_model, (y,), float(np.log(integral / 4)), None)


KNOWN = {"regression": _regression, "rates": _rates, "range": _range}


@cache
def known(name):
    """A NumPyro model with known evidence."""
    return KNOWN[name]()


def calibration(estimate, log_z, num_seeds=40):
    """RMS and mean of (estimate - truth) / se over seeds."""
    scores = []
    for seed in range(num_seeds):
        evidence = estimate(jax.random.key(seed))
        scores.append((evidence.log_evidence - log_z) / evidence.std_error)
    rms, mean = float(np.sqrt(np.mean(np.square(scores)))), float(np.mean(scores))
    print(f"(estimate - truth) / se over {num_seeds} seeds: RMS {rms:.2f}, mean {mean:.2f}")
    return rms, mean
