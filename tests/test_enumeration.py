"""Discrete latent sites that a model marks are summed out, in every estimator of its evidence."""

import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from evidence_models import doubtful, z_of_mean_weight
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS
from scipy import stats

from numpyro_ebm.evidence import (
    ais,
    bridge,
    exact,
    importance,
    linked,
    reverse_ais,
    savage_dickey,
    smc,
)
from numpyro_ebm.evidence.model import ModelTarget

funsor = pytest.importorskip("numpyro.contrib.funsor")

SHARED = {"enumerate": "parallel"}
"""One object for all steps of a chain, in which NumPyro takes notes of each."""
RNG = np.random.default_rng(3)
Y = np.where(RNG.random(9) < 0.4, 2.0, -1.0) + RNG.normal(size=9)
"""Data of two components at 2 and -1."""


def mark():
    return {"enumerate": "parallel"}


def normal(loc, y, scale=1.0):
    return dist.Normal(loc, scale).log_prob(y)


# ----- models and the same with the sums written out ---------------------------------------


def mixture(y=Y):
    """Assignments in a plate, their probability and one location unknown."""
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    loc = numpyro.sample("loc", dist.Normal(0, 3.0))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(share), infer=mark())
        numpyro.sample("y", dist.Normal(jnp.where(z == 1, loc, -1.0), 1.0), obs=y)


def mixture_by_hand(y=Y):
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    loc = numpyro.sample("loc", dist.Normal(0, 3.0))
    terms = jnp.stack([jnp.log(share) + normal(loc, y), jnp.log1p(-share) + normal(-1.0, y)])
    numpyro.factor("y", logsumexp(terms, 0).sum())


def chained(y=Y):
    """A global site that a continuous one depends on, and a site in a plate that depends on it."""
    z = numpyro.sample("z", dist.Categorical(jnp.array([0.2, 0.5, 0.3])), infer=mark())
    loc = numpyro.sample("loc", dist.Normal(jnp.array([-2.0, 0.0, 2.5])[z], 0.7))
    with numpyro.plate("rows", len(y)):
        scale = numpyro.sample("scale", dist.Bernoulli(0.2 + 0.3 * z), infer=mark())
        numpyro.sample("y", dist.Normal(loc, 1.0 + scale), obs=y)


def chained_by_hand(y=Y):
    """Written as one density of the location, its prior a mixture."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0))
    total = []
    for z, (prob, mean) in enumerate([(0.2, -2.0), (0.5, 0.0), (0.3, 2.5)]):
        wide = 0.2 + 0.3 * z
        rows = [jnp.log1p(-wide) + normal(loc, y), jnp.log(wide) + normal(loc, y, 2.0)]
        total.append(jnp.log(prob) + normal(mean, loc, 0.7) + logsumexp(jnp.stack(rows), 0).sum())
    numpyro.factor("rest", logsumexp(jnp.stack(total)) - normal(0.0, loc, 3.0))


STAY = jnp.array([[0.8, 0.2], [0.3, 0.7]])


def hidden_markov(y=Y):
    """A chain of hidden states in scan."""
    loc = numpyro.sample("loc", dist.Normal(0, 3.0))

    def step(state, value):
        state = numpyro.sample("state", dist.Categorical(STAY[state]), infer=SHARED)
        numpyro.sample("y", dist.Normal(jnp.where(state == 1, loc, -1.0), 1.0), obs=value)
        return state, None

    scan(step, 0, jnp.asarray(y))


def hidden_markov_by_hand(y=Y):
    loc = numpyro.sample("loc", dist.Normal(0, 3.0))
    forward = jnp.log(STAY[0])
    for i, value in enumerate(y):
        if i:
            forward = logsumexp(forward[:, None] + jnp.log(STAY), 0)
        forward = forward + jnp.stack([normal(-1.0, value), normal(loc, value)])
    numpyro.factor("y", logsumexp(forward))


PAIRS = {
    "mixture": (mixture, mixture_by_hand),
    "chained": (chained, chained_by_hand),
    "hidden Markov": (hidden_markov, hidden_markov_by_hand),
}


@cache
def truth(name="mixture"):
    return exact(PAIRS[name][1]).log_evidence


@pytest.mark.parametrize("name", PAIRS)
def test_densities_agree_with_sums_written_out(name):
    marked, by_hand = (ModelTarget("test", model) for model in PAIRS[name])
    value = jnp.asarray(np.random.default_rng(0).normal(size=(4, *marked.event_shape)), jnp.float32)
    expected = jax.jit(by_hand.energy)(value)
    np.testing.assert_allclose(jax.jit(marked.energy)(value), expected, rtol=1e-5)
    np.testing.assert_allclose(-sum(jax.jit(marked.parts)(value)), expected, rtol=1e-5)


@pytest.mark.slow
def test_quadrature_agrees_with_sums_written_out():
    found = exact(mixture)
    assert found.ok
    np.testing.assert_allclose(found.log_evidence, truth(), atol=1e-4)


def test_config_enumerate_marks_sites():
    def model(y):
        loc = numpyro.sample("loc", dist.Normal(0, 3.0))
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(jnp.where(z == 1, loc, -1.0), 1.0), obs=y)

    both = [0.6 * stats.norm.pdf(0.5, -1, 1), 0.4 * stats.norm.pdf(0.5, 0, np.sqrt(10))]
    found = exact(funsor.config_enumerate(model), model_args=(0.5,))
    np.testing.assert_allclose(found.log_evidence, np.log(np.sum(both)), atol=1e-4)
    with pytest.raises(ValueError, match=r"discrete ones: \['z'\]. Mark them .*config_enumerate"):
        exact(model, model_args=(0.5,))


def test_prior_is_that_of_the_continuous_sites_alone():
    """A mixture where a site depends on a marked one, and no other density."""
    target = ModelTarget("test", chained, needs_prior=True)
    loc = np.linspace(-4, 5, 7)
    parts = jax.jit(target.parts)(jnp.asarray(loc[:, None], jnp.float32))
    density = stats.norm.pdf(loc[:, None], [-2.0, 0.0, 2.5], 0.7) @ [0.2, 0.5, 0.3]
    np.testing.assert_allclose(parts.log_prior, np.log(density), rtol=1e-4)
    draws = np.asarray(target.sample_prior(jax.random.key(0), 4000), np.float64)[:, 0]

    def cdf(x):
        return stats.norm.cdf(np.asarray(x)[:, None], [-2.0, 0.0, 2.5], 0.7) @ [0.2, 0.5, 0.3]

    assert stats.kstest(draws, cdf).pvalue > 1e-3


def test_transformations_and_round_trips():
    target = ModelTarget("test", mixture, (jnp.asarray(Y),))
    again = jax.tree.unflatten(*reversed(jax.tree.flatten(target)))
    value = jnp.array([[0.3, -0.4], [1.0, 2.0]])
    energy = jax.jit(lambda target, value: target.energy(value))
    expected = energy(target, value)
    assert expected.shape == (2,)
    np.testing.assert_allclose(energy(again, value), expected, rtol=1e-5)
    slopes = jax.jit(jax.vmap(jax.value_and_grad(target.energy)))(value)
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-5)
    assert np.isfinite(slopes[1]).all()


# ----- estimators --------------------------------------------------------------------------


@cache
def posterior():
    mcmc = MCMC(
        NUTS(mixture),
        num_warmup=300,
        num_samples=1000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    return mcmc


def agrees(evidence, expected=None):
    expected = truth() if expected is None else expected
    assert evidence.std_error < 0.2
    return abs(evidence.log_evidence - expected) < 4 * evidence.std_error


@pytest.mark.slow
def test_importance_from_a_guide_of_the_other_sites():
    def guide(y=Y):
        numpyro.sample("share", dist.Beta(2.0, 3.0))
        numpyro.sample("loc", dist.Normal(1.8, 0.8))

    found = importance(jax.random.key(0), mixture, guide, num_particles=4000)
    by_hand = importance(jax.random.key(0), mixture_by_hand, guide, num_particles=4000)
    np.testing.assert_allclose(found.log_weights, by_hand.log_weights, rtol=1e-4)


@pytest.mark.slow
def test_importance():
    proposal = dist.MultivariateStudentT(5.0, jnp.array([-0.4, 1.8]), 0.7 * jnp.eye(2))
    assert agrees(importance(jax.random.key(0), mixture, proposal, num_particles=2000))


@doubtful
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "chained"])
def test_annealing_is_unbiased(name):
    model = PAIRS[name][0]
    evidence = ais(jax.random.key(0), model, num_temperatures=15, num_particles=2000)
    assert abs(z_of_mean_weight(evidence, truth(name))) < 4


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [ais, smc, linked])
def test_estimators_from_the_prior(estimate):
    assert agrees(estimate(jax.random.key(0), mixture))


@pytest.mark.slow
def test_bridge_from_a_finished_mcmc():
    mcmc = posterior()
    assert "z" not in mcmc.get_samples()
    found = bridge(jax.random.key(1), mcmc)
    assert found.ok
    assert agrees(found)


@pytest.mark.slow
def test_reverse_annealing_from_a_finished_mcmc():
    assert agrees(reverse_ais(jax.random.key(1), posterior(), num_temperatures=100))


@pytest.mark.slow
def test_savage_dickey():
    """Against the evidence of the model whose location is fixed."""

    def fixed():
        numpyro.handlers.condition(mixture_by_hand, {"loc": 1.5})()

    expected = exact(fixed).log_evidence - stats.norm.logpdf(1.5, 0, 3) - truth()
    assert agrees(savage_dickey(jax.random.key(1), posterior(), {"loc": 1.5}), expected)


def test_savage_dickey_with_a_prior_that_depends_on_marked_sites():
    """Without data the density ratio is one, whatever the prior given the other sites."""

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer=mark())
        s = numpyro.sample("s", dist.LogNormal(1.5 * z, 0.5))
        numpyro.sample("t", dist.Normal(jnp.log(s) - 2.0 * z, 0.5))

    rng = np.random.default_rng(0)
    z = rng.random((2, 4000)) < 0.3
    log_s = 1.5 * z + 0.5 * rng.normal(size=z.shape)
    draws = {"s": np.exp(log_s), "t": log_s - 2.0 * z + 0.5 * rng.normal(size=z.shape)}
    assert agrees(savage_dickey(jax.random.key(0), model, {"t": 0.4}, draws), 0.0)


# ----- what is refused ---------------------------------------------------------------------


def marked(fn):
    def model():
        x = numpyro.sample("x", dist.Normal())
        z = numpyro.sample("z", fn, infer=mark())
        numpyro.sample("y", dist.Normal(x + z, 1.0), obs=jnp.zeros(()))

    return model


def masked():
    x = numpyro.sample("x", dist.Normal())
    with numpyro.plate("rows", 2), numpyro.handlers.mask(mask=jnp.array([True, False])):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer=mark())
        numpyro.sample("y", dist.Normal(x + z, 1.0), obs=jnp.zeros(2))


def scaled():
    x = numpyro.sample("x", dist.Normal())
    with numpyro.handlers.scale(scale=2.0):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer=mark())
    numpyro.sample("y", dist.Normal(x + z, 1.0), obs=jnp.zeros(()))


def without_plate():
    x = numpyro.sample("x", dist.Normal())
    z = numpyro.sample("z", dist.Bernoulli(0.5), infer=mark())
    numpyro.sample("y", dist.Normal(x + z, 1.0), obs=jnp.zeros(2))


def moving_support():
    z = numpyro.sample("z", dist.Bernoulli(0.5), infer=mark())
    numpyro.sample("x", dist.Uniform(0.0, 1.0 + z))


def only_marked():
    z = numpyro.sample("z", dist.Bernoulli(0.5), infer=mark())
    numpyro.sample("y", dist.Normal(z, 1.0), obs=0.3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (marked(dist.Poisson(2.0)), r"'z' \(Poisson\) is not. Sum it out"),
        (marked(dist.DiscreteUniform(1, 3)), r"'z' \(DiscreteUniform.*other than 0, 1"),
        (masked, "'z' is masked, and every state"),
        (without_plate, "dimension -1 of 'y', of size 2, is in none"),
        (moving_support, "that of 'x' does. Sample it on a fixed interval"),
        (only_marked, r"continuous latent site; got none beside \['z'\]"),
    ],
)
def test_refused(model, message):
    with pytest.raises(ValueError, match=f"exact: .*{message}"):
        exact(model)


def test_a_prior_that_is_scaled_is_refused_where_it_is_drawn_from():
    with pytest.raises(ValueError, match="ais: .*that of 'z' is scaled"):
        ais(jax.random.key(0), scaled)
    density = stats.norm.pdf([0.0, 1.0], 0, np.sqrt(2))  # elsewhere it is taken as it is
    np.testing.assert_allclose(exact(scaled).log_evidence, np.log(0.25 * density.sum()), atol=1e-4)


def test_without_funsor(monkeypatch):
    monkeypatch.setitem(sys.modules, "funsor", None)
    with pytest.raises(ImportError, match=r"exact: .*marks for enumeration, \['z'\].*pip install"):
        exact(mixture)
