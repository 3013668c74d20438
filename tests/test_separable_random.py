"""Random programs: whatever is accepted is decomposed as enumeration would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_separable import KEEP, MATRIX, ORDER, STATES, TABLE, Y, assert_terms, decompose


def vector(x):
    """The first four elements, padded with zeros."""
    return jnp.concatenate([x.ravel(), jnp.zeros(4, x.dtype)])[:4]


UNARY = [
    lambda x: 2 * x + 1,
    lambda x: -x,
    lambda x: x * Y,
    lambda x: x[::-1],
    lambda x: x[ORDER],
    lambda x: x.sum()[None],
    lambda x: jnp.where(KEEP, x, 0),
    lambda x: MATRIX @ x,
    lambda x: x.reshape(2, 2).sum(1),
    lambda x: jnp.pad(x, 1).reshape(3, 2).sum(1),
    lambda x: jnp.sin(1.0 * x),
    lambda x: x * x,
    lambda x: (x == 1).astype(int),
    lambda x: x.astype(int) % 2,
    lambda x: x.astype(jnp.uint8),
    lambda x: x / 3,
    lambda x: TABLE[jnp.clip(x.astype(int), 0, 2)] @ Y[:3],
    lambda x: jax.nn.one_hot(x.astype(int), 3).sum(0),
    lambda x: jax.jit(lambda z: 3.0 * z.sum())(x)[None],
    lambda x: jnp.tile(x, 2)[3:6],
    lambda x: jnp.concatenate([x, Y])[2:6],
    lambda x: jnp.einsum("bi,bi->b", x.reshape(2, 2) * 1.0, MATRIX[:2, :2]),
]
BINARY = [
    lambda x, y: x + y,
    lambda x, y: x * y,
    lambda x, y: jnp.concatenate([x[:1], y]),
    lambda x, y: jnp.where(KEEP, x, y),
    lambda x, y: jnp.stack([x, y]).sum(0),
    lambda x, y: jnp.concatenate([x.sum()[None], y]),
]


def random_program(seed):
    rng = np.random.default_rng(seed)
    steps = []
    for size in range(1, rng.integers(3, 8)):
        table = UNARY if rng.random() < 0.75 else BINARY
        inputs = rng.integers(max(0, size - 2), size, 1 if table is UNARY else 2)
        steps.append((table[rng.integers(len(table))], inputs))

    def log_density(x):
        values = [x]
        for function, inputs in steps:
            values.append(vector(function(*(values[i] for i in inputs))))
        return (values[-1] * 1.0).sum() + 0.5 * (values[-2] * Y).sum()

    return log_density


def check_random_program(seed):
    log_density = random_program(seed)
    terms = decompose(log_density)
    if terms is not None:
        assert_terms(jax.vmap(terms)(STATES), log_density)
    return terms is not None


@pytest.mark.slow
def test_random_programs():
    assert 2 < sum(check_random_program(seed) for seed in range(8)) < 8


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 500, 50))
def test_many_random_programs(start):
    assert sum(check_random_program(seed) for seed in range(start, start + 50)) > 10
