import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

from numpyro_ebm.kernels.separable import unit_terms

NUM_UNITS, NUM_VALUES = 4, 3
STATES = np.array(list(itertools.product(range(NUM_VALUES), repeat=NUM_UNITS)))
EXAMPLE = jnp.zeros(NUM_UNITS, jnp.int32)

Y = jnp.array([0.25, -1.0, 2.0, 0.5])
COUNTS = jnp.array([0, 1, 2, 1])
KEEP = jnp.array([True, False, True, True])
MATRIX = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
TABLE = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
INTEGERS = jnp.arange(16).reshape(4, 4) % 3
ORDER = jnp.array([2, 0, 3])


def normal(loc, scale=0.5):
    return dist.Normal(loc, scale).log_prob(Y).sum()


def log_density_of(model):
    """Log density of the observed sites of a model that takes the units."""

    def log_density(x):
        trace = numpyro.handlers.trace(model).get_trace(x)
        sites = [site for site in trace.values() if site["type"] == "sample"]
        return sum(
            (site["fn"].log_prob(site["value"]) * (site["scale"] or 1.0)).sum() for site in sites
        )

    return log_density


@log_density_of
def in_plates(x):
    with numpyro.plate("unit", 4, dim=-1), numpyro.plate("repeat", 2, dim=-2):
        numpyro.sample("y", dist.Normal(2 * x - 1, 0.5), obs=jnp.stack([Y, 2 * Y]))
    with numpyro.handlers.scale(scale=0.25):
        numpyro.sample("z", dist.Bernoulli(jnp.where(x == 1, 0.9, 0.2)).to_event(1), obs=COUNTS % 2)


@log_density_of
def masked(x):
    with numpyro.handlers.mask(mask=KEEP):
        numpyro.sample("y", dist.Normal(x, 0.5), obs=Y)
    numpyro.factor("prior", 0.3 * x.sum() - 0.1 * x[2])


@jax.custom_jvp
def weighted(x):
    return (x**2 * Y).sum()


weighted.defjvp(lambda primals, tangents: (weighted(*primals), 7.0 * tangents[0].sum()))

SEPARABLE = {
    "Normal": lambda x: normal(x),
    "integer arithmetic": lambda x: normal(2 * x - 1),
    "to_event": lambda x: dist.Normal(x, 0.5).to_event(1).log_prob(Y),
    "StudentT": lambda x: dist.StudentT(3.0, x, 0.5).log_prob(Y).sum(),
    "Poisson": lambda x: dist.Poisson(jnp.exp(0.5 * x)).log_prob(COUNTS).sum(),
    "NegativeBinomial": lambda x: dist.NegativeBinomial2(1.0 + x, 2.0).log_prob(COUNTS).sum(),
    "Bernoulli": lambda x: dist.Bernoulli(logits=x - 0.5).log_prob(COUNTS % 2).sum(),
    "Categorical probs": lambda x: (
        dist.Categorical(jax.nn.softmax(TABLE)[x]).log_prob(COUNTS).sum()
    ),
    "Categorical logits": lambda x: dist.Categorical(logits=TABLE[x]).log_prob(COUNTS).sum(),
    "Beta": lambda x: dist.Beta(1.0 + x, 2.0).log_prob(jnp.array([0.1, 0.4, 0.6, 0.9])).sum(),
    "mixture": lambda x: jax.nn.logsumexp(jnp.stack([-((x - Y) ** 2), Y], -1), -1).sum(),
    "plates": in_plates,
    "mask and factor": masked,
    "one unit": lambda x: jnp.exp(x[1] * x[1] / 3) * 1.0,
    "constant": lambda x: jnp.float32(3),
    "subset": lambda x: dist.Normal(x[ORDER], 1.0).log_prob(Y[:3]).sum() + x[-1] * 2.0,
    "slices": lambda x: normal(jnp.concatenate([x[2:], x[:2]])) + x[::2].sum() * 0.5,
    "reversal": lambda x: normal(x[::-1]) + (jnp.roll(x, 1) * Y).sum(),
    "reshape": lambda x: dist.Normal(x.reshape(2, 2).T, 1.0).log_prob(Y.reshape(2, 2)).sum(),
    "pad, tile and stack": lambda x: (
        (jnp.pad(x, 1).reshape(3, 2) * Y[:2]).sum() + jnp.stack([jnp.tile(x, 2)[:4], x]).sum() * 1.0
    ),
    "sums of several lengths": lambda x: (
        jnp.concatenate([x * Y, jnp.zeros(2)]).reshape(2, 3).sum(1).sum() * 2.0
    ),
    "sum beside its terms": lambda x: jnp.concatenate([0.3 * x.sum()[None], x * Y]).sum(),
    "sums of sums": lambda x: jnp.stack([x.sum() * 1.0, x[0] * 2.0, jnp.sin(1.0 * x[1])]).sum(),
    "matrix": lambda x: (MATRIX @ x).sum() + 3 * x[2] + jnp.vdot(x, Y),
    "integer matrix": lambda x: (INTEGERS @ x).sum() * 0.1 - x.sum() / 3,
    "batched matrix": lambda x: (
        jnp.einsum("bi,bij->", x.reshape(2, 2) * 1.0, MATRIX.reshape(2, 2, 4))
    ),
    "one-hot": lambda x: jnp.einsum("ik,kj->", jax.nn.one_hot(x, 3), TABLE),
    "table, one row per unit": lambda x: jnp.take_along_axis(TABLE[ORDER], x[:3, None], 1).sum(),
    "where": lambda x: jnp.where(KEEP, x * Y, 3.0).sum() + jnp.where(x == 2, Y, -Y).sum(),
    "count": lambda x: 0.7 * (x == 1).sum() - (x.astype(jnp.uint8) != 0).sum(),
    "jit": lambda x: jax.jit(lambda x: 2.0 * x.sum())(x) + jax.jit(normal)(x),
    "vmap": lambda x: jax.vmap(lambda a, b: dist.Normal(a, 1.0).log_prob(b))(x, Y).sum(),
    "checkpoint": jax.checkpoint(lambda x: jnp.tanh(x * Y).sum()),
    "custom_jvp": lambda x: weighted(x * 1.0),
    "gradient": lambda x: jax.grad(lambda z: (z**3 * Y).sum())(x * 1.0).sum(),
    "stop_gradient": lambda x: (lax.stop_gradient(x) * Y).sum(),
    "unused coupling": lambda x: (x.sum() % 2, TABLE[x[0]][x[1]], (x * Y).sum())[2],
    "unused coupling in jit": lambda x: jax.jit(lambda x: (x.sum() % 2, (x * Y).sum()))(x)[1],
    "unused coupling in an array": lambda x: jnp.concatenate([(x.sum() % 2)[None], x])[1:] @ Y,
    "complex": lambda x: jnp.real(x * (1 + 2j)).sum(),
}  # fmt: skip


def changes(values):
    """Effect of each unit on each state's value, by switching the other units to zero."""
    grid, out = values.reshape((NUM_VALUES,) * NUM_UNITS), []
    for unit in range(NUM_UNITS):
        alone = np.moveaxis(grid, unit, 0).reshape(NUM_VALUES, -1)[:, 0]
        out.append((alone - alone[0])[STATES[:, unit]])
    return np.stack(out, -1)


def is_separable(values):
    """Whether the values of all states are a sum over units."""
    return np.allclose(values, values[0] + changes(values).sum(-1), rtol=1e-5, atol=1e-4)


def values_of(log_density):
    """The log density at every state, one at a time where it cannot be vectorized."""
    return np.asarray(lax.map(log_density, jnp.asarray(STATES)), np.float64)


def decompose(log_density, example=EXAMPLE):
    """Terms, for units of at most 8 bits."""
    return unit_terms(log_density, example, 255)


def assert_terms(terms, log_density):
    """Every term depends on its unit alone, and they add up to the log density."""
    terms, values = np.asarray(terms, np.float64), values_of(log_density)
    error = 1e-5 * (1 + np.abs(values).max())
    np.testing.assert_allclose(terms - terms[0], changes(values), rtol=0, atol=error)
    np.testing.assert_allclose(terms.sum(-1) - terms[0].sum(), values - values[0], atol=error)


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable(name):
    terms = decompose(SEPARABLE[name])
    assert_terms(jax.jit(jax.vmap(terms))(STATES), SEPARABLE[name])


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_when_traced(name):
    def under_a_transformation(offset, x):
        return decompose(lambda x: SEPARABLE[name](x) + offset * x[0])(x)

    def step(carry, x):
        return carry, under_a_transformation(carry, x)

    assert jax.eval_shape(jax.vmap(under_a_transformation), jnp.zeros(3), STATES[:3]).shape == (
        3,
        4,
    )
    assert jax.eval_shape(jax.jit(under_a_transformation), 0.0, EXAMPLE).shape == (4,)
    assert jax.eval_shape(lambda: lax.scan(step, 0.5, STATES)[1]).shape == STATES.shape


@pytest.mark.parametrize("name", ["Normal", "table, one row per unit", "sum beside its terms"])
def test_separable_inside_scan(name):
    def step(offset, x):
        return offset, decompose(lambda x: SEPARABLE[name](x) + offset * x[0])(x)

    _, terms = lax.scan(step, 0.5, jnp.asarray(STATES))
    assert_terms(terms, lambda x: SEPARABLE[name](x) + 0.5 * x[0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float32"])
def test_types_of_units(dtype):
    terms = decompose(SEPARABLE["matrix"], EXAMPLE.astype(dtype))
    assert_terms(jax.vmap(terms)(STATES), SEPARABLE["matrix"])


def test_positions_must_be_known():
    def log_density(x, positions):
        return dist.Normal(x[positions], 1.0).log_prob(Y[:3]).sum()

    def is_accepted(positions):
        return decompose(lambda x: log_density(x, positions)) is not None

    assert is_accepted(ORDER)
    assert not jax.jit(lambda positions: jnp.asarray(is_accepted(positions)))(ORDER)
