"""A gradient that leaves out log Z raises, wherever it is taken; every other one does not."""

import warnings
from functools import partial
from itertools import product

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, SVI, DiscreteGibbs, Gibbs, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from registry import CONTINUOUS, PAIRINGS, parametrize

from numpyro_ebm import RBM, NormalizerError, units

WEIGHTS = jnp.array([[0.5, -1.0], [1.0, 0.25], [-0.5, 0.75]])
VALUE = jnp.array([1.0, 0.0, 1.0])
GAUSSIAN_VALUE = jnp.array([0.3, -1.2, 0.8])


def of_parameters(theta, normalizer="guard"):
    rbm = RBM(theta * WEIGHTS, theta * jnp.ones(3), jnp.zeros(2), normalizer=normalizer)
    return rbm.log_prob(VALUE)


def of_value(theta, normalizer="guard"):
    rbm = RBM(0.3 * WEIGHTS, units.Gaussian(jnp.zeros(3)), jnp.zeros(2), normalizer=normalizer)
    return rbm.log_prob(theta * GAUSSIAN_VALUE)


def scanned(f):
    return lambda x: jax.lax.scan(lambda total, _: (total + f(x), None), 0.0, jnp.arange(3))[0]


def mapped(f):
    return lambda x: jax.vmap(f)(x * jnp.ones(3)).sum()


def chosen(f):
    return lambda x: jax.lax.cond(x > 0, f, lambda x: 0.0 * x, x)


def looped(f):
    return lambda x: jax.lax.fori_loop(0, 2, lambda _, total: total + f(x), 0.0)


def tangent(f):
    return lambda x: jax.jvp(f, (x,), (1.0,))[1]


def linearized(f):
    return lambda x: jax.linearize(f, x)[1](1.0)


def pulled_back(f):
    return lambda x: jax.vjp(f, x)[1](1.0)[0]


def mapped_gradient(f):
    return lambda x: jax.vmap(jax.grad(f))(x * jnp.ones(3))


WRAPPERS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "vmap": mapped,
    "scan": scanned,
    "cond": chosen,
    "remat": jax.checkpoint,
    "fori_loop": looped,
}
DERIVATIVES = {
    "grad": jax.grad,
    "jvp": tangent,
    "vjp": pulled_back,
    "hessian": jax.hessian,
    "jacfwd": jax.jacfwd,
    "linearize": linearized,
    "vmap of grad": mapped_gradient,
    "jit of grad": lambda f: jax.jit(jax.grad(f)),
}
PARAMETERS = r"RBM: .*parameters \(visible_units\.logits, weights\).*normalizer=\"exact\""


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_derivatives(wrapper, derivative):
    def trace_derivative_of(function):
        jax.eval_shape(DERIVATIVES[derivative](WRAPPERS[wrapper](function)), 0.7)

    trace_derivative_of(of_value)
    with pytest.raises(NormalizerError, match=PARAMETERS):
        trace_derivative_of(of_parameters)


@pytest.mark.parametrize("normalizer", ["guard", 1.5])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_as_they_run(derivative, normalizer):
    derivative_of = DERIVATIVES[derivative]
    assert np.all(np.isfinite(derivative_of(partial(of_value, normalizer=normalizer))(0.7)))
    with pytest.raises(NormalizerError, match=PARAMETERS):
        derivative_of(partial(of_parameters, normalizer=normalizer))(0.7)


@pytest.mark.parametrize("normalizer", ["exact", "ignore"])
def test_no_guard_where_none_is_wanted(normalizer):
    assert np.isfinite(jax.grad(partial(of_parameters, normalizer=normalizer))(0.7))


def test_values_without_derivatives_pass():
    plain = of_parameters(0.7)
    assert plain == -RBM(0.7 * WEIGHTS, 0.7 * jnp.ones(3), jnp.zeros(2)).energy(VALUE)
    for wrapper in WRAPPERS.values():
        jax.eval_shape(wrapper(of_parameters), 0.7)


@parametrize([case for case in PAIRINGS if case.visible in CONTINUOUS])
def test_gradient_with_respect_to_the_value_is_that_of_the_energy(case):
    rbm = case.build()
    value = jnp.array([0.4, 1.3])
    score = jax.grad(rbm.log_prob)(value)
    np.testing.assert_allclose(score, -jax.grad(rbm.energy)(value), rtol=1e-6)
    field = rbm.input_to_hidden(value)
    mean = rbm.weight_matrix @ rbm.hidden_units.mean(field)
    unit = rbm.visible_units
    np.testing.assert_allclose(score, mean - (value - unit.loc) / unit.scale**2, rtol=1e-4)


# ----- inside the inference of the host ------------------------------------------------------

DATA = np.array(
    [[1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]]
)


def latent_parameters(data, normalizer="guard"):
    strength = numpyro.sample("strength", dist.Normal(0, 1))
    bias = numpyro.sample("bias", dist.Normal(0, 1))
    rbm = RBM(strength * WEIGHTS, bias * jnp.ones(3), jnp.zeros(2), normalizer=normalizer)
    with numpyro.plate("row", len(data)):
        numpyro.sample("v", rbm, obs=data)


def with_a_switch(data, normalizer="guard"):
    numpyro.sample("switch", dist.Bernoulli(0.5))
    latent_parameters(data, normalizer)


def run_nuts(kernel, model_kwargs=None, num_chains=1, num_samples=5, **kwargs):
    method = "vectorized" if num_chains > 1 and isinstance(kernel, NUTS) else "sequential"
    mcmc = MCMC(
        kernel,
        num_warmup=max(5, num_samples // 2),
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        progress_bar=False,
        **kwargs,
    )
    mcmc.run(jax.random.key(0), DATA, **(model_kwargs or {}))
    return mcmc


def run_svi(guide):
    svi = SVI(latent_parameters, guide(latent_parameters), numpyro.optim.Adam(0.1), Trace_ELBO())
    return svi.run(jax.random.key(0), 3, DATA, progress_bar=False)


def gibbs(model):
    return Gibbs([(NUTS(model), ["strength", "bias"]), (DiscreteGibbs(model), ["switch"])])


RUNS = {
    "NUTS": lambda: run_nuts(NUTS(latent_parameters)),
    "NUTS, forward mode": lambda: run_nuts(
        NUTS(latent_parameters, forward_mode_differentiation=True)
    ),
    "NUTS, vectorized": lambda: run_nuts(NUTS(latent_parameters), num_chains=2),
    "NUTS, jit_model_args": lambda: run_nuts(NUTS(latent_parameters), jit_model_args=True),
    "SVI, AutoNormal": lambda: run_svi(AutoNormal),
    "SVI, AutoDelta": lambda: run_svi(AutoDelta),
    "NUTS in Gibbs": lambda: run_nuts(gibbs(with_a_switch)),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_inference_of_parameters_raises(run):
    with pytest.raises(NormalizerError) as raised:
        run()
    message = str(raised.value)
    ways_out = (
        "ContrastiveDivergence",
        'normalizer="exact"',
        'normalizer="ignore"',
        "hold the par",
    )
    assert all(part in message for part in ("RBM: ", "visible_units.logits", "weights", *ways_out))


def log_posterior(strength, bias):
    """Unnormalized log posterior by enumerating all joint states, in float64."""
    visible = np.array(list(product([0, 1], repeat=3)))
    hidden = np.array(list(product([0, 1], repeat=2)))
    weights = strength * np.asarray(WEIGHTS, np.float64)
    terms = np.exp(visible @ weights @ hidden.T).sum(1) * np.exp(bias * visible.sum(1))
    rows = DATA @ np.array([4, 2, 1])
    return np.log(terms[rows] / terms.sum()).sum() - (strength**2 + bias**2) / 2


@pytest.mark.parametrize(
    "kernel", [NUTS(latent_parameters), gibbs(with_a_switch)], ids=["NUTS", "Gibbs"]
)
def test_exact_normalizer_gives_the_right_posterior(kernel):
    grid = np.linspace(-5, 5, 81)
    log_probs = np.array([[log_posterior(s, b) for b in grid] for s in grid])
    probs = np.exp(log_probs - log_probs.max())
    probs /= probs.sum()
    mcmc = run_nuts(kernel, {"normalizer": "exact"}, num_chains=4, num_samples=500)
    draws = mcmc.get_samples(group_by_chain=True)
    for name, marginal in (("strength", probs.sum(1)), ("bias", probs.sum(0))):
        mean = marginal @ grid
        variance = marginal @ (grid - mean) ** 2
        for function, expected in ((draws[name], mean), ((draws[name] - mean) ** 2, variance)):
            function = np.asarray(function, np.float64)
            standard_error = function.std() / np.sqrt(effective_sample_size(function))
            assert abs(function.mean() - expected) < 4 * standard_error, name


def test_nuts_over_the_value():
    """With its parameters held fixed, an unnormalized model is sampled without complaint."""
    rbm = RBM(WEIGHTS, units.Gaussian(jnp.zeros(3)), jnp.zeros(2))

    def model(data):
        numpyro.sample("v", rbm)

    draws = run_nuts(NUTS(model), num_chains=4, num_samples=500).get_samples(True)["v"]
    hidden = np.array(list(product([0, 1], repeat=2)))
    mean_given_hidden = hidden @ np.asarray(WEIGHTS, np.float64).T
    probs = np.exp((mean_given_hidden**2).sum(1) / 2)
    exact = probs / probs.sum() @ mean_given_hidden
    draws = np.asarray(draws, np.float64)
    error = (draws.mean((0, 1)) - exact) / draws.std((0, 1)) * np.sqrt(effective_sample_size(draws))
    assert np.all(np.abs(error) < 4), error


# ----- what reaches model comparison ---------------------------------------------------------


def fixed_parameters(data, normalizer="guard"):
    numpyro.sample("other", dist.Normal())
    rbm = RBM(WEIGHTS, jnp.zeros(3), jnp.zeros(2), normalizer=normalizer)
    with numpyro.plate("row", len(data)):
        numpyro.sample("v", rbm, obs=data)


EXACT = RBM(WEIGHTS, jnp.zeros(3), jnp.zeros(2), normalizer="exact")


@pytest.mark.parametrize("normalizer", ["guard", "ignore"])
def test_unnormalized_log_likelihood_is_nan(normalizer):
    draws = {"other": np.zeros(4)}
    with pytest.warns(UserWarning, match="RBM: .*not normalized.*reported as NaN"):
        values = log_likelihood(fixed_parameters, draws, DATA, normalizer=normalizer)
    assert values["v"].shape == (4, len(DATA))
    assert np.all(np.isnan(values["v"]))


@pytest.mark.parametrize("normalizer", ["exact", EXACT.exact_log_z()], ids=["exact", "array"])
def test_normalized_log_likelihood_is_right(normalizer):
    draws = {"other": np.zeros(4)}
    values = log_likelihood(fixed_parameters, draws, DATA, normalizer=normalizer)
    expected = np.broadcast_to(EXACT.log_prob(DATA), (4, len(DATA)))
    np.testing.assert_allclose(values["v"], expected, rtol=1e-5)


@pytest.mark.parametrize("normalizer", ["guard", "exact"])
def test_arviz_cannot_mistake_it(normalizer):
    mcmc = run_nuts(NUTS(fixed_parameters), {"normalizer": normalizer}, 2, 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = az.from_numpyro(mcmc, log_likelihood=True)
    values = data["log_likelihood"]["v"].values
    assert values.shape == (2, 100, len(DATA))
    warned = any("reported as NaN" in str(w.message) for w in caught)
    assert warned == (normalizer == "guard") == bool(np.all(np.isnan(values)))
    if normalizer == "exact":
        np.testing.assert_allclose(values[0, 0], EXACT.log_prob(DATA), rtol=1e-5)
