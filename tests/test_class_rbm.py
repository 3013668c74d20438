"""Class RBMs: the exact conditional of the label, and training through it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from helpers import BruteForce, assert_moments
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from registry import UNITS
from scipy.special import logsumexp

import numpyro_ebm as ebm
from numpyro_ebm import units

NUM_CLASSES = 3
PAIRS = [
    ("Bernoulli", "Bernoulli"), ("Gaussian", "Bernoulli"), ("Poisson", "Spin"),
    ("Categorical", "Gaussian"), ("Bernoulli", "ReLU"), ("Spin", "Categorical"),
]  # fmt: skip


def build(inputs="Bernoulli", hidden="Bernoulli", dtype="float32", batch=()):
    rng = np.random.default_rng(11)
    layers = [UNITS[kind].make(rng, 2, dtype) for kind in (inputs, hidden)]
    labels = np.round(rng.normal(size=NUM_CLASSES) * 64) / 64
    shape = (*batch, layers[0].num_features + NUM_CLASSES, *layers[1].feature_shape)
    weights = np.round(rng.normal(0, 0.6, shape) * 64) / 64
    return ebm.ClassRBM(
        jnp.asarray(weights, dtype), (layers[0], jnp.asarray(labels, dtype)), layers[1]
    )


def label_log_probs(rbm, inputs):
    """Log p(y | x) from the joint energies of all states, by NumPy."""
    brute = BruteForce(rbm)
    rows = [np.column_stack([inputs, np.full(len(inputs), y)]) for y in range(rbm.num_classes)]
    terms = np.stack([-brute.energy(value) for value in rows], -1)
    return terms - logsumexp(terms, axis=-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("inputs", "hidden"), PAIRS)
def test_label_given_inputs(inputs, hidden, dtype):
    with jax.enable_x64(dtype == "float64"):
        rbm = build(inputs, hidden, dtype)
        rows = np.array([[0, 1], [1, 1], [1, 1]]) if inputs != "Spin" else np.array([[-1, 1]] * 2)
        found = rbm.conditional_label(rows)
        assert found.batch_shape == (len(rows),)
        log_probs = jax.nn.log_softmax(found.logits)
    tolerance = 1e-4 if dtype == "float32" else 1e-7
    np.testing.assert_allclose(log_probs, label_log_probs(rbm, rows), tolerance, tolerance)


@pytest.mark.slow
def test_it_is_the_ratio_of_joint_probabilities():
    """The label's conditional and the joint density, each normalized by its own sum, agree."""
    rbm = ebm.ClassRBM(build().weights, build().visible_units, build().hidden_units,
                       normalizer="exact")  # fmt: skip
    inputs = np.array([1, 0])
    joint = [rbm.log_prob(rbm.join(inputs, y)) for y in range(NUM_CLASSES)]
    expected = np.array(joint) - logsumexp(joint)
    found = rbm.conditional_label(inputs).log_prob(np.arange(NUM_CLASSES))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_centered_parameters():
    """The same model, given around the means of its units."""
    plain, mu = build(), np.array([0.2, 0.7, 0.3, 0.3, 0.4], np.float32)
    inputs, labels = plain.modalities
    shift = plain.weights @ jnp.full(2, 0.5)
    centered = ebm.ClassRBM.from_centered(
        plain.weights,
        (inputs.logits + shift[:2], labels.logits[0] + shift[2:]),
        plain.hidden_units.logits + plain.weights.T @ mu,
        mu,
        0.5,
    )
    assert isinstance(centered, ebm.ClassRBM)
    for before, after in zip(jax.tree.leaves(plain), jax.tree.leaves(centered), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_batch_of_models():
    many, rows = build(batch=(2,)), np.array([[[0, 1]], [[1, 1]], [[1, 0]]])
    logits = many.conditional_label(rows).logits
    assert logits.shape == (3, 2, NUM_CLASSES)
    for i in range(2):
        alone = ebm.ClassRBM(many.weights[i], many.visible_units, many.hidden_units)
        np.testing.assert_allclose(logits[:, i], alone.conditional_label(rows[:, 0]).logits, 1e-5)


def test_inputs_of_a_class():
    rbm = build("Gaussian")
    conditional = rbm.conditional_inputs(np.array([0, 2]))
    draws = jax.jit(lambda c: c.sample(jax.random.key(0), (20_000,)))(conditional)
    brute = BruteForce(rbm)
    for i, y in enumerate((0, 2)):
        where = brute.visible.values[:, 2] == y
        probs = brute.probs[where] / brute.probs[where].sum()
        assert_moments(draws[:, i], probs @ brute.visible.values[where, :2])


def test_gradient_of_the_conditional_is_free():
    """The guard of log Z stands before the joint density alone."""
    rbm = build()
    inputs, labels = np.array([[0, 1], [1, 0]]), np.array([2, 0])

    def conditional(weights):
        same = ebm.ClassRBM(weights, rbm.visible_units, rbm.hidden_units)
        return same.conditional_label(inputs).log_prob(labels).sum()

    gradient = jax.grad(conditional)(rbm.weights)
    step = 1e-2
    for at in ((0, 1), (2, 0), (4, 1)):
        moved = [conditional(rbm.weights.at[at].add(sign * step)) for sign in (1, -1)]
        np.testing.assert_allclose(gradient[at], (moved[0] - moved[1]) / (2 * step), rtol=2e-2)
    with pytest.raises(ebm.NormalizerError, match="ClassRBM: log_prob was differentiated"):
        jax.grad(
            lambda w: ebm.ClassRBM(w, rbm.visible_units, rbm.hidden_units).log_prob(
                rbm.join(inputs[0], 1)
            )
        )(rbm.weights)


# ----- training ----------------------------------------------------------------------------

_RNG = np.random.default_rng(0)
LABELS = _RNG.integers(0, NUM_CLASSES, 300)
PROTOTYPES = np.array([[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 0, 1]])
INPUTS = PROTOTYPES[LABELS] ^ (_RNG.random((300, 6)) < 0.1)


def rbm_of_params():
    weights = numpyro.param("weights", lambda key: 0.1 * jax.random.normal(key, (9, 5)))
    visible = numpyro.param("visible", jnp.zeros(6)), numpyro.param("label", jnp.zeros(NUM_CLASSES))
    return ebm.ClassRBM(weights, visible, numpyro.param("hidden", jnp.zeros(5)))


def model_of(generative, discriminative):
    """The three ways to train, by the weights of their terms."""

    def model(inputs, labels):
        rbm = rbm_of_params()
        if generative:
            ebm.persistent_chains("chains", 100, rbm)
        with numpyro.plate("rows", len(inputs)):
            if generative:
                with handlers.scale(scale=generative):
                    numpyro.sample("xy", rbm, obs=rbm.join(inputs, labels))
            if discriminative:
                numpyro.sample("y", rbm.conditional_label(inputs), obs=labels)

    return model


WAYS = {
    "discriminative": (model_of(0, 1), Trace_ELBO()),
    "generative": (model_of(1, 0), ebm.PersistentContrastiveDivergence(2)),
    "hybrid": (model_of(0.1, 1), ebm.PersistentContrastiveDivergence(2)),
}


@pytest.mark.parametrize(
    "way", ["discriminative", "hybrid", pytest.param("generative", marks=pytest.mark.slow)]
)
def test_training_classifies(way):
    model, loss = WAYS[way]
    svi = SVI(model, lambda *_: None, numpyro.optim.Adam(0.02), loss)
    result = svi.run(jax.random.key(0), 600, INPUTS, LABELS, progress_bar=False)
    with handlers.substitute(data=result.params):
        rbm = rbm_of_params()
    found = rbm.conditional_label(INPUTS).logits.argmax(-1)
    assert np.mean(found == LABELS) > 0.8  # chance is a third
    if way != "discriminative":  # it knows what examples of each class look like
        inputs = rbm.conditional_inputs(np.arange(NUM_CLASSES)).sample(jax.random.key(1), (500,))
        assert np.all(np.round(inputs.mean(0)) == PROTOTYPES)


@pytest.mark.slow
def test_hybrid_gradient_is_the_sum_of_both():
    """A discriminative site beside a generative one adds its own gradient, and no other."""
    params = {name: site["value"] for name, site in handlers.trace(
        handlers.seed(rbm_of_params, 0)).get_trace().items()}  # fmt: skip

    def gradient(model, loss):
        def value(params):
            return loss.loss_with_mutable_state(
                jax.random.key(0), params, model, lambda *_: None, INPUTS, LABELS
            )["loss"]

        return jax.grad(value)(params)

    loss = ebm.ContrastiveDivergence()

    def without_chains(generative, discriminative):
        return handlers.block(
            model_of(generative, discriminative), hide_fn=lambda site: site["type"] == "mutable"
        )

    both, generative = (gradient(without_chains(1, d), loss) for d in (1, 0))
    discriminative = gradient(model_of(0, 1), Trace_ELBO())
    for name, value in both.items():
        np.testing.assert_allclose(
            value, generative[name] + discriminative[name], rtol=1e-3, atol=1e-3
        )


BAD = {
    "not a pair": (
        lambda: ebm.ClassRBM(jnp.zeros((5, 2)), jnp.zeros(4), jnp.zeros(2)),
        TypeError,
        r"the pair \(inputs, labels\)",
    ),
    "labels": (
        lambda: ebm.ClassRBM(
            jnp.zeros((6, 2)), (jnp.zeros(4), units.Bernoulli(jnp.zeros(2))), jnp.zeros(2)
        ),
        ValueError,
        "one Categorical unit",
    ),
    "weights": (
        lambda: ebm.ClassRBM(jnp.zeros((4, 2)), (jnp.zeros(4), jnp.zeros(3)), jnp.zeros(2)),
        ValueError,
        r"`weights` of shape \(..., 7, 2\)",
    ),
    "inputs": (lambda: build().conditional_label(jnp.zeros(3)), ValueError, r"of shape \(..., 2\)"),
    "label": (lambda: build().conditional_inputs(3), ValueError, "modality 1 in the support"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
