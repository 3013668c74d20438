"""Discrete models with a table of all their states, and losses that sum over that table."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BruteForce
from jax.scipy.special import logsumexp
from pairwise_models import CASES as PAIRWISE
from pairwise_models import brute
from registry import PAIRINGS, UNBOUNDED, Case

from numpyro_ebm import RBM, couplings

NUM_ROWS = 4
WEIGHTS = np.linspace(-1, 2, NUM_ROWS)
"""Weights of the rows, so that a gradient tells them apart."""


class Entry(NamedTuple):
    """A model in float64, all values it can take, and their energies by NumPy."""

    model: object
    states: np.ndarray
    energies: np.ndarray

    @property
    def _picks(self):
        return slice(0, None, max(1, len(self.states) // NUM_ROWS))

    @property
    def rows(self):
        """Some values."""
        return self.states[self._picks][:NUM_ROWS]

    @property
    def row_energies(self):
        """Their energies."""
        return self.energies[self._picks][:NUM_ROWS]


DISCRETE = [
    case
    for case in [*PAIRINGS, Case("Categorical+Spin", "Bernoulli", 105)]
    if not any(kind in case.visible for kind in UNBOUNDED)
]
NAMES = ("BM dense", "BM hidden", "Ising 3x3", "Ising odd cycle", "Potts 2x3 free")
MODELS = [case.name for case in DISCRETE] + list(NAMES)


@cache
def entry(name):
    """The model of this name."""
    with jax.enable_x64(True):
        if name in PAIRWISE:
            answers = brute(name)
            return Entry(PAIRWISE[name].build("float64"), answers.events(), answers.energies)
        rbm = next(case for case in DISCRETE if case.name == name).build("float64")
        answers = BruteForce(rbm)
        states = answers.visible.values.astype(int)
        return Entry(rbm, states, answers.energy(states))


def over(*names):
    """Run a test over these models."""
    return pytest.mark.parametrize("name", names)


def trainable(model):
    """The model, such that couplings of a matrix are differentiated as symmetric ones."""
    if isinstance(model, RBM):
        return RBM(model.weights, model.visible_units, model.hidden_units)
    if isinstance(model.couplings, couplings.Dense):
        return model.with_parameters(couplings.Dense(model.couplings.matrix), model._site_field)
    return model


def same_outside(states, rows, blocks):
    """Which states agree with each row outside of each block, ``(states, rows, blocks)``."""
    states, rows = (np.asarray(x).reshape(len(x), -1) for x in (states, rows))
    free = np.array([np.isin(np.arange(rows.shape[1]), block) for block in blocks])
    return ((states[:, None] == rows)[:, :, None] | free).all(-1)


def block_likelihood(energies, states, rows, row_energies, blocks):
    """Negative log-pseudolikelihood of blocks, for each row."""
    same = same_outside(states, rows, blocks)
    terms = jnp.where(same, -jnp.asarray(energies)[:, None, None], -jnp.inf)
    return (row_energies[:, None] + logsumexp(terms, axis=0)).sum(-1)


def ratio_matching(energies, states, rows, row_energies):
    """The loss of ratio matching, for each row, from ratios of probabilities."""
    rows = np.asarray(rows).reshape(len(rows), -1)
    singles = [[i] for i in range(rows.shape[1])]
    same = same_outside(states, rows, singles).any(-1)
    same &= (np.asarray(states).reshape(len(states), 1, -1) != rows).any(-1)
    ratio = jnp.exp(jnp.asarray(energies)[:, None] - row_energies)  # p(x) over p(changed x)
    return jnp.where(same, 1 / (1 + ratio) ** 2, 0).sum(0)


def row_losses(loss, model, rows, rng_key=None):
    """Loss of every row."""
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    return -loss.surrogate(rng_key, "v", model, {})(jnp.asarray(rows))


def row_gradient(losses_of, model):
    """Gradient of a weighted sum over rows of ``losses_of(model)``, and these."""

    def total(model):
        rows = losses_of(trainable(model))
        return WEIGHTS @ rows, rows

    return jax.grad(total, has_aux=True)(model)
