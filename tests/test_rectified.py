"""The normal distribution truncated to nonnegative values, against SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import assert_moments
from numpyro.distributions import constraints
from scipy import stats

from numpyro_ebm.units.rectified import RectifiedNormal

NUM_DRAWS = 40_000


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.mark.parametrize("loc", [-50.0, -8.0, -4.9, -1.0, 0.0, 3.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_rectified_normal_log_prob(loc, scale, dtype):
    values = np.linspace(0, 2, 9) * scale / (1 + max(0, -loc / scale))
    exact = stats.truncnorm(-loc / scale, np.inf, loc, scale)
    own = RectifiedNormal(jnp.asarray(loc, dtype), jnp.asarray(scale, dtype))
    # In single precision the two squares that cancel are as large as (loc / scale)^2 / 2.
    slack = (loc / scale) ** 2 * np.finfo(dtype).eps
    actual = own.log_prob(jnp.asarray(values, dtype))
    assert actual.dtype == dtype
    np.testing.assert_allclose(
        actual, exact.logpdf(values), rtol=1e-4 if dtype == "float32" else 1e-9, atol=slack
    )


@pytest.mark.parametrize("ratio", [-300.0, -50.0, -8.0, -5.1, -4.9, -1.0, 0.0, 3.0])
def test_rectified_normal_draws(ratio):
    scale = 2.0
    exact = stats.truncnorm(-ratio, np.inf, ratio * scale, scale)
    draws = RectifiedNormal(ratio * scale, scale).sample(jax.random.key(0), (NUM_DRAWS,))
    assert draws.dtype == jnp.float32
    uniform = np.asarray(exact.sf(np.asarray(draws, np.float64)))
    assert_moments(np.column_stack([uniform, uniform**2, uniform**3]), [1 / 2, 1 / 3, 1 / 4])
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4


def test_rectified_normal_as_a_numpyro_distribution():
    normal = RectifiedNormal(jnp.array([-1.0, 2.0]), 1.0).to_event(1)
    assert normal.support.base_constraint is constraints.nonnegative
    assert isinstance(normal, dist.Independent)
    moved = jax.tree.map(lambda x: x, normal)
    np.testing.assert_array_equal(moved.log_prob(jnp.ones(2)), normal.log_prob(jnp.ones(2)))
