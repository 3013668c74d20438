from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from helpers import BruteForce, energy
from loss_models import recorder
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta
from registry import UNITS, dyadic

from numpyro_ebm import (
    RBM,
    ContrastiveDivergence,
    Ising,
    PersistentContrastiveDivergence,
    persistent_chains,
    units,
)

LINEAR = ("Bernoulli", "Spin", "Categorical")
OTHERS = ("Gaussian", "Poisson")
PAIRS = [("Bernoulli", "Bernoulli"), ("Spin", "Bernoulli"), ("Categorical", "Spin")]
NUM_ROWS, NUM_CHAINS = 9, 5


def build(visible, hidden, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    layers = [UNITS[kind].make(rng, n, dtype) for kind, n in ((visible, 3), (hidden, 2))]
    shape = layers[0].feature_shape + layers[1].feature_shape
    return RBM(jnp.asarray(dyadic(rng.normal(0, 0.8, shape)), dtype), *layers)


def values_of(rbm):
    layers = {"visible": rbm.visible_units, "hidden": rbm.hidden_units}
    biases = {name: getattr(unit, unit.fields[0]) for name, unit in layers.items()}
    return {"weights": rbm.weights, **biases}


def model_of(rbm, *, num_chains=None, plate=None):
    """A model whose parameters are all those of the RBM."""
    kinds = type(rbm.visible_units), type(rbm.hidden_units)

    def model(data):
        params = {name: numpyro.param(name, value) for name, value in values_of(rbm).items()}
        layers = [
            kind(params[name]) for kind, name in zip(kinds, ("visible", "hidden"), strict=True)
        ]
        trained = RBM(params["weights"], *layers)
        if num_chains:
            persistent_chains("chains", num_chains, trained)
        with numpyro.plate("rows", plate or len(data), subsample_size=len(data)):
            numpyro.sample("v", trained, obs=data)

    return model


def gradient_of(loss, model, data):
    """The gradient that the optimizer sees, and the chains after the update."""
    svi = SVI(model, lambda data: None, recorder(), loss)
    state, _ = jax.jit(svi.update)(svi.init(jax.random.key(1), data), data)
    chains = state.mutable_state and state.mutable_state["chains"]["chain"].visible
    return state.optim_state[1][1], chains


def statistics(rbm, value):
    """Means of v h^T, v and h over the rows, in NumPy, h being its expectation."""
    v = np.asarray(rbm.visible_units.features(value))
    h = np.asarray(jax.vmap(lambda x: rbm.hidden_units.mean(x))(v @ rbm.weight_matrix))
    return v.T @ h / len(v), v.mean(0), h.mean(0)


def reference(rbm, data, negative, gradient):
    """Ascent directions by the formulas of the papers, from the moments of both phases."""
    (vh_d, v_d, h_d), (vh_m, v_m, h_m) = statistics(rbm, data), statistics(rbm, negative)
    if gradient == "enhanced":  # Cho, Raiko & Ilin: a difference of covariances
        weights = (vh_d - np.outer(v_d, h_d)) - (vh_m - np.outer(v_m, h_m))
        mu, center = (v_d + v_m) / 2, (h_d + h_m) / 2
    else:  # Montavon & Muller: moments of units less the offsets
        mu, center = v_d, h_d

        def centered(vh, v, h):
            return vh - np.outer(mu, h) - np.outer(v, center) + np.outer(mu, center)

        weights = centered(vh_d, v_d, h_d) - centered(vh_m, v_m, h_m)
    return {
        "weights": weights,
        "visible": v_d - v_m - weights @ center,
        "hidden": h_d - h_m - weights.T @ mu,
    }


def assert_gradient(actual, expected, scale):
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name],
            -scale * value.reshape(actual[name].shape),
            rtol=1e-6,
            atol=1e-9,
            err_msg=name,
        )


@pytest.mark.parametrize("gradient", ["centered", "enhanced"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_pcd_gradient_is_that_of_the_papers(pair, gradient):
    with jax.enable_x64(True):
        rbm = build(*pair)
        data = rbm.init_chain(jax.random.key(0), (NUM_ROWS,)).visible
        model = model_of(rbm, num_chains=NUM_CHAINS, plate=4 * NUM_ROWS)
        loss = PersistentContrastiveDivergence(gradient=gradient)
        actual, chains = gradient_of(loss, model, data)
        expected = reference(rbm, data, chains, gradient)
        assert_gradient(actual, expected, 4 * NUM_ROWS)


class Flip:
    """A kernel that turns every unit over."""

    def init(self, value, target):
        return value

    def step(self, rng_key, state, target):
        return 1 - state, None

    def value(self, state, target):
        return state


@pytest.mark.parametrize("gradient", ["centered", "enhanced"])
def test_cd_gradient_counts_only_rows_that_are_not_masked(gradient):
    with jax.enable_x64(True):
        rbm, keep = build("Bernoulli", "Spin"), np.arange(NUM_ROWS) % 3 != 0
        data = np.asarray(rbm.init_chain(jax.random.key(0), (NUM_ROWS,)).visible)
        loss = ContrastiveDivergence(kernel=Flip(), gradient=gradient)
        actual, _ = gradient_of(loss, handlers.mask(model_of(rbm), jnp.asarray(keep)), data)
        assert_gradient(actual, reference(rbm, data[keep], 1 - data[keep], gradient), keep.sum())


@pytest.mark.slow
def test_plain_is_the_default():
    rbm = build("Bernoulli", "Bernoulli", dtype="float32")
    data = rbm.init_chain(jax.random.key(0), (NUM_ROWS,)).visible
    plain, named = (
        gradient_of(loss, model_of(rbm), data)[0]
        for loss in (ContrastiveDivergence(2), ContrastiveDivergence(2, gradient="plain"))
    )
    jax.tree.map(np.testing.assert_array_equal, plain, named)


def test_the_maximum_of_the_likelihood_stays():
    """Chains on every state with its probability: the gradient vanishes at data so distributed."""
    with jax.enable_x64(True):
        rbm = build("Bernoulli", "Bernoulli")
        brute = BruteForce(rbm)
        states = jnp.asarray(brute.visible.values)

        def expected(gradient, rbm, frequency):
            model = jax.lax.stop_gradient(rbm)
            offsets = [jnp.asarray(frequency) @ rows for rows in model.mean_features(states)]
            if gradient == "centered":
                rbm = rbm.with_centered_gradient(*offsets)
            return (frequency - brute.probs) @ rbm.energy(states)

        grad = jax.grad(expected, argnums=1)
        for frequency, vanishes in ((brute.probs, True), (np.full(8, 1 / 8), False)):
            for gradient in ("plain", "centered"):
                leaves = jax.tree.leaves(grad(gradient, rbm, frequency))
                assert (max(np.abs(leaf).max() for leaf in leaves) < 1e-12) == vanishes


@pytest.mark.slow
def test_training_by_scan_raises_the_likelihood():
    rows = jnp.tile(jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]]), (10, 1))
    rbm = RBM(0.1 * jax.random.normal(jax.random.key(1), (6, 2)), jnp.zeros(6), jnp.zeros(2))
    model = model_of(rbm, num_chains=50)
    loss = PersistentContrastiveDivergence(gradient="centered")
    svi = SVI(model, lambda data: None, optax.sgd(0.01), loss)
    params = svi.run(jax.random.key(0), 100, rows, progress_bar=False).params

    def log_likelihood(weights, visible, hidden):
        return RBM(weights, visible, hidden, normalizer="exact").log_prob(rows).mean()

    assert log_likelihood(**params) > log_likelihood(**values_of(rbm)) + 1


# ----- centered parameters -----------------------------------------------------------------


@pytest.mark.parametrize("hidden", LINEAR)
@pytest.mark.parametrize("visible", LINEAR)
def test_energies_of_centered_parameters(visible, hidden):
    with jax.enable_x64(True):
        given, rng = build(visible, hidden), np.random.default_rng(1)
        layers = given.visible_units, given.hidden_units
        mu, center = (rng.uniform(0, 1, unit.feature_shape) for unit in layers)
        rbm = RBM.from_centered(given.weights, *layers, mu, center)
        brute = BruteForce(given)
        v, h = brute.visible.values, brute.hidden.values
        states = [x.ravel() for x in np.meshgrid(range(len(v)), range(len(h)))]
        actual = np.asarray(rbm.joint_energy(v[states[0]], h[states[1]]))
    v, h = brute.visible.features[states[0]], brute.hidden.features[states[1]]
    coupling = ((v - mu.ravel()) @ brute.weights * (h - center.ravel())).sum(1)
    own = brute.visible.energy[states[0]] + brute.hidden.energy[states[1]]
    np.testing.assert_allclose(np.ptp(actual - (own - coupling)), 0, atol=1e-12)


def test_energies_of_centered_parameters_of_other_units():
    """Gaussian and Poisson units stand in the constant field that the offsets make."""
    rng = np.random.default_rng(3)
    visible = units.Concatenate([UNITS[kind].make(rng, 2, "float32") for kind in OTHERS])
    hidden = UNITS["Bernoulli"].make(rng, 2, "float32")
    weights, mu, center = rng.normal(size=(4, 2)), rng.normal(size=4), rng.uniform(size=2)
    rbm = RBM.from_centered(weights, visible, hidden, mu, center)
    v = np.array([[0.5, -1, 0, 3], [1.5, 2, 2, 0], [-0.5, 0, 1, 1]], np.float32)
    h = np.array([[0, 1], [1, 1], [1, 0]])
    coupling = ((v - mu) @ weights * (h - center)).sum(1)
    expected = energy(visible, v) + energy(hidden, h) - coupling
    actual = np.asarray(rbm.joint_energy(v, h))
    np.testing.assert_allclose(actual - actual[0], expected - expected[0], rtol=1e-5, atol=1e-5)


def test_a_number_is_an_offset_of_every_unit():
    one = RBM.from_centered(jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(2), 0.25, 0.5)
    every = RBM.from_centered(
        jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(2), jnp.full(4, 0.25), jnp.full(2, 0.5)
    )
    jax.tree.map(np.testing.assert_array_equal, one, every)
    np.testing.assert_array_equal(one.visible_units.logits, np.full(4, -1.0))
    np.testing.assert_array_equal(one.hidden_units.logits, np.full(2, -1.0))


def test_gradient_in_centered_parameters_is_the_centered_gradient():
    """With its offsets held fixed, one step in (W, b', c') is one centered step in (W, b, c)."""
    with jax.enable_x64(True):
        rbm = build("Bernoulli", "Bernoulli")
        values, states = values_of(rbm), jnp.asarray(BruteForce(rbm).visible.values)
        mu, center = jnp.array([0.2, 0.7, 0.5]), jnp.array([0.4, 0.9])

        def energy(weights, visible, hidden):
            return RBM.from_centered(weights, visible, hidden, mu, center).energy(states)[3]

        centered = {
            "weights": values["weights"],
            "visible": values["visible"] + values["weights"] @ center,
            "hidden": values["hidden"] + values["weights"].T @ mu,
        }
        grads = jax.grad(lambda p: energy(**p))(centered)
        moved = {  # how plain parameters move along these gradients
            "weights": grads["weights"],
            "visible": grads["visible"] - grads["weights"] @ center,
            "hidden": grads["hidden"] - grads["weights"].T @ mu,
        }
        same = jax.grad(lambda p: RBM(**p).with_centered_gradient(mu, center).energy(states)[3])(
            values
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), moved, same)


# ----- what is refused ---------------------------------------------------------------------

CENTERED = ContrastiveDivergence(gradient="centered")
BINARY = jnp.eye(3, dtype=jnp.uint8)


def with_prior(data):
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    rbm = RBM(weights, numpyro.param("b", jnp.zeros(3)), numpyro.param("c", jnp.zeros(2)))
    numpyro.sample("v", rbm.expand([len(data)]), obs=data)


def with_factor(data):
    weights = numpyro.param("weights", jnp.ones((3, 2)))
    numpyro.factor("decay", -(weights**2).sum())
    rbm = RBM(weights, numpyro.param("b", jnp.zeros(3)), numpyro.param("c", jnp.zeros(2)))
    numpyro.sample("v", rbm.expand([len(data)]), obs=data)


def gaussian(data):
    visible = units.Gaussian(numpyro.param("b", jnp.zeros(3)))
    rbm = RBM(numpyro.param("weights", jnp.ones((3, 2))), visible, numpyro.param("c", jnp.zeros(2)))
    numpyro.sample("v", rbm, obs=data.astype(float))


def lattice(data):
    numpyro.sample("v", Ising.lattice((3,), numpyro.param("J", 0.1), 0.0), obs=2 * data - 1)


def batched(data):
    weights = numpyro.param("weights", jnp.ones((3, 3, 2)))
    rbm = RBM(weights, numpyro.param("b", jnp.zeros(3)), numpyro.param("c", jnp.zeros(2)))
    numpyro.sample("v", rbm, obs=data)


def partly_fixed(data):
    weights, bias = numpyro.param("weights", jnp.ones((3, 2))), numpyro.param("b", jnp.zeros(3))
    numpyro.sample("v", RBM(weights, bias, jnp.zeros(2)), obs=data[0])


REFUSED = {
    "prior": (with_prior, "without latent sites.*got 'weights'.*RBM.from_centered"),
    "factor": (with_factor, "without latent sites and factors.*got 'decay'"),
    "Gaussian units": (gaussian, "Bernoulli, Spin, Categorical or Poisson.*`visible` Gaussian"),
    "Ising": (lattice, 'Ising has no centered gradient.*gradient="plain"'),
    "batch": (batched, r"without batch dimensions; got batch shape \(3,\)"),
    "a bias that is not trained": (partly_fixed, "all trained.*hidden is constant"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(model, message):
    guide = AutoDelta(model) if model is with_prior else lambda data: None
    svi = SVI(model, guide, optax.sgd(0.1), CENTERED)
    state = svi.init(jax.random.key(0), BINARY)
    with pytest.raises(ValueError, match=message):
        jax.jit(svi.update)(state, BINARY)


@pytest.mark.parametrize("loss", [ContrastiveDivergence, PersistentContrastiveDivergence])
def test_unknown_gradient(loss):
    with pytest.raises(ValueError, match=f"{loss.__name__}: expected `gradient`.*got 'natural'"):
        loss(gradient="natural")


def test_offsets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`visible_offset` to be one number or of shape \(4,\)"):
        RBM.from_centered(jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(2), jnp.zeros(3), 0.5)
