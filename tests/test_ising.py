"""Ising and Potts models against what is known of them in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import assert_chain_means, run
from drift import statistics
from ising_exact import log_z, mean_energy
from numpyro.diagnostics import effective_sample_size
from pairwise_models import Brute, brute, field_of, lattice_bonds
from scipy import stats

import numpyro_ebm as ebm

CRITICAL = 0.4406868
COUPLINGS = (0.2, CRITICAL, 0.6)
SWEEPS = ebm.kernels.GibbsSweeps()
SWENDSEN_WANG, WOLFF = ebm.kernels.SwendsenWangStep(), ebm.kernels.WolffStep(num_steps=20)


def advance(kernel, model, rng_key, state, num_steps):
    """Run chains and return the energies after every step."""

    @jax.jit
    def loop(model, rng_key, state):
        def step(state, key):
            state, info = kernel.step(key, state, model)
            return state, (info.energy, jnp.abs(kernel.value(state, model).mean((-1, -2))))

        return jax.lax.scan(step, state, jax.random.split(rng_key, num_steps))

    return loop(model, rng_key, state)


# ----- closed forms ------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_kaufmans_formula(coupling):
    """The helper of these tests, against enumeration."""
    answer = Brute("spin", (4, 4), lattice_bonds((4, 4), coupling), np.zeros(16))
    np.testing.assert_allclose(log_z(4, 4, coupling), answer.log_z, rtol=1e-12)
    expected = answer.probs @ answer.energies
    np.testing.assert_allclose(mean_energy(4, 4, coupling), expected, rtol=1e-8)


@pytest.mark.parametrize("periodic", [True, False])
def test_log_z_of_a_chain(periodic):
    n, coupling = 14, 0.7
    model = ebm.Ising.lattice((n,), coupling, periodic=periodic)
    ring = np.log((2 * np.cosh(coupling)) ** n + (2 * np.sinh(coupling)) ** n)
    expected = ring if periodic else np.log(2) + (n - 1) * np.log(2 * np.cosh(coupling))
    np.testing.assert_allclose(ebm.evidence.exact(model).log_evidence, expected, rtol=1e-6)


def test_two_state_potts_is_ising():
    """[s = s'] is (1 + s s') / 2: half the coupling, and a constant for each bond."""
    potts = ebm.Potts.lattice((3, 4), 0.8, 2, periodic=False)
    ising = ebm.Ising.lattice((3, 4), 0.4, periodic=False)
    num_bonds = 2 * 4 + 3 * 3
    difference = ebm.evidence.exact(potts).log_evidence - ebm.evidence.exact(ising).log_evidence
    np.testing.assert_allclose(difference, 0.4 * num_bonds, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "coupling"),
    [(SWEEPS, 0.2), *((k, c) for c in COUPLINGS for k in (SWENDSEN_WANG, WOLFF))],
)
def test_mean_energy_of_a_torus(kernel, coupling):
    """16x16 against Kaufman, by the means of independent chains."""
    model = ebm.Ising.lattice((16, 16), coupling)
    state = kernel.init(model.init_chain(jax.random.key(0), (100,)), model)
    _, (energies, _) = advance(kernel, model, jax.random.key(1), state, 160)
    means = np.asarray(energies[60:], np.float64).mean(0)
    z = (means.mean() - mean_energy(16, 16, coupling)) / (means.std(ddof=1) / 10)
    assert abs(z) < 4, z


@pytest.mark.slow
def test_cluster_moves_are_faster_at_the_critical_point():
    """Autocorrelation times of energy and |magnetization| on 64x64, in steps."""
    model, times = ebm.Ising.lattice((64, 64), CRITICAL), {}
    start = SWENDSEN_WANG.init(model.init_chain(jax.random.key(0), (20,)), model)
    start, _ = advance(SWENDSEN_WANG, model, jax.random.key(1), start, 300)
    for kernel, num_steps in ((SWENDSEN_WANG, 1000), (SWEEPS, 40_000)):
        state = kernel.init(start.value, model)
        _, traces = advance(kernel, model, jax.random.key(2), state, num_steps)
        times[kernel] = [
            20 * num_steps / effective_sample_size(np.asarray(trace, np.float64).T)
            for trace in traces
        ]
    for name, gibbs, cluster in zip(
        ("energy", "|m|"), times[SWEEPS], times[SWENDSEN_WANG], strict=True
    ):
        print(f"{name}: Gibbs {gibbs:.0f} sweeps, Swendsen-Wang {cluster:.1f} steps")
    gain = np.array(times[SWEEPS]) / np.array(times[SWENDSEN_WANG])
    assert gain[0] >= 10
    assert gain[1] >= 10


# ----- in MCMC -----------------------------------------------------------------------------


Y = field_of(80, 3, 3, scale=1.0)


def noisy_image():
    """A hidden Markov random field."""
    s = numpyro.sample("s", ebm.Ising.lattice((3, 3), 0.375, 0.125))
    numpyro.sample("y", dist.Normal(s, 1.2).to_event(2), obs=Y)


def segmentation():
    """The same with labels, each pixel with the mean of its label."""
    s = numpyro.sample("s", ebm.Potts.lattice((3, 3), 0.75, 3))
    numpyro.sample("y", dist.Normal(jnp.array([-1.0, 0.0, 1.5])[s], 1.5).to_event(2), obs=Y)


def posterior_of(name):
    """Moments of the enumerated posterior."""
    answer = brute("Ising 3x3" if name is noisy_image else "Potts 3x3")
    states = answer.states
    loc, scale = (states, 1.2) if name is noisy_image else (np.array([-1.0, 0, 1.5])[states], 1.5)
    log_probs = -answer.energies + stats.norm.logpdf(Y.ravel(), loc, scale).sum(1)
    probs = np.exp(log_probs - log_probs.max())
    labels = None if name is noisy_image else 3
    return probs / probs.sum() @ statistics(states, answer.energies, labels)


@pytest.mark.parametrize("model", [noisy_image, segmentation])
@pytest.mark.parametrize("kernel", [ebm.BlockGibbs, ebm.SwendsenWang, ebm.Wolff])
def test_posterior_of_an_image(model, kernel):
    own = {ebm.SwendsenWang: "num_clusters", ebm.Wolff: "cluster_size"}.get(kernel)
    extra = ("energy",) if own is None else ("energy", own)
    options = {"num_steps": 4} if kernel is ebm.Wolff else {}
    mcmc = run(kernel(model, **options), num_chains=20, num_samples=500, seed=2, extra_fields=extra)
    samples = np.asarray(mcmc.get_samples(group_by_chain=True)["s"])
    assert samples.dtype == (np.int8 if model is noisy_image else np.uint8)
    energies = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["energy"])
    labels = None if model is noisy_image else 3
    rows = statistics(samples.reshape(-1, 9), energies.ravel(), labels)
    assert_chain_means(rows.reshape(20, 500, -1), posterior_of(model))
    if own is not None:
        clusters = mcmc.get_extra_fields()[own]
        assert np.all((clusters >= 1) & (clusters <= 9))


@pytest.mark.slow
def test_field_that_is_sampled():
    """Blocks of Gibbs: NUTS for the field of an Ising model with exact log Z."""

    def model():
        field = numpyro.sample("field", dist.Normal(0, 0.5))
        ising = ebm.Ising.lattice((2, 3), 0.3, field, normalizer="exact")
        s = numpyro.sample("s", ising)
        numpyro.sample("y", dist.Normal(s, 1.5).to_event(2), obs=Y[:2])

    from numpyro.infer import NUTS, Gibbs

    kernel = Gibbs([(ebm.SwendsenWang(model), ebm.energy_sites), (NUTS(model), None)])
    mcmc = run(kernel, num_chains=4, num_samples=1000, seed=3, chain_method=jax.vmap)
    grid = np.linspace(-2.5, 2.5, 201)
    log_joint = []
    for field in grid:
        answer = Brute("spin", (2, 3), lattice_bonds((2, 3), 0.3), np.full(6, field))
        likelihood = stats.norm.logpdf(Y[:2].ravel(), answer.states, 1.5).sum(1)
        log_joint.append(np.log(answer.probs) + likelihood + stats.norm.logpdf(field, 0, 0.5))
    weights = np.exp(np.array(log_joint) - np.max(log_joint))
    weights /= weights.sum()
    expected = [(weights.sum(1) * grid).sum(), *(weights.sum(0) @ answer.states)]
    draws = mcmc.get_samples(group_by_chain=True)
    rows = np.concatenate(
        [draws["field"][..., None], np.asarray(draws["s"], float).reshape(4, -1, 6)], -1
    )
    assert_chain_means(rows, np.array(expected))
