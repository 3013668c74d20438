"""Step sizes reach the acceptance rate asked for, and stay put without a warm-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_ebm.kernels import adaptation


@jax.jit
def warm_up(scale):
    """Adapt on an acceptance probability exp(-step_size / scale), one scale for each chain."""

    def step(state, count):
        accept = jnp.exp(-adaptation.in_use(state, count, 500) / scale)
        return adaptation.adapt(state, accept, 0.6, count, 500), None

    return jax.lax.scan(step, adaptation.init(0.3, (3,)), jnp.arange(600))[0]


def test_every_chain_reaches_its_own_step_size():
    scale = jnp.array([0.01, 1.0, 30.0])
    state = warm_up(scale)
    step_size = adaptation.in_use(state, 600, 500)
    np.testing.assert_allclose(np.exp(-step_size / scale), 0.6, atol=0.03)
    assert int(state.dual[3]) == 500  # nothing is learnt after the warm-up


def test_without_warm_up_the_given_step_size_is_kept():
    state = adaptation.init(0.3)
    after = adaptation.adapt(state, 0.0, 0.6, 0, 0)
    assert after is state
    assert adaptation.in_use(after, 0, 0) == np.float32(0.3)


@pytest.mark.slow
def test_an_undefined_acceptance_counts_as_a_rejection():
    state = adaptation.init(0.3)
    undefined, rejected = (adaptation.update(state, p, 0.6) for p in (jnp.nan, 0.0))
    assert undefined.current == rejected.current < 3.0
