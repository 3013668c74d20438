"""Gibbs sweeps with the time reversed are the adjoints of those forward."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from pairwise_models import ODD_CYCLE, field_of, random_matrix
from registry import Case
from scipy.special import logsumexp
from transitions import Chain

from numpyro_ebm import RBM, BoltzmannMachine, Ising, NeuralEnergy, Potts, couplings


def colors(*values):
    """Units of each colour."""
    return [[i for i, c in enumerate(values) if c == k] for k in range(max(values) + 1)]


ONE_BY_ONE = [[i] for i in range(4)]
STRONG = 2 * random_matrix(60, 4)
FIELD = field_of(61, 4)
MODELS = {
    "dense": (lambda: BoltzmannMachine(STRONG, FIELD), ONE_BY_ONE),
    "edges in order": (
        lambda: Ising(couplings.Edges([(0, 1), (1, 2), (2, 3)], 0.7), FIELD, scan="sequential"),
        ONE_BY_ONE,
    ),
    "three colours": (
        lambda: Ising(couplings.Edges(ODD_CYCLE[:5], 0.7), 0.25, coloring=[0, 1, 0, 1, 2]),
        colors(0, 1, 0, 1, 2),
    ),
    "lattice": (
        lambda: Ising.lattice((2, 2), [jnp.ones((2, 2)), 0.5 * jnp.ones((2, 2))], 0.25),
        colors(0, 1, 1, 0),
    ),
    "lattice of equal couplings": (lambda: Ising.lattice((2, 2), 0.4, 0.25), colors(0, 1, 1, 0)),
    "ring": (lambda: Ising.lattice((5,), 0.7, 0.25), colors(0, 1, 0, 1, 2)),
    "Potts": (
        lambda: Potts(couplings.Edges([(0, 1), (1, 2)], 1.0), field_of(62, 3, 3)),
        colors(1, 0, 1),
    ),
    "hidden": (
        lambda: BoltzmannMachine(2 * STRONG, FIELD, num_visible=2),
        [[2, 3], [0], [1]],
    ),
}


def all_units(model):
    """Every joint state of all units, one in each row."""
    return np.array(
        list(itertools.product(model._alphabet.values, repeat=model.couplings.num_units)), np.int32
    )


def block_matrix(states, energy, block):
    """Transitions of drawing a block of units given the rest."""
    rest = np.delete(states, block, axis=1)
    same = (rest[:, None] == rest[None]).all(-1)
    log_weight = np.where(same, -energy[None], -np.inf)
    return np.exp(log_weight - logsumexp(log_weight, axis=1, keepdims=True))


def sweep_as_kernel(model, step):
    """A sweep of all units as a kernel for `Chain.assert_simulates`."""
    grid = model.couplings.shape

    def moved(key, units, target):
        chain = step(key, model.as_chain(units.reshape(-1, *grid).astype(model._alphabet.dtype)))
        flat = [x.reshape(len(units), -1) for x in jax.tree.leaves(chain)]
        return SimpleNamespace(value=jnp.concatenate(flat, -1)), None

    return SimpleNamespace(init=lambda x, target: x, step=moved)


@pytest.mark.parametrize("name", MODELS)
def test_backward_sweeps_are_adjoint(name):
    build, blocks = MODELS[name]
    model = build()
    states = all_units(model)
    energy = np.asarray(model.units_energy(states.reshape(-1, *model.couplings.shape)), np.float64)
    prob = np.exp(-energy - logsumexp(-energy))
    parts = [block_matrix(states, energy, block) for block in blocks]
    forward, backward = np.eye(len(states)), np.eye(len(states))
    for part in parts:
        forward, backward = forward @ part, part @ backward
    there = prob[:, None] * forward
    assert np.allclose(there, (prob[:, None] * backward).T)
    assert np.abs(there - there.T).max() > 1e-3  # not reversible: the order matters
    for matrix, step in ((forward, model.gibbs_step), (backward, model.backward_gibbs_step)):
        Chain(matrix, prob).assert_simulates(sweep_as_kernel(model, step), None, states)


def test_many_hidden_units_are_swept_backward():
    """With more than ten hidden units, which are swept one by one."""
    n = 13
    machine = BoltzmannMachine(random_matrix(63, n), field_of(64, n), num_visible=2)
    start = machine.init_chain(random.key(0), (4000,))
    means = []
    for step in (machine.gibbs_step, machine.backward_gibbs_step):
        chain = jax.lax.fori_loop(
            0, 30, lambda i, chain, step=step: step(random.fold_in(random.key(1), i), chain), start
        )
        units = jnp.concatenate(chain, -1).astype(float)
        means.append(np.asarray(units.mean(0)))
    exact = all_units(machine)
    energy = np.asarray(machine.units_energy(exact), np.float64)
    truth = np.exp(-energy - logsumexp(-energy)) @ exact
    error = np.sqrt(truth * (1 - truth) / 4000)
    assert np.abs(np.array(means) - truth).max() < 5 * error.max()


def test_reversible_sweeps_are_their_own_adjoint():
    rbm = Case("Bernoulli", "Bernoulli", 0).build()
    chain = rbm.init_chain(random.key(0), (3,))
    if rbm.has_reversible_gibbs:
        forward, backward = (
            step(random.key(1), chain) for step in (rbm.gibbs_step, rbm.backward_gibbs_step)
        )
        assert jax.tree.all(jax.tree.map(jnp.array_equal, forward, backward))


def test_models_without_a_backward_sweep_raise():
    net = NeuralEnergy(lambda params, x: (params * x).sum(), jnp.ones(3), event_shape=(3,))
    with pytest.raises(ValueError, match="time reversed"):
        net.backward_gibbs_step(random.key(0), jnp.zeros(3))
    with pytest.raises(ValueError, match="NeuralEnergy has no order"):
        net.monotone_states()
    with pytest.raises(ValueError, match="RBM has no order"):
        RBM(jnp.ones((2, 2)), jnp.zeros(2), jnp.zeros(2)).monotone_states()
