"""Energies, log Z and draws of pairwise models against sums over all states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drift import statistics
from helpers import assert_close, assert_moments
from pairwise_models import CASES, Brute, bonds_of, brute, field_of, lattice_bonds, random_matrix

import numpyro_ebm as ebm

X64 = pytest.mark.parametrize("dtype", ["float32", "float64"])
NAMES = pytest.mark.parametrize("name", list(CASES))


@jax.jit
def energy_and_log_z(model, values):
    return model.energy(values), model.exact_log_z()


@X64
@NAMES
def test_energy_and_log_z(name, dtype):
    answer = brute(name)
    with jax.enable_x64(dtype == "float64"):
        model = CASES[name].build(dtype)
        energy, log_z = energy_and_log_z(model, answer.events())
        assert_close(energy, answer.energies, dtype)
        assert_close(log_z, answer.log_z, dtype)
    assert model.event_shape == answer.event_shape


@pytest.mark.parametrize("name", ["BM hidden", "Ising 2x3 anisotropic", "Potts 2x3 free"])
def test_exact_draws(name):
    model, answer = CASES[name].build(), brute(name)
    draws = np.asarray(jax.jit(model.sample, static_argnums=1)(jax.random.key(1), (20_000,)))
    labels = len(answer.values) if answer.kind == "Potts" else None
    expected = answer.probs @ statistics(answer.events(), answer.energies, labels)
    sampled = statistics(draws, model.energy(draws), labels)
    assert_moments(sampled, expected)


@pytest.mark.slow
def test_energy_of_integers_and_floats_agree():
    """Integer values take the path of exact counts, floating ones that of shifted sums."""
    for name in ("Ising 3x3", "Ising 2x2x3", "BM dense", "Ising 2x3 anisotropic"):
        model, values = CASES[name].build(validate_args=False), brute(name).events()
        whole = model.energy(values.astype(np.int8))
        np.testing.assert_allclose(model.energy(values.astype(np.float32)), whole, rtol=1e-6)
        slope = jax.grad(lambda x, model=model: model.energy(x))(values[3].astype(np.float32))
        field = np.asarray(model.local_field(jnp.asarray(values[3], jnp.float32)))
        np.testing.assert_allclose(slope, -field, rtol=1e-5, atol=1e-6)


def test_log_z_has_the_moments_as_gradient():
    matrix, bias = random_matrix(10, 6), field_of(11, 6)
    answer = brute("BM dense")

    def log_z(matrix, bias):
        return ebm.evidence.exact(ebm.BoltzmannMachine(matrix, bias)).log_evidence

    slopes = jax.grad(log_z, argnums=(0, 1))(jnp.asarray(matrix), jnp.asarray(bias))
    second = answer.states.T @ (answer.joint_probs[:, None] * answer.states)
    np.fill_diagonal(second, 0)
    np.testing.assert_allclose(slopes[0], second / 2, rtol=1e-4, atol=1e-5)  # J_ij and J_ji
    np.testing.assert_allclose(slopes[1], answer.joint_probs @ answer.states, rtol=1e-4)


def test_log_z_is_chunked():
    """2^18 states are summed in several chunks."""
    shape, coupling = (3, 6), 0.25
    log_z = ebm.evidence.exact(ebm.Ising.lattice(shape, coupling, 0.125)).log_evidence
    answer = Brute("spin", shape, lattice_bonds(shape, coupling), np.full(18, 0.125))
    np.testing.assert_allclose(log_z, answer.log_z, rtol=1e-12)


def test_too_many_states():
    model = ebm.Ising.lattice((64, 64), 0.3, normalizer="exact")
    with pytest.raises(ebm.NormalizerError, match=r"Ising: expected at most 1048576 .* 2\^4096"):
        model.log_prob(jnp.ones((64, 64), int))


# ----- batches -----------------------------------------------------------------------------


@pytest.mark.slow
def test_batch_of_dense_couplings():
    matrices = np.stack([random_matrix(s, 4) for s in (50, 51)])[:, None]
    fields = field_of(52, 3, 4)
    model = ebm.Ising(matrices, fields, normalizer="exact")
    assert model.batch_shape == (2, 3)
    states = Brute("spin", (4,), [], np.zeros(4)).states
    log_prob = model.log_prob(states[:, None, None])
    draws = model.sample(jax.random.key(0), (4000,))
    chain = model.gibbs_step(jax.random.key(1), model.chain_at(draws))
    assert draws.shape == chain.shape == (4000, 2, 3, 4)
    for i, j in np.ndindex(2, 3):
        answer = Brute("spin", (4,), bonds_of(matrices[i, 0]), fields[j])
        expected = -answer.energies - answer.log_z
        np.testing.assert_allclose(log_prob[:, i, j], expected, rtol=1e-4, atol=1e-5)
        moments = answer.probs @ statistics(answer.states, answer.energies)
        for values in (draws[:, i, j], chain[:, i, j]):
            assert_moments(statistics(values, answer.joint_energy(values)), moments)


@pytest.mark.parametrize("scan", ["chromatic", "sequential", "random"])
def test_batch_of_lattices(scan):
    couplings, fields = np.array([0.25, -0.5])[:, None, None], field_of(53, 3, 1, 1)
    model = ebm.Ising.lattice((2, 3), couplings, fields, normalizer="exact", scan=scan)
    assert (model.batch_shape, model.event_shape) == ((2, 3), (2, 3))
    draws = model.sample(jax.random.key(0), (4000,))
    chain = model.gibbs_step(jax.random.key(1), model.chain_at(draws))
    for i, j in np.ndindex(2, 3):
        full = np.full(6, fields[j, 0, 0])
        answer = Brute("spin", (2, 3), lattice_bonds((2, 3), couplings[i, 0, 0]), full)
        expected = -answer.energies - answer.log_z
        log_prob = model.log_prob(answer.events()[:, None, None])[:, i, j]
        np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-5)
        moments = answer.probs @ statistics(answer.states, answer.energies)
        flat = np.asarray(chain[:, i, j]).reshape(-1, 6)
        assert_moments(statistics(flat, answer.joint_energy(flat)), moments)


@pytest.mark.parametrize("scan", ["chromatic", "sequential", "random"])
def test_batch_of_potts_models(scan):
    edges, values = [(0, 1), (1, 2), (2, 0)], np.array([[0.5, 0.25, 1.0], [-0.5, 0.75, 0.25]])
    fields = field_of(54, 2, 3, 3)
    model = ebm.Potts(ebm.couplings.Edges(edges, values), fields, scan=scan)
    draws = model.sample(jax.random.key(0), (4000,))
    chain = model.gibbs_step(jax.random.key(1), model.chain_at(draws))
    for i in range(2):
        bonds = [(a, b, value) for (a, b), value in zip(edges, values[i], strict=True)]
        answer = Brute("Potts", (3,), bonds, fields[i])
        log_z = model.exact_log_z()[i]
        np.testing.assert_allclose(log_z, answer.log_z, rtol=1e-5)
        moments = answer.probs @ statistics(answer.states, answer.energies, 3)
        for states in (draws[:, i], chain[:, i]):
            energies = answer.joint_energy(np.asarray(states).astype(int))
            assert_moments(statistics(states, energies, 3), moments)
