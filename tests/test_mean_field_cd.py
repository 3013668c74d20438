import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from helpers import features
from loss_models import no_guide, recorder
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta
from registry import UNITS, dyadic

from numpyro_ebm import (
    RBM,
    BoltzmannMachine,
    Ising,
    MeanFieldContrastiveDivergence,
    Potts,
    units,
)

NUM_ROWS, NUM_STEPS, DAMPING = 8, 3, 0.3
LOSS = MeanFieldContrastiveDivergence(NUM_STEPS, damping=DAMPING)
PAIRS = [
    (visible, hidden)
    for visible in ("Bernoulli", "Spin", "Categorical", "Gaussian")
    for hidden in ("Bernoulli", "Spin")
]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


MEAN = {
    "Bernoulli": lambda unit, field: sigmoid(np.asarray(unit.logits) + field),
    "Spin": lambda unit, field: np.tanh(np.asarray(unit.field) + field),
    "Gaussian": lambda unit, field: np.asarray(unit.loc) + np.asarray(unit.scale) ** 2 * field,
    "Categorical": lambda unit, field: softmax(
        np.asarray(unit.logits) + field.reshape(-1, *unit.logits.shape)
    ).reshape(len(field), -1),
}


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def mean(unit, field):
    return MEAN[type(unit).__name__](unit, field)


def energy_gradient(rbm, means, variance):
    """Derivatives of the energies of independent visible units, summed over rows, in NumPy."""
    weights = np.asarray(rbm.weight_matrix)
    hidden = mean(rbm.hidden_units, means @ weights)
    gradient = {"weights": -means.T @ hidden, "hidden": -hidden.sum(0)}
    if type(rbm.visible_units).__name__ != "Gaussian":
        return {**gradient, "visible": -means.sum(0)}
    loc, scale = (np.asarray(x) for x in (rbm.visible_units.loc, rbm.visible_units.scale))
    away = means - loc
    gradient["visible"] = -(away / scale**2).sum(0)
    return {**gradient, "scale": -((away**2 + variance) / scale**3).sum(0)}


def reconstructed(rbm, means):
    weights = np.asarray(rbm.weight_matrix)
    for _ in range(NUM_STEPS):
        hidden = mean(rbm.hidden_units, means @ weights)
        new = mean(rbm.visible_units, hidden @ weights.T)
        means = DAMPING * means + (1 - DAMPING) * new
    return means


def build(visible, hidden, dtype="float32"):
    rng = np.random.default_rng(3)
    layers = [UNITS[kind].make(rng, n, dtype) for kind, n in ((visible, 3), (hidden, 2))]
    shape = layers[0].feature_shape + layers[1].feature_shape
    return RBM(jnp.asarray(dyadic(rng.normal(0, 0.9, shape)), dtype), *layers)


def gradient_of(model, data, loss=LOSS, guide=no_guide):
    svi = SVI(model, guide, recorder(), loss)
    state, value = jax.jit(svi.update)(svi.init(jax.random.key(0), data), data)
    return state.optim_state[1][1], value


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_gradient_of_an_rbm(pair):
    """Half of the plate's rows, of which some are masked."""
    with jax.enable_x64(True):
        rbm, keep = build(*pair, "float64"), np.arange(NUM_ROWS) % 3 != 0
        visible, hidden = rbm.visible_units, rbm.hidden_units

        def model(data):
            parameters = {"visible": getattr(visible, visible.fields[0])}
            if pair[0] == "Gaussian":
                parameters["scale"] = visible.scale
            own = [numpyro.param(name, value) for name, value in parameters.items()]
            biases = numpyro.param("hidden", getattr(hidden, hidden.fields[0]))
            trained = RBM(
                numpyro.param("weights", rbm.weights), type(visible)(*own), type(hidden)(biases)
            )
            with numpyro.plate("rows", 2 * NUM_ROWS, subsample_size=len(data)):
                numpyro.sample("v", trained, obs=data)

        data = rbm.init_chain(jax.random.key(1), (NUM_ROWS,)).visible
        gradient, _ = gradient_of(handlers.mask(model, jnp.asarray(keep)), data)
        positive = features(visible, data)[keep]
        negative = reconstructed(rbm, positive)
        variance = np.asarray(visible.scale) ** 2 if pair[0] == "Gaussian" else 0
        phases = energy_gradient(rbm, positive, 0), energy_gradient(rbm, negative, variance)
    assert gradient.keys() == phases[0].keys()
    for name in gradient:
        expected = 2 * (phases[0][name] - phases[1][name])
        np.testing.assert_allclose(
            np.asarray(gradient[name]).ravel(), expected.ravel(), rtol=1e-8, atol=1e-10
        )


@pytest.mark.slow
def test_value_is_the_difference_of_energies():
    rbm = build("Bernoulli", "Bernoulli")
    data = rbm.init_chain(jax.random.key(1), (NUM_ROWS,)).visible

    def model(data):
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", RBM(numpyro.param("weights", rbm.weights), *layers), obs=data)

    layers = rbm.visible_units, rbm.hidden_units
    _, value = gradient_of(model, data)

    def energy(means):
        field = means @ np.asarray(rbm.weights) + np.asarray(rbm.hidden_units.logits)
        return -means @ np.asarray(rbm.visible_units.logits) - np.logaddexp(0, field).sum(1)

    means = np.asarray(data, float)
    expected = (energy(means) - energy(reconstructed(rbm, means))).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def couplings(seed=0, size=5):
    matrix = np.triu(np.random.default_rng(seed).normal(0, 0.6, (size, size)), 1)
    return jnp.asarray(matrix + matrix.T), jnp.asarray(np.linspace(-0.5, 0.5, size))


@pytest.mark.parametrize("kind", [Ising, BoltzmannMachine])
def test_gradient_of_a_pairwise_model(kind):
    with jax.enable_x64(True):
        matrix, field = couplings()

        def model(data):
            trained = kind(numpyro.param("couplings", matrix), numpyro.param("field", field))
            with numpyro.plate("rows", len(data)):
                numpyro.sample("x", trained, obs=data)

        data = kind(matrix, field).sample(jax.random.key(0), (NUM_ROWS,))
        gradient, _ = gradient_of(model, data)
        means = positive = np.asarray(data, float)
        squash = np.tanh if kind is Ising else sigmoid
        for _ in range(NUM_STEPS):
            new = squash(means @ np.asarray(matrix) + np.asarray(field))
            means = DAMPING * means + (1 - DAMPING) * new
    products = (means.T @ means - positive.T @ positive) / 2
    np.fill_diagonal(products, 0)
    np.testing.assert_allclose(gradient["couplings"], products, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(gradient["field"], (means - positive).sum(0), rtol=1e-8, atol=1e-10)


def test_one_update_on_a_lattice():
    lattice = Ising.lattice((3, 4), 0.3, 0.1)
    value = np.asarray(lattice.init_chain(jax.random.key(0)))
    neighbours = sum(np.roll(value, shift, axis) for shift in (1, -1) for axis in (0, 1))
    means = lattice.mean_field_step(lattice.mean_field_start(jnp.asarray(value)))
    np.testing.assert_allclose(means, np.tanh(0.3 * neighbours + 0.1), rtol=1e-5)


@pytest.mark.slow
def test_parts_of_a_concatenation():
    """Energy and update of independent layers side by side are those of each."""
    one, two = build("Gaussian", "Bernoulli"), build("Categorical", "Spin")
    weights = np.zeros((12, 4), np.float32)
    weights[:3, :2], weights[3:, 2:] = one.weight_matrix, two.weight_matrix
    layers = [
        units.Concatenate([getattr(rbm, side) for rbm in (one, two)])
        for side in ("visible_units", "hidden_units")
    ]
    both = RBM(weights, *layers)
    parts = [rbm.init_chain(jax.random.key(1), (NUM_ROWS,)).visible for rbm in (one, two)]
    means = both.mean_field_step(both.mean_field_start(jnp.concatenate(parts, -1)))
    starts = [rbm.mean_field_start(value) for rbm, value in zip((one, two), parts, strict=True)]
    alone = [rbm.mean_field_step(x) for rbm, x in zip((one, two), starts, strict=True)]
    np.testing.assert_allclose(means, np.concatenate(alone, -1), rtol=1e-5)
    energies = [rbm.mean_field_energy(x) for rbm, x in zip((one, two), alone, strict=True)]
    np.testing.assert_allclose(both.mean_field_energy(means), sum(energies), rtol=1e-4)


@pytest.mark.slow
def test_prior_and_particles_and_scan():
    rows = jnp.tile(jnp.array([[1, 1, 0, 0], [1, 1, 0, 1]]), (10, 1))

    def model(data):
        weights = numpyro.sample("weights", dist.Normal(0, 1).expand([4, 2]).to_event(2))
        bias = numpyro.param("bias", jnp.zeros(4))
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", RBM(weights, bias, jnp.zeros(2)), obs=data)

    loss = MeanFieldContrastiveDivergence(num_particles=2)
    svi = SVI(model, AutoDelta(model), optax.adam(0.05), loss)
    result = svi.run(jax.random.key(0), 100, rows, progress_bar=False)
    rbm = RBM(result.params["weights_auto_loc"], result.params["bias"], jnp.zeros(2))
    log_z = rbm.exact_log_z()
    assert (-rbm.energy(rows) - log_z).mean() > -4 * np.log(2)
    assert np.isfinite(svi.evaluate(result.state, rows))


def potts(data):
    numpyro.sample("x", Potts.lattice((3,), numpyro.param("J", 0.1), 3), obs=data)


def with_hidden(data):
    matrix, bias = couplings()
    machine = BoltzmannMachine(numpyro.param("J", matrix), bias, num_visible=3)
    numpyro.sample("x", machine, obs=data)


def rectified(data):
    rbm = RBM(-jnp.ones((3, 2)), units.ReLU(numpyro.param("loc", jnp.zeros(3))), jnp.zeros(2))
    numpyro.sample("x", rbm, obs=data.astype(float))


REFUSED = {
    "Potts": (potts, "Potts has no mean-field updates.*ContrastiveDivergence"),
    "hidden": (with_hidden, "BoltzmannMachine has no mean-field updates"),
    "ReLU": (rectified, "Bernoulli, Spin, Categorical or Gaussian `visible` units; got ReLU"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(model, message):
    with pytest.raises(ValueError, match=message):
        gradient_of(model, jnp.eye(3, dtype=jnp.uint8))


@pytest.mark.parametrize("damping", [-0.1, 1.0, "much"])
def test_damping_out_of_range(damping):
    with pytest.raises(ValueError, match="`damping` from 0 to less than 1; got"):
        MeanFieldContrastiveDivergence(damping=damping)
