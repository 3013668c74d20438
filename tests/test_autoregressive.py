import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_moments
from loss_models import no_guide
from numpyro import handlers, optim
from numpyro.distributions import constraints
from numpyro.infer import SVI, Predictive, Trace_ELBO

from numpyro_ebm import MADE, NADE

SIZE = 5
STATES = np.array(list(itertools.product([0, 1], repeat=SIZE)))


def scaled(params):
    """Parameters large enough that the units depend on one another, and none of them zero."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [2 * x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return structure.unflatten(moved)


def nade(size=SIZE, **kwargs):
    return NADE(**scaled(NADE.init_params(jax.random.key(1), size, 4)), **kwargs)


def made(hidden_sizes, size=SIZE, seed=0, **kwargs):
    params = scaled(MADE.init_params(jax.random.key(2), size, hidden_sizes))
    degrees = None if seed is None else MADE.Degrees.random(seed, size, hidden_sizes)
    return MADE(**params, degrees=degrees, **kwargs)


MODELS = {
    "NADE": (nade, np.arange(SIZE)),
    "MADE": (partial(made, [9]), MADE.Degrees.random(0, SIZE, [9]).order),
    "deep MADE": (partial(made, [9, 7]), MADE.Degrees.random(0, SIZE, [9, 7]).order),
    "MADE in order": (
        partial(made, [9, 7], seed=None, activation="tanh"),
        np.arange(SIZE),
    ),
}
EACH = pytest.mark.parametrize(("build", "order"), MODELS.values(), ids=MODELS)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def to_numpy(arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def naive_logits(model, value):
    """Logits of one value by loops over units."""
    value = np.asarray(value, np.float64)
    if isinstance(model, NADE):
        names = ("weights_in", "weights_out", "bias", "hidden_bias")
        w, v, b, c = (np.asarray(getattr(model, name), np.float64) for name in names)
        logits = []
        for i in range(len(b)):
            field = c + sum(w[j] * value[j] for j in range(i))
            logits.append(b[i] + v[i] @ (1 / (1 + np.exp(-field))))
        return np.array(logits)
    degrees = [np.array(model.degrees.ordering), *map(np.array, model.degrees.hidden)]
    layer = value
    for index, (w, b) in enumerate(zip(*map(to_numpy, (model.weights, model.biases)), strict=True)):
        last = index == len(model.weights) - 1
        above = degrees[0] if last else degrees[index + 1]
        total = b.copy()
        for i, j in itertools.product(range(w.shape[0]), range(w.shape[1])):
            below = degrees[index][i]
            if (below < above[j]) if last else (below <= above[j]):
                total[j] += w[i, j] * layer[i]
        layer = total if last else np.asarray(model.activation(total))
    return layer


# ----- densities ---------------------------------------------------------------------------


@EACH
def test_probabilities_sum_to_one(build, order):
    with jax.enable_x64(True):
        model = build()
        np.testing.assert_allclose(np.exp(model.log_prob(STATES)).sum(), 1, rtol=1e-6)


@EACH
def test_log_prob_is_that_of_a_loop(build, order):
    model, signs = build(), 2 * STATES - 1
    logits = np.array([naive_logits(model, state) for state in STATES])
    np.testing.assert_allclose(model.conditional_logits(STATES), logits, rtol=1e-4, atol=1e-5)
    expected = log_sigmoid(signs * logits).sum(1)
    np.testing.assert_allclose(model.log_prob(STATES), expected, rtol=1e-4, atol=1e-5)


@EACH
def test_units_depend_on_all_those_before_them_and_no_other(build, order):
    values = jax.random.uniform(jax.random.key(0), (20, SIZE))
    jacobians = jax.vmap(jax.jacobian(build().conditional_logits))(values)
    used = np.abs(jacobians).max(0)[np.ix_(order, order)]
    np.testing.assert_array_equal(np.triu(used), 0)
    assert (used[np.tril_indices(SIZE, -1)] > 0).mean() > 0.6


@EACH
def test_draws_have_the_enumerated_moments(build, order):
    model = build()
    draws = model.sample(jax.random.key(0), (20_000,))
    assert (draws.shape, draws.dtype) == ((20_000, SIZE), jnp.int32)
    pairs = np.triu_indices(SIZE)

    def moments(values):
        values = np.asarray(values, np.float64)
        return (values[:, :, None] * values[:, None])[:, *pairs]

    probs = np.exp(np.asarray(model.log_prob(STATES), np.float64))
    assert_moments(moments(draws), probs @ moments(STATES))


@EACH
def test_gradient_is_that_of_the_chain_rule(build, order):
    """Against central differences of the loop, in every parameter."""
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: x.astype(jnp.float64), build())
        value, step = STATES[19], 1e-5
        gradient = jax.grad(lambda model: model.log_prob(value))(model)
        leaves, structure = jax.tree.flatten(model)
        rng = np.random.default_rng(0)
        directions = [rng.normal(size=leaf.shape) for leaf in leaves]
        sides = [
            structure.unflatten([x + s * d for x, d in zip(leaves, directions, strict=True)])
            for s in (step, -step)
        ]
        values = [log_sigmoid((2 * value - 1) * naive_logits(m, value)).sum() for m in sides]
        along = sum(
            (g * d).sum() for g, d in zip(jax.tree.leaves(gradient), directions, strict=True)
        )
        np.testing.assert_allclose(along, (values[0] - values[1]) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("build", [nade, partial(made, [4]), partial(made, [4, 3])])
def test_few_units(build, size):
    states = np.array(list(itertools.product([0, 1], repeat=size)))
    model = build(size=size)
    np.testing.assert_allclose(np.exp(model.log_prob(states)).sum(), 1, rtol=1e-5)
    assert model.sample(jax.random.key(0), (3,)).shape == (3, size)


def test_steep_logits_stay_finite():
    steep = NADE(
        100 * jnp.ones((SIZE, 2)), 500 * jnp.ones((SIZE, 2)), -jnp.ones(SIZE), jnp.zeros(2)
    )
    gradient = jax.grad(lambda model: model.log_prob(STATES).sum())(steep)
    assert np.isfinite(steep.log_prob(STATES)).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_gradient_of_many_units_takes_little_memory():
    """Keeping every hidden layer of 100 rows of 784 units would take 150 MB."""
    model = NADE(**NADE.init_params(jax.random.key(0), 784, 500))
    rows = jnp.zeros((100, 784))
    compiled = jax.jit(jax.grad(lambda model: model.log_prob(rows).sum())).lower(model).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 60e6


# ----- as NumPyro distributions ------------------------------------------------------------


@EACH
def test_copies_and_transformations(build, order):
    model = build()
    expected = model.log_prob(STATES)
    leaves, structure = jax.tree.flatten(model)
    for copy in (structure.unflatten(leaves), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(copy.log_prob(STATES), expected, rtol=1e-6)
    log_prob = jax.jit(lambda model, value: model.log_prob(value))
    np.testing.assert_allclose(log_prob(model, STATES), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(partial(log_prob, model))(STATES), expected, rtol=1e-5)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), model)
    mapped = jax.vmap(log_prob, (0, None))(stacked, STATES)
    np.testing.assert_allclose(mapped[0], expected, rtol=1e-5)
    half = jax.tree.map(lambda x: 0.5 * x, model)
    np.testing.assert_allclose(mapped[1], half.log_prob(STATES), rtol=1e-5)


def batch_of(model):
    """Two members whose parameters differ, as one distribution with a batch dimension."""
    members = [model, jax.tree.map(lambda x: -0.5 * x, model)]
    if isinstance(model, NADE):
        names = ("weights_in", "weights_out", "bias", "hidden_bias")
        stacked = {n: jnp.stack([getattr(m, n) for m in members]) for n in names}
        return NADE(**stacked), members
    stacked = [
        [jnp.stack(pair) for pair in zip(*(getattr(m, n) for m in members), strict=True)]
        for n in ("weights", "biases")
    ]
    return MADE(*stacked, model.degrees, activation=model._activation), members


@EACH
def test_batches_of_models(build, order):
    batch, members = batch_of(build())
    assert (batch.batch_shape, batch.event_shape) == ((2,), (SIZE,))
    expected = np.stack([m.log_prob(STATES) for m in members], axis=1)
    np.testing.assert_allclose(batch.log_prob(STATES[:, None]), expected, rtol=1e-5)
    draws = batch.sample(jax.random.key(0), (8000,))
    probs = np.exp(expected.astype(np.float64))
    for i in range(2):
        assert_moments(draws[:, i], probs[:, i] @ STATES)
    assert batch.expand((3, 2)).sample(jax.random.key(0)).shape == (3, 2, SIZE)


def test_a_batch_of_biases_alone():
    model = nade()
    biases = jnp.stack([model.bias, 0 * model.bias])
    batch = NADE(model.weights_in, model.weights_out, biases, model.hidden_bias)
    np.testing.assert_allclose(batch.log_prob(STATES[3])[0], model.log_prob(STATES[3]), rtol=1e-5)
    deep = made([4])
    biases = [deep.biases[0], jnp.stack([deep.biases[1], 0 * deep.biases[1]])]
    batch = MADE(deep.weights, biases, deep.degrees)
    assert batch.sample(jax.random.key(0), (7,)).shape == (7, 2, SIZE)
    np.testing.assert_allclose(batch.log_prob(STATES[3])[0], deep.log_prob(STATES[3]), rtol=1e-5)


@EACH
def test_values_outside_the_support(build, order):
    with numpyro.validation_enabled():
        model = build()
        with pytest.warns(UserWarning, match="Out-of-support"):
            model.log_prob(2 * STATES)


ROWS = jnp.tile(jnp.array([[1, 1, 0, 0, 1], [0, 0, 1, 1, 0]]), (20, 1))
INITIAL = {
    "NADE": (NADE, NADE.init_params(jax.random.key(0), SIZE, 4, mean=ROWS.mean(0))),
    "MADE": (MADE, MADE.init_params(jax.random.key(0), SIZE, [32], mean=ROWS.mean(0))),
}


@pytest.mark.parametrize(("model_class", "initial"), INITIAL.values(), ids=INITIAL)
def test_trained_by_an_elbo_in_a_model(model_class, initial):
    def model(data=None):
        distribution = model_class(**numpyro.param("net", initial))
        with numpyro.plate("rows", len(ROWS)):
            return numpyro.sample("x", distribution, obs=data)

    svi = SVI(model, no_guide, optim.Adam(0.1), Trace_ELBO())
    result = svi.run(jax.random.key(0), 150, ROWS, progress_bar=False)
    assert result.losses[-1] / len(ROWS) < 1.1 * np.log(2) < result.losses[0] / len(ROWS)
    draws = Predictive(model, params=result.params, num_samples=5)(jax.random.key(1))["x"]
    assert draws.shape == (5, len(ROWS), SIZE)
    matches = (np.asarray(draws)[..., None, :] == ROWS[:2]).all(-1).any(-1)
    assert matches.mean() > 0.8
    site = handlers.trace(handlers.substitute(model, result.params)).get_trace(ROWS)["x"]
    assert site["fn"].base_dist.support == constraints.independent(constraints.boolean, 1)


def test_initial_biases_follow_the_data():
    params = NADE.init_params(jax.random.key(0), 3, 2, mean=jnp.array([0.0, 0.5, 0.9]))
    np.testing.assert_allclose(jax.nn.sigmoid(params["bias"]), [0.01, 0.5, 0.9], rtol=1e-5)
    params = MADE.init_params(jax.random.key(0), 3, [2], mean=jnp.array([0.0, 0.5, 0.9]))
    np.testing.assert_allclose(jax.nn.sigmoid(params["biases"][-1]), [0.01, 0.5, 0.9], rtol=1e-5)


def test_is_a_distribution_of_independent_bits_without_weights():
    bias = jnp.array([0.3, -1.0, 2.0])
    expected = dist.Bernoulli(logits=bias).to_event(1).log_prob(jnp.array([1, 0, 1]))
    zeros = jnp.zeros((3, 2))
    for model in (
        NADE(zeros, zeros, bias, jnp.zeros(2)),
        MADE([zeros, zeros.T], [jnp.zeros(2), bias]),
    ):
        np.testing.assert_allclose(model.log_prob(jnp.array([1, 0, 1])), expected, rtol=1e-6)


# ----- orders and errors -------------------------------------------------------------------


def test_random_degrees():
    a, b = (MADE.Degrees.random(3, 6, [20, 30]) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert a != MADE.Degrees.random(4, 6, [20, 30])
    assert min(a.hidden[1]) >= min(a.hidden[0])
    assert max(max(layer) for layer in a.hidden) == 5
    assert MADE.Degrees.random(3, 3, [2], ordering=[2, 3, 1]).ordering == (2, 3, 1)


def test_one_compilation_for_equal_degrees():
    count = []

    @jax.jit
    def log_prob(model, value):
        count.append(1)
        return model.log_prob(value)

    for _ in range(3):
        log_prob(made([6]), STATES)
    assert len(count) == 1


ONES = jnp.ones
ERRORS = {
    "NADE widths": (
        lambda: NADE(ONES((3, 2)), ONES((3, 4)), ONES(3), ONES(2)),
        r"NADE: expected `weights_in`.*\(3, 4\)",
    ),
    "NADE bias": (lambda: NADE(ONES((3, 2)), ONES((3, 2)), 0.0, ONES(2)), "`bias`.*got"),
    "NADE batches": (
        lambda: NADE(ONES((2, 3, 2)), ONES((3, 3, 2)), ONES(3), ONES(2)),
        "batch shapes that broadcast",
    ),
    "MADE depth": (lambda: MADE([ONES((3, 3))], [ONES(3)]), "one or more hidden layers"),
    "MADE widths": (
        lambda: MADE([ONES((3, 2)), ONES((2, 4))], [ONES(2), ONES(3)]),
        r"MADE: expected `weights` of shapes \[\(3, 2\), \(2, 3\)\]",
    ),
    "MADE degrees": (
        lambda: MADE([ONES((3, 2)), ONES((2, 3))], [ONES(2), ONES(3)], MADE.Degrees.spread(3, [4])),
        r"\(3, 4, 3\) units",
    ),
    "activation": (
        lambda: MADE([ONES((3, 2)), ONES((2, 3))], [ONES(2), ONES(3)], activation="rectify"),
        "name of one in jax.nn; got 'rectify'",
    ),
    "ordering": (lambda: MADE.Degrees([0, 1, 2], [[1]]), "permutation of 1 to 3; got"),
    "degree": (lambda: MADE.Degrees([1, 2, 3], [[1, 3]]), r"from 1 to 2; got \[3\]"),
    "no layer": (lambda: MADE.Degrees([1, 2, 3], []), "one or more layers"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_degrees_of_another_type():
    with pytest.raises(TypeError, match=r"MADE.Degrees; got list"):
        MADE([ONES((3, 2)), ONES((2, 3))], [ONES(2), ONES(3)], [[1, 2, 3]])
