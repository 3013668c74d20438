"""NADE and MADE as noise, as base of annealing, as proposal, and as guide."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import optim
from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO

import numpyro_ebm as ebm
from numpyro_ebm import MADE, NADE, conditionals

KEY = jax.random.key(0)
RBM = ebm.RBM(0.8 * jax.random.normal(KEY, (5, 3)), jnp.linspace(-1, 1, 5), jnp.zeros(3))
POTTS = ebm.Potts(0.5 * jnp.ones((4, 4)) * (1 - jnp.eye(4)), jnp.zeros((4, 3)))
THREE = conditionals.CategoricalLogits(3)


def net(model_class, num_visible=5, **kwargs):
    hidden = 6 if model_class is NADE else [8]
    params = model_class.init_params(jax.random.key(1), num_visible, hidden, **kwargs)
    return model_class(**params, **{k: v for k, v in kwargs.items() if k == "conditional"})


def assert_log_z(found, target):
    truth = ebm.evidence.exact(target).log_evidence
    assert found.std_error < 0.2
    assert abs(found.log_evidence - truth) < 4 * found.std_error


BASES = {
    "NADE": (lambda: net(NADE), RBM, {}),
    "MADE with gradients": (
        lambda: net(MADE),
        RBM,
        {"kernel": ebm.kernels.GibbsWithGradientsStep()},
    ),
    "ensemble": (lambda: net(NADE).ensemble([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]), RBM, {}),
    "categorical": (lambda: net(NADE, 4, conditional=THREE), POTTS, {}),
}


@pytest.mark.parametrize(("build", "target", "kwargs"), BASES.values(), ids=BASES)
def test_base_of_annealing(build, target, kwargs):
    found = ebm.evidence.ais(
        KEY, target, base=build(), num_temperatures=20, num_particles=300, **kwargs
    )
    assert_log_z(found, target)


@pytest.mark.slow
def test_bracket_from_a_base():
    draws = RBM.sample(jax.random.key(3), (300,))
    found = ebm.evidence.bracket(KEY, RBM, draws, base=net(NADE), num_temperatures=20)
    assert_log_z(found, RBM)


def test_bases_that_do_not_fit():
    with pytest.raises(ValueError, match="RBM: expected a `base` whose units have the same states"):
        ebm.evidence.ais(KEY, RBM, base=net(NADE, conditional=THREE))
    with pytest.raises(ValueError, match=r"RBM: expected a `base` with batch shape \(\)"):
        ebm.evidence.ais(KEY, RBM, base=net(NADE, 4))
    with pytest.raises(ValueError, match="expected a normalized `base`"):
        ebm.evidence.ais(KEY, RBM, base=RBM)


@pytest.mark.parametrize("model_class", [NADE, MADE])
def test_proposal_of_importance_and_bridge(model_class):
    proposal = net(model_class)
    assert_log_z(ebm.evidence.importance(KEY, RBM, proposal, num_particles=2000), RBM)
    draws = RBM.sample(jax.random.key(3), (2000,))
    assert_log_z(ebm.evidence.bridge(KEY, RBM, draws, proposal=proposal), RBM)


@pytest.mark.slow
def test_noise_on_the_real_line():
    """A mixture NADE is trained alongside the energy it is noise for."""
    data = jax.random.normal(jax.random.key(1), (400, 2)) @ jnp.array([[1.0, 0.8], [0.0, 0.6]])
    mixture = conditionals.GaussianMixture(2)
    initial = NADE.init_params(KEY, 2, 8, conditional=mixture)

    def energy(params, x):
        return 0.5 * x @ params @ x

    def model(data):
        params = numpyro.param("precision", jnp.eye(2))
        target = ebm.NeuralEnergy(energy, params, event_shape=(2,))
        noise = NADE(**numpyro.param("noise", initial), conditional=mixture)
        ebm.contrast_noise(target, noise)
        ebm.learnt_log_z("log_z", target)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("x", target, obs=data)

    svi = SVI(model, lambda data: None, optim.Adam(0.02), ebm.NoiseContrastiveEstimation())
    params = svi.run(KEY, 400, data, progress_bar=False).params
    noise = NADE(**params["noise"], conditional=mixture)
    exact = dist.MultivariateNormal(0.0, jnp.cov(data.T))
    assert noise.log_prob(data).mean() > exact.log_prob(data).mean() - 0.05
    assert params["precision"].sum() - jnp.trace(params["precision"]) < -2  # in truth -4.4, from 0


# ----- guides ------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [NADE, pytest.param(MADE, marks=pytest.mark.slow)])
def test_guide_of_binary_units(model_class):
    """The ELBO of a posterior that does not factorize comes near to the evidence."""
    hidden = 8 if model_class is NADE else [12]
    initial = model_class.init_params(KEY, 3, hidden)

    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.5).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(z.sum(), 0.4), obs=y)

    def guide(y):
        numpyro.sample("z", model_class(**numpyro.param("net", initial)))

    y = jnp.array(1.0)
    states = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    joint = dist.Normal(states.sum(1), 0.4).log_prob(y) - 3 * np.log(2)
    truth = jax.nn.logsumexp(joint)
    svi = SVI(model, guide, optim.Adam(0.03), TraceGraph_ELBO(num_particles=30))
    params = svi.run(KEY, 500, y, progress_bar=False).params
    fitted = model_class(**params["net"])
    log_q = fitted.log_prob(states)
    elbo = (jnp.exp(log_q) * (joint - log_q)).sum()
    assert truth - 0.1 < elbo < truth + 1e-4
    rates = jnp.exp(joint - truth) @ states
    independent = dist.Bernoulli(rates).to_event(1).log_prob(states)
    assert elbo > (jnp.exp(independent) * (joint - independent)).sum() + 0.3


@pytest.mark.parametrize("model_class", [pytest.param(NADE, marks=pytest.mark.slow), MADE])
def test_guide_of_real_units(model_class):
    """Draws of mixtures can be differentiated, so that a plain ELBO is enough."""
    mixture = conditionals.GaussianMixture(2)
    hidden = 8 if model_class is NADE else [12]
    initial = model_class.init_params(KEY, 2, hidden, conditional=mixture)

    def model(y):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(z.sum(), 0.5), obs=y)

    def guide(y):
        numpyro.sample("z", model_class(**numpyro.param("net", initial), conditional=mixture))

    y = jnp.array(1.0)
    truth = dist.Normal(0, np.sqrt(2.25)).log_prob(y)
    mean_field = truth - 0.5 * np.log(25 / 9)  # of a posterior with precisions 5, 4; 4, 5
    svi = SVI(model, guide, optim.Adam(0.02), Trace_ELBO(num_particles=20))
    params = svi.run(KEY, 400, y, progress_bar=False).params
    fitted = model_class(**params["net"], conditional=mixture)
    z = fitted.sample(KEY, (20_000,))
    elbos = dist.Normal(0, 1).log_prob(z).sum(-1) + dist.Normal(z.sum(-1), 0.5).log_prob(y)
    elbos = np.asarray(elbos - fitted.log_prob(z), np.float64)
    error = elbos.std() / np.sqrt(len(elbos))
    assert mean_field + 0.3 < elbos.mean() < truth + 4 * error
