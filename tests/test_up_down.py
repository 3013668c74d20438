"""Gradients of the up-down algorithm against sums over all states."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from deep_networks import joint_hidden, network
from helpers import assert_moments, layer
from numpyro.infer import SVI

from numpyro_ebm import DBN, RBM, UpDown, persistent_chains
from numpyro_ebm.kernels import GibbsSweeps

KEY = jax.random.key(0)
UNTIED = network(
    ("Bernoulli", 3), ("Spin", 2), ("Bernoulli", 2), ("Bernoulli", 2), recognition=True
)
DATA = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
NUM_DRAWS = 6000


def flat(gradient):
    return {
        jax.tree_util.keystr(path, simple=True): np.asarray(leaf).reshape(len(leaf), -1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }


def draws_of_gradient(num_steps, chains=None):
    """Gradients of minus the loss, mean over the rows, one for each key."""

    def one(key, chain):
        def total(dbn):
            mutable = {}
            if chain is not None:
                dbn.attached["chains"], mutable = "chains", {"chains": {"chain": chain}}
            return UpDown(num_steps).surrogate(key, "x", dbn, mutable)(DATA).mean()

        return jax.grad(total)(UNTIED)

    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    return flat(jax.jit(jax.vmap(one))(keys, chains))


def dream_terms(dbn, log_top, states):
    """What the dreams contribute, with the probabilities of the top states they descend from."""
    frozen = jax.lax.stop_gradient(dbn)
    x, hidden = states
    top = hidden[-1]
    log_down = frozen.layers[-1].energy(top) - frozen.joint_energy(x, hidden)
    index = (top[..., 0] + 2 * top[..., 1]).astype(int)
    weight = jnp.exp(log_down + log_top[index])
    np.testing.assert_allclose(weight.sum(), 1, rtol=1e-5)
    return (weight * (dbn.layers[-1].energy(top) + dbn.log_recognition(x, hidden))).sum()


def expected(log_top_of):
    """Gradient of minus the loss, every state summed."""
    hidden = joint_hidden(UNTIED)
    everything = layer(UNTIED.layers[0].visible_units).values

    def total(dbn):
        frozen = jax.lax.stop_gradient(dbn)
        q = jnp.exp(frozen.log_recognition(DATA, hidden))
        up = -(q * dbn.joint_energy(DATA, hidden)).sum(0).mean()
        index = (hidden[-1][..., 0] + 2 * hidden[-1][..., 1]).astype(int)
        start = jnp.zeros(4).at[index].add(q.mean(1, keepdims=True))
        return up + dream_terms(dbn, log_top_of(frozen.layers[-1], start), (everything, hidden))

    gradient = jax.grad(total)(UNTIED)
    return flat(jax.tree.map(lambda leaf: leaf[None], gradient))


def pairs(n):
    return np.array([[i % 2, i // 2] for i in range(n)])


def stationary(top, start):
    return -top.energy(pairs(4)) - top.exact_log_z()


def one_step(top, start):
    """After one Gibbs step from the states that recognition has reached."""
    upward = jnp.exp(top.conditional_hidden(pairs(4)[:, None]).log_prob(pairs(4)))
    downward = jnp.exp(top.conditional_visible(pairs(4)[:, None]).log_prob(pairs(4)))
    return jnp.log(start @ upward @ downward)


def exact_chains():
    """States of all layers drawn from the network, a few for each key."""
    key_top, key_chain = jax.random.split(KEY)
    shape = (NUM_DRAWS, 2)
    chain = UNTIED.init_chain(key_chain, shape)
    return chain._replace(top=UNTIED.top.chain_at(UNTIED.top.sample(key_top, shape)))


@pytest.mark.slow
def test_gradient_with_chains_at_the_stationary_distribution():
    found, truth = draws_of_gradient(1, exact_chains()), expected(stationary)
    assert found.keys() == truth.keys()
    for name, draws in found.items():
        assert_moments(draws, truth[name][0])


def test_gradient_with_chains_from_the_data_is_that_of_contrastive_divergence():
    found, truth = draws_of_gradient(1), expected(one_step)
    for name, draws in found.items():
        assert_moments(draws, truth[name][0])
    exact = expected(stationary)
    top = [name for name in truth if name.startswith("22")]  # the third of `layers`
    assert max(np.abs(truth[name] - exact[name]).max() for name in top) > 1e-3  # it is biased


@pytest.mark.slow
def test_it_trains_with_persistent_chains():
    lower = RBM(0.1 * jnp.ones((4, 3)), jnp.zeros(4), jnp.zeros(3))
    top = RBM(jnp.eye(3, 4), jnp.zeros(3), jnp.zeros(4))
    start = DBN([lower, top], recognition=[lower])

    def model(data):
        dbn = numpyro.param("dbn", lambda rng_key: start)
        persistent_chains("chains", 20, dbn)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("x", dbn, obs=data)

    data = jnp.array([[1, 1, 0, 0], [1, 1, 0, 1]] * 20)
    svi = SVI(model, lambda data: None, optax.adam(0.02), UpDown())
    result = svi.run(KEY, 400, data, progress_bar=False)

    def log_likelihood(dbn):
        return -dbn.energy(data).mean() - dbn.exact_log_z()

    assert log_likelihood(result.params["dbn"]) > log_likelihood(start) + 1
    chain = result.state.mutable_state["chains"]["chain"]
    assert result.params["dbn"].visible(chain).shape == (20, 4)


@pytest.mark.parametrize(
    ("distribution", "error", "message"),
    [
        (UNTIED.layers[0], TypeError, "expected an ebm.DBN.*RBM"),
        (DBN(UNTIED.layers), ValueError, "they are tied"),
    ],
)
def test_what_it_cannot_train(distribution, error, message):
    def model(data):
        with numpyro.plate("rows", len(data)):
            numpyro.sample("x", distribution, obs=data)

    svi = SVI(model, lambda data: None, optax.sgd(0.1), UpDown())
    state = svi.init(KEY, DATA)
    with pytest.raises(error, match=message):
        svi.update(state, DATA)


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match="`num_steps` to be a positive integer; got 0"):
        UpDown(0)
    dbn = DBN(UNTIED.layers, recognition=UNTIED.recognition)
    dbn.attached["chain_kernel"] = GibbsSweeps()
    with pytest.raises(ValueError, match="without `kernel`"):
        UpDown().surrogate(KEY, "x", dbn, {})
