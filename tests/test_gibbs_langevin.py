"""Gibbs-Langevin moves; that adjusted ones leave their target invariant is in test_no_drift."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from continuous_targets import mixture_moments
from drift import drift
from helpers import assert_moments
from kernel_cases import exact_start, target
from numpyro.infer import SVI
from registry import Case

import numpyro_ebm as ebm
from numpyro_ebm import units
from numpyro_ebm.kernels import GibbsLangevinStep


def run(kernel, rbm, start, num_steps, seed=0):
    def step(i, state):
        return kernel.step(jax.random.fold_in(jax.random.key(seed), i), state, rbm)[0]

    return jax.lax.fori_loop(0, num_steps, step, kernel.init(start, rbm))


def test_the_bias_of_unadjusted_steps():
    """Without couplings they are an autoregression, whose variance is not the target's."""
    scale = jnp.array([0.5, 2.0])
    rbm = ebm.RBM(jnp.zeros((2, 3)), units.Gaussian(jnp.array([1.0, -3.0]), scale), jnp.zeros(3))
    kernel = GibbsLangevinStep(1.0, num_steps=2, adjust=False)
    start = jnp.zeros((20_000, 2)) + rbm.visible_units.loc
    value = np.asarray(jax.jit(lambda: run(kernel, rbm, start, 20).value)(), np.float64)
    centered = (value - np.array([1.0, -3.0])) / scale
    assert_moments(np.column_stack([centered, centered**2]), [0, 0, 4 / 3, 4 / 3])
    assert not kernel.is_reversible


def test_unadjusted_steps_drift_from_an_exact_start():
    name = "RBM mixture"
    kernel = GibbsLangevinStep(1.0, num_steps=3, adjust=False)
    scores = drift(kernel, target(name).distribution, exact_start(name), steps=(4,))
    assert np.abs(scores).max() > 8


def test_batches_of_models():
    rbm = Case("Gaussian", "Bernoulli", 205, ((2,), (), ())).build()
    start = jnp.zeros((5, 2, 2))
    state = run(GibbsLangevinStep(0.5), rbm, start, 2)
    assert state.value.shape == start.shape
    assert state.accept_prob.shape == (5, 2)


def test_as_the_kernel_of_persistent_chains():
    """With the parameters held, chains that persist through updates reach the model."""
    rbm = target("RBM mixture").distribution
    loc, scale = rbm.visible_units.loc, rbm.visible_units.scale

    def model(data):
        visible = units.Gaussian(numpyro.param("loc", loc), scale)
        held = ebm.RBM(rbm.weights, visible, rbm.hidden_units)
        ebm.persistent_chains("chains", 4000, held, kernel=GibbsLangevinStep(0.8, num_steps=3))
        numpyro.sample("v", held, obs=data)

    svi = SVI(model, lambda data: None, optax.sgd(0.0), ebm.PersistentContrastiveDivergence())
    state = svi.run(jax.random.key(0), 60, jnp.zeros(2), progress_bar=False).state
    chains = np.asarray(state.mutable_state["chains"]["chain"].visible, np.float64)
    mean, covariance = mixture_moments(rbm)
    centered = chains - mean
    products = centered[:, [0, 0, 1]] * centered[:, [0, 1, 1]]
    expected = [0, 0, covariance[0, 0], covariance[0, 1], covariance[1, 1]]
    assert_moments(np.column_stack([centered, products]), expected)


BAD = {
    "step size": (lambda: GibbsLangevinStep(0.0), ValueError, "GibbsLangevin.*`step_size`.*got 0"),
    "steps": (lambda: GibbsLangevinStep(0.1, 0), ValueError, "`num_steps`"),
    "adjust": (lambda: GibbsLangevinStep(0.1, adjust=1), TypeError, "`adjust` to be True or False"),
    "discrete": (
        lambda: GibbsLangevinStep(0.1).init(
            jnp.zeros(2), ebm.RBM(jnp.zeros((2, 1)), jnp.zeros(2), jnp.zeros(1))
        ),
        TypeError,
        "continuous units only",
    ),
    "no RBM": (
        lambda: GibbsLangevinStep(0.1).init(jnp.zeros(2), ebm.Ising(jnp.zeros((2, 2)), 0.0)),
        TypeError,
        "expected an RBM.*got Ising",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
