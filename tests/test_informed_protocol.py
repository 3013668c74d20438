"""Gradient-informed kernels in every chain method, in losses and evidence, and what they refuse."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from chains import Posterior, assert_chain_means, run
from discrete_models import (
    BINARY,
    DATA,
    KERNELS,
    coupled,
    coupled_log_likelihood,
    dmala,
    gwg,
    mixture,
)
from helpers import BruteForce
from numpyro.infer import SVI

import numpyro_ebm as ebm
from numpyro_ebm import DiscreteLangevin, GibbsWithGradients
from numpyro_ebm.kernels import DiscreteLangevinStep, GibbsWithGradientsStep

STEPS = pytest.mark.parametrize(
    "step", [GibbsWithGradientsStep(num_flips=4), DiscreteLangevinStep(0.7, num_steps=2)]
)


@pytest.mark.parametrize("method", ["sequential", "parallel", "vectorized"])
def test_every_chain_method(method):
    options = {"num_chains": 2, "num_samples": 1000, "chain_method": method}
    mcmc = run(dmala(coupled), extra_fields=("step_size",), **options)
    step_size = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["step_size"])
    assert step_size.shape == (2, 1000)
    np.testing.assert_array_equal(step_size, np.tile(step_size[:, :1], (1, 1000)))
    assert step_size[0, 0] != step_size[1, 0] != 1.0
    samples = np.asarray(mcmc.get_samples(group_by_chain=True)["v"], np.float64)
    posterior = Posterior(BINARY, coupled_log_likelihood)
    assert_chain_means(samples, posterior.probs @ posterior.states)


@STEPS
def test_annealed_importance_sampling_moves_by_them(step):
    log_z = ebm.evidence.ais(
        jax.random.key(0), BINARY, kernel=step, num_temperatures=60, num_particles=300
    )
    assert abs(log_z.log_evidence - BruteForce(BINARY).log_z) < 4 * log_z.std_error
    assert log_z.std_error < 0.05


@STEPS
def test_contrastive_divergence_moves_by_them(step):
    """From data of the model itself, the exact gradient is zero, for any number of steps."""
    data = jnp.asarray(BruteForce(BINARY).draw(np.random.default_rng(0), 4000), jnp.int32)
    rbm = BINARY

    def model(data):
        weights = numpyro.param("weights", rbm.weights)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", ebm.RBM(weights, rbm.visible_units, rbm.hidden_units), obs=data)

    loss = ebm.ContrastiveDivergence(3, kernel=step)
    svi = SVI(model, lambda data: None, optax.sgd(1.0), loss)
    state = svi.init(jax.random.key(1), data)

    @jax.vmap
    def gradient(key):
        def total(params):
            return loss.loss(key, params, model, lambda data: None, data)

        return jax.grad(total)({"weights": rbm.weights})["weights"] / len(data)

    gradients = np.asarray(jax.jit(gradient)(jax.random.split(jax.random.key(2), 8)), np.float64)
    spread = np.sqrt(2 * 0.25 / (8 * len(data))) * 4
    assert np.abs(gradients.mean(0)).max() < 4 * spread
    new_state, _ = jax.jit(svi.update)(state, data)
    assert np.isfinite(svi.get_params(new_state)["weights"]).all()


@pytest.mark.slow
def test_kernels_survive_pickling_and_run_again():
    mcmc = run(gwg(coupled), num_samples=20)
    again = pickle.loads(pickle.dumps(mcmc))
    again.run(jax.random.key(0))
    assert again.get_samples()["v"].shape == (20, 3)


# ----- what they refuse --------------------------------------------------------------------------


def init(kernel, *args):
    return kernel.init(jax.random.key(0), 0, None, args, {})


@KERNELS
def test_continuous_sites_are_refused_with_the_way_out(make):
    with pytest.raises(ValueError, match=r"expected discrete latent sites.*'locs'.*Gibbs\(\[\("):
        init(make(mixture), jnp.asarray(DATA))


@KERNELS
def test_a_density_without_derivative_is_refused_with_the_way_out(make):
    def rough():
        z = numpyro.sample("z", dist.Bernoulli(0.5).mask(False).expand([4]).to_event(1))
        numpyro.factor("parity", jnp.where(z.sum() % 2 == 0, 0.0, -1.0))

    name = "GibbsWithGradients" if make is gwg else "DiscreteLangevin"
    with pytest.raises(ValueError, match=f"{name}: .*non-differentiable density.*DiscreteGibbs"):
        init(make(rough))


def test_arguments_are_checked():
    for make, arguments, error, message in [
        (
            GibbsWithGradients,
            {"balancing": "tanh"},
            ValueError,
            "`balancing` to be one of .*'tanh'",
        ),
        (GibbsWithGradients, {"num_flips": 0}, ValueError, "`num_flips` to be a positive integer"),
        (DiscreteLangevin, {"step_size": 0.0}, ValueError, "positive, finite `step_size`; got 0.0"),
        (DiscreteLangevin, {"step_size": "a"}, TypeError, "`step_size` to be a Python number"),
        (DiscreteLangevin, {"num_steps": 1.5}, ValueError, "`num_steps` to be a positive integer"),
        (DiscreteLangevin, {"target_accept_prob": 1}, ValueError, "`target_accept_prob` between"),
    ]:
        with pytest.raises(error, match=f"^{make.__name__}: expected .*{message}"):
            make(coupled, **arguments)
    with pytest.raises(TypeError, match="expected `model` to be a NumPyro model"):
        GibbsWithGradients(BINARY)


def test_sites_that_feed_an_unknown_normalizer_are_refused():
    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("v", ebm.RBM(jnp.ones((2, 2)) * z, jnp.zeros(2), jnp.zeros(2)))

    with pytest.raises(ebm.NormalizerError, match="z"):
        init(gwg(model))
