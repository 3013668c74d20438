"""Evidence from the prior side against the posterior side."""

import warnings

import jax
import numpy as np
import pytest
from test_bridge import LOG_EVIDENCE, exact_draws, regression, two_modes

from numpyro_ebm.evidence import Evidence, EvidenceWarning, cross_check, exact


@pytest.mark.slow
def test_both_sides_of_a_regression():
    found = cross_check(jax.random.key(0), regression, exact_draws(0))
    assert found.ok, found
    for side in (found.prior_side, found.posterior_side):
        assert abs(side.log_evidence - LOG_EVIDENCE) < 4 * side.std_error
    assert abs(found.z) < 3
    assert "CrossCheck(prior_side=" in repr(found)


@pytest.mark.slow
def test_chains_stuck_in_one_of_two_modes_are_found():
    """Bridge sampling alone is low by log 2, with a small error and no doubt."""
    draws = {"x": 8 + 0.5 * np.random.default_rng(0).normal(size=(2, 1000))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        found = cross_check(jax.random.key(0), two_modes, draws)
    low = found.posterior_side
    assert low.ok
    assert low.std_error < 0.05
    truth = exact(two_modes).log_evidence
    np.testing.assert_allclose(low.log_evidence, truth - np.log(2), atol=0.1)
    assert abs(found.prior_side.log_evidence - truth) < 4 * found.prior_side.std_error
    np.testing.assert_allclose(found.difference, np.log(2), atol=0.3)
    assert any("the posterior draws miss a mode" in doubt for doubt in found.warnings)


def test_given_estimates():
    one, other = Evidence(-3.0, 0.1, "smc"), Evidence(-4.0, 0.1, "bridge")
    with pytest.warns(EvidenceWarning, match="differ by 1 nats, 7.1 standard errors"):
        assert not cross_check(None, None, prior_side=one, posterior_side=other).ok
    hashed = Evidence(-4.0, 0.1, "bridge", data_hash="abc")
    with pytest.raises(ValueError, match="their data differ"):
        cross_check(None, None, prior_side=one, posterior_side=hashed)
