"""What NumPyro, JAX and pickle ask of a distribution."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_close
from numpyro import handlers
from numpyro.infer import Predictive
from registry import BATCHED, CONDITIONAL, MULTIMODAL, PAIRINGS, SINGLE, brute_force, parametrize
from scipy.special import logsumexp

from numpyro_ebm import RBM
from numpyro_ebm.base import unwrap

FEW = [PAIRINGS[0], PAIRINGS[13], PAIRINGS[19], SINGLE[-1], *BATCHED[1::3], *CONDITIONAL]
X64 = pytest.mark.parametrize("dtype", ["float32", "float64"])


@partial(jax.jit, static_argnames="shape")
def draw(distribution, shape=()):
    return distribution.sample(jax.random.key(5), shape)


# ----- shapes and types --------------------------------------------------------------------


def everything(rbm):
    """All that is computed, by name."""
    key = jax.random.key(0)
    values = rbm.sample(key, (4,))
    chain = rbm.gibbs_step(key, rbm.refresh(rbm.init_chain(key, (4,))))
    hidden_given = rbm.conditional_hidden(values)
    hidden = hidden_given.sample(key)
    return {
        "values": values,
        "chain": rbm.visible(chain),
        "log prob": rbm.log_prob(values),
        "energy": rbm.energy(values),
        "chain energy": rbm.chain_energy(chain),
        "joint energy": rbm.joint_energy(values, hidden),
        "hidden given visible": hidden_given.log_prob(hidden),
        "visible given hidden": rbm.conditional_visible(hidden).log_prob(values),
    }


@X64
@parametrize(SINGLE + BATCHED + CONDITIONAL)
def test_shapes_and_types(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        rbm = case.build(dtype, normalizer="exact")
        results = jax.eval_shape(everything, rbm)
        log_z = jax.eval_shape(lambda rbm: rbm.log_normalizer, rbm)
        chain_dtype = rbm.visible_units.dtype
    values, chain = results.pop("values"), results.pop("chain")
    assert values.shape == chain.shape == rbm.shape((4,))
    assert rbm.shape() == rbm.batch_shape + rbm.event_shape
    assert rbm.is_discrete == jnp.issubdtype(chain.dtype, jnp.integer)
    assert values.dtype == (jnp.int32 if rbm.is_discrete else dtype)
    assert chain.dtype == chain_dtype
    assert {result.shape for result in results.values()} == {(4, *rbm.batch_shape)}
    assert {str(result.dtype) for result in results.values()} == {dtype}
    assert (log_z.shape, log_z.dtype) == (rbm.batch_shape, dtype)


@X64
def test_single_precision_stays_single_beside_double(dtype):
    with jax.enable_x64(True):
        log_prob = jax.jit(PAIRINGS[0].build(dtype, normalizer="exact").log_prob)
        expected = log_prob(np.array([1, 0, 1]))
        for kind in (float, np.float32, np.uint8, bool):
            actual = log_prob(np.array([1, 0, 1], kind))
            assert actual.dtype == dtype
            assert actual == expected


# ----- a pytree ----------------------------------------------------------------------------


@jax.jit
def log_prob(distribution, values):
    return distribution.log_prob(values)


@pytest.mark.parametrize("normalizer", ["guard", "exact", "ignore", 2.5])
@parametrize(FEW[::3])
def test_transformations_that_rebuild_it(case, normalizer):
    rbm = case.build(normalizer=normalizer)
    values = np.asarray(draw(case.build(), (3,)))
    expected = rbm.log_prob(values)
    leaves, treedef = jax.tree.flatten(rbm)
    for copy in (jax.tree.unflatten(treedef, leaves), pickle.loads(pickle.dumps(rbm))):
        assert (copy.normalizer, copy.batch_shape) == (rbm.normalizer, rbm.batch_shape)
        np.testing.assert_allclose(log_prob(copy, values), expected, rtol=1e-5, atol=1e-5)
    mapped = jax.vmap(log_prob, in_axes=(None, 0))(rbm, values)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5)


@parametrize(FEW[:4])
def test_vmap_over_parameters(case):
    rbm = case.build()

    def build(scale):
        return RBM(scale * rbm.weights, rbm.visible_units, rbm.hidden_units, normalizer="exact")

    values, scales = np.asarray(draw(rbm)), np.array([0.0, 0.5, 1.0], np.float32)
    expected = [log_prob(build(scale), values) for scale in scales]
    mapped = jax.jit(jax.vmap(lambda scale: build(scale).log_prob(values)))(scales)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5)
    stacked = jax.vmap(build)(scales)
    mapped = jax.vmap(log_prob, in_axes=(0, None))(stacked, values)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(draw)(stacked)[2], values, rtol=1e-5)


# ----- in a NumPyro model ------------------------------------------------------------------


@parametrize(FEW)
def test_expand_to_event_and_mask(case):
    rbm = case.build(normalizer="exact")
    rows = rbm.expand((3, *rbm.batch_shape))
    values = draw(rows)
    assert values.shape == (3, *rbm.batch_shape, *rbm.event_shape)
    expected = np.asarray(log_prob(rbm, values))
    np.testing.assert_allclose(log_prob(rows, values), expected, rtol=1e-6)
    total = rows.to_event(len(rows.batch_shape))
    np.testing.assert_allclose(log_prob(total, values), expected.sum(), rtol=1e-5)
    keep = np.arange(3).reshape(3, *[1] * len(rbm.batch_shape)) != 1
    masked = rows.mask(jnp.broadcast_to(keep, rows.batch_shape))
    np.testing.assert_allclose(log_prob(masked, values), expected * keep, rtol=1e-5)
    for wrapped in (rbm, rows, total, rows.mask(True)):
        assert isinstance(unwrap(wrapped), RBM)
    assert unwrap(dist.Normal()) is None


def rows_of(rbm, num_rows, data=None):
    with numpyro.plate("row", num_rows, dim=-1 - len(rbm.batch_shape)):
        return numpyro.sample("v", rbm, obs=data)


@parametrize(FEW)
def test_site_of_a_model(case):
    rbm = case.build(normalizer="exact")
    simulated = Predictive(rows_of, num_samples=4)(jax.random.key(0), rbm, 5)["v"]
    assert simulated.shape == (4, 5, *rbm.batch_shape, *rbm.event_shape)
    data = np.asarray(simulated[0])
    site = handlers.trace(rows_of).get_trace(rbm, 5, data)["v"]
    assert site["is_observed"]
    np.testing.assert_allclose(log_prob(site["fn"], data), log_prob(rbm, data), rtol=1e-5)


@parametrize(FEW[::2])
def test_typed_and_raw_keys_agree(case):
    rbm = case.build()
    step = jax.jit(lambda key: rbm.gibbs_step(key, rbm.init_chain(key)).visible)
    for function in (jax.jit(rbm.sample), step):
        raw = function(jax.random.PRNGKey(3))
        np.testing.assert_array_equal(function(jax.random.key(3)), raw)
        assert raw.shape == rbm.shape()


# ----- relatives ---------------------------------------------------------------------------


def log_factor(x):
    """A normal likelihood on each unit, up to a constant."""
    return -0.25 * (x - np.arange(1.0, 1.0 + x.shape[-1], dtype=np.float32)) ** 2


@jax.jit
def tilted_log_prob(rbm, values):
    tilted = rbm.tilt(log_factor)
    return -tilted.energy(values) - tilted.exact_log_z()


@parametrize([case for case in SINGLE if "Poisson" not in case.visible])
def test_tilt(case):
    brute = brute_force(case)
    factor = log_factor(brute.visible.values).sum(-1)
    log_terms = np.log(brute.probs) + factor
    pick = np.argsort(log_terms)[-9:]
    expected = (log_terms - brute.visible.log_weight)[pick] - logsumexp(log_terms)
    actual = tilted_log_prob(case.build(), brute.visible.values[pick])
    assert_close(actual, expected, "float32")


@jax.jit
def along_the_path(path, rng_key):
    chain = path.sample(rng_key, 6)
    values = path.target.visible(chain)
    pairs = [(path.log_z0, path.at(0.0).exact_log_z())]
    pairs += [(path.at(1.0).energy(values), path.target.energy(values))]
    increment = path.at(0.25).energy(values) - path.at(0.5).energy(values)
    return [*pairs, (path.log_weight_increment(chain, 0.25, 0.5), increment)]


@parametrize(PAIRINGS[::3] + MULTIMODAL)
def test_path_from_independent_units(case):
    rbm, data = case.build(), brute_force(case).draw(np.random.default_rng(0), 50)
    path = rbm.default_path(jax.random.key(0), data)
    for actual, expected in along_the_path(path, jax.random.key(1)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
