"""Training where hidden units cannot be summed out: clamped chains and mean field."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from dbm_models import CASES
from helpers import assert_moments, z_scores
from numpyro.infer import SVI

from numpyro_ebm import (
    DBM,
    RBM,
    BoltzmannMachine,
    ContrastiveDivergence,
    PersistentContrastiveDivergence,
    persistent_chains,
)
from numpyro_ebm.distributions import hidden as hidden_units

ROWS = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
NUM_REPLICATES = 60


def of_boltzmann(params):
    """Three visible and three hidden units with all connections."""
    return BoltzmannMachine(params["couplings"], params["bias"], num_visible=3)


def boltzmann(lateral=2.0):
    """Its parameters; hidden units are coupled to each other ``lateral`` times as strongly."""
    rng = np.random.default_rng(5)
    matrix = np.triu(rng.normal(0, 1.2, (6, 6)), 1)
    matrix[3:, 3:] *= lateral
    bias = rng.normal(0, 0.4, 6)
    return {"couplings": jnp.float32(matrix + matrix.T), "bias": jnp.float32(bias)}


def of_deep(params):
    """Three hidden layers."""
    return DBM(params["weights"], params["units"])


def deep(name="three", scale=1.3):
    """Its parameters."""
    dbm = CASES[name]._replace(scale=scale).build()
    return {"weights": dbm.weights, "units": dbm.units}


MODELS = {"Boltzmann": (of_boltzmann, boltzmann), "deep": (of_deep, deep)}
every = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def _persistent(monkeypatch):
    """Three hidden units are too many to be drawn together."""
    jax.clear_caches()
    monkeypatch.setattr(hidden_units, "_JOINT_DRAW", 2)
    yield
    jax.clear_caches()


def vector(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def enumerated(build, params):
    """Gradient of the mean negative log-likelihood, every state summed."""

    def loss(params):
        model = build(params)
        return model.energy(ROWS).mean() + model.exact_log_z()

    return np.asarray(vector(jax.jit(jax.grad(loss))(params)), np.float64)


@partial(jax.jit, static_argnames=("loss", "build"))
def gradient(rng_key, loss, build, params, rows):
    """Gradient of a loss per row, its persistent chains started at random states."""
    leaves, structure = jax.tree.flatten(params)
    key_start, key_loss = jax.random.split(rng_key)

    def program(rows):
        values = [numpyro.param(f"p{i}", leaf) for i, leaf in enumerate(leaves)]
        model = build(jax.tree.unflatten(structure, values))
        persistent_chains("chains", 40, model)
        with numpyro.plate("rows", len(rows)):
            numpyro.sample("v", model, obs=rows)

    model = build(params)
    chains = {"chains": {"chain": model.refresh(model.init_chain(key_start, (40,)))}}

    def evaluate(values):
        found = loss.loss_with_mutable_state(
            key_loss, values | chains, program, lambda rows: None, rows
        )
        return found["loss"] / len(rows)

    found = jax.grad(evaluate)({f"p{i}": leaf for i, leaf in enumerate(leaves)})
    return jnp.concatenate([found[f"p{i}"].ravel() for i in range(len(leaves))])


def replicated(loss, build, params):
    """Independent replicates of the gradient."""
    keys, rows = jax.random.split(jax.random.key(0), NUM_REPLICATES), np.tile(ROWS, (10, 1))
    return jax.jit(jax.vmap(lambda key: gradient(key, loss, build, params, rows)))(keys)


@pytest.mark.usefixtures("_persistent")
@every
def test_clamped_and_free_chains_have_the_likelihood_gradient(name):
    build, params = MODELS[name][0], MODELS[name][1]()
    loss = PersistentContrastiveDivergence(40, positive="clamped", num_positive_steps=40)
    assert_moments(replicated(loss, build, params), enumerated(build, params))


@pytest.mark.parametrize("name", ["Boltzmann", pytest.param("deep", marks=pytest.mark.slow)])
def test_mean_field_is_biased_where_hidden_units_depend_on_each_other(name):
    build, params = MODELS[name][0], MODELS[name][1]()
    loss = PersistentContrastiveDivergence(40, positive="mean_field", num_positive_steps=50)
    scores = z_scores(replicated(loss, build, params), enumerated(build, params))
    assert np.abs(scores).max() > 6


@pytest.mark.parametrize("positive", ["mean_field", "clamped"])
@pytest.mark.parametrize(
    ("build", "params"), [(of_deep, deep("one")), (of_boltzmann, boltzmann(0.0))], ids=MODELS
)
def test_it_is_exact_where_the_posterior_factorizes(positive, build, params):
    """One hidden layer, or hidden units that are not coupled to each other."""
    key, rows = jax.random.key(3), jnp.asarray(ROWS)

    def phase(name):
        loss = ContrastiveDivergence(1, positive=name, num_positive_steps=60)
        return vector(jax.grad(lambda p: loss._positive(key, build(p), rows).sum())(params))

    np.testing.assert_allclose(phase(positive), phase("energy"), atol=1e-4)


def test_mean_field_raises_the_bound():
    """Its gradient is that of the variational energy, the means found anew."""
    params, rows = deep(), jnp.asarray(ROWS)
    loss = ContrastiveDivergence(1, positive="mean_field", num_positive_steps=200)
    slope = jax.grad(lambda p: loss._positive(jax.random.key(0), of_deep(p), rows).sum())(params)
    for k, weights in enumerate(params["weights"]):
        sides = []
        for step in (0.02, -0.02):
            moved = list(params["weights"])
            moved[k] = weights.at[0, 1].add(step)
            model = DBM(moved, params["units"])
            means = model.mean_field(rows, 500, tolerance=0.0)
            sides.append(float(model.variational_energy(rows, means).sum()))
        difference = (sides[0] - sides[1]) / 0.04
        assert difference == pytest.approx(float(slope["weights"][k][0, 1]), abs=5e-3)


def train(make, loss, data, num_updates=150):
    def model(data):
        trained = make()
        persistent_chains("chains", 50, trained)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", trained, obs=data)

    svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.05), loss)
    return svi.run(jax.random.key(0), num_updates, data, progress_bar=False).params


@pytest.mark.parametrize("positive", ["mean_field", "clamped"])
def test_more_hidden_units_than_can_be_summed(positive):
    """A Boltzmann machine with 25 hidden units, all coupled, and a deep one learn the means."""
    data = (np.random.default_rng(0).random((50, 4)) < [0.9, 0.8, 0.2, 0.1]).astype(np.int32)
    loss = PersistentContrastiveDivergence(2, positive=positive, num_positive_steps=5)

    def machine(params=None):
        read = numpyro.param if params is None else lambda name, value: params[name]
        couplings = read("couplings", jnp.zeros((29, 29)))
        return BoltzmannMachine(couplings, read("bias", jnp.zeros(29)), num_visible=4)

    def stack(params=None):
        read = numpyro.param if params is None else lambda name, value: params[name]
        weights = [read("w1", jnp.zeros((4, 25))), read("w2", jnp.zeros((25, 24)))]
        return DBM(weights, [read("bias", jnp.zeros(4)), jnp.zeros(25), jnp.zeros(24)])

    for make in (machine, stack):
        learnt = make(train(make, loss, data))
        learnt.num_sweeps = 50
        mean = learnt.sample(jax.random.key(1), (2000,)).mean(0)
        np.testing.assert_allclose(mean, data.mean(0), atol=0.12)


def test_too_many_hidden_units_name_the_way_out():
    machine = BoltzmannMachine(np.zeros((30, 30)), np.zeros(30), num_visible=5)
    with pytest.raises(ValueError, match='positive="clamped" or "mean_field"'):
        machine.energy(np.zeros(5, int))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ContrastiveDivergence(positive="exact"), "one of .*'clamped'.*got 'exact'"),
        (
            lambda: PersistentContrastiveDivergence(positive="clamped", num_positive_steps=0),
            "PersistentContrastiveDivergence: expected `num_positive_steps`",
        ),
        (
            lambda: ContrastiveDivergence(positive="mean_field")._positive(
                jax.random.key(0), RBM(np.zeros((3, 2)), np.zeros(3), np.zeros(2)), ROWS
            ),
            'RBM has no mean field.*Use "energy"',
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
