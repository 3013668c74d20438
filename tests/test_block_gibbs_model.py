"""Likelihood terms on an energy-based site: exact where they factorize."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import Posterior, assert_chain_means, assert_posterior, run, sampled_moments
from registry import Case
from scipy import stats

from numpyro_ebm import RBM, BlockGibbs

Y = np.array([0.8, -0.5, 0.3])
BITS = np.array([1, 0, 1])
WORDS = np.array([0, 3])
EMISSION = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.6, 0.1], [0.2, 0.2, 0.2, 0.4]])
SUBSET = np.array([2, 0, 2])


class Row(NamedTuple):
    """What a model observes of the units, and its log density computed apart."""

    visible: str
    observe: Any
    log_likelihood: Any

    @property
    def rbm(self):
        """The prior of the units."""
        return Case(self.visible, "Bernoulli", 600).build()


def normal(y, loc, scale):
    return stats.norm.logpdf(y, loc, scale).sum(-1)


def signs(v):
    numpyro.sample("y", dist.Normal(2 * v - 1, 0.8).to_event(1), obs=Y)


def noisy_channel(v):
    numpyro.deterministic("parity", v.sum() % 2)
    numpyro.sample("y", dist.Bernoulli(jnp.where(v == 1, 0.9, 0.2)).to_event(1), obs=BITS)


def emissions(v):
    numpyro.sample("y", dist.Categorical(jnp.asarray(EMISSION)[v]).to_event(1), obs=WORDS)


def counts(v):
    with numpyro.plate("unit", 3, dim=-1), numpyro.plate("trial", 2, dim=-2):
        numpyro.sample("y", dist.Poisson(jnp.exp(0.4 * v)), obs=np.stack([BITS, 2 * BITS]))
    with numpyro.handlers.scale(scale=0.5), numpyro.handlers.mask(mask=BITS == 1):
        numpyro.sample("z", dist.Normal(v, 0.5), obs=Y)


def some_units(v):
    with numpyro.plate("observed", 3):
        numpyro.sample("y", dist.Normal(v[SUBSET], 1.0), obs=Y)
    numpyro.factor("total", 0.5 * v.sum())
    numpyro.factor("first", jnp.where(v[0] == 1, -0.75, 0.0))


def wide_normal(v):
    numpyro.sample("y", dist.Normal(v[..., :1] * 2.0, 0.7).to_event(1), obs=Y[:1])
    numpyro.factor("f", -0.2 * (v**2).sum() + 0.3 * v[1])


def two_kinds(v):
    numpyro.sample("y", dist.Normal(v[:1], 0.6).to_event(1), obs=Y[:1])
    numpyro.sample("z", dist.Bernoulli(jnp.where(v[1:] == 1, 0.9, 0.2)).to_event(1), obs=[1])


def channel(v, bits):
    return np.log(np.where(bits, np.where(v == 1, 0.9, 0.2), np.where(v == 1, 0.1, 0.8))).sum(-1)


ROWS = {
    "integer arithmetic": Row("Bernoulli", signs, lambda v: normal(Y, 2 * v - 1, 0.8)),
    "noisy channel": Row("Bernoulli", noisy_channel, lambda v: channel(v, BITS)),
    "emissions": Row("Categorical", emissions, lambda v: np.log(EMISSION[v, WORDS]).sum(-1)),
    "plates, scale and mask": Row(
        "Spin",
        counts,
        lambda v: (
            sum(stats.poisson.logpmf(k * BITS, np.exp(0.4 * v)).sum(-1) for k in (1, 2))
            + 0.5 * (BITS * stats.norm.logpdf(Y, v, 0.5)).sum(-1)
        ),
    ),
    "subset and factors": Row(
        "Bernoulli",
        some_units,
        lambda v: normal(Y, v[:, SUBSET], 1.0) + 0.5 * v.sum(-1) - 0.75 * v[:, 0],
    ),
    "Gaussian": Row(
        "Gaussian",
        wide_normal,
        lambda v: normal(Y[0], 2 * v[:, :1], 0.7) - 0.2 * (v**2).sum(-1) + 0.3 * v[:, 1],
    ),
    "ReLU": Row(
        "ReLU",
        wide_normal,
        lambda v: normal(Y[0], 2 * v[:, :1], 0.7) - 0.2 * (v**2).sum(-1) + 0.3 * v[:, 1],
    ),
    "Concatenate": Row(
        "Gaussian+Bernoulli",
        two_kinds,
        lambda v: normal(Y[0], v[:, :1], 0.6) + channel(v[:, 1:], np.ones(1)),
    ),
}


SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW * (name == "ReLU")) for name in ROWS]
)
def test_posterior(name):
    row = ROWS[name]

    def model(rbm):
        row.observe(numpyro.sample("v", rbm))

    mcmc = run(BlockGibbs(model), row.rbm, num_chains=16)
    assert_posterior(mcmc, Posterior(row.rbm, row.log_likelihood))


@pytest.mark.slow
def test_likelihood_in_a_plate_of_draws():
    rbm, y = ROWS["integer arithmetic"].rbm, np.stack([Y, -Y, 2 * Y, 0 * Y])

    def model():
        with numpyro.plate("draw", 4):
            v = numpyro.sample("v", rbm)
            numpyro.sample("y", dist.Normal(2 * v - 1, 0.8).to_event(1), obs=y)

    samples = np.asarray(run(BlockGibbs(model), num_chains=8).get_samples(group_by_chain=True)["v"])
    for i in range(4):
        posterior = Posterior(rbm, lambda v, i=i: normal(y[i], 2 * v - 1, 0.8))
        moments = sampled_moments(rbm, samples[:, :, i], rbm.energy(samples[:, :, i]))
        assert_chain_means(moments, posterior.moments())


@pytest.mark.slow
def test_a_site_that_changes_the_parameters_of_another():
    """With one unit every likelihood factorizes; what is cached of the other site is renewed."""
    weights = jnp.array([[2.0, -1.0], [1.0, 2.0]])
    first = RBM(jnp.ones((1, 1)), jnp.zeros(1), jnp.zeros(1))

    def second(v):
        return RBM((3 * v - 1.5) * weights, jnp.zeros(2), jnp.ones(2), normalizer="exact")

    def model():
        v = numpyro.sample("v", first)
        numpyro.sample("w", second(v[0]))

    mcmc = run(BlockGibbs(model), num_chains=16, extra_fields=("energy",))
    samples = mcmc.get_samples(group_by_chain=True)
    v, w = np.float64(samples["v"]), np.float64(samples["w"])
    prior, parts = Posterior(first), [Posterior(second(k)) for k in (0, 1)]
    means = np.array([part.probs @ part.states for part in parts])
    assert_chain_means(v, prior.probs[1:])
    assert_chain_means(w, prior.probs @ means)
    assert_chain_means(v * w, prior.probs[1] * means[1])
    energies = [first.energy(v) + second(k).energy(w) for k in (0, 1)]
    np.testing.assert_allclose(
        mcmc.get_extra_fields(group_by_chain=True)["energy"],
        np.where(v[..., 0] == 1, energies[1], energies[0]),
        rtol=1e-4,
        atol=1e-4,
    )
