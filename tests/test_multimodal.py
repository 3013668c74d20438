"""RBMs over several modalities: what one says about the others, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_moments, energy, features, layer
from numpyro import handlers
from numpyro.infer import MCMC, SVI
from registry import UNITS
from scipy.special import logsumexp

import numpyro_ebm as ebm
from numpyro_ebm import units

NUM_DRAWS = 20_000
KINDS = {
    "image and words": ("Gaussian", "Bernoulli"),
    "image and counts": ("Gaussian", "Poisson"),
    "letters and spins": ("Categorical", "Spin"),
    "three": ("Spin", "Gaussian", "Bernoulli"),
}
HIDDEN = {"three": "Categorical", "letters and spins": "Gaussian"}


def build(name, batch=()):
    rng = np.random.default_rng(5)
    visible = [UNITS[kind].make(rng, 2, "float32") for kind in KINDS[name]]
    hidden = UNITS[HIDDEN.get(name, "Bernoulli")].make(rng, 2, "float32")
    shape = (*batch, sum(u.num_features for u in visible), *hidden.feature_shape)
    weights = np.round(rng.normal(0, 0.6, shape) * 64) / 64
    return ebm.MultimodalRBM(jnp.asarray(weights, jnp.float32), visible, hidden)


def given_values(rbm, modality, num=3):
    """A few values of a modality, away from the ends of its grid."""
    states = layer(rbm.modalities[modality])
    order = np.argsort(states.energy)
    return states.values[order[:: max(1, len(order) // 12)][:num]]


def log_rest(rbm, given, row):
    """Log terms of the joint states of all other modalities, and those states, by NumPy."""
    rest = [unit for k, unit in enumerate(rbm.modalities) if k != given]
    states = layer(rest[0] if len(rest) == 1 else units.Concatenate(rest))
    parts, start = [], 0
    for k, unit in enumerate(rbm.modalities):
        if k == given:
            parts.append(np.broadcast_to(row, (len(states.values), len(row))))
        else:
            parts.append(states.values[:, start : start + unit.shape[0]])
            start += unit.shape[0]
    value = np.concatenate(parts, -1)
    hidden = layer(rbm.hidden_units)
    matrix = np.asarray(rbm.weight_matrix, np.float64)
    log_joint = features(rbm.visible_units, value) @ matrix @ hidden.features.T
    log_joint += hidden.log_weight - hidden.energy
    return states, logsumexp(log_joint, axis=1) - energy(rbm.visible_units, value)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in HIDDEN)) for n in KINDS],
)
def test_the_rest_given_one_modality(name):
    """Densities, log Z and draws of the conditional, for several rows at once."""
    rbm = build(name)
    for given in range(len(rbm.modalities)):
        rows = given_values(rbm, given)
        conditional = rbm.condition({given: rows}, normalizer="exact")
        assert conditional.batch_shape == (len(rows),)
        draws = jax.jit(lambda c: c.sample(jax.random.key(0), (NUM_DRAWS,)))(conditional)
        for i, row in enumerate(rows):
            states, terms = log_rest(rbm, given, row)
            log_total = logsumexp(terms + states.log_weight)
            pick = np.argsort(terms)[-9:]
            shape = (len(rows), *conditional.event_shape)
            values = np.stack([np.broadcast_to(v, shape) for v in states.values[pick]])
            log_prob = conditional.log_prob(values)[:, i]
            np.testing.assert_allclose(log_prob, terms[pick] - log_total, rtol=2e-4, atol=2e-4)
            probs = np.exp(terms + states.log_weight - log_total)
            moments = features(conditional.visible_units, draws[:, i])
            assert_moments(moments, probs @ states.features)


def test_all_but_one_of_three():
    rbm = build("three")
    spins, image = given_values(rbm, 0), given_values(rbm, 1)
    words = rbm.condition({0: spins, 1: image}, normalizer="exact")
    stepwise = rbm.condition({0: spins}).condition({0: image}, normalizer="exact")
    assert isinstance(words.visible_units, units.Bernoulli)
    for value in ([0, 1], [1, 1]):
        np.testing.assert_allclose(
            words.log_prob(np.array([value] * 3)), stepwise.log_prob(np.array([value] * 3)), 1e-4
        )


def test_clamped_gibbs_generates_one_modality_from_the_other():
    """Another road to the same conditional: BlockGibbs with the image held."""
    rbm = build("image and words")
    image = np.array([0.5, -0.25], np.float32)
    mask, values = np.array([True, True, False, False]), np.r_[image, 0, 0].astype(np.float32)

    def model():
        numpyro.sample("v", rbm)

    kernel = ebm.BlockGibbs(model, clamp={"v": (mask, values)}, num_sweeps=5)
    mcmc = MCMC(
        kernel, num_warmup=20, num_samples=400, num_chains=20,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(0))
    words = np.asarray(mcmc.get_samples(group_by_chain=True)["v"])[..., 2:]
    states, terms = log_rest(rbm, 0, image)
    expected = np.exp(terms - logsumexp(terms)) @ states.values
    assert_moments(words.mean(1), expected)  # chains are independent


def test_split_undoes_join():
    rbm = build("image and counts")
    image, counts = np.ones((4, 1, 2), np.float32), np.array([[3, 0]] * 5)
    value = rbm.join(image, counts)
    assert value.shape == (4, 5, 4)
    parts = rbm.split(value)
    assert [part.dtype for part in parts] == [jnp.float32, jnp.int32]
    np.testing.assert_array_equal(parts[1][2], counts)
    np.testing.assert_array_equal(parts[0][:, 0], image[:, 0])


def test_a_batch_of_models():
    many, values = build("image and words", (3,)), np.array([0.5, -0.25], np.float32)
    conditional = many.condition({0: values}, normalizer="exact")
    assert conditional.batch_shape == (3,)
    for i in range(3):
        alone = ebm.MultimodalRBM(many.weights[i], many.visible_units, many.hidden_units)
        alone = alone.condition({0: values}, normalizer="exact")
        np.testing.assert_allclose(
            conditional.log_prob(np.array([1, 0]))[i], alone.log_prob(np.array([1, 0])), rtol=1e-5
        )


@pytest.mark.slow
def test_training_joins_the_modalities():
    """After PCD the words of an image are those that go with it in the data."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 400)
    image = (3.0 * kind[:, None] + rng.normal(0, 0.5, (400, 2))).astype(np.float32)
    counts = rng.poisson(np.where(kind[:, None] == 1, [6.0, 0.3], [0.3, 6.0]))

    def rbm_of_params():
        scale = numpyro.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
        weights = numpyro.param("weights", lambda key: 0.1 * jax.random.normal(key, (4, 6)))
        gaussian = units.Gaussian(numpyro.param("loc", jnp.ones(2)), scale)
        poisson = units.Poisson(numpyro.param("log_rate", jnp.zeros(2)))
        weights = weights / jnp.concatenate([scale**2, jnp.ones(2)])[:, None]
        return ebm.MultimodalRBM(
            weights, [gaussian, poisson], numpyro.param("hidden", jnp.zeros(6))
        )

    def model(data):
        rbm = rbm_of_params()
        ebm.persistent_chains("chains", 100, rbm)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    loss = ebm.PersistentContrastiveDivergence(2)
    svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.01), loss)
    data = np.concatenate([image, counts], -1)
    result = svi.run(jax.random.key(0), 3000, data, progress_bar=False)
    with handlers.substitute(data=result.params):
        trained = rbm_of_params()
    described = trained.condition({0: np.array([[0.0, 0.0], [3.0, 3.0]], np.float32)})
    draws = np.asarray(described.sample(jax.random.key(1), (2000,)), np.float64)
    difference = draws[..., 1] - draws[..., 0]  # the second word goes with the first image
    z = difference.mean(0) / (difference.std(0) / len(draws) ** 0.5)
    assert z[0] > 4, z
    assert z[1] < -4, z
    assert np.all(np.abs(draws.mean(0) - [[0.3, 6.0], [6.0, 0.3]]) < 1.5), draws.mean(0)


RBM = build("image and words")
BAD = {
    "no units": (
        lambda: ebm.MultimodalRBM(jnp.zeros((3, 2)), jnp.zeros(3), jnp.zeros(2)),
        TypeError,
        "`visible` to be units, one for each modality",
    ),
    "nothing given": (lambda: RBM.condition({}), ValueError, r"modalities 0 to 1; got \[\]"),
    "all given": (
        lambda: RBM.condition({0: jnp.zeros(2), 1: jnp.zeros(2)}),
        ValueError,
        r"some, but not all.*got \[0, 1\]",
    ),
    "unknown": (lambda: RBM.condition({2: jnp.zeros(2)}), ValueError, r"got \[2\]"),
    "shape": (
        lambda: RBM.condition({0: jnp.zeros(3)}),
        ValueError,
        r"modality 0 of shape \(..., 2",
    ),
    "support": (
        lambda: RBM.condition({1: jnp.array([0, 7])}),
        ValueError,
        "modality 1 in the supp",
    ),
    "parts": (lambda: RBM.join(jnp.zeros(2)), ValueError, "expected 2 parts.*got 1"),
    "width": (
        lambda: RBM.split(jnp.zeros(5)),
        ValueError,
        r"`value` of shape \(..., 4\); got \(5,",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
