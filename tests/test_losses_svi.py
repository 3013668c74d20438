import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from loss_models import (
    CONSTANT_CD,
    DATA,
    NEGATIVE,
    NUM_CHAINS,
    NUM_ROWS,
    ONES,
    PARAMS,
    PCD,
    assert_gradients_close,
    chains_in,
    contrast,
    gradient_in,
    no_guide,
    rbm_of,
    recorder,
    trained_with_chains,
    update,
    with_chains,
)
from numpyro import handlers
from numpyro.infer import SVI

from numpyro_ebm import persistent_chains

LOSSES = pytest.mark.parametrize("loss", [CONSTANT_CD, PCD], ids=["CD", "PCD"])
MASK = jnp.array([1, 1, 0, 1, 0, 1], bool)
BATCH = 2


def expanded(data):
    with numpyro.plate("rows", len(data)):
        numpyro.sample("v", trained_with_chains().expand([len(data)]), obs=data)


def to_event(data):
    numpyro.sample("v", trained_with_chains().expand([len(data)]).to_event(1), obs=data)


def nested(data):
    with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 3, dim=-1):
        numpyro.sample("v", trained_with_chains(), obs=data.reshape(2, 3, -1))


def passed(data):
    with numpyro.plate("rows", 3 * len(data), subsample_size=len(data)):
        numpyro.sample("v", trained_with_chains(), obs=data)


def subsampled(data):
    with numpyro.plate("rows", len(data), subsample_size=BATCH):
        numpyro.sample("v", trained_with_chains(), obs=numpyro.subsample(data, event_dim=1))


def masked_garbage(data):
    with numpyro.plate("rows", len(data)), handlers.mask(mask=MASK):
        numpyro.sample("v", trained_with_chains(), obs=jnp.where(MASK[:, None], data, 7))


def conditioned(data):
    with handlers.condition(data={"v": data}), numpyro.plate("rows", len(data)):
        numpyro.sample("v", trained_with_chains())


WAYS = {
    "full batch": (with_chains, ONES),
    "expand": (expanded, ONES),
    "to_event": (to_event, ONES),
    "nested plates": (nested, ONES),
    "condition": (conditioned, ONES),
    "passed minibatch": (passed, 3 * ONES),
    "scale and mask": (handlers.scale(handlers.mask(with_chains, MASK), 0.5), 0.5 * MASK),
    "garbage under a mask": (masked_garbage, MASK),
    "subsample": (subsampled, None),
}


@LOSSES
@pytest.mark.parametrize(("model", "row_weights"), WAYS.values(), ids=WAYS)
def test_every_way_to_observe_data(loss, model, row_weights):
    gradient, chains, value = update(loss, model)
    negative = NEGATIVE[None] if loss is CONSTANT_CD else chains
    if row_weights is None:  # which rows were drawn shows in the gradient of the biases
        row_weights = NUM_ROWS * negative.mean(0) - gradient["bias"]
        scale = NUM_ROWS / BATCH
        np.testing.assert_allclose(np.sort(row_weights)[-BATCH - 1 :], [0, scale, scale], atol=1e-5)
    expected, gradients = jax.value_and_grad(contrast)(PARAMS, DATA, negative, row_weights)
    assert_gradients_close(gradient, gradients)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_passed_minibatches_add_up_to_the_full_batch():
    def minibatch(data):
        with numpyro.plate("rows", NUM_ROWS, subsample_size=len(data)):
            numpyro.sample("v", trained_with_chains(), obs=data)

    batches = [
        update(CONSTANT_CD, minibatch, data)[0] for data in DATA.reshape(-1, BATCH, NUM_ROWS)
    ]
    mean = jax.tree.map(lambda *parts: sum(parts) / len(parts), *batches)
    assert_gradients_close(mean, update(CONSTANT_CD, with_chains)[0])


@LOSSES
def test_a_plate_of_models(loss):
    """Each model of a batch is compared with its own data and its own chains."""
    scale = jnp.array([0.5, 1.0, -1.0])
    params = {
        "weights": scale[:, None, None] * PARAMS["weights"],
        "bias": scale[:, None] + PARAMS["bias"],
    }
    data = jnp.stack([DATA, 1 - DATA, DATA[::-1]], axis=1)

    def model(data):
        with numpyro.plate("models", 3, dim=-1):
            rbm = trained_with_chains(**params)
            with numpyro.plate("rows", NUM_ROWS, dim=-2):
                numpyro.sample("v", rbm, obs=data)

    gradient, chains, _ = update(loss, model, data)
    assert chains.shape == (NUM_CHAINS, 3, NUM_ROWS)
    for i in range(3):
        own = {name: value[i] for name, value in params.items()}
        negative = NEGATIVE[None] if loss is CONSTANT_CD else chains[:, i]
        expected = jax.grad(contrast)(own, data[:, i], negative, ONES)
        assert_gradients_close({name: value[i] for name, value in gradient.items()}, expected)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_each_of_several_sites_has_its_own_chains(order):
    bias, rows = PARAMS["bias"], {"a": DATA, "b": 1 - DATA}

    def model(data):
        sites = {}
        for name in rows:
            sites[name] = rbm_of(numpyro.param(f"weights_{name}", PARAMS["weights"]), bias)
            persistent_chains(f"chains_{name}", NUM_CHAINS, sites[name])
        for name in order:
            with numpyro.plate(f"rows_{name}", NUM_ROWS):
                numpyro.sample(name, sites[name], obs=data[name])

    svi = SVI(model, no_guide, recorder(), PCD)
    start = svi.init(jax.random.key(0), rows)
    state, _ = jax.jit(svi.update)(start, rows)
    for name, data in rows.items():
        before, after = (chains_in(s, f"chains_{name}").visible for s in (start, state))
        assert not np.array_equal(before, after)
        expected = jax.grad(contrast)(PARAMS, data, after, ONES)["weights"]
        actual = gradient_in(state)[f"weights_{name}"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
