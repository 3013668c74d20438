from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from helpers import assert_moments, z_scores
from loss_models import (
    CONSTANT_CD,
    DATA,
    NEGATIVE,
    NUM_CHAINS,
    NUM_ROWS,
    ONES,
    PARAMS,
    PCD,
    Constant,
    assert_gradients_close,
    contrast,
    no_guide,
    observe,
    rbm_of,
    recorder,
    update,
    with_chains,
)
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from numpyro_ebm import ContrastiveDivergence, NormalizerError, persistent_chains


def with_priors(observe_given):
    """A model with priors on the parameters, observed by ``observe_given(data, params)``."""

    def model(data):
        shape = PARAMS["weights"].shape
        weights = numpyro.sample("weights", dist.Normal(0, 0.5).expand(shape).to_event(2))
        bias = numpyro.sample("bias", dist.Normal(0, 3).expand([NUM_ROWS]).to_event(1))
        observe_given(data, {"weights": weights, "bias": bias})

    return model


def observe_rbm(data, params, num_chains=NUM_CHAINS, **kwargs):
    rbm = rbm_of(**params, **kwargs)
    if num_chains:
        persistent_chains("chains", num_chains, rbm)
    observe(rbm, data)


def assert_same_as_a_factor(loss, reference_loss, make_guide, num_chains):
    """NumPyro's own loss, with the contrast written as a factor, has the same gradient."""
    model = with_priors(partial(observe_rbm, num_chains=num_chains))
    gradient, chains, value = update(loss, model, guide=make_guide(model))
    negative = NEGATIVE[None] if chains is None else chains

    def observe_factor(data, params):
        numpyro.factor("v", -contrast(params, data, negative, ONES))

    reference = with_priors(observe_factor)
    expected, _, reference_value = update(reference_loss, reference, guide=make_guide(reference))
    assert_gradients_close(gradient, expected)
    np.testing.assert_allclose(value, reference_value, rtol=1e-5)


@pytest.mark.parametrize("make_guide", [AutoDelta, AutoNormal])
def test_pcd_under_a_guide(make_guide):
    assert_same_as_a_factor(PCD, Trace_ELBO(), make_guide, NUM_CHAINS)


@pytest.mark.parametrize("vectorized", [True, False])
def test_cd_of_several_particles(vectorized):
    particles = {"num_particles": 3, "vectorize_particles": vectorized}
    loss = ContrastiveDivergence(kernel=Constant(), **particles)
    assert_same_as_a_factor(loss, Trace_ELBO(**particles), AutoNormal, None)


def test_cd_of_many_steps_is_stationary_at_the_exact_posterior_mode():
    half = jnp.arange(NUM_ROWS) < NUM_ROWS // 2
    rows = jnp.concatenate([jnp.tile(jnp.stack([half, ~half]), (30, 1)), DATA])
    exact = with_priors(partial(observe_rbm, num_chains=None, normalizer="exact"))
    schedule = optax.linear_schedule(0.1, 0, 1000)
    svi = SVI(exact, AutoDelta(exact), optax.adam(schedule), Trace_ELBO())
    mode = svi.run(jax.random.key(0), 1000, rows, progress_bar=False).params
    model = with_priors(partial(observe_rbm, num_chains=None))
    guide = AutoDelta(model)
    SVI(model, guide, recorder(), CONSTANT_CD).init(jax.random.key(0), rows)  # sets the guide up

    gradient = jax.grad(ContrastiveDivergence(num_steps=30).loss, argnums=1)
    keys = jax.random.split(jax.random.key(2), 200)

    @jax.jit
    def gradients(params):
        replicates = jax.vmap(lambda key: gradient(key, params, model, guide, rows))(keys)
        return jnp.concatenate([g.reshape(len(keys), -1) for g in replicates.values()], axis=1)

    assert_moments(gradients(mode), 0.0)
    elsewhere = jax.tree.map(lambda value: 0.9 * value, mode)
    assert np.abs(z_scores(gradients(elsewhere), 0.0)).max() > 10


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal, None])
def test_an_elbo_of_a_guarded_model_raises(guide):
    model = with_chains if guide is None else with_priors(observe_rbm)
    with pytest.raises(NormalizerError, match="RBM.*log Z.*ContrastiveDivergence"):
        update(Trace_ELBO(), model, guide=guide(model) if guide else no_guide)
