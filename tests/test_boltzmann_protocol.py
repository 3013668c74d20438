"""What NumPyro, JAX and pickle ask of pairwise models."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from helpers import assert_close
from numpyro import handlers
from numpyro.infer import Predictive
from pairwise_models import CASES, Brute, bonds_of, brute, random_matrix
from scipy.special import logsumexp

import numpyro_ebm as ebm
from numpyro_ebm.base import unwrap

FEW = ["BM hidden", "Ising odd cycle", "Ising 3x3", "Potts 2x3 free"]
NAMES = pytest.mark.parametrize("name", FEW)


@jax.jit
def log_prob(model, values):
    return model.log_prob(values)


# ----- shapes and types --------------------------------------------------------------------


def everything(model):
    """All that is computed, by name."""
    key = jax.random.key(0)
    values = model.sample(key, (4,))
    chain = model.gibbs_step(key, model.refresh(model.init_chain(key, (4,))))
    return {
        "values": values,
        "chain": model.visible(chain),
        "log prob": model.log_prob(values),
        "energy": model.energy(values),
        "chain energy": model.chain_energy(chain),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*FEW, "Ising dense", "Ising 2x2x3"])
def test_shapes_and_types(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        model = CASES[name].build(dtype, normalizer="exact")
        results = jax.eval_shape(everything, model)
        log_z = jax.eval_shape(lambda model: model.log_normalizer, model)
    values, chain = results.pop("values"), results.pop("chain")
    assert values.shape == chain.shape == model.shape((4,))
    assert values.dtype == jnp.int32
    assert chain.dtype == (jnp.int8 if isinstance(model, ebm.Ising) else jnp.uint8)
    assert {result.shape for result in results.values()} == {(4,)}
    assert {str(result.dtype) for result in results.values()} == {dtype}
    assert (log_z.shape, log_z.dtype) == ((), dtype)


def test_single_precision_stays_single_beside_double():
    def along(model):
        path = model.default_path(jax.random.key(0))
        chain = path.sample(jax.random.key(1), 3)
        return path.log_z0, path.log_weight_increment(chain, 0.25, 0.5), path.at(0.5)

    with jax.enable_x64(True):
        for name in FEW:
            model = CASES[name].build("float32", normalizer="exact")
            value = brute(name).events()[3]
            results = jax.eval_shape(lambda m, x: m.log_prob(x), model, value)
            results = jax.tree.leaves((results, jax.eval_shape(along, model)))
            assert {result.dtype for result in results} == {jnp.dtype("float32")}


# ----- a pytree ----------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", ["guard", "exact", 2.5])
@NAMES
def test_transformations_that_rebuild_it(name, normalizer):
    model, values = CASES[name].build(normalizer=normalizer), brute(name).events()[:3]
    expected = model.log_prob(values)
    leaves, treedef = jax.tree.flatten(model)
    for copy in (jax.tree.unflatten(treedef, leaves), pickle.loads(pickle.dumps(model))):
        assert (copy.normalizer, copy.scan) == (model.normalizer, model.scan)
        np.testing.assert_allclose(log_prob(copy, values), expected, rtol=1e-5, atol=1e-5)
    mapped = jax.vmap(log_prob, in_axes=(None, 0))(model, values)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5)


def scaled(name, scale):
    """A case with its couplings times a number."""
    model = CASES[name].build(normalizer="exact")
    if isinstance(model, ebm.Potts):
        return ebm.Potts(model.couplings.scale(scale), model.fields, normalizer="exact")
    if isinstance(model, ebm.Ising):
        return ebm.Ising(model.couplings.scale(scale), model.field, normalizer="exact")
    couplings, visible = model.couplings.scale(scale), model.num_visible
    return ebm.BoltzmannMachine(couplings, model.bias, num_visible=visible, normalizer="exact")


@NAMES
def test_vmap_over_parameters(name):
    scales, value = np.array([0.0, 0.5, 1.0], np.float32), brute(name).events()[5]
    expected = [scaled(name, scale).log_prob(value) for scale in scales]
    mapped = jax.jit(jax.vmap(lambda scale: scaled(name, scale).log_prob(value)))(scales)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-5)
    stacked = jax.vmap(lambda scale: scaled(name, scale))(scales)
    mapped = jax.vmap(log_prob, in_axes=(0, None))(stacked, value)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*FEW, "Ising dense", "Ising 3x3 fields", "Potts odd cycle"])
def test_one_compilation_and_any_key(name):
    model, count = CASES[name].build(), 0

    @jax.jit
    def step(model, key, chain):
        nonlocal count
        count += 1
        return model.gibbs_step(key, chain)

    chain = model.init_chain(jax.random.key(0), (5,))
    typed = step(model, jax.random.key(3), chain)
    again = step(CASES[name].build(), jax.random.key(3), chain)
    assert count == 1
    jax.tree.map(np.testing.assert_array_equal, typed, again)
    raw = step(model, jax.random.PRNGKey(3), chain)
    jax.tree.map(np.testing.assert_array_equal, typed, raw)
    keys = jax.random.split(jax.random.key(4), 5)
    single = jax.vmap(model.gibbs_step)(keys, chain)
    assert jax.tree.map(jnp.shape, single) == jax.tree.map(jnp.shape, chain)


def test_guard():
    def loss(bias):
        matrix = random_matrix(10, 6)
        return ebm.BoltzmannMachine(matrix, bias).log_prob(jnp.array([1, 0, 1, 1, 0, 0]))

    with pytest.raises(ebm.NormalizerError, match="bias"):
        jax.grad(loss)(jnp.zeros(6))


# ----- in a NumPyro model ------------------------------------------------------------------


@NAMES
def test_expand_to_event_and_mask(name):
    model = CASES[name].build(normalizer="exact")
    rows = model.expand((3,))
    values = rows.sample(jax.random.key(0))
    assert values.shape == (3, *model.event_shape)
    expected = np.asarray(log_prob(model, values))
    np.testing.assert_allclose(log_prob(rows, values), expected, rtol=1e-6)
    total = rows.to_event(1)
    np.testing.assert_allclose(log_prob(total, values), expected.sum(), rtol=1e-5)
    keep = np.arange(3) != 1
    masked = rows.mask(jnp.asarray(keep))
    np.testing.assert_allclose(log_prob(masked, values), expected * keep, rtol=1e-5)
    assert isinstance(unwrap(total), type(model))


def rows_of(model, num_rows, data=None):
    with numpyro.plate("row", num_rows):
        return numpyro.sample("v", model, obs=data)


@NAMES
def test_site_of_a_model(name):
    model = CASES[name].build(normalizer="exact")
    simulated = Predictive(rows_of, num_samples=4)(jax.random.key(0), model, 5)["v"]
    assert simulated.shape == (4, 5, *model.event_shape)
    site = handlers.trace(rows_of).get_trace(model, 5, simulated[0])["v"]
    expected = log_prob(model, simulated[0])
    np.testing.assert_allclose(log_prob(site["fn"], simulated[0]), expected, rtol=1e-5)


# ----- relatives ---------------------------------------------------------------------------


def log_factor(x):
    """A normal likelihood on each unit, up to a constant."""
    return -0.5 * (x - jnp.linspace(-1.0, 1.5, x.size).reshape(x.shape)) ** 2


@jax.jit
def tilted_log_prob(model, values):
    tilted = model.tilt(log_factor)
    return -tilted.energy(values) - tilted.exact_log_z()


@pytest.mark.parametrize("name", [*FEW, "Ising 3x3 fields", "Potts odd cycle"])
def test_tilt(name):
    answer, events = brute(name), brute(name).events()
    flat = events.reshape(len(events), -1)
    factors = -0.5 * ((flat - np.linspace(-1.0, 1.5, flat.shape[1])) ** 2).sum(1)
    log_terms = np.log(answer.probs) + factors
    pick = np.argsort(log_terms)[-9:]
    actual = tilted_log_prob(CASES[name].build(), events[pick])
    assert_close(actual, log_terms[pick] - logsumexp(log_terms), "float32")


@jax.jit
def along_the_path(path, rng_key):
    chain = path.sample(rng_key, 6)
    values = path.target.visible(chain)
    pairs = [(path.log_z0, path.at(0.0).exact_log_z())]
    pairs += [(path.at(1.0).energy(values), path.target.energy(values))]
    increment = path.at(0.25).energy(values) - path.at(0.5).energy(values)
    return [*pairs, (path.log_weight_increment(chain, 0.25, 0.5), increment)]


@pytest.mark.parametrize("name", [*FEW, "Ising dense", "Ising hidden"])
def test_path_from_independent_units(name):
    model = CASES[name].build()
    data = brute(name).draw(np.random.default_rng(0), 50) if name in FEW[1::2] else None
    path = model.default_path(jax.random.key(0), data)
    for actual, expected in along_the_path(path, jax.random.key(1)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    other = path.retarget(model.with_parameters(model.couplings.scale(2.0), model._site_field))
    assert other.base is path.base
    value = model.visible(path.sample(jax.random.key(2), 1))
    np.testing.assert_allclose(other.at(1.0).energy(value), other.target.energy(value), rtol=1e-4)


@pytest.mark.parametrize("name", ["BM hidden", "Ising odd cycle", "Ising 3x3", "Potts 3x3"])
def test_annealed_importance_sampling(name):
    model, answer = CASES[name].build(), brute(name)
    estimate = ebm.evidence.ais(jax.random.key(2), model, num_temperatures=200, num_particles=1000)
    assert estimate.ok, estimate.warnings
    assert abs(estimate.log_evidence - answer.log_z) < 4 * estimate.std_error
    assert estimate.std_error < 0.05


@pytest.mark.slow
def test_increments_have_no_cancellation():
    """Their error is that of single precision of the increment, not of the energies."""
    model = ebm.Ising.lattice((64, 64), 0.4, 0.1)
    path = model.default_path(jax.random.key(0))
    chain = path.target.gibbs_step(jax.random.key(1), path.sample(jax.random.key(1), 8))
    increment = path.log_weight_increment(chain, 0.5, 0.5 + 2.0**-12)
    spins = np.asarray(chain, np.float64)
    pairs = (spins * (np.roll(spins, 1, 1) + np.roll(spins, 1, 2))).sum((1, 2))
    slope = np.float64(np.float32(0.4)) * pairs
    slope += (np.float64(np.float32(0.1)) - np.float64(path.base.squeeze())) * spins.sum((1, 2))
    np.testing.assert_allclose(increment, 2.0**-12 * slope, rtol=1e-4)


def test_brute_force_agrees_with_itself():
    """The enumeration of hidden units against that of all units with a plain sum."""
    matrix = random_matrix(12, 7)
    whole = Brute("binary", (7,), bonds_of(matrix), brute("BM hidden").field)
    np.testing.assert_allclose(whole.log_z, brute("BM hidden").log_z)
    probs = whole.probs.reshape(16, 8).sum(1)
    np.testing.assert_allclose(probs, brute("BM hidden").probs)
