"""Boltzmann machines with hidden units: free energy, conditionals, chains."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from helpers import assert_moments
from numpyro.infer import SVI
from pairwise_models import Brute, bonds_of, brute, field_of, random_matrix
from scipy.special import logsumexp

import numpyro_ebm as ebm
from numpyro_ebm.distributions import hidden as hidden_units

MATRIX, BIAS = random_matrix(12, 7), field_of(13, 7)


def machine(**kwargs):
    """Four visible and three hidden units, all coupled."""
    return ebm.BoltzmannMachine(MATRIX, BIAS, num_visible=4, **kwargs)


@pytest.fixture
def persistent(monkeypatch):
    """Three hidden units are too many to be drawn together."""
    jax.clear_caches()
    monkeypatch.setattr(hidden_units, "_JOINT_DRAW", 2)
    yield
    jax.clear_caches()


@pytest.fixture(params=["drawn together", "persistent"])
def either(request):
    """Hidden units drawn together, or kept from sweep to sweep."""
    if request.param == "persistent":
        request.getfixturevalue("persistent")
    return request.param


def conditional_of(value):
    """Hidden states and their probabilities given visible values."""
    answer = brute("BM hidden")
    states = np.array(list(np.ndindex(2, 2, 2)))
    log_weights = -answer.joint_energy(np.column_stack([np.tile(value, (8, 1)), states]))
    return states, np.exp(log_weights - logsumexp(log_weights))


def test_joint_energy():
    answer = brute("BM hidden")
    visible, hidden = answer.states[:, :4], answer.states[:, 4:]
    energy = machine().joint_energy(visible, hidden)
    np.testing.assert_allclose(energy, answer.joint_energies, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("either")
def test_sample_hidden():
    model, value = machine(), np.array([1, 0, 1, 1])
    rows = np.tile(value, (20_000, 1))
    draws = model.sample_hidden(jax.random.key(0), rows, num_sweeps=30)
    states, probs = conditional_of(value)
    pairs = np.array([(0, 1), (0, 2), (1, 2)]).T
    draws = np.asarray(draws)
    sampled = np.column_stack([draws, draws[:, pairs[0]] * draws[:, pairs[1]]])
    expected = probs @ np.column_stack([states, states[:, pairs[0]] * states[:, pairs[1]]])
    assert_moments(sampled, expected)


@pytest.mark.usefixtures("either")
def test_clamped_chains():
    """All visible units clamped: hidden ones from p(h | v); one clamped: the rest given it."""
    model, value = machine(), jnp.array([0, 1, 1, 0])
    chain = model.init_chain(jax.random.key(0), (20_000,))

    def run(chain, mask):
        def sweep(i, chain):
            key = jax.random.fold_in(jax.random.key(1), i)
            return model.gibbs_step(key, chain, mask=mask, values=value)

        return jax.lax.fori_loop(0, 30, sweep, chain)

    held = run(chain, jnp.ones(4, bool))
    np.testing.assert_array_equal(held.visible, np.tile(value, (20_000, 1)))
    states, probs = conditional_of(np.asarray(value))
    assert_moments(np.asarray(held.hidden), probs @ states)
    answer, one = brute("BM hidden"), jnp.array([False, True, False, False])
    draws = np.asarray(run(chain, one).visible)
    probs = answer.probs * (answer.visible[:, 1] == 1)
    assert np.all(draws[:, 1] == 1)
    assert_moments(draws, probs / probs.sum() @ answer.visible)


@pytest.mark.usefixtures("persistent")
def test_no_drift_of_persistent_hidden_units():
    """With too many hidden units to draw together, exact joint starts stay exact."""
    model, answer = machine(), brute("BM hidden")

    rng = np.random.default_rng(0)
    start = answer.states[rng.choice(128, 20_000, p=answer.joint_probs)].astype(np.uint8)
    chain, step = model.as_chain(jnp.asarray(start)), jax.jit(model.gibbs_step)
    for i in range(5):
        chain = step(jax.random.key(i), chain)
    before, after = start.astype(float), np.concatenate(chain, -1).astype(float)
    pairs = [np.einsum("ci,cj->cij", x, x).reshape(len(x), -1) for x in (before, after)]
    for rows in (after - before, pairs[1] - pairs[0]):
        assert np.all(np.abs(rows.mean(0)) < 4 * rows.std(0) / len(rows) ** 0.5)


@pytest.mark.usefixtures("either")
def test_ais_over_hidden_units():
    estimate = ebm.evidence.ais(
        jax.random.key(3), machine(), num_temperatures=200, num_particles=1000
    )
    assert abs(estimate.log_evidence - brute("BM hidden").log_z) < 4 * estimate.std_error


@pytest.mark.usefixtures("persistent")
def test_hidden_states_belong_to_the_weights():
    """A kernel on visible units alone would lose them, so it is refused."""
    model = machine()
    with pytest.raises(ValueError, match="kernel=None"):
        model.default_path(jax.random.key(0)).at(0.5).chain_at(jnp.zeros((3, 4), jnp.uint8))
    chain = model.chain_at(jnp.zeros((3, 4), jnp.uint8))
    assert chain.hidden.shape == (3, 3)


@pytest.mark.slow
def test_kernel_on_visible_units_along_a_path():
    estimate = ebm.evidence.ais(
        jax.random.key(4),
        machine(),
        kernel=ebm.kernels.GibbsSweeps(),
        num_temperatures=203,
        num_particles=1000,
    )
    assert abs(estimate.log_evidence - brute("BM hidden").log_z) < 4 * estimate.std_error


def test_free_energy_of_many_hidden_units():
    """Summed in chunks, in agreement with hidden units that are not coupled to each other."""
    num_visible, num_hidden = 3, 18
    weights = field_of(60, num_visible, num_hidden)
    matrix = np.zeros((21, 21))
    matrix[:3, 3:], matrix[3:, :3] = weights, weights.T
    bias = field_of(61, 21)
    values = np.array(list(np.ndindex(2, 2, 2)))
    model = ebm.BoltzmannMachine(matrix, bias, num_visible=3)
    expected = -values @ bias[:3] - np.logaddexp(0, bias[3:] + values @ weights).sum(1)
    np.testing.assert_allclose(model.energy(values), expected, rtol=1e-5)


def test_too_many_hidden_units():
    model = ebm.BoltzmannMachine(np.zeros((30, 30)), np.zeros(30), num_visible=5)
    with pytest.raises(ValueError, match="at most 20 hidden .* got 25. Use `joint_energy"):
        model.log_prob(np.zeros(5, int))
    chain = model.gibbs_step(jax.random.key(0), model.init_chain(jax.random.key(0), (2,)))
    assert model.chain_energy(chain).shape == (2,)
    assert model.sample_hidden(jax.random.key(1), np.zeros((2, 5), int), 3).shape == (2, 25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: machine().joint_energy(np.zeros(4, int), np.zeros(2, int)), r"\(..., 3\)"),
        (lambda: machine().joint_energy(np.zeros(4, int), np.full(3, 7)), "`hidden` in the supp"),
        (lambda: ebm.BoltzmannMachine(MATRIX, BIAS, num_visible=8), "from 1 to the number"),
        (lambda: ebm.BoltzmannMachine(MATRIX, BIAS, num_visible=0), "from 1 to the number"),
        (
            lambda: ebm.BoltzmannMachine(MATRIX, BIAS).joint_energy(np.zeros(7), np.zeros(0)),
            "expected hidden units",
        ),
        (lambda: ebm.BoltzmannMachine(MATRIX, BIAS).sample_hidden(None, None), "expected hidden"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_all_visible_is_plain():
    model = ebm.BoltzmannMachine(MATRIX, BIAS, num_visible=7)
    assert model.num_hidden == 0
    answer = Brute("binary", (7,), bonds_of(MATRIX), BIAS)
    np.testing.assert_allclose(model.energy(answer.states), answer.energies, rtol=1e-5, atol=1e-5)


# ----- learning ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_visible", [None, 4])
@pytest.mark.parametrize("persists", [True, False])
def test_contrastive_losses_learn(persists, num_visible):
    """Independent units that are mostly on: their mean is learnt."""
    data = np.random.default_rng(0).random((50, 4)) < 0.9

    def model(data):
        size = 4 if num_visible is None else 6
        couplings = numpyro.param("couplings", jnp.zeros((size, size)))
        bias = numpyro.param("bias", jnp.zeros(size))
        machine = ebm.BoltzmannMachine(couplings, bias, num_visible=num_visible)
        if persists:
            ebm.persistent_chains("chains", 50, machine)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", machine, obs=data)

    loss = ebm.PersistentContrastiveDivergence() if persists else ebm.ContrastiveDivergence()
    svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.05), loss)
    result = svi.run(jax.random.key(0), 300, data.astype(np.int32), progress_bar=False)
    learnt = ebm.BoltzmannMachine(
        result.params["couplings"], result.params["bias"], num_visible=num_visible
    )
    np.testing.assert_array_equal(np.diagonal(result.params["couplings"]), 0)
    mean = learnt.sample(jax.random.key(1), (4000,)).mean(0)
    np.testing.assert_allclose(mean, data.mean(0), atol=0.12)


@pytest.mark.slow
def test_lattice_learns_its_coupling():
    """PCD on a lattice recovers the coupling that made the data."""
    truth = ebm.Ising.lattice((3, 3), 0.3)
    data = truth.sample(jax.random.key(0), (400,))

    def model(data):
        ising = ebm.Ising.lattice((3, 3), numpyro.param("coupling", jnp.zeros(())))
        ebm.persistent_chains("chains", 200, ising)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("s", ising, obs=data)

    svi = SVI(
        model, lambda data: None, numpyro.optim.Adam(0.01), ebm.PersistentContrastiveDivergence()
    )
    result = svi.run(jax.random.key(0), 300, data, progress_bar=False)
    assert abs(result.params["coupling"] - 0.3) < 0.05
