"""The conditional RBM against sums over joint states, and in NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from helpers import assert_close, assert_moments, layer, z_scores
from numpyro.infer import MCMC, SVI
from registry import UNITS, dyadic
from scipy.special import logsumexp
from sequence_models import Frame

from numpyro_ebm import (
    BlockGibbs,
    ConditionalRBM,
    ContrastiveDivergence,
    MaximumLikelihood,
    NormalizerError,
    PersistentContrastiveDivergence,
    PseudoLikelihood,
    evidence,
    fit,
    persistent_chains,
)

NUM_INPUTS, NUM_ROWS = 2, 3
PAIRS = [
    ("Bernoulli", "Bernoulli"),
    ("Categorical", "Spin"),
    ("Gaussian", "Bernoulli"),
    ("Spin", "Gaussian"),
    ("Bernoulli", "ReLU"),
]
over_pairs = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


def build(pair=PAIRS[0], dtype="float32", **kwargs):
    """One RBM for each of three inputs."""
    rng = np.random.default_rng(7)

    def normal(*shape):
        return jnp.asarray(dyadic(rng.normal(0, 0.7, shape)), dtype)

    visible, hidden = (UNITS[name].make(rng, 2, dtype) for name in pair)
    f, g = visible.feature_shape, hidden.feature_shape
    directed = normal(NUM_INPUTS, *f), normal(NUM_INPUTS, *g)
    inputs = normal(NUM_ROWS, NUM_INPUTS)
    return ConditionalRBM(normal(*f, *g), visible, hidden, *directed, inputs, **kwargs)


def frame(rbm, row):
    """The sums over the joint states of one member."""
    inputs = np.asarray(rbm.condition[row], np.float64)
    fields = [
        inputs @ np.asarray(weights, np.float64).reshape(NUM_INPUTS, -1)
        for weights in (rbm.visible_weights, rbm.hidden_weights)
    ]
    return Frame(rbm.own_visible, rbm.own_hidden, rbm.weights, *fields)


@jax.jit
def answers(rbm, values):
    hidden = rbm.hidden_units.mean(rbm.input_to_hidden(values))
    return rbm.log_prob(values), hidden, rbm.rbm.energy(values) + rbm.exact_log_z()


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@over_pairs
def test_density_and_hidden_means_are_those_of_the_sums(pair, dtype):
    with jax.enable_x64(dtype == "float64"):
        rbm = build(pair, dtype, normalizer="exact")
        states = layer(rbm.own_visible).values[:: 1 if rbm.is_discrete else 97][:30]
        values = np.broadcast_to(states[:, None], (len(states), NUM_ROWS, 2))
        log_prob, hidden, minus = answers(rbm, values)
        expected = np.stack([frame(rbm, r).log_prob(states) for r in range(NUM_ROWS)], 1)
        assert_close(log_prob, expected, dtype)
        np.testing.assert_allclose(minus, -log_prob, rtol=1e-5, atol=1e-5)
        means = [[frame(rbm, r).hidden_mean(v) for r in range(NUM_ROWS)] for v in states[:4]]
        np.testing.assert_allclose(hidden[:4], means, rtol=1e-4, atol=1e-4)


def test_given_other_inputs():
    rbm = build(normalizer="exact")
    one = rbm.given(rbm.condition[1])
    assert (one.batch_shape, one.normalizer) == ((), "exact")
    value = jnp.array([1, 0])
    np.testing.assert_allclose(one.log_prob(value), rbm.log_prob(value)[1], rtol=1e-6)
    alone = ConditionalRBM(one.weights, one.own_visible, one.own_hidden, None, None, one.condition)
    assert alone.visible_units is alone.own_visible


@pytest.mark.slow
def test_evidence_of_one_input():
    one = build().given(jnp.array([0.5, -1.0]))
    truth = evidence.exact(one).log_evidence
    estimate = evidence.ais(jax.random.key(0), one, num_temperatures=20, num_particles=50)
    assert abs(estimate.log_evidence - truth) < 4 * estimate.std_error


# ----- the guard ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["weights", "visible_weights", "hidden_weights", "condition", "own_visible"]
)
def test_every_parameter_is_guarded(name):
    rbm = build()

    def log_prob(parameter):
        parts = ("weights", "own_visible", "own_hidden", "visible_weights", "hidden_weights")
        arguments = [parameter if part == name else getattr(rbm, part) for part in parts]
        condition = parameter if name == "condition" else rbm.condition
        return ConditionalRBM(*arguments, condition).log_prob(jnp.array([1, 0])).sum()

    with pytest.raises(NormalizerError, match=name):
        jax.grad(log_prob)(getattr(rbm, name))
    assert jnp.isfinite(log_prob(getattr(rbm, name)))


# ----- training ----------------------------------------------------------------------------

DATA = np.array([[1, 0], [1, 1], [0, 1]])


def gradient(loss, rbm, rng_key, data=DATA):
    """Gradient of a loss in every parameter, as one pytree."""
    leaves, structure = jax.tree.flatten(rbm)
    values = {f"p{i}": leaf for i, leaf in enumerate(leaves)}

    def model():
        params = [numpyro.param(name, value) for name, value in values.items()]
        with numpyro.plate("rows", NUM_ROWS):
            numpyro.sample("v", structure.unflatten(params), obs=data)

    def evaluate(params):
        return loss.loss(rng_key, params, model, lambda: None)

    found = jax.grad(evaluate)(values)
    return structure.unflatten([found[name] for name in values])


def flat_gradient(rbm):
    fields = ("weights", "visible_weights", "hidden_weights")
    parts = [getattr(rbm, field).ravel() for field in fields]
    return jnp.concatenate([*parts, rbm.own_visible.logits, rbm.own_hidden.logits])


def enumerated_gradient(rbm):
    """Gradient of minus the log likelihood by central differences of the sums."""
    fields = ("weights", "visible_weights", "hidden_weights")
    arrays = [np.asarray(getattr(rbm, field), np.float64) for field in fields]
    arrays += [np.asarray(rbm.own_visible.logits), np.asarray(rbm.own_hidden.logits)]
    sizes = [array.size for array in arrays]
    start = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)

    def loss(vector):
        pieces = np.split(vector, np.cumsum(sizes)[:-1])
        w, a, b, v, h = (p.reshape(x.shape) for p, x in zip(pieces, arrays, strict=True))
        total = 0.0
        for u, row in zip(np.asarray(rbm.condition, np.float64), DATA, strict=True):
            states = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
            joint = (states @ (v + u @ a))[:, None] + states @ (h + u @ b) + states @ w @ states.T
            chosen = np.all(states == row, axis=1)
            total -= logsumexp(joint[chosen]) - logsumexp(joint)
        return total

    steps = 1e-5 * np.eye(start.size)
    return np.array([(loss(start + s) - loss(start - s)) / 2e-5 for s in steps])


@pytest.mark.slow
def test_exact_likelihood_has_the_enumerated_gradient():
    with jax.enable_x64(True):
        rbm = build(dtype="float64")
        found = flat_gradient(gradient(MaximumLikelihood(), rbm, jax.random.key(0)))
        np.testing.assert_allclose(found, enumerated_gradient(rbm), atol=1e-8)


@pytest.mark.parametrize(
    "loss",
    [ContrastiveDivergence(50), MaximumLikelihood(num_chains=2, num_steps=50)],
    ids=["CD", "ML"],
)
def test_long_chains_have_the_gradient_of_the_likelihood(loss):
    rbm = build()
    keys = jax.random.split(jax.random.key(1), 2000)
    one = jax.jit(jax.vmap(lambda key: flat_gradient(gradient(loss, rbm, key))))
    assert_moments(one(keys), enumerated_gradient(rbm))


def linear(u, v, loss):
    """Train where the first input turns the first unit on."""

    def model(u, v):
        a = numpyro.param("a", jnp.zeros((NUM_INPUTS, 2)))
        w = numpyro.param("w", 0.01 * jnp.ones((2, 2)))
        rbm = ConditionalRBM(w, jnp.zeros(2), jnp.zeros(2), a, None, u)
        with numpyro.plate("rows", len(u)):
            numpyro.sample("v", rbm, obs=v)

    svi = SVI(model, lambda u, v: None, optax.adam(0.05), loss)
    return fit(jax.random.key(0), svi, (u, v), num_epochs=20, batch_size=50, progress_bar=False)


@pytest.mark.parametrize(
    "loss", [ContrastiveDivergence(), pytest.param(PseudoLikelihood(), marks=pytest.mark.slow)]
)
def test_weights_of_the_inputs_are_learnt(loss):
    rng = np.random.default_rng(0)
    u = rng.normal(0, 1, (500, NUM_INPUTS)).astype(np.float32)
    v = rng.uniform(size=(500, 2)) < 1 / (1 + np.exp(-np.stack([2 * u[:, 0], 0 * u[:, 0]], 1)))
    a = linear(u, v.astype(np.uint8), loss).params["a"]
    assert abs(a[0, 0] - 2) < 0.6
    assert np.abs(a.ravel()[1:]).max() < 0.6


def test_persistent_chains_are_refused():
    rbm = build()

    def model():
        persistent_chains("chains", 5, rbm)
        numpyro.sample("v", rbm, obs=DATA)

    svi = SVI(model, lambda: None, optax.sgd(0.1), PersistentContrastiveDivergence())
    with pytest.raises(ValueError, match=r"another one for each condition.*ContrastiveDivergence"):
        svi.init(jax.random.key(0))


def test_centered_gradient_is_refused():
    with pytest.raises(ValueError, match="got a ConditionalRBM"):
        gradient(ContrastiveDivergence(gradient="centered"), build(), jax.random.key(0))


# ----- sampling ----------------------------------------------------------------------------


def test_block_gibbs_of_rows_in_a_plate():
    rbm = build()

    def model():
        with numpyro.plate("rows", NUM_ROWS):
            numpyro.sample("v", rbm)

    kernel = BlockGibbs(model, num_sweeps=5)
    mcmc = MCMC(
        kernel,
        num_warmup=10,
        num_samples=1,
        num_chains=4000,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    draws = mcmc.get_samples()["v"]
    assert draws.shape == (4000, NUM_ROWS, 2)
    for row in range(NUM_ROWS):
        now = frame(rbm, row)
        states = layer(rbm.own_visible).values
        probs = np.exp(now.log_prob(states))
        indicators = (np.asarray(draws)[:, row, None] == states).all(-1)
        assert np.abs(z_scores(indicators, probs)).max() < 4


# ----- refusals ----------------------------------------------------------------------------


def test_wrong_shapes_are_refused():
    good = build()
    w, a, b, u = good.weights, good.visible_weights, good.hidden_weights, good.condition
    zeros = jnp.zeros(2)
    with pytest.raises(ValueError, match=r"`visible_weights` of shape \(..., 2, 2\)"):
        ConditionalRBM(w, zeros, zeros, a[:, :1], b, u)
    with pytest.raises(ValueError, match=r"`hidden_weights` of shape \(..., 3, 2\)"):
        ConditionalRBM(w, zeros, zeros, None, b, jnp.zeros(3))
    with pytest.raises(ValueError, match="finite `condition`; got 1"):
        ConditionalRBM(w, zeros, zeros, a, b, u.at[0, 0].set(jnp.nan), validate_args=True)
    with pytest.raises(TypeError, match="`condition`"):
        ConditionalRBM(w, zeros, zeros, a, b, "inputs")
    with pytest.raises(ValueError, match="batch shape"):
        good.log_prob(jnp.zeros((2, 2)))
