import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import arrays, assert_close, assert_moments, energy, features, layer
from registry import CONCATENATED, CONTINUOUS, KINDS, UNBOUNDED, UNITS, member_of_unit
from scipy.special import log_ndtr, logsumexp

from numpyro_ebm import units

NUM_DRAWS = 40_000
all_kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind, dtype="float32", n=2, seed=0, batch=()):
    return KINDS[kind].make(np.random.default_rng(seed), n, dtype, batch)


def fields(unit, dtype, *batch, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.round(rng.normal(size=(*batch, unit.num_features)), 1), dtype)


def log_terms(unit, field):
    """Log of every term of the partition function, shape ``batch + (states,)``."""
    states = layer(unit)
    own = states.log_weight - states.energy
    return states, own + np.asarray(field, np.float64) @ states.features.T


def some_values(unit):
    values = layer(unit).values
    return values[:: max(1, len(values) // 9)]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


# ----- the family --------------------------------------------------------------------------


@jax.jit
def family(unit, field, values):
    conditional = unit.conditional(field)
    return {
        "energy": unit.energy(values),
        "features": unit.features(values),
        "cumulant function": unit.log_partition(field),
        "its sum over units": unit.unit_log_partition(field).sum(-1),
        "its gradient": jax.grad(lambda f: unit.log_partition(f).sum())(field),
        "mean": unit.mean(field),
        "conditional": conditional.log_prob(values),
    }


def expected_family(unit, field, values, own_terms):
    states, terms = log_terms(unit, field)
    log_total = logsumexp(terms, axis=-1)
    mean = np.exp(terms - log_total[..., None]) @ states.features
    return {
        "energy": energy(unit, values),
        "features": features(unit, values),
        "cumulant function": log_total,
        "its sum over units": log_total,
        "its gradient": mean,
        "mean": mean,
        "conditional": own_terms - log_total,
    }


@all_kinds
def test_family(kind, dtype):
    unit = make(kind, dtype)
    field = fields(unit, dtype, 4)
    states, terms = log_terms(unit, field)
    pick = np.arange(4) * (len(states.values) // 4)
    values = states.values[pick]
    own_terms = (terms - states.log_weight)[np.arange(4), pick]
    actual = family(unit, field, values)
    for name, expected in expected_family(unit, field, values, own_terms).items():
        assert_close(actual[name], expected, dtype, name)


@pytest.mark.parametrize("kind", [k for k in KINDS if "Categorical" not in k])
def test_conditional_mean_and_variance(kind, dtype):
    unit = make(kind, dtype)
    field = fields(unit, dtype, 4)
    states, terms = log_terms(unit, field)
    probs = np.exp(terms - logsumexp(terms, axis=-1)[:, None])
    mean = probs @ states.values
    conditional = jax.jit(unit.conditional)(field)
    assert conditional.batch_shape == (4,)
    assert_close(conditional.mean, mean, dtype)
    assert_close(conditional.variance, probs @ states.values**2 - mean**2, dtype)


@jax.jit
def draw_twice(unit, field):
    """Draws of the layer, and of its conditional as a NumPyro distribution."""
    key = jax.random.key(0)
    repeated = jnp.broadcast_to(field, (NUM_DRAWS, unit.num_features))
    compact = unit.sample(jax.random.fold_in(key, 1), repeated)
    return compact, unit.conditional(field).sample(key, (NUM_DRAWS,))


@all_kinds
def test_draws(kind):
    unit = make(kind)
    field = fields(unit, "float32")
    states, terms = log_terms(unit, field)
    mean = np.exp(terms - logsumexp(terms)) @ np.column_stack([states.features, states.values**2])
    draws = draw_twice(unit, field)
    assert draws[0].dtype == unit.dtype
    for values in draws:
        squares = np.asarray(values, np.float64) ** 2
        assert np.all(unit.support(values))
        assert_moments(np.column_stack([features(unit, values), squares]), mean)


@pytest.mark.parametrize("kind", [k for k in KINDS if not any(c in k for c in UNBOUNDED)])
def test_states_are_all_states(kind):
    unit = make(kind)
    values, log_weight = unit.states(jnp.arange(unit.num_states))
    expected = layer(unit).values
    assert len(expected) == unit.num_states
    assert not np.any(log_weight)
    np.testing.assert_array_equal(np.unique(values, axis=0), np.unique(expected, axis=0))


@all_kinds
def test_batched_units_are_their_members(kind):
    unit = make(kind, batch=(3,))
    assert unit.batch_shape == (3,)
    singles = [member_of_unit(unit, (i,)) for i in range(3)]
    states = layer(singles[0])
    values, field = states.values[:3], fields(unit, "float32")
    many = {name: np.asarray(value) for name, value in family(unit, field, values).items()}
    for i, single in enumerate(singles):
        own_terms = log_terms(single, field)[1][i] - states.log_weight[i]
        for name, expected in expected_family(single, field, values[i], own_terms).items():
            if name != "its gradient":
                assert_close(many[name][i], expected, "float32", name)


@jax.jit
def log_partition_and_mean(unit, field):
    return unit.log_partition(field), unit.mean(field)


@pytest.mark.parametrize("field", [-80.0, 80.0])
@pytest.mark.parametrize("kind", UNITS)
def test_strong_fields(kind, field, dtype):
    unit = make(kind, dtype)
    many = jnp.full((unit.num_features,), field, dtype)
    if kind in CONTINUOUS:
        loc, scale = arrays(unit)
        expected = field * loc + (scale * field) ** 2 / 2 + np.log(scale * np.sqrt(2 * np.pi))
        if kind == "ReLU":
            expected += log_ndtr(loc / scale + scale * field)
        expected = expected.sum()
    elif kind == "Poisson":
        expected = np.exp(arrays(unit)[0] + field).sum()
    else:
        expected = logsumexp(log_terms(unit, many)[1])
    log_partition, mean = log_partition_and_mean(unit, many)
    assert_close(log_partition, expected, dtype)
    assert np.all(np.isfinite(mean))


# ----- relatives ---------------------------------------------------------------------------


@all_kinds
def test_interpolation_mixes_energies(kind):
    base, unit = make(kind, seed=1), make(kind, seed=2)
    values = some_values(unit)
    interpolated = jax.jit(lambda beta: unit.interpolate(base, beta).energy(values))
    for beta in (0.0, 0.25, 1.0):
        mixed = (1 - beta) * energy(base, values) + beta * energy(unit, values)
        own = np.asarray(interpolated(beta))
        np.testing.assert_allclose(own - own[0], mixed - mixed[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Bernoulli", "Spin", "Categorical", "Gaussian", "Poisson"])
def test_base_rate_has_the_moments(kind):
    unit = make(kind)
    mean = unit.mean(fields(unit, "float32"))
    second = mean**2 + 4.0
    rate = unit.base_rate(mean, second)
    np.testing.assert_allclose(rate.mean(jnp.zeros(unit.num_features)), mean, rtol=1e-4, atol=1e-6)
    if kind == "Gaussian":
        np.testing.assert_allclose(rate.scale, 2.0, rtol=1e-5)


@all_kinds
def test_a_constant_field_joins_the_energy(kind):
    unit = make(kind)
    values, field = some_values(unit), fields(unit, "float32")
    within = np.asarray(jax.jit(lambda v: unit.in_field(field).energy(v))(values))
    expected = energy(unit, values) - features(unit, values) @ np.asarray(field, np.float64)
    np.testing.assert_allclose(within - within[0], expected - expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS if "Poisson" not in k])
def test_tilt_multiplies_by_the_factor(kind):
    unit = make(kind)
    values = some_values(unit)

    def log_factor(x):
        return -0.25 * (x - np.arange(1.0, 1.0 + x.shape[-1])) ** 2 + 0.5 * x

    tilted = np.asarray(jax.jit(lambda v: unit.tilt(log_factor, unit.shape).energy(v))(values))
    expected = energy(unit, values) - log_factor(values).sum(-1)
    np.testing.assert_allclose(tilted - tilted[0], expected - expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize(
    ("log_factor", "message"),
    [(lambda x: -jnp.cosh(x), "not Gaussian"), (lambda x: 2 * x**2, "precision")],
)
def test_tilt_of_continuous_units_by_another_factor(kind, log_factor, message):
    with pytest.raises(ValueError, match=message):
        make(kind).tilt(log_factor, (2,))


# ----- support and bad input ---------------------------------------------------------------

SUPPORTS = {
    "Bernoulli": ([[0, 1], [True, False], [0.0, 1.0]], [[0, 7], [0, -1], [0.5, 0], [np.nan, 0]]),
    "Spin": ([[-1, 1], [1.0, -1.0]], [[0, 1], [1, 2], [np.nan, 1]]),
    "Categorical": ([[0, 2], [1.0, 0.0]], [[0, 3], [-1, 0], [0.5, 1], [np.nan, 1]]),
    "Gaussian": ([[-3.5, 2]], [[np.nan, 0], [np.inf, 0]]),
    "ReLU": ([[0.0, 2.5]], [[-0.1, 1], [np.nan, 0]]),
    "Poisson": ([[0, 900], [2.0, 0.0]], [[-1, 0], [0.5, 1], [np.nan, 1]]),
}


@pytest.mark.parametrize("kind", UNITS)
def test_support(kind):
    support = make(kind).support
    inside, outside = SUPPORTS[kind]
    assert all(bool(support(jnp.asarray(value))) for value in inside)
    assert not any(bool(support(jnp.asarray(value))) for value in outside)


def test_spins_of_unsigned_type_do_not_wrap():
    support = make("Spin").support
    assert not support(np.array([255, 1], np.uint8))
    assert support(np.array([1, 1], np.uint8))


@pytest.mark.parametrize("kind", CONCATENATED)
def test_support_of_concatenated_units(kind):
    unit = make(kind)
    values = layer(unit).values[:1]
    assert unit.support(values) == unit.support(jnp.asarray(values))
    assert not unit.support(np.where(np.arange(values.size) == values.size - 1, -9.5, values))
    assert unit.support.feasible_like(jnp.asarray(values)).shape == values.shape
    assert hash(unit.support) == hash(make(kind).support)
    assert unit.support == make(kind).support


BAD = [
    (lambda: units.Bernoulli(jnp.array([0.0, jnp.nan])), ValueError, "finite `logits`; got 1 NaN"),
    (lambda: units.Bernoulli(0.0), ValueError, r"`logits` of shape \(..., n\)"),
    (lambda: units.Bernoulli(jnp.zeros(0)), ValueError, "at least one unit"),
    (lambda: units.Bernoulli("logits"), TypeError, "expected an array for `logits`; got str"),
    (lambda: units.Spin(jnp.array([jnp.inf])), ValueError, "finite `field`"),
    (lambda: units.Poisson(jnp.array([0.0, jnp.inf])), ValueError, "finite `log_rate`"),
    (lambda: units.Poisson(jnp.zeros(2)).tilt(lambda x: x, (2,)), ValueError, "Poisson: a likel"),
    (lambda: units.Categorical(jnp.zeros(3)), ValueError, r"\(..., n, q\)"),
    (lambda: units.Categorical(jnp.zeros((3, 1))), ValueError, "q >= 2"),
    (lambda: units.Gaussian(jnp.zeros(2), 0.0), ValueError, "positive `scale`; got .* 0.0"),
    (lambda: units.Gaussian(jnp.zeros(2), -1.0), ValueError, "positive `scale`"),
    (lambda: units.Gaussian(jnp.zeros(2), jnp.ones(3)), ValueError, "broadcast together"),
    (lambda: units.ReLU(jnp.zeros(2), jnp.array([1.0, jnp.nan])), ValueError, "finite `scale`"),
    (lambda: units.Concatenate([]), ValueError, "at least one unit"),
    (lambda: units.Concatenate([jnp.zeros(2)]), TypeError, "to hold units"),
]


@pytest.mark.parametrize(("build", "error", "message"), BAD)
def test_bad_parameters(build, error, message):
    with pytest.raises(error, match=message):
        build()
