from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from helpers import BruteForce, assert_moments, energy, features, layer, z_scores
from registry import PAIRINGS, parametrize
from scipy.special import logsumexp

from numpyro_ebm import (
    RBM,
    ContrastiveDivergence,
    PersistentContrastiveDivergence,
    persistent_chains,
)

KINDS = ("Bernoulli", "ReLU"), ("Spin", "Bernoulli"), ("Categorical", "Spin")
KINDS += ("Gaussian", "Bernoulli"), ("Gaussian", "ReLU")
CASES = [case for case in PAIRINGS if (case.visible, case.hidden) in KINDS]
NUM_ROWS, NUM_CHAINS = 20, 7
DIFFERENCE = 1e-4
"""Half the step of a central difference."""


class Gibbs:
    """The model's own Gibbs step as a kernel."""

    def init(self, value, target):
        return target.chain_at(value)

    def step(self, rng_key, chain, target):
        return target.gibbs_step(rng_key, chain), None

    def value(self, chain, target):
        return target.visible(chain)


class RepeatedGibbs(Gibbs):
    """The same with the same random numbers at every step, so that a test can repeat it."""

    def step(self, rng_key, chain, target):
        return super().step(jax.random.key(5), chain, target)


# ----- a model of every parameter, and its gradients by finite differences ------------------


def parameters(rbm):
    return rbm.weights, rbm.visible_units, rbm.hidden_units


def model_of(rbm, num_chains=None):
    """A model with every parameter of an RBM, and the values of its parameters."""
    leaves, structure = jax.tree.flatten(parameters(rbm))
    values = {f"p{i}": leaf for i, leaf in enumerate(leaves)}

    def model(data):
        params = [numpyro.param(name, value) for name, value in values.items()]
        trained = RBM(*structure.unflatten(params))
        if num_chains:
            persistent_chains("chains", num_chains, trained)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", trained, obs=data)

    return model, values


def loss_and_gradient(loss, rbm, data, rng_key, chains=None):
    """The loss, its gradient as one vector, and the chains afterwards."""
    model, values = model_of(rbm, None if chains is None else len(chains.visible))
    mutable = {} if chains is None else {"chains": {"chain": chains}}

    def evaluate(params):
        param_map = {**params, **mutable}
        out = loss.loss_with_mutable_state(rng_key, param_map, model, lambda data: None, data)
        return out["loss"], out["mutable_state"]

    (value, state), gradient = jax.value_and_grad(evaluate, has_aux=True)(values)
    vector = jnp.concatenate([gradient[name].ravel() for name in values])
    return value, vector, state and state["chains"]["chain"]


def free_energy(weights, visible, hidden, value):
    """Free energies in NumPy, hidden units summed state by state."""
    states = layer(hidden)
    weights = np.asarray(weights).reshape(-1, states.features.shape[1])
    field = features(visible, value) @ weights
    own = states.log_weight - states.energy
    return energy(visible, value) - logsumexp(field @ states.features.T + own, axis=-1)


def energy_gradients(rbm, value):
    """Derivatives of the free energies of some values: a row for each, a column per parameter."""
    leaves, structure = jax.tree.flatten(parameters(rbm))
    leaves = [np.array(leaf, np.float64) for leaf in leaves]
    columns = []
    for leaf in leaves:
        for index in np.ndindex(leaf.shape):
            sides = []
            for sign in (1, -1):
                leaf[index] += sign * DIFFERENCE
                sides.append(free_energy(*structure.unflatten(leaves), value))
                leaf[index] -= sign * DIFFERENCE
            columns.append((sides[0] - sides[1]) / (2 * DIFFERENCE))
    return np.stack(columns, axis=-1)


# ----- the gradient, given the negative samples --------------------------------------------


@jax.jit
def contrastive(rbm, data):
    """CD-2, and its negative samples."""
    loss = ContrastiveDivergence(2, kernel=RepeatedGibbs())
    value, gradient, _ = loss_and_gradient(loss, rbm, data, jax.random.key(0))
    chain = rbm.chain_at(data)
    for _ in range(2):
        chain = rbm.gibbs_step(jax.random.key(5), chain)
    return value, gradient, chain.visible


@jax.jit
def persistent(rbm, data):
    """PCD-2, and its chains afterwards."""
    start = rbm.init_chain(jax.random.key(1), (NUM_CHAINS,))
    loss = PersistentContrastiveDivergence(2)
    value, gradient, chain = loss_and_gradient(loss, rbm, data, jax.random.key(0), start)
    return value, gradient, chain.visible


@pytest.mark.parametrize("method", [contrastive, persistent])
@parametrize(CASES)
def test_gradient_is_the_contrast_of_data_and_negative_samples(case, method):
    with jax.enable_x64(True):
        rbm = case.build("float64")
        data = rbm.init_chain(jax.random.key(3), (NUM_ROWS,)).visible
        loss, gradient, negative = method(rbm, data)
    phases = [energy_gradients(rbm, value).mean(0) for value in (data, negative)]
    np.testing.assert_allclose(gradient, NUM_ROWS * (phases[0] - phases[1]), rtol=1e-6, atol=1e-6)
    energies = [free_energy(*parameters(rbm), value).mean() for value in (data, negative)]
    np.testing.assert_allclose(loss, NUM_ROWS * (energies[0] - energies[1]), rtol=1e-6)


def test_the_default_kernel_is_the_gibbs_step():
    rbm, data = PAIRINGS[0].build(), jnp.ones((NUM_ROWS, 3))

    @partial(jax.jit, static_argnums=0)
    def gradient(kernel):
        loss = ContrastiveDivergence(3, kernel=kernel)
        return loss_and_gradient(loss, rbm, data, jax.random.key(2))[1]

    np.testing.assert_allclose(gradient(None), gradient(Gibbs()), rtol=1e-6)


# ----- the gradient on average -------------------------------------------------------------

NUM_REPLICATES = 100


class Slow:
    """An RBM whose Gibbs chain mixes slowly, data unlike it, and what enumeration says of it."""

    def __init__(self):
        weights = np.array([[4.0, -2.0], [4.0, 2.0], [2.0, 3.0]])  # modes: all on, all off
        bias = np.array([0.3, 0.0, -0.1])
        self.rbm = RBM(weights, bias - weights.sum(1) / 2, -weights.sum(0) / 2)
        self.rows = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 1]])
        self.brute = BruteForce(self.rbm)
        states = self.brute.visible.values
        hidden_given_visible = softmax(self.brute.log_hidden(states))
        visible_given_hidden = softmax(self.brute.log_visible(self.brute.hidden.values))
        self.transition = hidden_given_visible @ visible_given_hidden
        self.frequency = (self.rows[:, None] == states).all(-1).mean(0)
        self.gradients = energy_gradients(self.rbm, states)

    def gradient(self, negative):
        """Gradient of the loss per row when the negative states have these probabilities."""
        return (self.frequency - negative) @ self.gradients

    def contrastive(self, num_steps):
        """Expected gradient of CD-k."""
        return self.gradient(self.frequency @ np.linalg.matrix_power(self.transition, num_steps))

    @property
    def likelihood(self):
        """Gradient of the negative log-likelihood."""
        return self.gradient(self.brute.probs)


@pytest.fixture(scope="module")
def slow():
    return Slow()


def softmax(logits):
    return np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))


def replicated(gradient):
    """Independent replicates of a random gradient."""
    return jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), NUM_REPLICATES))


@cache
def cd_gradients(slow, num_steps, num_copies=100):
    """Independent CD-k gradients, per row."""
    data, loss = np.tile(slow.rows, (num_copies, 1)), ContrastiveDivergence(num_steps)

    def gradient(rng_key):
        return loss_and_gradient(loss, slow.rbm, data, rng_key)[1] / len(data)

    return replicated(gradient)


@pytest.mark.parametrize("num_steps", [1, 3, 40])
def test_cd_gradient_is_that_of_k_enumerated_steps(slow, num_steps):
    assert_moments(cd_gradients(slow, num_steps), slow.contrastive(num_steps))


def test_cd_approaches_the_likelihood_as_k_grows(slow):
    estimates = {k: cd_gradients(slow, k) for k in (1, 3, 40)}
    error = {k: np.linalg.norm(estimates[k].mean(0) - slow.likelihood) for k in estimates}
    assert error[1] > 3 * error[3] > 3 * error[40]
    assert np.abs(z_scores(estimates[1], slow.likelihood)).max() > 10
    assert_moments(estimates[40], slow.likelihood)


def pcd_gradients(slow, num_updates, burn_in=60, num_chains=20):
    """Gradients of independent runs of PCD at fixed parameters, per row, averaged over a run."""
    loss = PersistentContrastiveDivergence()

    def run(rng_key):
        def update(chains, key):
            _, gradient, chains = loss_and_gradient(loss, slow.rbm, slow.rows, key, chains)
            return chains, gradient / len(slow.rows)

        keys = jax.random.split(rng_key, burn_in + num_updates)
        start = slow.rbm.refresh(slow.rbm.init_chain(rng_key, (num_chains,)))
        return jax.lax.scan(update, start, keys)[1][burn_in:].mean(0)

    return replicated(run)


def test_pcd_at_fixed_parameters_has_the_likelihood_gradient(slow):
    assert_moments(pcd_gradients(slow, num_updates=40), slow.likelihood)


def test_pcd_advances_num_steps_per_update(slow):
    """From chains at one state, the first gradient is that of as many enumerated steps."""
    num_steps, state = 3, 7
    start = slow.rbm.chain_at(np.tile(slow.brute.visible.values[state], (50, 1)))
    loss = PersistentContrastiveDivergence(num_steps)

    def gradient(rng_key):
        return loss_and_gradient(loss, slow.rbm, slow.rows, rng_key, start)[1] / len(slow.rows)

    moved = np.linalg.matrix_power(slow.transition, num_steps)[state]
    assert_moments(replicated(gradient), slow.gradient(moved))
