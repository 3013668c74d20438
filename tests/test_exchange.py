"""Exact posteriors of parameters whose log Z is never computed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import chain_z_scores
from intractable_models import (
    assert_posterior_moments,
    kaufman_grid,
    lattice_data,
    lattice_grid,
    lattice_model,
    machine_data,
    machine_grid,
    machine_model,
    sample,
    two_sample_z,
)
from numpyro.infer import MCMC, NUTS

import numpyro_ebm as ebm
from numpyro_ebm.kernels import AuxiliaryChain, CouplingFromThePast

NORMAL, FIELD = dist.Normal(0, 0.3), dist.Normal(0, 0.3)
EXACT = {
    "random_walk": lambda model: ebm.Exchange(model),
    "langevin": lambda model: ebm.Exchange(model, proposal="langevin"),
    "bridged": lambda model: ebm.Exchange(model, num_bridges=3),
    "pseudo_marginal": lambda model: ebm.PseudoMarginal(model),
    "single_auxiliary_variable": lambda model: ebm.AuxiliaryVariable(model),
    "multiple_auxiliary_variables": lambda model: ebm.AuxiliaryVariable(model, num_bridges=3),
}
"""Every kernel that leaves the posterior invariant."""


SLOW = ("random_walk", "single_auxiliary_variable", "pseudo_marginal", "normal", "uniform")


def cases(names):
    """Some of them are left to the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.mark.parametrize("name", cases(EXACT))
def test_exact_kernels_sample_the_posterior(name):
    s = lattice_data((3, 4), 0.2, 0.15)
    mcmc = sample(EXACT[name](lattice_model), s, NORMAL, FIELD)
    grid = lattice_grid(s, NORMAL, FIELD)
    assert_posterior_moments(mcmc, ["coupling", "field"], grid)


PRIORS = {
    "normal": (NORMAL, None),
    "uniform": (dist.Uniform(-0.2, 0.6), None),
    "joint": (NORMAL, FIELD),
}


@pytest.mark.parametrize("name", cases(PRIORS))
def test_6x6_lattice(name):
    prior, field_prior = PRIORS[name]
    s = lattice_data((6, 6), 0.2, 0.1, seed=3)
    mcmc = sample(ebm.Exchange(lattice_model), s, prior, field_prior)
    names = ["coupling"] if field_prior is None else ["coupling", "field"]
    assert_posterior_moments(mcmc, names, lattice_grid(s, prior, field_prior))


@pytest.mark.parametrize(
    "make",
    [
        lambda **how: ebm.Exchange(lattice_model, **how),
        pytest.param(
            lambda **how: ebm.PseudoMarginal(lattice_model, **how), marks=pytest.mark.slow
        ),
    ],
)
def test_screened_proposals(make):
    """Where coupling from the past draws, a first test by the pseudo-posterior is corrected for."""
    s, prior = lattice_data((3, 4), 0.2), dist.Uniform(0, 0.4)
    mcmc = sample(make(auxiliary=CouplingFromThePast()), s, prior)
    assert_posterior_moments(mcmc, ["coupling"], lattice_grid(s, prior))


@pytest.mark.slow
def test_frustrated_machine_of_eight_units():
    x = machine_data()
    mcmc = sample(ebm.Exchange(machine_model), x)
    assert_posterior_moments(mcmc, ["coupling", "bias"], machine_grid(x))


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 32])
def test_large_lattices_by_coupling_from_the_past(side):
    s, prior = lattice_data((side, side), 0.3, seed=side), dist.Normal(0.3, 0.05)
    mcmc = sample(ebm.Exchange(lattice_model), s, prior, num_samples=500, num_warmup=100)
    assert isinstance(mcmc.sampler._sampler.methods[0][1], CouplingFromThePast)
    assert_posterior_moments(mcmc, ["coupling"], kaufman_grid(s, prior))


@pytest.mark.slow
def test_all_parameters_of_a_machine():
    """Fifteen latent parameters: every marginal mean and standard deviation as NUTS finds it."""
    rows, columns = np.triu_indices(5, 1)

    def model(x, normalizer):
        pairs = numpyro.sample("pairs", dist.Normal(0, 0.7).expand([10]).to_event(1))
        bias = numpyro.sample("bias", dist.Normal(0, 0.7).expand([5]).to_event(1))
        couplings = jnp.zeros((5, 5)).at[rows, columns].set(pairs)
        machine = ebm.BoltzmannMachine(couplings + couplings.T, bias, normalizer=normalizer)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", machine, obs=x)

    true = np.random.default_rng(0).normal(0, 0.5, 10)
    couplings = np.zeros((5, 5))
    couplings[rows, columns] = true
    machine = ebm.BoltzmannMachine(couplings + couplings.T, jnp.zeros(5))
    x = machine.sample(jax.random.key(0), (60,))
    found = sample(ebm.Exchange(model), x, "guard", num_samples=20_000, num_warmup=2000)
    truth = MCMC(
        NUTS(model),
        num_warmup=500,
        num_samples=5000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    truth.run(jax.random.key(1), x, "exact")
    both = []
    for mcmc in (found, truth):
        draws = mcmc.get_samples(group_by_chain=True)
        sites = [np.asarray(draws[name], np.float64) for name in ("pairs", "bias")]
        both.append(np.concatenate(sites, -1))
    mean = both[1].mean((0, 1))
    moments = [np.concatenate([v, (v - mean) ** 2], -1) for v in both]
    assert np.all(np.abs(two_sample_z(*moments)) < 4)


@pytest.mark.slow
def test_bias_of_double_metropolis_hastings_falls_with_the_length():
    s = lattice_data((6, 6), 0.35, seed=1)
    grid = lattice_grid(s, NORMAL)
    z, drifts = {}, {}
    for length in (2, 16, 200):
        kernel = ebm.Exchange(lattice_model, auxiliary=AuxiliaryChain(length))
        mcmc = sample(kernel, s, NORMAL, num_chains=8)
        draws = np.asarray(mcmc.get_samples(group_by_chain=True)["coupling"], np.float64)
        z[length] = chain_z_scores(
            np.stack([draws, (draws - grid.mean) ** 2], -1), [grid.mean[0], grid.variance[0]]
        )
        if length == 200:
            drifts[length] = ebm.auxiliary_drift(mcmc)
        else:
            with pytest.warns(UserWarning, match="length matters"):
                drifts[length] = ebm.auxiliary_drift(mcmc)
    worst = {length: np.abs(own).max() for length, own in z.items()}
    assert worst[2] > worst[16] > worst[200]
    assert worst[2] > 4 > worst[200]
    assert drifts[200].ok
    assert not drifts[2].ok


def test_exact_draws_have_no_drift():
    s = lattice_data((3, 3), 0.2)
    mcmc = sample(ebm.Exchange(lattice_model), s, num_samples=50, num_warmup=0, num_chains=1)
    assert ebm.auxiliary_drift(mcmc).z_score == 0
    assert ebm.auxiliary_drift(mcmc).ok
