"""Deep belief networks against sums over all states in NumPy, their draws, chains and refusals."""

import pickle

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from deep_networks import NETWORKS, enumerated, joint_hidden, log_z, machine, network
from helpers import assert_moments, layer
from numpyro.infer import MCMC, Predictive

from numpyro_ebm import DBN, RBM, BlockGibbs, BoltzmannMachine, NormalizerError, evidence
from numpyro_ebm.units import Bernoulli

KEY = jax.random.key(0)
EACH = pytest.mark.parametrize("dbn", NETWORKS.values(), ids=NETWORKS)
DISCRETE = {name: dbn for name, dbn in NETWORKS.items() if dbn.is_discrete}
EACH_DISCRETE = pytest.mark.parametrize("dbn", DISCRETE.values(), ids=DISCRETE)
TWO = NETWORKS["two"]


def values(dbn):
    """All visible states, or some draws of continuous ones."""
    if dbn.is_discrete:
        return layer(dbn.layers[0].visible_units).values
    return np.asarray(dbn.sample(KEY, (10,)))


def probabilities(dbn):
    """Of all visible states."""
    return np.exp(-enumerated(dbn, values(dbn))[0] - log_z(dbn))


# ----- densities -----------------------------------------------------------------------------


@EACH
def test_energies(dbn):
    x = values(dbn)
    np.testing.assert_allclose(dbn.energy(x), enumerated(dbn, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_energies_in_double_precision():
    with jax.enable_x64(True):
        dbn = network(
            ("Spin", 3), ("Bernoulli", 3), ("Categorical", 2), ("Spin", 2), dtype="float64"
        )
        x = values(dbn)
        energy = dbn.energy(x)
        assert energy.dtype == "float64"
        np.testing.assert_allclose(energy, enumerated(dbn, x)[0], rtol=1e-12)
        np.testing.assert_allclose(dbn.exact_log_z(), log_z(dbn), rtol=1e-12)


@EACH_DISCRETE
def test_probabilities_sum_to_one(dbn):
    exact = DBN(dbn.layers, normalizer="exact")
    np.testing.assert_allclose(jnp.exp(exact.log_prob(values(dbn))).sum(), 1, rtol=1e-5)
    known = DBN(dbn.layers, normalizer=evidence.exact(dbn).log_evidence)
    np.testing.assert_allclose(known.log_prob(values(dbn)), exact.log_prob(values(dbn)), rtol=1e-4)


def test_many_states_are_summed_in_parts():
    """2^14 states of the first hidden layer for 300 rows, against the sum over the visible ones."""
    lower = machine(("Bernoulli", 5), ("Bernoulli", 14), scale=0.3)
    top = machine(("Bernoulli", 14), ("Bernoulli", 3), scale=0.3)
    dbn = DBN([lower, top], normalizer="exact")
    x = layer(lower.visible_units).values
    np.testing.assert_allclose(jnp.exp(dbn.log_prob(np.tile(x, (10, 1)))).sum(), 10, rtol=1e-4)


def test_the_machine_upside_down_continues_it():
    lower = TWO.layers[0]
    dbn = DBN([lower, RBM(lower.weights.T, lower.hidden_units, lower.visible_units)])
    x = values(dbn)
    expected = lower.energy(x) + lower.exact_log_z()
    np.testing.assert_allclose(dbn.energy(x) + dbn.exact_log_z(), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["three", "kinds", "untied"])
def test_pieces_add_up(name):
    """Joint energies of all hidden states give the energy, and q sums to one."""
    dbn = NETWORKS[name]
    x, hidden = values(dbn)[:4], joint_hidden(dbn)
    joint = dbn.joint_energy(x, hidden)
    np.testing.assert_allclose(-jax.nn.logsumexp(-joint, axis=0), dbn.energy(x), rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(dbn.log_recognition(x, hidden)).sum(0), 1, rtol=1e-5)


@EACH
def test_bounds(dbn):
    x = values(dbn)
    energy, bound = enumerated(dbn, x)
    found = evidence.variational_bound(KEY, dbn, x, log_z=evidence.exact(dbn.top), num_samples=1000)
    error = abs(found.log_evidence - (bound.mean() - log_z(dbn)))
    assert error < 4 * max(found.std_error, 1e-6)
    assert np.all(bound < -energy + 1e-5)


# ----- parameters ----------------------------------------------------------------------------


def test_gradients_need_log_z():
    def log_prob(weights, normalizer):
        lower, top = TWO.layers
        top = RBM(weights, top.visible_units, top.hidden_units)
        return DBN([lower, top], normalizer=normalizer).log_prob(values(TWO)).sum()

    weights = TWO.layers[1].weights
    with pytest.raises(NormalizerError, match="layers"):
        jax.grad(log_prob)(weights, "guard")
    exact = jax.grad(log_prob)(weights, "exact")
    step = 1e-2 * np.random.default_rng(0).normal(size=weights.shape).astype(np.float32)
    change = log_prob(weights + step, "exact") - log_prob(weights - step, "exact")
    np.testing.assert_allclose(change, 2 * (exact * step).sum(), rtol=1e-2)


def test_it_is_a_pytree():
    for dbn in (NETWORKS["three"], NETWORKS["untied"]):
        x = values(dbn)
        leaves, treedef = jax.tree.flatten(dbn)
        for copy in (jax.tree.unflatten(treedef, leaves), pickle.loads(pickle.dumps(dbn))):
            assert copy.has_tied_recognition == dbn.has_tied_recognition
            found = jax.jit(lambda dbn, x: dbn.log_prob(x))(copy, x)
            np.testing.assert_allclose(found, dbn.log_prob(x), rtol=1e-5)


@pytest.mark.slow
def test_batches_are_their_members():
    lower, top = TWO.layers
    scales = jnp.array([0.0, 0.5, 1.0])

    def build(scale):
        shifted = Bernoulli(lower.visible_units.logits + scale)
        return DBN([RBM(scale * lower.weights, shifted, lower.hidden_units), top])

    weights, biases = scales[:, None, None] * lower.weights, lower.visible_units.logits
    lowers = RBM(weights, Bernoulli(biases + scales[:, None]), lower.hidden_units)
    batch = DBN([lowers, top], normalizer="exact")
    members = [build(scale) for scale in scales]
    x = values(TWO)
    expected = np.stack([member.energy(x) for member in members], 1)
    assert batch.batch_shape == (3,)
    np.testing.assert_allclose(batch.energy(x[:, None]), expected, rtol=1e-5)
    mapped = jax.vmap(lambda scale: build(scale).energy(x), out_axes=1)(scales)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)
    assert batch.sample(KEY, (5,)).shape == (5, 3, 4)
    assert batch.log_prob(batch.sample(KEY, (5,))).shape == (5, 3)
    draws = batch.sample(KEY, (4000,))
    for i, member in enumerate(members):
        assert_moments(draws[:, i], probabilities(member) @ x)


# ----- draws and chains ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["three", "kinds"])
def test_draws(name):
    dbn = NETWORKS[name]
    draws = np.asarray(dbn.sample(KEY, (4000,)))
    x, p = values(dbn), probabilities(dbn)
    assert_moments(draws, p @ x)
    assert_moments(draws[:, :1] * draws, p @ (x[:, :1] * x))


def test_chains_stay_where_they_are():
    """From exact draws of the top machine."""
    dbn = NETWORKS["kinds"]
    top = dbn.top.sample(KEY, (4000,))
    chain = dbn.init_chain(KEY, (4000,))._replace(top=dbn.top.chain_at(top))
    for i in range(3):
        chain = jax.jit(DBN.gibbs_step)(dbn, jax.random.key(i + 1), dbn.refresh(chain))
    assert_moments(np.asarray(dbn.visible(chain), float), probabilities(dbn) @ values(dbn))
    assert all(state.dtype.itemsize == 1 for state in chain.lower)
    found = dbn.chain_energy(chain)
    np.testing.assert_allclose(found, dbn.energy(dbn.visible(chain)), rtol=1e-5)


def test_chains_start_at_values():
    dbn = NETWORKS["three"]
    x = jnp.asarray(values(dbn))
    chain = dbn.chain_at(x)
    assert np.array_equal(dbn.visible(chain), x)
    assert [s.shape for s in dbn.layer_states(chain)] == [(16, 4), (16, 3), (16, 2)]
    hidden = dbn.sample_hidden(KEY, jnp.tile(x[3], (4000, 1)))
    expected = dbn.layers[0].conditional_hidden(x[3]).mean
    assert_moments(hidden[0], expected)


@pytest.mark.slow
def test_inside_numpyro():
    dbn = NETWORKS["two"]

    def model():
        numpyro.sample("x", dbn)

    mcmc = MCMC(
        BlockGibbs(model),
        num_warmup=20,
        num_samples=500,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(KEY, extra_fields=("energy",))
    summary = az.summary(az.from_numpyro(mcmc))
    error = summary["mean"].astype(float) - probabilities(dbn) @ values(dbn)
    assert np.all(np.abs(error) < 4 * summary["mcse_mean"].astype(float) + 0.006)
    assert Predictive(model, num_samples=3)(KEY)["x"].shape == (3, 4)


@pytest.mark.slow
def test_too_many_states():
    dbn = network(("Bernoulli", 3), ("Bernoulli", 21), ("Bernoulli", 2))
    with pytest.raises(NormalizerError, match="variational_bound"):
        dbn.energy(values(dbn))
    assert np.isnan(dbn.chain_energy(dbn.init_chain(KEY))).all()
    assert dbn.sample(KEY).shape == (3,)
    continuous = network(("Bernoulli", 3), ("Gaussian", 2), ("Bernoulli", 2))
    with pytest.raises(NormalizerError, match="discrete units.*Gaussian"):
        continuous.energy(values(continuous))
    log_z = evidence.exact(continuous)
    bound = evidence.variational_bound(KEY, continuous, values(continuous), log_z=log_z)
    assert bound.log_evidence < 0


def test_what_does_not_fit_is_refused():
    lower, top = TWO.layers
    with pytest.raises(ValueError, match="at least one RBM"):
        DBN([])
    with pytest.raises(TypeError, match="sequence of RBMs; got BoltzmannMachine"):
        DBN([lower, BoltzmannMachine(jnp.zeros((3, 3)), jnp.zeros(3))])
    with pytest.raises(ValueError, match="layer 1 to be of the kind and number"):
        DBN([lower, lower])
    with pytest.raises(ValueError, match="kind and number.*Spin"):
        DBN([lower, machine(("Spin", 3), ("Bernoulli", 2))])
    with pytest.raises(ValueError, match="`recognition` machines with weights"):
        DBN([lower, top], recognition=[top])
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 4\)"):
        TWO.energy(jnp.zeros(3))
    with pytest.raises(ValueError, match="support"):
        TWO.energy(2 * np.ones(4, int))
    with pytest.raises(ValueError, match="`hidden` to be a sequence"):
        TWO.joint_energy(jnp.zeros(4), [jnp.zeros(2)])
    with pytest.raises(ValueError, match="cannot hold visible units"):
        TWO.gibbs_step(KEY, TWO.init_chain(KEY), mask=np.ones(4, bool), values=np.ones(4))
    with pytest.raises(ValueError, match=r"dbn\.top"):
        evidence.ais(KEY, TWO)
