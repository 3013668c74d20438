"""Wake-sleep: both gradients against enumeration, where each flows, dreams for data, refusals."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_moments, z_scores
from jax.nn import log_sigmoid
from loss_models import gradient_in, recorder
from numpyro.infer import SVI
from test_sigmoid_belief_network import parameters, split, states

import numpyro_ebm as ebm

KEY = jax.random.key(0)
SBN = ebm.models.SigmoidBeliefNetwork(3, [2, 2])
PARAMS = {name: jnp.asarray(v, jnp.float32) for name, v in parameters(SBN, seed=3).items()}
GENERATIVE = [name for name in PARAMS if not name.startswith("recognition")]
DATA = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]])
LAYERS = [jnp.asarray(x, jnp.float32) for x in split(states(7), SBN.sizes)]
NUM_REPLICATES = 2000


# ----- enumeration -------------------------------------------------------------------------


def bernoulli(value, logits):
    return (value * log_sigmoid(logits) + (1 - value) * log_sigmoid(-logits)).sum(-1)


def log_p(params, layers):
    total = bernoulli(layers[2], params["bias_2"])
    for k in (2, 1):
        field = layers[k] @ params[f"weights_{k}"].T + params[f"bias_{k - 1}"]
        total += bernoulli(layers[k - 1], field)
    return total


def log_q(params, layers):
    total = 0.0
    for k in (1, 2):
        field = layers[k - 1] @ params[f"recognition_weights_{k}"]
        total += bernoulli(layers[k], field + params[f"recognition_bias_{k}"])
    return total


def wake_objective(params, frozen):
    """Sum over rows of E_q[-log p(x, h)]."""
    p = log_p(params, LAYERS).reshape(8, 16)
    q = jnp.exp(log_q(frozen, LAYERS)).reshape(8, 16)
    per_state = -(q * p).sum(1)
    return per_state[DATA @ np.array([4, 2, 1])].sum()


def sleep_objective(params, frozen):
    """As many dreams as rows: E_p[-log q(h | x)]."""
    return -len(DATA) * (jnp.exp(log_p(frozen, LAYERS)) * log_q(params, LAYERS)).sum()


def bounds():
    """Evidence lower bound and log likelihood of the data, summed."""
    p, q = (f(PARAMS, LAYERS).reshape(8, 16) for f in (log_p, log_q))
    rows = DATA @ np.array([4, 2, 1])
    bound = (jnp.exp(q) * (p - q)).sum(1)[rows].sum()
    return float(bound), float(jax.scipy.special.logsumexp(p, axis=1)[rows].sum())


def flat(gradient):
    return jnp.concatenate([gradient[name].ravel() for name in PARAMS])


def is_generative():
    return np.concatenate([np.full(PARAMS[n].size, n in GENERATIVE) for n in PARAMS])


@cache
def replicates():
    """Values and gradients of independent evaluations."""

    def one(key):
        return jax.value_and_grad(
            lambda params: ebm.WakeSleep().loss(key, params, SBN.model, SBN.recognition, DATA)
        )(PARAMS)

    values, gradients = jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM_REPLICATES))
    return values, jax.vmap(flat)(gradients)


@pytest.mark.slow
def test_gradients_are_those_of_the_enumerated_expectations():
    wake, sleep = (flat(jax.grad(f)(PARAMS, PARAMS)) for f in (wake_objective, sleep_objective))
    assert not wake[~is_generative()].any()
    assert not sleep[is_generative()].any()
    assert_moments(replicates()[1], wake + sleep)
    for wrong in (wake - sleep, sleep - wake):
        assert np.abs(z_scores(replicates()[1], wrong)).max() > 10


def test_value_is_minus_an_unbiased_estimate_of_the_bound():
    bound, log_likelihood = bounds()
    assert bound < log_likelihood
    assert_moments(np.asarray(replicates()[0])[:, None], -bound)


# ----- where each gradient flows -----------------------------------------------------------


def update(model, guide, data=DATA, loss=None, **kwargs):
    svi = SVI(model, guide, recorder(), loss or ebm.WakeSleep())
    state, value = jax.jit(svi.update)(svi.init(KEY, data, **kwargs), data, **kwargs)
    return gradient_in(state), value, state


def test_nothing_but_the_dream_reaches_the_guide():
    """A model that always dreams the same; a leak from the wake phase would be random."""
    dreamt = np.array([1, 0, 1])

    def model(data):
        with numpyro.plate("rows", len(data)):
            h = numpyro.sample("h", dist.Bernoulli(logits=40.0))
            logits = numpyro.param("bias", 40.0 * (2 * dreamt - 1.0)) * h[:, None]
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=data)

    def guide(data):
        weights = numpyro.param("weights", jnp.array([0.3, -0.2, 0.5]))
        with numpyro.plate("rows", len(data)):
            numpyro.sample("h", dist.Bernoulli(logits=data @ weights))

    gradient, _, _ = update(model, guide)
    on = 1 / (1 + np.exp(-0.8))
    np.testing.assert_allclose(gradient["weights"], -4 * (1 - on) * dreamt, rtol=1e-5)


def test_nothing_but_the_data_reaches_the_model():
    """A guide that always infers the same; a leak from the sleep phase would be random."""

    def model(data):
        odds = numpyro.param("odds", jnp.array(0.4))
        bias = numpyro.param("bias", jnp.array([0.1, -0.7, 0.2]))
        with numpyro.plate("rows", len(data)):
            h = numpyro.sample("h", dist.Bernoulli(logits=odds))
            numpyro.sample("x", dist.Bernoulli(logits=bias * h[:, None]).to_event(1), obs=data)

    def guide(data):
        logits = numpyro.param("logits", jnp.array(40.0))
        with numpyro.plate("rows", len(data)):
            numpyro.sample("h", dist.Bernoulli(logits=logits))

    gradient, _, _ = update(model, guide)
    np.testing.assert_allclose(gradient["odds"], -4 * (1 - 1 / (1 + np.exp(-0.4))), rtol=1e-5)
    on = 1 / (1 + np.exp(-np.array([0.1, -0.7, 0.2])))
    np.testing.assert_allclose(gradient["bias"], -(DATA - on).sum(0), rtol=1e-5)


# ----- continuous latents ------------------------------------------------------------------

SLOPE, RECOGNITION, SCALE = 0.8, 0.3, 0.9
X = jnp.array([0.5, -1.5, 2.0, 1.0])


def linear(x):
    slope = numpyro.param("slope", SLOPE)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


def inverse(x):
    slope = numpyro.param("inverse", RECOGNITION)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("z", dist.Normal(slope * x, SCALE))


def test_continuous_sites_follow_the_same_gradients():
    x, params = jnp.array([0.5, -1.5, 2.0]), {"slope": SLOPE, "inverse": RECOGNITION}

    def one(key):
        loss = ebm.WakeSleep(num_particles=2).loss
        return jax.grad(loss, argnums=1)(key, params, linear, inverse, x)

    gradients = jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM_REPLICATES))
    mean = RECOGNITION * x
    wake = -(x * mean - SLOPE * (mean**2 + SCALE**2)).sum()
    sleep = -len(x) * (SLOPE - RECOGNITION * (SLOPE**2 + 1)) / SCALE**2
    found = np.stack([gradients["slope"], gradients["inverse"]], axis=1)
    assert_moments(found, np.array([wake, sleep]))


# ----- learning ----------------------------------------------------------------------------


@pytest.mark.slow
def test_training_raises_the_likelihood():
    bars = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]])
    data = np.tile(bars, (10, 1))
    sbn = ebm.models.SigmoidBeliefNetwork(4, [4, 2])
    loss = ebm.WakeSleep()
    svi = SVI(sbn.model, sbn.recognition, numpyro.optim.Adam(0.05), loss)
    start = sbn.exact_log_likelihood(svi.get_params(svi.init(KEY, data)), data).mean()
    result = svi.run(KEY, 600, data, progress_bar=False)
    end = sbn.exact_log_likelihood(result.params, data)
    independent_units = -4 * np.log(2)
    assert end.mean() > independent_units > start - 0.1

    def estimate(key):
        return loss.loss(key, result.params, sbn.model, sbn.recognition, data)

    keys = jax.random.split(KEY, 200)
    estimates = jax.jit(jax.vmap(estimate))(keys)
    standard_error = estimates.std() / len(keys) ** 0.5
    assert -estimates.mean() < end.sum() + 4 * standard_error


@pytest.mark.parametrize("options", [{}, {"num_particles": 2}])
def test_evaluate_is_the_loss_of_the_next_update(options):
    svi = SVI(linear, inverse, numpyro.optim.Adam(0.01), ebm.WakeSleep(**options))
    state = svi.init(KEY, X)
    evaluated, updated = svi.evaluate(state, X), jax.jit(svi.update)(state, X)[1]
    np.testing.assert_allclose(evaluated, updated, rtol=1e-5)
