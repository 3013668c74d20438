"""Products of experts against closed forms."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from drift import assert_no_drift
from helpers import BruteForce, assert_moments
from neural_energies import exponential, quartic
from numpyro.distributions import constraints
from numpyro.infer import SVI
from registry import Case

from numpyro_ebm import (
    RBM,
    BoltzmannMachine,
    ContrastiveDivergence,
    NeuralEnergy,
    NormalizerError,
    ProductOfExperts,
    ScoreMatching,
    evidence,
    kernels,
    units,
)

FIRST = np.array([[1.0, 0.3], [0.3, 0.8]])
SECOND = np.array([[0.5, -0.2], [-0.2, 2.0]])
LOCS = np.array([1.0, 0.0]), np.array([-0.5, 1.0])


def normal(loc, covariance):
    return dist.MultivariateNormal(jnp.asarray(loc), jnp.asarray(covariance))


def gaussian_product(**kwargs):
    return ProductOfExperts([normal(LOCS[0], FIRST), normal(LOCS[1], SECOND)], **kwargs)


def combined():
    """Mean and covariance of the product of the two."""
    precisions = [np.linalg.inv(c) for c in (FIRST, SECOND)]
    covariance = np.linalg.inv(sum(precisions))
    slope = sum(p @ loc for p, loc in zip(precisions, LOCS, strict=True))
    return covariance @ slope, covariance


def gaussian_log_z():
    """Log density of the difference of the means under the sum of the covariances."""
    difference = LOCS[0] - LOCS[1]
    total = FIRST + SECOND
    quadratic = difference @ np.linalg.inv(total) @ difference
    return -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * total)[1])


def test_gaussian_product_in_closed_form():
    product = gaussian_product(normalizer=gaussian_log_z())
    value = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    expected = normal(*combined()).log_prob(value)
    np.testing.assert_allclose(product.log_prob(value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_log_z_of_a_gaussian_product_by_quadrature():
    log_z = evidence.exact(gaussian_product()).log_evidence
    np.testing.assert_allclose(log_z, gaussian_log_z(), atol=1e-8)


def test_log_z_of_normal_experts_by_quadrature():
    product = ProductOfExperts([dist.Normal(1.0, 1.0), dist.Normal(-0.5, 2.0)])
    expected = dist.Normal(1.0, 5.0**0.5).log_prob(-0.5)
    np.testing.assert_allclose(evidence.exact(product).log_evidence, expected, atol=1e-6)


def test_annealing_from_one_expert():
    product = gaussian_product(kernel=kernels.MALAStep(0.2))
    assert product.own_base is product.components[0]
    path = product.default_path(jax.random.key(0))
    chain = path.sample(jax.random.key(1), 5)
    np.testing.assert_allclose(
        path.at(0.25).energy(chain),
        -product.components[0].log_prob(chain) - 0.25 * product.components[1].log_prob(chain),
        rtol=1e-4,
    )
    estimate = evidence.ais(jax.random.key(0), product, num_temperatures=60)
    assert abs(estimate.log_evidence - gaussian_log_z()) < 4 * estimate.std_error < 1


def test_no_drift_of_its_kernel():
    start = np.random.default_rng(1).multivariate_normal(*combined(), 4000).astype(np.float32)
    product = gaussian_product(kernel=kernels.MALAStep(0.3))
    assert_no_drift(kernels.GibbsSweeps(), product, start, steps=(1, 4))
    assert_moments(gaussian_product().init_chain(jax.random.key(0), (800,)), LOCS[0])


# ----- restricted Boltzmann machines -------------------------------------------------------


@pytest.mark.parametrize("visible", ["Bernoulli", "Spin", "Categorical"])
def test_two_rbms_are_one_with_the_hidden_units_of_both(visible):
    one, other = Case(visible, "Bernoulli", 41).build(), Case(visible, "Bernoulli", 42).build()
    kind = type(one.visible_units)
    biases = [getattr(rbm.visible_units, kind.fields[0]) for rbm in (one, other)]
    joined = RBM(
        jnp.concatenate([one.weights, other.weights], -1),
        kind(sum(biases)),
        units.Bernoulli(jnp.concatenate([one.hidden_units.logits, other.hidden_units.logits])),
    )
    product = ProductOfExperts([one, other], normalizer="exact")
    brute = BruteForce(joined)
    np.testing.assert_allclose(
        product.energy(brute.visible.values), joined.energy(brute.visible.values), rtol=1e-5
    )
    np.testing.assert_allclose(evidence.exact(product).log_evidence, brute.log_z, rtol=1e-9)
    draws = product.sample(jax.random.key(0), (3000,))
    assert_moments(draws, brute.probs @ brute.visible.values)
    start = product.chain_at(brute.draw(np.random.default_rng(0), 3000))
    assert start.dtype == one.init_chain(jax.random.key(0)).visible.dtype
    assert_no_drift(kernels.GibbsSweeps(), product, start, steps=(2,))
    assert product.init_chain(jax.random.key(0), (4,)).shape == (4, *product.event_shape)


def hidden_unit(params, v):
    """One hidden unit of an RBM, summed out: an expert that reads the whole value."""
    return -jax.nn.softplus(params["bias"] + v @ params["weights"])


def experts_of(rbm):
    """The experts of an RBM: its visible units by themselves, and each hidden unit."""
    experts: list = [dist.Bernoulli(logits=rbm.visible_units.logits).to_event(1)]
    for weights, bias in zip(rbm.weights.T, rbm.hidden_units.logits, strict=True):
        params = {"weights": weights, "bias": bias}
        options = {"event_shape": rbm.event_shape, "support": constraints.boolean}
        experts.append(NeuralEnergy(hidden_unit, params, **options))
    return ProductOfExperts(experts, normalizer="exact")


@pytest.mark.slow
def test_an_rbm_is_the_product_of_its_hidden_units():
    """In every probability, and in the gradient by which either is trained."""
    rbm = Case("Bernoulli", "Bernoulli", 44).build(normalizer="exact")
    values = BruteForce(rbm).visible.values.astype(int)
    log_prob = experts_of(rbm).log_prob(values)
    np.testing.assert_allclose(log_prob, rbm.log_prob(values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-5)
    found, expected = (
        jax.grad(lambda rbm, build=build: build(rbm).log_prob(values[3:5]).sum())(rbm)
        for build in (experts_of, lambda rbm: rbm)
    )
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-3, atol=1e-5)
    for unit in ("visible_units", "hidden_units"):
        pair = (getattr(rbm, unit).logits for rbm in (found, expected))
        np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_units_of_different_kinds_in_one_expert():
    rbm = Case("Categorical+Spin", "Bernoulli", 43).build()
    product = ProductOfExperts([rbm, rbm])
    brute = BruteForce(rbm)
    probs = brute.probs**2 / (brute.probs**2).sum()
    expected = np.log((brute.probs**2).sum()) + 2 * brute.log_z
    np.testing.assert_allclose(evidence.exact(product).log_evidence, expected, rtol=1e-9)
    picked = np.random.default_rng(0).choice(len(probs), 4000, p=probs)
    start = product.chain_at(brute.visible.values[picked])
    assert_no_drift(kernels.GibbsSweeps(), product, start, steps=(1, 3))


def test_normalized_and_discrete_experts():
    machine = BoltzmannMachine(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.zeros(2))
    product = ProductOfExperts([machine, dist.Bernoulli(jnp.array([0.2, 0.7])).to_event(1)])
    states = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    weights = np.array([0.8, 0.2])[states[:, 0]] * np.array([0.3, 0.7])[states[:, 1]]
    weights = weights * np.exp(states[:, 0] * states[:, 1])
    np.testing.assert_allclose(product.energy(states), -np.log(weights), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(evidence.exact(product).log_evidence, np.log(weights.sum()))


# ----- in models, and supports -------------------------------------------------------------


def test_supports_intersect():
    positive = NeuralEnergy(exponential, 1.0, event_shape=(1,), support=constraints.positive)
    real = dist.Normal(1.0, 1.0).expand([1]).to_event(1)
    product = ProductOfExperts([real, positive])
    assert product.support == positive.support
    assert product.own_base is None  # the normal one has draws that the other forbids
    assert np.all(np.asarray(product.init_chain(jax.random.key(0), (50,))) > 0)
    from scipy import integrate, stats

    expected = integrate.quad(lambda x: stats.norm.pdf(x, 1, 1) * np.exp(-x), 0, 12)[0]
    np.testing.assert_allclose(evidence.exact(product).log_evidence, np.log(expected), atol=1e-8)
    half = ProductOfExperts([positive, dist.Exponential(2.0).expand([1]).to_event(1)])
    assert half.own_base is half.components[1]


def test_batches_of_experts():
    batch = dist.Normal(jnp.array([[0.0], [1.0], [2.0]]), 1.0).to_event(1)
    product = ProductOfExperts([batch, dist.Normal(jnp.zeros(1), 2.0).to_event(1)])
    assert product.batch_shape == (3,)
    value = jnp.array([0.5])
    expected = -batch.log_prob(value) - dist.Normal(0.0, 2.0).log_prob(0.5)
    np.testing.assert_allclose(product.energy(value), expected, rtol=1e-6)
    assert product.init_chain(jax.random.key(0), (4,)).shape == (4, 3, 1)


@pytest.mark.parametrize(
    "loss", [ScoreMatching(), ContrastiveDivergence(kernel=kernels.MALAStep(0.1))]
)
def test_training_one_expert(loss):
    data = 0.5 + 0.5 * jax.random.normal(jax.random.key(0), (400, 1))

    def model(data):
        precision = numpyro.param("precision", 1.0, constraint=constraints.positive)
        learnt = dist.Normal(numpyro.param("loc", 0.0), precision**-0.5).expand([1]).to_event(1)
        product = ProductOfExperts([learnt, dist.Normal(0.0, 1.0).expand([1]).to_event(1)])
        with numpyro.plate("rows", len(data)):
            numpyro.sample("x", product, obs=data)

    svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.05), loss)
    params = svi.run(jax.random.key(1), 400, data, progress_bar=False).params
    total = params["precision"] + 1
    np.testing.assert_allclose(1 / total, data.var(), rtol=0.3)
    np.testing.assert_allclose(params["precision"] * params["loc"] / total, data.mean(), atol=0.1)


def test_the_guard_and_pytrees():
    def log_prob(loc):
        return ProductOfExperts([dist.Normal(loc, 1.0), dist.Normal(0.0, 1.0)]).log_prob(0.5)

    with pytest.raises(NormalizerError, match="components"):
        jax.grad(log_prob)(0.1)
    product = gaussian_product(kernel=kernels.MALAStep(0.1))
    for copy in (pickle.loads(pickle.dumps(product)), jax.tree.map(lambda x: x, product)):
        np.testing.assert_allclose(
            jax.jit(lambda p: p.energy(jnp.ones(2)))(copy), product.energy(jnp.ones(2))
        )


@pytest.mark.parametrize(
    ("components", "error", "match"),
    [
        ([], ValueError, "one or more"),
        (dist.Normal(), ValueError, "sequence"),
        ([1.0], TypeError, "distributions"),
        ([dist.Normal(), dist.Normal(jnp.zeros(2)).to_event(1)], ValueError, "to_event"),
        ([dist.Normal(jnp.zeros(2)), dist.Normal(jnp.zeros(3))], ValueError, "broadcast"),
        ([dist.Normal(), dist.Bernoulli(0.5)], ValueError, "support"),
        (
            [dist.Beta(1.0, 1.0), dist.Exponential(1.0), dist.Uniform(2.0, 3.0)],
            ValueError,
            "contain",
        ),
        ([NeuralEnergy(quartic, jnp.ones(3), event_shape=()).expand([2])], TypeError, "expand"),
    ],
)
def test_errors_say_what_to_do(components, error, match):
    with pytest.raises(error, match=match):
        ProductOfExperts(components)


def test_no_kernel_raises():
    with pytest.raises(ValueError, match="MALAStep"):
        gaussian_product().sample(jax.random.key(0))
