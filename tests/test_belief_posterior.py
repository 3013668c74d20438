"""Hidden units of sigmoid belief networks given the visible ones, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from drift import assert_no_drift
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import lift, seed, substitute
from numpyro.infer import MCMC, NUTS, Gibbs
from test_sigmoid_belief_network import log_joint, log_recognition, parameters, split, states

from numpyro_ebm import discrete_sites, evidence, kernels
from numpyro_ebm.models import BeliefGibbs, SigmoidBeliefNetwork

DEEP = SigmoidBeliefNetwork(4, [3, 2, 2])
FLAT = SigmoidBeliefNetwork(3, [2])
DATA = np.array([[1, 0, 1, 1], [0, 0, 0, 1]])


def network(sbn, scale=1.5):
    return {k: jnp.asarray(scale * v, jnp.float32) for k, v in parameters(sbn).items()}


def log_joint_of(sbn, params, row, hidden):
    layers = split(hidden, sbn.hidden_sizes)
    visible = np.broadcast_to(row, (len(hidden), sbn.num_visible))
    return log_joint({k: np.asarray(v, float) for k, v in params.items()}, [visible, *layers])


def marginals(sbn, params, row):
    """Means of all hidden units, by enumeration."""
    every = states(sum(sbn.hidden_sizes))
    log_p = log_joint_of(sbn, params, row, every)
    weights = np.exp(log_p - log_p.max())
    return weights @ every / weights.sum()


def test_energies_and_log_z():
    params, every = network(DEEP), states(7)
    posterior = DEEP.posterior(params, DATA)
    assert posterior.batch_shape == (2,)
    for i, row in enumerate(DATA):
        expected = -log_joint_of(DEEP, params, row, every)
        np.testing.assert_allclose(posterior.energy(every[:, None])[:, i], expected, rtol=1e-5)
    found = evidence.exact(posterior).log_evidence
    np.testing.assert_allclose(found, DEEP.exact_log_likelihood(params, DATA), rtol=1e-5)


@pytest.mark.slow
def test_a_sweep_leaves_the_posterior_as_it_is():
    posterior = DEEP.posterior(network(DEEP), DATA[0])
    start = posterior.sample(jax.random.key(0), (20000,)).astype(jnp.uint8)
    assert_no_drift(kernels.GibbsSweeps(), posterior, start, steps=(1, 3))


def test_annealing_estimates_the_log_likelihood():
    params = network(DEEP)
    estimate = evidence.ais(
        jax.random.key(0), DEEP.posterior(params, DATA[0]), num_temperatures=30, num_particles=200
    )
    exact = DEEP.exact_log_likelihood(params, DATA[:1])[0]
    assert abs(estimate.log_evidence - exact) < 4 * estimate.std_error < 0.5


def test_clamped_hidden_units_stay():
    posterior = DEEP.posterior(network(DEEP), DATA)
    chain = posterior.init_chain(jax.random.key(0), (50,))
    mask, values = np.arange(7) % 2 == 0, np.arange(7) % 4 == 0
    chain = posterior.gibbs_step(jax.random.key(1), chain, mask=mask, values=values)
    np.testing.assert_array_equal(chain[..., mask], np.broadcast_to(values[mask], (50, 2, 4)))
    assert 0 < np.asarray(chain[..., ~mask]).mean() < 1


@pytest.mark.slow
def test_mcmc_finds_the_marginals():
    params = network(DEEP, 0.8)
    options = {"num_chains": 8, "chain_method": "vectorized", "progress_bar": False}
    sampler = BeliefGibbs(substitute(DEEP.model, data=params))
    mcmc = MCMC(sampler, num_warmup=100, num_samples=1000, **options)
    mcmc.run(jax.random.key(0), DATA, extra_fields=("energy",))
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["hidden_1"].dtype == np.uint8
    found = np.concatenate([np.asarray(draws[f"hidden_{k}"], float) for k in (1, 2, 3)], axis=-1)
    expected = np.array([marginals(DEEP, params, row) for row in DATA])
    error = found.std((0, 1)) / np.sqrt(effective_sample_size(found))
    assert np.all(np.abs(found.mean((0, 1)) - expected) < 4 * error)
    last = [log_joint_of(DEEP, params, row, found[:, -1, i]) for i, row in enumerate(DATA)]
    energy = mcmc.get_extra_fields(group_by_chain=True)["energy"][:, -1]
    np.testing.assert_allclose(energy, -np.sum(last, 0), rtol=1e-4)


@pytest.mark.slow
def test_beside_nuts_for_the_parameters():
    """Geweke's test: data drawn anew from the chain's parameters leave the prior as it was."""
    prior = {"bias_0": dist.Normal(jnp.zeros(3), 1).to_event(1)}
    fixed = {k: v for k, v in network(FLAT).items() if k != "bias_0"}
    model = lift(substitute(FLAT.model, data=fixed), prior=prior)
    kernel = Gibbs([(BeliefGibbs(model), discrete_sites), (NUTS(model), None)])
    mcmc = MCMC(kernel, num_warmup=100, num_samples=500, progress_bar=False)
    data = DATA[:, :3]
    mcmc.run(jax.random.key(0), data)
    grid = np.linspace(-4, 4, 25)
    points = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
    log_p = jax.vmap(
        lambda b: FLAT.exact_log_likelihood(fixed | {"bias_0": b}, data).sum() - (b**2).sum() / 2
    )(jnp.asarray(points))
    weights = np.exp(np.asarray(log_p, float) - np.max(log_p))
    expected = weights @ points / weights.sum()
    draws = np.asarray(mcmc.get_samples(group_by_chain=False)["bias_0"], float)[None]
    error = draws.std((0, 1)) / np.sqrt(effective_sample_size(draws))
    assert np.all(np.abs(draws.mean((0, 1)) - expected) < 4 * error)


# ----- bounds ------------------------------------------------------------------------------


def test_bounds_lie_below_the_log_likelihood():
    params = network(DEEP)
    exact = DEEP.exact_log_likelihood(params, DATA).mean()
    key, options = jax.random.key(0), {"num_samples": 4000}
    lower = DEEP.variational_bound(key, params, DATA, **options)
    tighter = DEEP.variational_bound(key, params, DATA, importance_weighted=True, **options)
    assert lower.log_evidence + 4 * lower.std_error < tighter.log_evidence
    assert tighter.log_evidence < exact + 4 * tighter.std_error
    assert lower.diagnostics["bounds"].shape == (2,)
    np.testing.assert_allclose(
        lower.log_evidence, exact_bound(params, DATA), atol=4 * lower.std_error
    )


def exact_bound(params, data):
    """Mean over rows of the expectation under the recognition network, by enumeration."""
    every, total = states(7), 0.0
    double = {k: np.asarray(v, float) for k, v in params.items()}
    for row in data:
        layers = [np.broadcast_to(row, (len(every), 4)), *split(every, DEEP.hidden_sizes)]
        log_q = log_recognition(double, layers)
        total += np.exp(log_q) @ (log_joint(double, layers) - log_q)
    return total / len(data)


def test_the_bound_is_exact_where_the_posterior_factorizes():
    """No two hidden units share a child, so that their posterior is a logistic function each."""
    sbn = SigmoidBeliefNetwork(4, [2])
    weights = np.array([[1.5, 0], [-2.0, 0], [0, 1.0], [0, 0.5]], np.float32)
    params = network(sbn) | {"weights_1": weights, "recognition_weights_1": weights}
    bias = np.asarray(params["bias_0"])[:, None]
    change = np.where(weights, np.logaddexp(0, bias + weights) - np.logaddexp(0, bias), 0).sum(0)
    params["recognition_bias_1"] = np.asarray(params["bias_1"]) - change
    found = sbn.variational_bound(jax.random.key(0), params, DATA, num_samples=20)
    exact = sbn.exact_log_likelihood(params, DATA)
    np.testing.assert_allclose(found.diagnostics["bounds"], exact, atol=1e-5)
    assert found.std_error < 1e-6


# ----- refusals ----------------------------------------------------------------------------


def run(model, *args, **kwargs):
    BeliefGibbs(model).init(jax.random.key(0), 0, None, args, kwargs)


def with_another_likelihood(data):
    with seed(rng_seed=0):
        FLAT.model(data)
    numpyro.sample("y", dist.Normal(), obs=0.0)


PARAMS = parameters(FLAT)
PRIOR = dist.Normal(jnp.zeros(2)).to_event(1)
ERRORS = {
    "names": (lambda: FLAT.posterior({}, DATA[:, :3]), "`params` with the shapes"),
    "shapes": (lambda: FLAT.posterior(parameters(DEEP), DATA[:, :3]), "`params` with the shapes"),
    "data": (lambda: FLAT.posterior(PARAMS, DATA), r"shape \(rows, 3\)"),
    "samples": (
        lambda: FLAT.variational_bound(jax.random.key(0), PARAMS, DATA[:, :3], num_samples=1),
        "`num_samples` to be an integer of at least 2",
    ),
    "another model": (lambda: run(lambda: None), "the model of a SigmoidBeliefNetwork"),
    "no data": (lambda: run(FLAT.model, num_rows=3), "observed visible units"),
    "priors": (
        lambda: run(
            lift(FLAT.model, prior={"bias_1": dist.Normal(jnp.zeros(2)).to_event(1)}), DATA[:, :3]
        ),
        "only latent sites; got .'bias_1'",
    ),
    "sweeps": (lambda: BeliefGibbs(FLAT.model, num_sweeps=0), "`num_sweeps`"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        call()


def test_other_likelihoods_are_refused():
    with pytest.raises(ValueError, match="without other observed sites; got .'y'"):
        run(with_another_likelihood, DATA[:, :3])
