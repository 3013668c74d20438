"""NADE and MADE over other units, in other orders, and averaged over orders."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_moments
from loss_models import no_guide
from numpyro import optim
from numpyro.infer import SVI, Trace_ELBO
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from numpyro_ebm import MADE, NADE, AutoregressiveEnsemble, conditionals

POTTS, MIXTURE = conditionals.CategoricalLogits(3), conditionals.GaussianMixture(2)
SCALES = {MIXTURE: 0.3}
GRID = np.linspace(-36, 36, 601)
PLANE = np.stack(np.meshgrid(GRID, GRID, indexing="ij"), -1).reshape(-1, 2)


def moved(params, scale=0.5):
    """Parameters large enough that the units depend on one another, and none of them zero."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten(
        [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def nade(conditional, size, order=None):
    params = NADE.init_params(jax.random.key(1), size, 4, conditional=conditional)
    params = moved(params, SCALES.get(conditional, 0.5))
    return NADE(**params, conditional=conditional, order=order)


def made(hidden_sizes, conditional, size, order=None):
    params = MADE.init_params(jax.random.key(2), size, hidden_sizes, conditional=conditional)
    degrees = None
    if order is not None:
        ordering = 1 + np.argsort(order)
        degrees = MADE.Degrees.random(0, size, hidden_sizes, ordering=ordering.tolist())
    params = moved(params, SCALES.get(conditional, 0.5))
    return MADE(**params, degrees=degrees, conditional=conditional, activation="tanh")


class Case(NamedTuple):
    build: Any
    conditional: Any
    order: list[int]

    @property
    def model(self):
        return self.build(self.conditional, len(self.order), jnp.asarray(self.order))


BUILDERS = {"NADE": nade, "MADE": partial(made, [7]), "deep": partial(made, [7, 6])}
CASES = {
    f"{name} of {type(conditional).__name__}": Case(build, conditional, order)
    for name, build in (
        ("NADE", nade),
        ("MADE", partial(made, [7])),
        ("deep", partial(made, [7, 6])),
    )
    for conditional, order in ((POTTS, [2, 0, 3, 1]), (MIXTURE, [1, 0]))
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DISCRETE = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.conditional is POTTS], ids=["NADE", "MADE", "deep"]
)
REAL = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.conditional is MIXTURE], ids=["NADE", "MADE", "deep"]
)


def values_of(case):
    """Every value with its weight in a sum or an integral."""
    if case.conditional is POTTS:
        values = np.array(list(itertools.product(range(3), repeat=len(case.order))))
        return values, np.ones(len(values))
    return PLANE, np.full(len(PLANE), (GRID[1] - GRID[0]) ** 2)


def naive_outputs(model, value):
    """Outputs for one value, by a loop over the units in their order."""
    reads = np.eye(3)[value] if model.conditional is POTTS else value[:, None]
    if isinstance(model, NADE):
        (w, v, b, c), d = model_arrays(model), len(value)
        w, v = w.reshape(d, -1, w.shape[-1]), v.reshape(d, -1, v.shape[-1])
        field, outputs = c.copy(), np.zeros(v.shape[:2])
        for i in np.arange(d) if model.order is None else np.asarray(model.order):
            outputs[i] = v[i] @ (1 / (1 + np.exp(-field)))
            field = field + reads[i] @ w[i]
        return outputs.reshape(b.shape) + b
    degrees, layer = model.degrees, reads
    levels = [np.array(degrees.ordering), *map(np.array, degrees.hidden)]
    for index, (w, b) in enumerate(zip(model.weights, model.biases, strict=True)):
        w, b, last = np.asarray(w, np.float64), np.asarray(b, np.float64), index == len(levels) - 1
        below, above = levels[index], levels[0] if last else levels[index + 1]
        total = b.copy()
        for i, j in itertools.product(range(len(below)), range(len(above))):
            if below[i] < above[j] if last else below[i] <= above[j]:
                total[j] += (layer[i] * w[i][..., j]).sum() if index == 0 else layer[i] * w[i, j]
        layer = total if last else np.tanh(total)
    return layer


def model_arrays(model):
    names = ("weights_in", "weights_out", "bias", "hidden_bias")
    return [np.asarray(getattr(model, name), np.float64) for name in names]


def naive_log_prob(model, value):
    outputs = naive_outputs(model, value)
    if model.conditional is POTTS:
        return sum(log_softmax(o)[x] for o, x in zip(outputs, value, strict=True))
    return sum(
        logsumexp(log_softmax(logits) + norm.logpdf(x, loc, np.exp(log_scale)))
        for (logits, loc, log_scale), x in zip(outputs, value, strict=True)
    )


@EACH
def test_densities(case):
    """They sum or integrate to one, and are those of a loop over the units."""
    values, weights = values_of(case)
    with jax.enable_x64(True):
        model = case.model
        log_probs = np.asarray(model.log_prob(values))
        np.testing.assert_allclose(weights @ np.exp(log_probs), 1, rtol=1e-6)
        few = np.arange(0, len(values), len(values) // 6)
        expected = [naive_log_prob(model, values[i]) for i in few]
        np.testing.assert_allclose(log_probs[few], expected, rtol=1e-6)
    assert model.support.event_dim == 1
    assert model.is_discrete == (case.conditional is POTTS)


@REAL
def test_jacobians_are_triangular(case):
    values = jax.random.normal(jax.random.key(0), (10, len(case.order)))
    jacobians = jax.vmap(jax.jacobian(case.model.conditional_outputs))(values)
    used = np.abs(jacobians).max((0, 2, 3))[np.ix_(case.order, case.order)]
    np.testing.assert_array_equal(np.triu(used), 0)
    assert used[1, 0] > 0


@DISCRETE
def test_outputs_depend_on_all_units_before_and_no_other(case):
    model, size = case.model, len(case.order)
    values = np.asarray(jax.random.randint(jax.random.key(0), (8, size), 0, 3))
    outputs = np.asarray(model.conditional_outputs(values))
    used = np.zeros((size, size))
    for j in range(size):
        changed = values.copy()
        changed[:, j] = (changed[:, j] + 1) % 3
        change = np.abs(np.asarray(model.conditional_outputs(changed)) - outputs)
        used[:, j] = change.max((0, 2))
    used = used[np.ix_(case.order, case.order)]
    np.testing.assert_allclose(np.triu(used), 0, atol=1e-6)
    assert (used[np.tril_indices(size, -1)] > 1e-3).mean() > 0.6


@EACH
def test_draws_have_the_moments_of_the_density(case):
    model = case.model
    draws = np.asarray(model.sample(jax.random.key(4), (10_000,)), np.float64)
    values, weights = values_of(case)
    probs = weights * np.exp(np.asarray(model.log_prob(values), np.float64))
    pairs = np.triu_indices(len(case.order))

    def moments(x):
        x = np.tanh(x / 2)
        return (x[:, :, None] * x[:, None])[:, *pairs]

    assert_moments(moments(draws), (probs / probs.sum()) @ moments(values))


@REAL
def test_draws_move_with_the_parameters(case):
    """The gradient of a mean of draws is that of the integral."""
    model = case.model
    values, weights = values_of(case)
    leaves, structure = jax.tree.flatten(model)
    real = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]

    def along(t):
        """The model a step from here in a fixed direction."""
        keys = jax.random.split(jax.random.key(9), len(leaves))
        new = list(leaves)
        for i in real:
            new[i] = leaves[i] + t * jax.random.normal(keys[i], leaves[i].shape)
        return structure.unflatten(new)

    def statistic(x):
        return jnp.sin(x[..., 0]) * jnp.tanh(x[..., 1])

    def integral(t):
        return (weights * jnp.exp(along(t).log_prob(values)) * statistic(values)).sum()

    def drawn(t):
        return statistic(along(t).sample(jax.random.key(5), (20_000,)))

    assert model.has_rsample
    expected = jax.grad(integral)(0.0)
    slopes = jax.jvp(drawn, (0.0,), (1.0,))[1]
    assert abs(expected) > 0.02
    assert_moments(np.asarray(slopes)[:, None], np.array([expected]))


# ----- orders ------------------------------------------------------------------------------


def test_an_order_renames_the_units():
    order = np.array([2, 0, 3, 1])
    inside, plain = nade(POTTS, 4, order), nade(POTTS, 4)
    renamed = NADE(
        plain.weights_in[order],
        plain.weights_out[order],
        plain.bias[order],
        plain.hidden_bias,
        conditional=POTTS,
    )
    values = np.asarray(jax.random.randint(jax.random.key(0), (9, 4), 0, 3))
    expected = renamed.log_prob(values[:, order])
    np.testing.assert_allclose(inside.log_prob(values), expected, rtol=1e-5)
    traced = jax.jit(lambda order: plain.with_order(order).log_prob(values))(order)
    np.testing.assert_allclose(traced, expected, rtol=1e-5)


def test_a_batch_of_orders():
    model, orders = nade(conditionals.BernoulliLogits(), 4), np.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    batch = model.with_order(orders)
    values = np.array(list(itertools.product([0, 1], repeat=4)))
    expected = np.stack([model.with_order(o).log_prob(values) for o in orders], 1)
    assert batch.batch_shape == (2,)
    np.testing.assert_allclose(batch.log_prob(values[:, None]), expected, rtol=1e-5)
    draws = batch.sample(jax.random.key(0), (4000,))
    for i in range(2):
        assert_moments(draws[:, i], np.exp(expected[:, i]) @ values)


@pytest.mark.parametrize("kind", ["NADE", "MADE"])
def test_ensembles(kind):
    """Their probability is the mean over components, and so are the frequencies of draws."""
    values, _ = values_of(CASES["NADE of CategoricalLogits"])
    if kind == "NADE":
        ensemble = nade(POTTS, 4).ensemble([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
    else:
        degrees = [MADE.Degrees.random(seed, 4, [7]) for seed in range(3)]
        ensemble = made([7], POTTS, 4).ensemble(degrees)
    probs = np.stack([np.exp(c.log_prob(values)) for c in ensemble.components])
    assert np.ptp(probs, axis=0).max() > 1e-3
    actual = np.exp(ensemble.log_prob(values))
    np.testing.assert_allclose(actual, probs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(actual.sum(), 1, rtol=1e-5)
    draws = np.asarray(ensemble.sample(jax.random.key(0), (10_000,)), np.float64)
    pairs = np.triu_indices(4)
    products = [(x[:, :, None] * x[:, None])[:, *pairs] for x in (draws, values)]
    assert_moments(products[0], actual.astype(np.float64) @ products[1])
    leaves, structure = jax.tree.flatten(ensemble)
    again = jax.jit(lambda model: model.log_prob(values[:5]))(structure.unflatten(leaves))
    np.testing.assert_allclose(again, np.log(actual[:5]), rtol=1e-4)


@pytest.mark.slow
def test_trained_in_all_orders_at_once():
    """One set of parameters learns a distribution in orders that are drawn anew at each update."""
    rows = jnp.tile(jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]]), (20, 1))
    initial = NADE.init_params(jax.random.key(0), 4, 16)

    def model(data):
        order = jax.random.permutation(numpyro.prng_key(), 4)
        fn = NADE(**numpyro.param("net", initial), order=order)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("x", fn, obs=data)

    svi = SVI(model, no_guide, optim.Adam(0.05), Trace_ELBO())
    params = svi.run(jax.random.key(0), 400, rows, progress_bar=False).params["net"]
    orders = [list(o) for o in itertools.permutations(range(4))]
    each = NADE(**params, order=np.array(orders)).log_prob(rows[:2, None])
    assert each.mean() > -2 * np.log(2)  # independent bits: -4 log 2; at best: -log 2
    together = NADE(**params).ensemble(orders[::6]).log_prob(rows[:2])
    assert together.mean() >= each[:, ::6].mean()


def test_an_ensemble_is_trained_by_its_own_likelihood():
    """Shared weights behind two masks; the mixture does better than either alone."""
    rows = jnp.tile(jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]]), (20, 1))
    initial = MADE.init_params(jax.random.key(0), 4, [16])
    degrees = [MADE.Degrees.random(seed, 4, [16]) for seed in range(2)]

    def model(data):
        fn = MADE(**numpyro.param("net", initial)).ensemble(degrees)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("x", fn, obs=data)

    svi = SVI(model, no_guide, optim.Adam(0.05), Trace_ELBO())
    params = svi.run(jax.random.key(0), 150, rows, progress_bar=False).params["net"]
    trained = MADE(**params).ensemble(degrees)
    nats = trained.log_prob(rows).mean()
    assert nats > -1.1 * np.log(2)
    assert nats >= np.mean([member.log_prob(rows).mean() for member in trained.components])


# ----- units -------------------------------------------------------------------------------


def test_initial_outputs_follow_the_data():
    rates = jnp.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    bias = NADE.init_params(jax.random.key(0), 2, 3, mean=rates, conditional=POTTS)["bias"]
    np.testing.assert_allclose(jnp.exp(bias), [[0.2, 0.3, 0.5], [1, 0.01, 0.01]], rtol=1e-5)
    params = MADE.init_params(
        jax.random.key(0), 2, [3], mean=jnp.array([1.0, -2.0]), conditional=MIXTURE
    )
    np.testing.assert_allclose(params["biases"][-1][:, 1], [[0.5, 1.5], [-2.5, -1.5]])
    one = conditionals.GaussianMixture(1)
    params = NADE.init_params(jax.random.key(0), 2, 3, conditional=one)
    zeros = jax.tree.map(jnp.zeros_like, params)
    value = jnp.array([0.3, -1.0])
    expected = dist.Normal(0, 1).log_prob(value).sum()
    np.testing.assert_allclose(NADE(**zeros, conditional=one).log_prob(value), expected, rtol=1e-6)


ONES = jnp.ones
ERRORS = {
    "states": (
        ValueError,
        lambda: conditionals.CategoricalLogits(1),
        "`num_states`.*at least 2; got 1",
    ),
    "components": (ValueError, lambda: conditionals.GaussianMixture(0), "`num_components`.*got 0"),
    "conditional": (
        TypeError,
        lambda: NADE(ONES((3, 2)), ONES((3, 2)), ONES(3), ONES(2), conditional=dist.Normal()),
        "NADE: expected `conditional` to be one of ebm.conditionals",
    ),
    "NADE shapes": (
        ValueError,
        lambda: NADE(ONES((3, 2)), ONES((3, 2)), ONES(3), ONES(2), conditional=POTTS),
        r"`weights_in` \(..., d, 3, h\)",
    ),
    "MADE shapes": (
        ValueError,
        lambda: MADE([ONES((3, 3, 2)), ONES((2, 3))], [ONES(2), ONES((3, 3))], conditional=POTTS),
        r"of shapes \[\(3, 3, 2\), \(2, 3, 3\)\]",
    ),
    "order": (
        ValueError,
        lambda: NADE(ONES((3, 2)), ONES((3, 2)), ONES(3), ONES(2), order=[0, 1, 1]),
        "`order` to be a permutation of 0 to 2",
    ),
    "activation": (
        ValueError,
        lambda: NADE(ONES((3, 2)), ONES((3, 2)), ONES(3), ONES(2), activation="rectify"),
        "name of one in jax.nn; got 'rectify'",
    ),
    "logits": (
        ValueError,
        lambda: nade(MIXTURE, 2).conditional_logits(jnp.zeros(2)),
        "expected discrete units; got GaussianMixture",
    ),
    "no components": (ValueError, lambda: AutoregressiveEnsemble([]), "one or more `components`"),
    "not a distribution": (TypeError, lambda: AutoregressiveEnsemble([3]), "got int"),
    "other supports": (
        ValueError,
        lambda: AutoregressiveEnsemble([nade(POTTS, 2), nade(MIXTURE, 2)]),
        "one event shape and support",
    ),
}


@pytest.mark.parametrize(("error", "call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(error, call, message):
    with pytest.raises(error, match=message):
        call()
