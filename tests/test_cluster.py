"""Cluster kernels: components of graphs, what they refuse, and what they report."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.sparse as sp
from drift import LARGEST_Z, drift
from numpyro.infer import MCMC
from pairwise_models import CASES, brute
from scipy.sparse.csgraph import connected_components

import numpyro_ebm as ebm
from numpyro_ebm.kernels import SwendsenWangStep, WolffStep, cluster
from numpyro_ebm.kernels.components import components

KERNELS = pytest.mark.parametrize("kernel", [ebm.SwendsenWang, ebm.Wolff])


@pytest.mark.parametrize("seed", range(3))
def test_components(seed):
    """Random graphs and long paths in random order, against SciPy."""
    rng, n = np.random.default_rng(seed), 300
    path = rng.permutation(n)
    edges = np.concatenate([np.stack([path[:-1], path[1:]], 1), rng.integers(0, n, (100, 2))])
    active = rng.random((5, len(edges))) < np.array([0, 0.5, 0.9, 0.99, 1])[:, None]
    label = jax.jit(components, static_argnums=3)(active, *edges.T, n)
    label = np.asarray(label).reshape(5, n) - n * np.arange(5)[:, None]
    for row, own in zip(active, label, strict=True):
        graph = sp.coo_matrix((np.ones(row.sum()), edges[row].T), shape=(n, n))
        _, expected = connected_components(graph, directed=False)
        first = np.array([np.flatnonzero(expected == c)[0] for c in range(expected.max() + 1)])
        np.testing.assert_array_equal(own, first[expected])


@pytest.mark.parametrize("step", [SwendsenWangStep(), WolffStep()])
def test_vmap_and_batches(step):
    """Chains by vmap, by leading dimensions, and over a batch of couplings."""
    model = ebm.Ising.lattice((4, 4), np.array([[0.2], [0.6]]))
    value = model.init_chain(jax.random.key(0), (3,))
    state, info = jax.jit(step.step)(jax.random.key(1), step.init(value, model), model)
    assert state.value.shape == (3, 2, 4, 4)
    assert state[1].shape == info.energy.shape == (3, 2)
    np.testing.assert_allclose(info.energy, model.energy(state.value), rtol=1e-6)
    keys = jax.random.split(jax.random.key(2), 3)
    states = jax.vmap(step.init, in_axes=(0, None))(value, model)
    states, _ = jax.jit(jax.vmap(step.step, in_axes=(0, 0, None)))(keys, states, model)
    assert states.value.shape == (3, 2, 4, 4)


@partial(jax.jit, static_argnames="kernel")
def one_step(kernel, model, value):
    return kernel.step(jax.random.key(0), kernel.init(value, model), model)[0]


def test_strong_and_no_couplings():
    """All aligned sites are one cluster at a strong coupling, each its own at none."""
    start = jnp.zeros((50, 4, 4), jnp.uint8)
    for coupling, count, size in ((0.0, 16, 1), (30.0, 1, 16)):
        model = ebm.Potts.lattice((4, 4), coupling, 4)
        assert np.all(one_step(SwendsenWangStep(), model, start).num_clusters == count)
        state = one_step(WolffStep(), model, start)
        assert np.all(state.cluster_size == size)
        assert np.all(state.accept_prob == 1)
        assert np.all((state.value != 0).sum((1, 2)) == size)


@pytest.mark.parametrize("kernel", [SwendsenWangStep(), WolffStep()])
def test_a_forgotten_field_drifts(kernel, monkeypatch):
    """The no-drift test sees clusters that ignore the fields."""
    name = "Ising 3x3 fields"
    model, start = CASES[name].build(), brute(name).draw(np.random.default_rng(7), 20_000)
    start, own = model.chain_at(start), cluster._ClusterStep._clusters

    def without_fields(self, *args):
        clusters = own(self, *args)
        return clusters._replace(fields=0 * clusters.fields)

    monkeypatch.setattr(cluster._ClusterStep, "_clusters", without_fields)
    assert np.abs(drift(kernel, model, start, (2,), seed=1)).max() > 2 * LARGEST_Z


@pytest.mark.parametrize("kernel", [SwendsenWangStep(), WolffStep()])
def test_a_wrong_bond_probability_drifts(kernel, monkeypatch):
    """Bonds with the Ising coupling J in place of 2 J."""
    name = "Ising 3x4 free"
    model, start = CASES[name].build(), brute(name).draw(np.random.default_rng(7), 20_000)
    start, own = model.chain_at(start), ebm.Ising.bonds

    def half(self):
        bonds = own(self)
        return bonds._replace(strength=bonds.strength / 2)

    monkeypatch.setattr(ebm.Ising, "bonds", half)
    assert np.abs(drift(kernel, model, start, (3,), seed=1)).max() > 2 * LARGEST_Z


# ----- what they refuse --------------------------------------------------------------------


def site(model):
    return lambda: numpyro.sample("s", model)


def run(kernel):
    MCMC(kernel, num_warmup=0, num_samples=2, progress_bar=False).run(jax.random.key(0))


@KERNELS
def test_negative_couplings(kernel):
    frustrated = ebm.Ising(np.array([[0, 1.0, -0.5], [1.0, 0, 0.2], [-0.5, 0.2, 0]]), 0.0)
    with pytest.raises(ValueError, match=f"{kernel.__name__}: .*ferromagnetic.*got 1 negative"):
        run(kernel(site(frustrated)))


@KERNELS
def test_other_models(kernel):
    rbm = ebm.RBM(jnp.zeros((3, 2)), jnp.zeros(3), jnp.zeros(2))
    machine = ebm.BoltzmannMachine(jnp.zeros((3, 3)), jnp.zeros(3))
    for model in (rbm, machine):
        with pytest.raises(TypeError, match=f"Ising or Potts model .*got {type(model).__name__}"):
            run(kernel(site(model)))
    hidden = ebm.Ising(jnp.zeros((3, 3)), jnp.zeros(3), num_visible=2)
    with pytest.raises(ValueError, match="no hidden units for cluster moves; got 1"):
        run(kernel(site(hidden)))
    with pytest.raises(ValueError, match="`num_steps` to be a positive integer; got 0"):
        kernel(site(rbm), num_steps=0)


def test_traced_negative_couplings_stand_still():
    """They cannot be refused under jit, and must not move the chain wrongly."""

    @jax.jit
    def step(coupling, value):
        model, kernel = ebm.Ising.lattice((3, 3), coupling), SwendsenWangStep()
        return kernel.step(jax.random.key(0), kernel.init(value, model), model)

    value = ebm.Ising.lattice((3, 3), 0.0).init_chain(jax.random.key(1), (50,))
    state, info = step(-0.5, value)
    np.testing.assert_array_equal(state.value, value)
    assert np.all(np.isnan(info.energy))
    assert np.any(step(0.5, value)[0].value != value)


@pytest.mark.slow
def test_rows_of_a_plate():
    """Each row has its own clusters; likelihood terms differ from row to row."""
    data = np.array([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]])

    def model():
        with numpyro.plate("row", 2):
            s = numpyro.sample("s", ebm.Ising(np.ones((3, 3)) - np.eye(3), 0.0))
            numpyro.sample("y", dist.Normal(s, 0.5).to_event(1), obs=data)

    mcmc = MCMC(ebm.SwendsenWang(model), num_warmup=5, num_samples=50, progress_bar=False)
    mcmc.run(jax.random.key(0), extra_fields=("num_clusters",))
    mean = np.asarray(mcmc.get_samples()["s"], float).mean((0, 2))
    assert mean[0] > 0.9
    assert mean[1] < -0.9
    assert mcmc.get_extra_fields()["num_clusters"].shape == (50, 2)
