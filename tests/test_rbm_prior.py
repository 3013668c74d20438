"""An RBM as the prior of what noise hides: denoising and inpainting in a NumPyro model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from helpers import BruteForce, assert_moments
from numpyro.infer import MCMC, SVI
from registry import Case
from scipy.special import logsumexp

import numpyro_ebm as ebm
from numpyro_ebm.datasets import load_digits

PRIOR = Case("Bernoulli", "Spin", 950).build()
FLIP, NOISE = 0.2, 0.6
NUM_CHAINS = 500


def flipped(noisy, seen, rbm=PRIOR, num_images=1):
    """Pixels that are flipped at random, and some that are not seen."""
    with numpyro.plate("images", num_images):
        v = numpyro.sample("v", rbm)
        probs = FLIP + (1 - 2 * FLIP) * v
        likelihood = dist.Bernoulli(probs).mask(seen).to_event(1)
        numpyro.sample("noisy", likelihood, obs=noisy)


def blurred(noisy, seen):
    """Pixels with normal noise."""
    with numpyro.plate("images", 1):
        v = numpyro.sample("v", PRIOR)
        numpyro.sample("noisy", dist.Normal(v, NOISE).mask(seen).to_event(1), obs=noisy)


def log_flip(noisy, v):
    return np.where(noisy == v, np.log(1 - FLIP), np.log(FLIP))


def log_blur(noisy, v):
    return -0.5 * ((noisy - v) / NOISE) ** 2


CASES = {
    "denoising flips": (flipped, [1, 0, 0], [True] * 3, log_flip),
    "inpainting flips": (flipped, [1, 0, 0], [True, False, True], log_flip),
    "denoising normal noise": (blurred, [0.9, -0.4, 0.6], [True] * 3, log_blur),
    "inpainting normal noise": (blurred, [0.9, -0.4, 0.6], [False, True, False], log_blur),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in list(CASES)[2:])) for name in CASES],
)
def test_posterior_marginals_equal_enumeration(name):
    model, noisy, seen, log_likelihood = CASES[name]
    noisy, seen = np.array(noisy), np.array(seen)
    kernel = ebm.BlockGibbs(model, num_sweeps=3)
    mcmc = MCMC(kernel, num_warmup=10, num_samples=40, num_chains=NUM_CHAINS,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(0), noisy[None], seen[None])
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["v"], np.float64)[:, :, 0]
    brute = BruteForce(PRIOR)
    states = brute.visible.values
    log_posterior = np.log(brute.probs) + np.where(seen, log_likelihood(noisy, states), 0).sum(1)
    posterior = np.exp(log_posterior - logsumexp(log_posterior))
    rows, columns = np.triu_indices(3, 1)

    def pairs(x):
        return np.concatenate([x, x[..., rows] * x[..., columns]], -1)

    assert_moments(pairs(draws).mean(1), posterior @ pairs(states))  # chains are independent


# ----- digits ------------------------------------------------------------------------------

NUM_HIDDEN, NUM_IMAGES = 60, 100


def train(data, mean):
    def model(batch):
        weights = numpyro.param(
            "weights", lambda key: 0.01 * jax.random.normal(key, (64, NUM_HIDDEN))
        )
        rbm = ebm.RBM.from_centered(
            weights,
            numpyro.param("visible", jnp.log(mean) - jnp.log1p(-mean)),
            numpyro.param("hidden", jnp.zeros(NUM_HIDDEN)),
            mean,
            0.5,
        )
        ebm.persistent_chains("chains", 100, rbm)
        with numpyro.plate("rows", len(batch)):
            numpyro.sample("v", rbm, obs=batch)

    svi = SVI(model, lambda batch: None, optax.adam(5e-3), ebm.PersistentContrastiveDivergence())
    result = ebm.fit(jax.random.key(0), svi, data, num_epochs=40, batch_size=50, progress_bar=False)
    return ebm.distribution_of(svi, result.state, data[:50])


@pytest.mark.slow
def test_denoising_digits_beats_an_independent_prior():
    """Log loss and squared error of the posterior means of held-out images, pairwise."""
    digits = load_digits()
    mean = jnp.asarray((digits.train.sum(0) + 0.5) / (len(digits.train) + 1), jnp.float32)
    rbm = train(jnp.asarray(digits.train), mean)
    clean = digits.test[:NUM_IMAGES].astype(np.float64)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(clean.shape) < FLIP, 1 - clean, clean).astype(np.int32)
    seen = rng.random(clean.shape) < 0.8
    kernel = ebm.BlockGibbs(flipped, num_sweeps=2)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=200, progress_bar=False)
    mcmc.run(jax.random.key(1), noisy, seen, rbm, NUM_IMAGES)
    on = np.asarray(mcmc.get_samples()["v"], np.float64).sum(0)
    by_rbm = (on + 0.5) / 201
    odds = np.asarray(mean / (1 - mean), np.float64)
    odds = odds * np.where(seen, np.where(noisy == 1, (1 - FLIP) / FLIP, FLIP / (1 - FLIP)), 1)
    alone = odds / (1 + odds)

    def log_loss(probs):
        return -np.where(clean == 1, np.log(probs), np.log1p(-probs)).sum(1)

    for loss in (log_loss, lambda probs: ((probs - clean) ** 2).sum(1)):
        gain = loss(alone) - loss(by_rbm)
        assert gain.mean() > 4 * gain.std(ddof=1) / NUM_IMAGES**0.5
