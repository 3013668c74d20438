import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from helpers import z_scores
from loss_models import no_guide
from numpyro.infer import SVI

from numpyro_ebm import (
    RBM,
    FastPersistentContrastiveDivergence,
    Ising,
    PersistentContrastiveDivergence,
    chain_health,
    kernels,
    persistent_chains,
)

SMALL = RBM(
    jnp.array([[0.8, -0.4], [0.5, 0.6], [-0.3, 0.2], [0.1, 0.4]]), jnp.zeros(4), -jnp.ones(2)
)
GOOD = np.zeros((5, 4), int)
NUM_CHAINS = 60


class Frozen:
    """A kernel that stays where it is."""

    def init(self, value, target):
        return value

    def step(self, rng_key, state, target):
        return state, None

    def refresh(self, state, target):
        return state

    def value(self, state, target):
        return state


def health_of(chains, data, seed=0, model=SMALL, **kwargs):
    """A report without its warnings, which are a field."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return chain_health(jax.random.key(seed), model, chains, data, **kwargs)


@pytest.mark.slow
def test_chains_that_are_draws_give_standard_normal_scores():
    """Both z over independent repetitions, where chains and data are exact."""
    draws = SMALL.sample(jax.random.key(0), (40, 2, NUM_CHAINS))
    reports = [health_of(a, b, i, num_steps=40) for i, (a, b) in enumerate(draws)]
    for name in ("energy_gap_z", "energy_drift_z"):
        scores = np.array([getattr(report, name) for report in reports])
        assert abs(scores.mean()) < 4 / np.sqrt(len(scores))
        assert 0.7 < np.sqrt((scores**2).mean()) < 1.5
    assert all(0.5 < report.energy_std_ratio < 2 for report in reports)


def test_gap_and_drift_by_hand():
    rng = np.random.default_rng(0)
    chains, data = rng.integers(0, 2, (7, 4)), rng.integers(0, 2, (9, 4))
    report = health_of(chains, data, num_steps=20)
    before, rows = (np.asarray(SMALL.energy(x), float) for x in (chains, data))
    gap = rows.mean() - before.mean()
    np.testing.assert_allclose(report.energy_gap, gap)
    error = np.sqrt(rows.var(ddof=1) / 9 + before.var(ddof=1) / 7)
    np.testing.assert_allclose(report.energy_gap_z, gap / error)
    ratio = before.std(ddof=1) / rows.std(ddof=1)
    np.testing.assert_allclose(report.energy_std_ratio, ratio)
    drift = report.energies[:, 10:].mean(1) - before
    np.testing.assert_allclose(report.energy_drift, drift.mean())
    z = drift.mean() / (drift.std(ddof=1) / np.sqrt(7))
    np.testing.assert_allclose(report.energy_drift_z, z)
    assert report.energies.shape == (7, 20)


@pytest.mark.slow
def test_autocorrelation_time_of_a_two_state_chain():
    """One visible and one hidden unit: lag-t correlations are the powers of an eigenvalue."""
    rbm = RBM(jnp.full((1, 1), 5.0), jnp.full(1, -2.5), jnp.full(1, -2.5))
    up = 1 / (1 + np.exp([2.5, -2.5]))  # P(1 | 0), P(1 | 1) of either layer
    stay = [(1 - up[v]) * up[0] + up[v] * up[1] for v in (0, 1)]
    eigenvalue = stay[1] - stay[0]
    expected = (1 + eigenvalue) / (1 - eigenvalue)
    assert expected > 5
    draws = rbm.sample(jax.random.key(0), (12, 2, 50))
    reports = [health_of(a, b, i, rbm, num_steps=1000) for i, (a, b) in enumerate(draws)]
    times = np.array([[r.unit_autocorrelation_time for r in reports]]).T
    assert np.abs(z_scores(times, expected)).max() < 4
    assert times.std() < 0.2 * expected
    assert all(report.slowest_unit == (0,) for report in reports)


@pytest.mark.slow
def test_the_slowest_unit_and_the_constant_ones():
    """Two strongly coupled sites, free ones, and one that its field holds."""
    matrix, field = np.zeros((6, 6)), np.zeros(6)
    matrix[3, 4] = matrix[4, 3] = 1.5
    field[1] = 40
    model = Ising(matrix, field)
    chains, data = model.sample(jax.random.key(0), (2, 50))
    report = health_of(chains, data, model=model)
    assert report.num_constant_units == 1
    assert report.slowest_unit in ((3,), (4,))
    assert report.unit_autocorrelation_time > 2


def test_chains_that_lag_behind_drift():
    far = RBM(-5 * jnp.ones((4, 2)), 4 * jnp.ones(4), jnp.zeros(2))
    data, chains = SMALL.sample(jax.random.key(0), (100,)), far.sample(jax.random.key(1), (100,))
    with pytest.warns(UserWarning, match="chain_health: the mean energy of the chains drifts by"):
        report = chain_health(jax.random.key(2), SMALL, chains, data)
    assert not report.ok
    assert "drifts" in report.warnings[0]


def test_chains_that_are_frozen():
    chains = jnp.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])
    data = SMALL.sample(jax.random.key(0), (50,))
    report = health_of(chains, data, kernel=Frozen())
    assert report.share_unmoved == 1
    assert report.share_duplicate == 0.25
    assert report.num_constant_units == 2
    assert report.unit_autocorrelation_time == np.inf
    assert [word in " ".join(report.warnings) for word in ("never moved", "mix slowly")] == [1, 1]


def test_chains_where_the_data_are_not():
    rbm = RBM(jnp.zeros((30, 1)), 3 * jnp.ones(30), jnp.zeros(1))
    chains, data = rbm.sample(jax.random.key(0), (50,)), jnp.zeros((20, 30)).at[0, 0].set(1)
    with pytest.warns(UserWarning, match="hardly overlap"):
        report = chain_health(jax.random.key(1), rbm, chains, data)
    assert len(report.warnings) == 1


def test_healthy_chains_do_not_warn():
    draws = SMALL.sample(jax.random.key(0), (2, NUM_CHAINS))
    report = chain_health(jax.random.key(1), SMALL, *draws)
    assert report.ok
    text = str(report)
    assert "energy_drift_z" in text
    assert "slowest_unit: (" in text


def test_to_datatree():
    report = health_of(*SMALL.sample(jax.random.key(0), (2, 30)), num_steps=10)
    group = report.to_datatree()["chain_health"]
    assert dict(group.sizes) == {"chain": 30, "draw": 10}
    np.testing.assert_array_equal(group["energy"], report.energies)
    assert float(group["energy_drift"]) == report.energy_drift
    assert group.attrs["warnings"] == "\n".join(report.warnings)


# ----- chains of a training ------------------------------------------------------------------

KERNEL = kernels.ParallelTemperingStep(num_temperatures=3)
ROWS = jnp.tile(jnp.array([[1, 1, 0, 0], [0, 1, 0, 1]]), (10, 1))


def trained(loss, **kwargs):
    def model(data):
        rbm = RBM(numpyro.param("weights", SMALL.weights), jnp.zeros(4), jnp.zeros(2))
        persistent_chains("chains", 15, rbm, **kwargs)
        numpyro.sample("v", rbm.expand([len(data)]), obs=data)

    svi = SVI(model, no_guide, optax.sgd(0.001), loss)
    state, _ = svi.update(svi.init(jax.random.key(0), ROWS), ROWS)
    rbm = RBM(svi.get_params(state)["weights"], jnp.zeros(4), jnp.zeros(2))
    return rbm, state.mutable_state["chains"]


CASES = {
    "Gibbs": (PersistentContrastiveDivergence(), {}, None),
    "PT": (PersistentContrastiveDivergence(), {"kernel": KERNEL}, KERNEL),
    "fast": (FastPersistentContrastiveDivergence(fast_step_size=0.1), {"fast_weights": True}, None),
    "other kernel": (PersistentContrastiveDivergence(), {}, KERNEL),
}


@pytest.mark.parametrize(("loss", "kwargs", "kernel"), CASES.values(), ids=CASES)
def test_state_of_a_training(loss, kwargs, kernel):
    rbm, kept = trained(loss, **kwargs)
    report = health_of(kept, ROWS, model=rbm, kernel=kernel, num_steps=20)
    assert (report.num_chains, report.num_steps) == (15, 20)
    before = rbm.energy(kept["chain"].visible).mean()
    np.testing.assert_allclose(report.energy_gap, rbm.energy(ROWS).mean() - before, rtol=1e-4)
    assert report.share_unmoved == 0


class Cached(Frozen):
    """A kernel that stays at the signs of the biases it has cached."""

    def init(self, value, target):
        return target.visible_units.logits

    def refresh(self, state, target):
        return target.visible_units.logits

    def value(self, state, target):
        return jnp.broadcast_to(state > 0, (5, 4)).astype(jnp.uint8)


def test_states_are_refreshed_for_the_model():
    model = RBM(SMALL.weights, jnp.ones(4), jnp.zeros(2))
    kept = {"chain": SMALL.chain_at(GOOD), "state": -jnp.ones(4)}
    report = health_of(kept, GOOD, model=model, kernel=Cached(), num_steps=8)
    np.testing.assert_allclose(report.energies, model.energy(jnp.ones(4)), rtol=1e-6)


# ----- errors ------------------------------------------------------------------------------


def call(chains=GOOD, data=GOOD, model=SMALL, **kwargs):
    return lambda: chain_health(jax.random.key(0), model, chains, data, **kwargs)


def without_kernel():
    rbm, kept = trained(PersistentContrastiveDivergence(), kernel=KERNEL)
    chain_health(jax.random.key(0), rbm, kept, ROWS)


BATCHED = RBM(jnp.zeros((3, 4, 2)), jnp.zeros(4), jnp.zeros(2))
ERRORS = {
    "kernel": (without_kernel, "expected `kernel`, the one that persistent_chains was given"),
    "batch": (call(model=BATCHED), r"without batch dimensions; got batch shape \(3,\)"),
    "num_steps": (call(num_steps=7), "`num_steps` to be an integer of 8 or more; got 7"),
    "mutable state": (
        call({"chains": {}}),
        r'state.mutable_state\["chains"\]; got.*\[\'chains\'\]',
    ),
    "chains": (call(GOOD[:, :3]), r"expected `chains` of shape \(..., 4\); got \(5, 3\)"),
    "one chain": (call(GOOD[0]), r"expected `chains` of values of shape \(4,\)"),
    "outside": (call(GOOD + 7), r"`chains` in the support.*got \[7\]"),
    "data": (call(data=GOOD[0]), r"two or more rows of `data`, each of shape \(4,\)"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_energy_based_model():
    with pytest.raises(TypeError, match="chain_health: expected `distribution`.*got Normal"):
        call(model=numpyro.distributions.Normal())()
