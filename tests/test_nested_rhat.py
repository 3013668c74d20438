"""Nested R-hat against its formula, ArviZ 1.x, and what it is for."""

import warnings

import arviz as az
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from chains import run
from registry import Case

import numpyro_ebm as ebm
from numpyro_ebm import convert, diagnostics

RNG = np.random.default_rng(0)


def plain(x, num_superchains):
    """Equations 4 to 8 of Margossian et al. (2024), sum by sum, for one unit."""
    num_chains, n = x.shape
    k, m = num_superchains, num_chains // num_superchains
    x = x.reshape(k, m, n)
    chain = x.sum(2) / n
    superchain = chain.sum(1) / m
    between = sum((superchain[i] - superchain.sum() / k) ** 2 for i in range(k)) / (k - 1)
    within = 0.0
    for i in range(k):
        if m > 1:
            within += sum((chain[i, j] - superchain[i]) ** 2 for j in range(m)) / (m - 1) / k
        if n > 1:
            terms = sum((x[i, j, t] - chain[i, j]) ** 2 for j in range(m) for t in range(n))
            within += terms / (n - 1) / m / k
    return np.sqrt(1 + between / within)


SHAPES = [(12, 5, 3), (12, 1, 4), (4, 7, 4), (32, 3, 2)]


@pytest.mark.parametrize(("num_chains", "num_draws", "num_superchains"), SHAPES)
def test_is_the_formula(num_chains, num_draws, num_superchains):
    draws = RNG.normal(5, 2, (num_chains, num_draws, 2, 3))
    result = ebm.nested_rhat(draws, num_superchains)
    expected = [[plain(draws[:, :, i, j], num_superchains) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(result, expected, rtol=1e-10)
    assert result.dtype == np.float64


@pytest.mark.skipif(not hasattr(az, "rhat_nested"), reason="only in ArviZ 1.x")
@pytest.mark.parametrize(
    ("num_chains", "num_draws", "num_superchains"), [(12, 5, 3), (4, 7, 4), (32, 6, 2)]
)
def test_agrees_with_arviz(num_chains, num_draws, num_superchains):
    draws = RNG.normal(size=(num_chains, num_draws))
    ids = np.repeat(np.arange(num_superchains), num_chains // num_superchains)
    expected = az.rhat_nested(draws, superchain_ids=ids, method="identity")
    np.testing.assert_allclose(ebm.nested_rhat(draws, num_superchains), expected, rtol=1e-10)


def test_value_at_convergence():
    """E[B / W] is 1 / M for one draw of each of M independent chains."""
    draws = RNG.normal(size=(200 * 8, 1, 50))
    squares = ebm.nested_rhat(draws, 200) ** 2 - 1
    np.testing.assert_allclose(squares.mean(), 1 / 8, rtol=0.05)


def test_blocks_and_compact_types_change_nothing(monkeypatch):
    draws = RNG.integers(0, 2, (20, 6, 5)).astype(np.uint8)
    whole = ebm.nested_rhat(draws, 4)
    monkeypatch.setattr(diagnostics, "_BLOCK", 64)
    np.testing.assert_allclose(ebm.nested_rhat(jnp.asarray(draws), 4), whole, rtol=1e-12)
    np.testing.assert_allclose(ebm.nested_rhat(draws.astype(np.float64), 4), whole, rtol=1e-12)


def test_units_that_do_not_vary():
    draws = np.full((8, 5, 3), 0.1, np.float32)
    draws[:, :, 1] = np.repeat([0.3, 0.7], 4)[:, None]  # stuck at different values
    draws[:, :, 2] = RNG.normal(size=(8, 5))
    with pytest.warns(UserWarning, match="1 of 3 units never varied"):
        result = ebm.nested_rhat(draws, 2)
    assert np.isnan(result[0])
    assert np.isinf(result[1])
    assert 0.9 < result[2] < 2
    draws[0, 0, 2] = np.inf
    with pytest.warns(UserWarning, match="2 of 3 units never varied or are not finite"):
        ebm.nested_rhat(draws, 2)


def test_rhat_of_moments_is_the_unsplit_rhat():
    draws = RNG.normal(size=(6, 50, 2)) + RNG.normal(0, 0.3, (6, 1, 2))
    rhat = diagnostics.rhat_from_moments(*diagnostics.chain_moments(draws), 50)
    for i in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = az.rhat(draws[:, :, i], method="identity")
        np.testing.assert_allclose(rhat[i], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "num_superchains", "message"),
    [
        ((8,), 2, r"`draws` of shape \(num_chains, num_draws, ...\); got \(8,\)"),
        ((8, 0), 2, "`draws` of shape"),
        ((8, 5), 3, "divides the number of chains, 8; got 3"),
        ((8, 5), 1, "at least 2"),
        ((8, 1), 8, "several chains in each superchain, or several draws"),
    ],
)
def test_what_cannot_be_grouped_is_refused(shape, num_superchains, message):
    with pytest.raises(ValueError, match=message):
        ebm.nested_rhat(np.zeros(shape), num_superchains)


def test_the_number_of_superchains_is_an_integer():
    with pytest.raises(TypeError, match="integer `num_superchains`"):
        ebm.nested_rhat(np.zeros((8, 5)), 2.0)


@pytest.mark.slow
def test_reaches_arviz():
    rbm = Case("Bernoulli", "Bernoulli", 900).build()

    def model():
        numpyro.sample("v", rbm, infer={"event_dims": ["pixel"]})

    mcmc = run(ebm.BlockGibbs(model), num_chains=8, num_samples=20, extra_fields=("energy",))
    data = convert.from_numpyro(mcmc, num_superchains=4)
    found = data["sample_stats"]["nested_rhat_v"]
    assert found.dims == ("pixel",)
    expected = ebm.nested_rhat(mcmc.get_samples(group_by_chain=True), 4)["v"]
    np.testing.assert_allclose(found, expected)
    assert data["sample_stats"]["energy"].shape == (8, 20)
    az.summary(data)
    mcmc = run(ebm.BlockGibbs(model), num_chains=8, num_samples=20)
    assert "nested_rhat_v" in convert.from_numpyro(mcmc, num_superchains=2)["sample_stats"]
