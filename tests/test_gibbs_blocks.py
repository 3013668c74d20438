"""Block Gibbs as a block of NumPyro's Gibbs, beside NUTS or another block Gibbs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import Posterior, assert_chain_means, run
from numpyro.infer import NUTS, Gibbs
from registry import Case
from scipy import stats
from scipy.special import logsumexp

from numpyro_ebm import RBM, BlockGibbs, NormalizerError, energy_sites

PRIOR = Case("Bernoulli", "Bernoulli", 700).build()
Y = np.array([0.8, -0.5, 0.3])
STATES = Posterior(PRIOR).states


def shifted(shift, normalizer="exact"):
    """The prior with its visible biases shifted and its weights scaled."""
    weights, logits = (1 + shift) * PRIOR.weights, PRIOR.visible_units.logits + shift
    return RBM(weights, logits, PRIOR.hidden_units, normalizer=normalizer)


def noise_scale():
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    v = numpyro.sample("v", PRIOR)
    numpyro.sample("y", dist.Normal(2 * v - 1, s).to_event(1), obs=Y)


def noise_scale_of_signs():
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    v = numpyro.sample("v", PRIOR)
    signs = numpyro.deterministic("signs", 2 * v - 1)
    numpyro.sample("y", dist.Normal(signs, s).to_event(1), obs=Y)


def parameters(normalizer="exact"):
    t = numpyro.sample("t", dist.Normal(0, 1.5))
    v = numpyro.sample("v", shifted(t, normalizer))
    numpyro.sample("y", dist.Normal(v, 0.7).to_event(1), obs=Y)


def scale_and_offset():
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    m = numpyro.sample("m", dist.Normal(0, 0.5))
    v = numpyro.sample("v", PRIOR)
    numpyro.sample("y", dist.Normal(2 * v - 1 + m, s).to_event(1), obs=Y)


def normalized(log_probs):
    return np.exp(log_probs - logsumexp(log_probs))


def log_normal(loc, scale):
    return stats.norm.logpdf(Y, loc, scale).sum(-1)


SCALES, OFFSETS = np.linspace(0.005, 5, 800), np.linspace(-3, 3, 121)
SHIFTS = np.linspace(-8, 8, 321)
LOG_PRIOR = np.log(Posterior(PRIOR).probs)


def posterior_of_scale():
    """Joint probabilities of states and scales."""
    signs, scale = 2 * STATES[:, None] - 1, SCALES[:, None]
    return normalized(LOG_PRIOR[:, None] - SCALES**2 / 2 + log_normal(signs, scale))


def posterior_of_shift():
    prior = np.stack([np.log(Posterior(shifted(float(t))).probs) for t in SHIFTS], -1)
    return normalized(prior - SHIFTS**2 / 4.5 + log_normal(STATES, 0.7)[:, None])


def posterior_of_scale_and_offset():
    loc = (2 * STATES - 1)[:, None, None] + OFFSETS[:, None, None]
    log_joint = log_normal(loc, SCALES[:, None]) - SCALES**2 / 2 - 2 * OFFSETS[:, None] ** 2
    return normalized(LOG_PRIOR[:, None, None] + log_joint)


def run_gibbs(blocks, *args, **options):
    """Eight chains, by vmap: ``Gibbs`` takes no batch of keys."""
    options = {"num_warmup": 200, "num_samples": 800, "num_chains": 8} | options
    return run(Gibbs(blocks), *args, chain_method=jax.vmap, **options)


def assert_means(mcmc, site, grid, joint):
    """Means of the units, of a function of the other site, and of their products."""
    samples = mcmc.get_samples(group_by_chain=True)
    v, x = np.float64(samples["v"]), np.tanh(np.float64(samples[site]))[..., None]
    assert_chain_means(v, joint.sum(-1) @ STATES)
    assert_chain_means(x, joint.sum(0) @ np.tanh(grid)[:, None])
    assert_chain_means(v * x, np.tanh(grid) @ joint.T @ STATES)


# ----- beside NUTS -------------------------------------------------------------------------

ORDERS = {
    "energy sites first": lambda model: [(BlockGibbs(model), energy_sites), (NUTS(model), None)],
    "NUTS first": lambda model: [(NUTS(model), None), (BlockGibbs(model, num_sweeps=2), ["v"])],
}


@pytest.mark.slow
def test_noise_scale():
    mcmc = run_gibbs(ORDERS["energy sites first"](noise_scale))
    assert mcmc.get_samples()["v"].dtype == "uint8"
    assert_means(mcmc, "s", SCALES, posterior_of_scale())


@pytest.mark.parametrize(
    "order", ["NUTS first", pytest.param("energy sites first", marks=pytest.mark.slow)]
)
def test_deterministic_sites_do_not_wrap(order):
    mcmc = run_gibbs(ORDERS[order](noise_scale_of_signs))
    samples = mcmc.get_samples()
    np.testing.assert_array_equal(samples["signs"], 2 * np.int32(samples["v"]) - 1)
    assert_means(mcmc, "s", SCALES, posterior_of_scale())


@pytest.mark.parametrize(
    "order", ["NUTS first", pytest.param("energy sites first", marks=pytest.mark.slow)]
)
def test_parameters_of_the_model(order):
    energy = f"block_states.{int(order == 'NUTS first')}.energy"
    mcmc = run_gibbs(ORDERS[order](parameters), extra_fields=(energy,))
    assert_means(mcmc, "t", SHIFTS, posterior_of_shift())
    samples, fields = mcmc.get_samples(), mcmc.get_extra_fields()
    expected = jax.vmap(lambda t, v: shifted(t).energy(v))(samples["t"], samples["v"])
    np.testing.assert_allclose(fields[energy], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_nested_blocks():
    model = scale_and_offset
    inner = Gibbs([(BlockGibbs(model), energy_sites), (NUTS(model), ["m"])])
    mcmc = run_gibbs([(inner, ["v", "m"]), (NUTS(model), ["s"])])
    joint = posterior_of_scale_and_offset()
    assert_means(mcmc, "s", SCALES, joint.sum(1))
    assert_means(mcmc, "m", OFFSETS, joint.sum(2))


def test_unknown_log_z_of_a_nuts_block():
    with pytest.raises(NormalizerError, match=r"differentiated.*\(visible_units.logits, weights\)"):
        run_gibbs(ORDERS["energy sites first"](parameters), "guard", num_samples=2)


# ----- several blocks of block Gibbs -------------------------------------------------------


def two_sites():
    v = numpyro.sample("v", PRIOR)
    w = numpyro.sample("w", shifted(0.5))
    numpyro.sample("y", dist.Normal(2 * v - w, 0.6).to_event(1), obs=Y)


@pytest.mark.parametrize("blocks", [pytest.param("one", marks=pytest.mark.slow), "two"])
def test_two_sites_of_one_likelihood(blocks):
    if blocks == "one":
        mcmc = run(BlockGibbs(two_sites), num_chains=16)
    else:
        mcmc = run_gibbs([(BlockGibbs(two_sites), ["w"]), (BlockGibbs(two_sites), ["v"])])
    log_likelihood = log_normal(2 * STATES[:, None] - STATES, 0.6)
    second = np.log(Posterior(shifted(0.5)).probs)
    joint = normalized(LOG_PRIOR[:, None] + second + log_likelihood)
    samples = mcmc.get_samples(group_by_chain=True)
    v, w = np.float64(samples["v"]), np.float64(samples["w"])
    assert_chain_means(v, joint.sum(1) @ STATES)
    assert_chain_means(w, joint.sum(0) @ STATES)
    assert_chain_means(v * w, np.einsum("ij,ik,jk->k", joint, STATES, STATES))
    assert samples["v"].dtype == samples["w"].dtype == "uint8"


# ----- what Gibbs asks of a block ----------------------------------------------------------


def test_refresh_recomputes_what_is_cached():
    def model(weights):
        numpyro.sample("v", RBM(weights, jnp.zeros(3), jnp.zeros(2)))

    kernel, other = BlockGibbs(model), -2 * PRIOR.weights
    state = kernel.init(jax.random.key(0), 0, {"v": jnp.array([1, 0, 1])}, (PRIOR.weights,), {})
    refreshed = kernel.refresh(state, (other,), {})
    fresh = kernel.init(jax.random.key(1), 0, {"v": state.z["v"]}, (other,), {})
    np.testing.assert_allclose(refreshed.chains["v"].field, other[0] + other[2], rtol=1e-6)
    np.testing.assert_allclose(refreshed.energy, fresh.energy, rtol=1e-6)
    assert not np.allclose(refreshed.energy, state.energy)
    np.testing.assert_array_equal(refreshed.z["v"], state.z["v"])


def test_blocks_share_the_model():
    kernel = BlockGibbs(noise_scale)
    assert kernel.model == noise_scale
    assert kernel.model == BlockGibbs(noise_scale).model
    assert kernel.model != parameters
    with pytest.raises(ValueError, match="must share the same model"):
        Gibbs([(kernel, energy_sites), (NUTS(parameters), None)])


@pytest.mark.slow
def test_sites_must_be_energy_based():
    with pytest.raises(ValueError, match=r"latent site to be an energy-based model; got \['s'\]"):
        run_gibbs([(BlockGibbs(noise_scale), ["v", "s"])], num_samples=2)
