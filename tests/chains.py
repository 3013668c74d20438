"""Run kernels through MCMC, and score the chains against enumerated posteriors."""

import jax
import numpy as np
from helpers import SMALLEST_ERROR, BruteForce, features, moments
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from scipy.special import logsumexp


def run(kernel, *args, seed=0, extra_fields=(), init_params=None, **options):
    """Run a kernel on a model with arguments ``args``; ``options`` are those of MCMC."""
    options = {"num_warmup": 50, "num_samples": 1000, "progress_bar": False} | options
    options.setdefault("chain_method", "vectorized")
    mcmc = MCMC(kernel, **options)
    mcmc.run(jax.random.key(seed), *args, extra_fields=extra_fields, init_params=init_params)
    return mcmc


class Posterior:
    """Visible states of an RBM with the probability of each given a likelihood."""

    def __init__(self, rbm, log_likelihood=None):
        self.rbm, brute = rbm, BruteForce(rbm)
        self.states, self.energy = brute.visible.values, brute.energy(brute.visible.values)
        log_probs = brute.visible.log_weight - self.energy
        if log_likelihood is not None:
            log_probs = log_probs + log_likelihood(self.states)
        self.log_evidence = logsumexp(log_probs)
        self.probs = np.exp(log_probs - self.log_evidence)

    def moments(self):
        """First and second moments of the features, and the energy, as ``helpers.moments``."""
        feature = features(self.rbm.visible_units, self.states)
        return self.probs @ moments(feature, self.energy)


def sampled_moments(rbm, samples, energies):
    """The same of chains: ``samples`` (chain, draw, n), ``energies`` (chain, draw)."""
    samples = np.asarray(samples)
    feature = features(rbm.visible_units, samples)
    flat = moments(feature.reshape(-1, feature.shape[-1]), np.ravel(energies))
    return flat.reshape(*samples.shape[:2], -1)


def chain_z_scores(samples, expected):
    """Errors of the means of correlated chains (chain, draw, k), in standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.mean((0, 1)) - expected
    spread = samples.std((0, 1))
    varies = spread > SMALLEST_ERROR * (1 + np.abs(expected))
    assert np.all(np.abs(error[~varies]) < 10 * SMALLEST_ERROR)
    size = effective_sample_size(samples[:, :, varies])
    z = np.zeros(error.shape)
    z[varies] = error[varies] / (spread[varies] / np.sqrt(size))
    return z


def assert_chain_means(samples, expected):
    """Every mean over the chains lies within four standard errors."""
    z = chain_z_scores(samples, expected)
    assert np.all(np.abs(z) < 4), np.round(z, 1)


def assert_posterior(mcmc, posterior, site="v"):
    """The samples of a site have the moments of its posterior."""
    samples = mcmc.get_samples(group_by_chain=True)[site]
    energies = posterior.rbm.energy(np.asarray(samples))
    assert_chain_means(sampled_moments(posterior.rbm, samples, energies), posterior.moments())
