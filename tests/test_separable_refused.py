import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from test_separable import (
    EXAMPLE,
    MATRIX,
    NUM_UNITS,
    STATES,
    TABLE,
    Y,
    decompose,
    is_separable,
    normal,
    values_of,
)

FLOAT, BYTE, WORD = jnp.float32, jnp.uint8, jnp.uint32


@jax.custom_jvp
def square_with_linear_jvp(x):
    return x.sum() ** 2


square_with_linear_jvp.defjvp(lambda p, t: (square_with_linear_jvp(*p), t[0].sum()))


@jax.custom_vjp
def square_with_linear_vjp(x):
    return x.sum() ** 2


square_with_linear_vjp.defvjp(
    lambda x: (square_with_linear_vjp(x), None), lambda _, g: (g * jnp.ones(NUM_UNITS),)
)


def through_mutable_array(x):
    reference = jax.new_ref(jnp.zeros(()))
    reference[...] = (x.sum() ** 2).astype(FLOAT)
    return reference[...]


def through_mutable_product(x):
    reference = jax.new_ref(x[0] * 1.0)
    reference[...] *= x[1]
    return reference[...]


def through_callback(x):
    return jax.pure_callback(
        lambda x: np.float32(np.sum(x) ** 2), jax.ShapeDtypeStruct((), FLOAT), x
    )


COUPLED = {
    # nonlinear functions of sums
    "regression": lambda x: normal(MATRIX @ x),
    "Normal of a mean": lambda x: dist.Normal(x.mean(), 1.0).log_prob(0.3),
    "cumulative sum": lambda x: normal(jnp.cumsum(x)),
    "mvn": lambda x: dist.MultivariateNormal(x * 1.0, jnp.eye(4) + 0.3).log_prob(Y),
    "logsumexp": lambda x: jax.nn.logsumexp(x * 1.0),
    "softmax": lambda x: jax.nn.softmax(x * 1.0)[0],
    "variance": lambda x: jnp.var(x * 1.0),
    "norm": lambda x: jnp.linalg.norm(x * 1.0),
    "one over a sum": lambda x: (x / (1.0 + x.sum())).sum(),
    "clip": lambda x: jnp.clip(x.sum(), 0, 3) * 1.0,
    "absolute difference": lambda x: jnp.abs(x[0] - x[1]) * 1.0,
    "custom_jvp": lambda x: square_with_linear_jvp(x * 1.0),
    "custom_vjp": lambda x: square_with_linear_vjp(x * 1.0),
    "jit": lambda x: jax.jit(lambda x: jnp.exp(0.1 * x.sum()))(x),
    "checkpoint": jax.checkpoint(lambda x: jnp.tanh((x * Y).sum())),
    "counts": lambda x: (jax.nn.one_hot(x, 3).sum(0) ** 2).sum(),
    "is NaN": lambda x: jnp.isnan(jnp.log(x.sum() - 1.0)) * 1.0,
    "mixed lengths": lambda x: jnp.exp(
        jnp.concatenate([x * Y, jnp.zeros(2)]).reshape(2, 3).sum(1)
    ).sum(),
    # sums that are not quite sums
    "floor division": lambda x: (x.sum() // 2) * 1.0,
    "integer division": lambda x: lax.div(x.sum(), jnp.int32(2)) * 1.0,
    "floor division of floats": lambda x: (x.sum() * 1.0) // 2,
    "remainder": lambda x: (x.sum() % 2) * 1.0,
    "remainder of floats": lambda x: jnp.mod(x.sum() * 1.0, 2.0),
    "truncation": lambda x: (0.5 * x.sum()).astype(int) * 1.0,
    "rounding": lambda x: jnp.round(x.sum() * 0.4),
    "bit and": lambda x: (x.sum() & 1) * 1.0,
    "bit shift": lambda x: (x.sum() >> 1) * 1.0,
    "bit count": lambda x: lax.population_count(x.sum()) * 1.0,
    "bits as a float": lambda x: lax.bitcast_convert_type(x.sum() * 1.0, jnp.int32) * 1e-6,
    "8-bit cast of a sum": lambda x: (100 * x.sum()).astype(BYTE) * 1.0,
    "8-bit addition": lambda x: (150 * x[0].astype(BYTE) + 150 * x[1].astype(BYTE)) * 1.0,
    "8-bit sum": lambda x: jnp.sum(100 * x.astype(BYTE), dtype=BYTE) * 1.0,
    "8-bit product": lambda x: lax.dot(x.astype(BYTE), jnp.full(4, 100, BYTE)) * 1.0,
    "8-bit difference": lambda x: (x[0].astype(BYTE) - x[1].astype(BYTE)) * 1.0,
    "unsigned difference": lambda x: (x[0].astype(WORD) - x[1].astype(WORD)) * 1e-6,
    "overflowing terms": lambda x: (x * 2**30).sum() * 1e-6,
    "overflowing product": lambda x: (x.sum() * 2**30) * 1e-6,
    "16-bit float": lambda x: (2048 + x.sum()).astype(jnp.float16) * 1.0,
    "16-bit addition": lambda x: (
        (256 + x[0].astype(jnp.bfloat16) + x[1].astype(jnp.bfloat16)) * 1.0
    ),
    "8-bit float": lambda x: (17.0 + x.sum()).astype(jnp.float8_e4m3fn).astype(FLOAT),
    "reduced precision": lambda x: lax.reduce_precision(17.0 + x.sum(), 5, 2),
    # products and comparisons of units
    "pairs": lambda x: normal(x * x[::-1]),
    "units times their sum": lambda x: (x * x.sum()).sum() * 1.0,
    "vmap with the whole": lambda x: jax.vmap(lambda a: a * x.sum())(x).sum() * 1.0,
    "product": lambda x: jnp.prod(x) * 1.0,
    "einsum": lambda x: jnp.einsum("i,j,ij->", x * 1.0, x * 1.0, MATRIX),
    "one-hot product": lambda x: (jax.nn.one_hot(x[0], 3) @ TABLE) @ jax.nn.one_hot(x[1], 3),
    "gradient of a product": lambda x: jax.grad(jnp.prod)(x * 1.0).sum(),
    "convolution": lambda x: (jnp.convolve(x * 1.0, jnp.ones(2)) ** 2).sum(),
    "complex modulus": lambda x: jnp.abs(x[0] + 1j * x[1]),
    "complex product": lambda x: jnp.real((x[0] * 1j) * (x[1] * 1j)),
    "exclusive or": lambda x: (x[0] ^ x[1]) * 1.0,
    "equality": lambda x: (x[0] == x[1]) * 1.0,
    "any": lambda x: jnp.any(x == 1) * 1.0,
    "maximum": lambda x: x.max() * 1.0,
    "minimum": lambda x: jnp.minimum(x[0], x[1]) * 1.0,
    "argmax": lambda x: jnp.argmax(x) * 1.0,
    "determinant": lambda x: jnp.linalg.det(jnp.diag(x * 1.0) + MATRIX),
    "matrix inverse": lambda x: jnp.linalg.solve(jnp.diag(2.0 + x) + 0.3, Y).sum(),
    "associative scan": lambda x: lax.associative_scan(jnp.multiply, x * 1.0)[-1],
    # order, choice and position
    "sort": lambda x: jnp.sort(x) @ Y,
    "top two": lambda x: lax.top_k(x, 2)[0].sum() * 1.0,
    "median": lambda x: jnp.median(x * 1.0),
    "where of a sum": lambda x: jnp.where(x.sum() > 2, 1.0, 0.0),
    "where of another unit": lambda x: jnp.where(x[0] == 1, x[1] * 1.0, x[2] * 1.0),
    "where of one unit": lambda x: jnp.where(x[0] == 1, (x * Y).sum(), 0.0),
    "position of one unit": lambda x: lax.dynamic_slice(x, (x[0],), (1,))[0] * 1.0,
    "positions of all units": lambda x: x[x].sum() * 1.0,
    "table of two units": lambda x: TABLE[x[0], x[1]],
    "table of a sum": lambda x: TABLE[0][(x[0] + x[1]) % 3],
    "scatter": lambda x: jnp.zeros(4).at[x].set(1.0).sum(),
    "histogram": lambda x: jnp.bincount(x, length=3)[0] ** 2 * 1.0,
    "update at a unit": lambda x: lax.dynamic_update_slice(jnp.zeros(4), x[:1] * 1.0, (x[1],)) @ Y,
    # programs
    "scan": lambda x: lax.scan(lambda c, a: (c * a + 1, None), 1.0, x * 1.0)[0],
    "while": lambda x: lax.while_loop(lambda c: c < x.sum(), lambda c: c + 2, 0) * 1.0,
    "for": lambda x: lax.fori_loop(0, 4, lambda i, c: 2 * c + x[i] * c, 1) * 1.0,
    "cond": lambda x: lax.cond(x.sum() > 2, lambda: 1.0, lambda: 0.0),
    "switch": lambda x: lax.switch(x[0], [lambda: x[1] * 1.0, lambda: x[2] * 1.0, lambda: 0.0]),
    "reduction": lambda x: lax.reduce(x * 1.0, np.float32(1), lax.mul, (0,)),
    "random bits": lambda x: jax.random.uniform(jax.random.key(x.sum())),
    "random draw of one of two": lambda x: jax.random.uniform(jax.random.key(x[0]), (3,))[x[1]],
    "barrier": lambda x: jnp.dot(*lax.optimization_barrier((x * 1.0, x[::-1] * 1.0))),
    "callback": through_callback,
    "mutable array": through_mutable_array,
    "mutable product": through_mutable_product,
}


@pytest.mark.parametrize("name", COUPLED)
def test_refused(name):
    log_density, outcomes = COUPLED[name], []
    assert not is_separable(values_of(log_density))  # otherwise the row shows nothing

    def record(x):
        outcomes.append(decompose(log_density, x))
        return x

    record(EXAMPLE)
    jax.eval_shape(jax.jit(record), EXAMPLE)
    jax.eval_shape(jax.vmap(record), STATES)
    assert outcomes == [None, None, None]


def test_product_that_random_flips_would_miss():
    assert unit_terms_of_many(lambda x: jnp.prod(x) * 1.0) is None
    assert unit_terms_of_many(lambda x: jnp.prod(x[:1]) * 1.0) is not None


def unit_terms_of_many(log_density):
    return decompose(log_density, jnp.zeros(10, jnp.int32))


def test_integer_sums_need_room():
    assert decompose(lambda x: x.sum() * 1.0, EXAMPLE) is not None
    assert decompose(lambda x: (x * 10**7).sum() * 1.0, EXAMPLE) is None
