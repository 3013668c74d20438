"""An RBM whose parameters are optimized by SVI, and what its gradient should be."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI

from numpyro_ebm import (
    RBM,
    ContrastiveDivergence,
    PersistentContrastiveDivergence,
    persistent_chains,
)

NUM_ROWS, NUM_CHAINS = 6, 5
DATA = jnp.eye(NUM_ROWS, dtype=jnp.uint8)
"""Rows that the gradient with respect to the visible biases tells apart."""
ONES = jnp.ones(NUM_ROWS)
NEGATIVE = jnp.array([1, 0, 1, 1, 0, 1], jnp.uint8)
PARAMS = {
    "weights": jax.random.normal(jax.random.key(1), (NUM_ROWS, 3)),
    "bias": jnp.linspace(-1, 1, NUM_ROWS),
}


class Constant:
    """A kernel that goes to one state from anywhere."""

    def init(self, value, target):
        return value

    def step(self, rng_key, state, target):
        return jnp.broadcast_to(NEGATIVE, state.shape).astype(state.dtype), None

    def value(self, state, target):
        return state


CONSTANT_CD = ContrastiveDivergence(kernel=Constant())
CD, PCD = ContrastiveDivergence(), PersistentContrastiveDivergence()


# ----- models ------------------------------------------------------------------------------


def no_guide(*args, **kwargs):
    return None


def rbm_of(weights, bias, **kwargs):
    return RBM(weights, bias, jnp.array([0.5, 0.0, -0.5]), **kwargs)


def trained(**initial):
    """An RBM whose parameters are optimized."""
    values = {**PARAMS, **initial}
    return rbm_of(*(numpyro.param(name, value) for name, value in values.items()))


def trained_with_chains(num_chains=NUM_CHAINS, **initial):
    rbm = trained(**initial)
    persistent_chains("chains", num_chains, rbm)
    return rbm


def observe(rbm, data):
    with numpyro.plate("rows", len(data)):
        numpyro.sample("v", rbm, obs=data)


def with_chains(data, num_chains=NUM_CHAINS):
    observe(trained_with_chains(num_chains), data)


def without_chains(data):
    observe(trained(), data)


# ----- gradients ---------------------------------------------------------------------------


def recorder():
    """An optimizer that keeps the last gradient and moves nothing."""

    def zeros(params):
        return jax.tree.map(jnp.zeros_like, params)

    return optax.GradientTransformation(zeros, lambda grads, *_: (zeros(grads), grads))


def gradient_in(state):
    """What the recorder has kept."""
    return state.optim_state[1][1]


def chains_in(state, name="chains"):
    return state.mutable_state[name]["chain"]


def update(loss, model, data=DATA, guide=no_guide):
    """The gradient that SVI passes to its optimizer, the chains, and the loss."""
    svi = SVI(model, guide, recorder(), loss)
    state, value = jax.jit(svi.update)(svi.init(jax.random.key(0), data), data)
    chains = None if state.mutable_state is None else chains_in(state).visible
    return gradient_in(state), chains, value


def update_with_known(data, svi, state):
    """One update that sees the values of the data while it is compiled."""
    return jax.jit(lambda state: svi.update(state, data))(state)


def contrast(params, data, negative, row_weights):
    """Energy of the data above that of the negative samples, whose mean each row has."""
    rbm = rbm_of(**params)
    return (row_weights * (rbm.energy(data) - rbm.energy(negative).mean(0))).sum()


def assert_gradients_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
