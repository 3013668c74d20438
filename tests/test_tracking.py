"""Log Z followed along changing parameters, against exact values."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from evidence_models import doubtful
from numpyro.infer import SVI

import numpyro_ebm as ebm
from numpyro_ebm.evidence import EvidenceWarning, LogZTracker, exact
from numpyro_ebm.evidence.walk import Segment, TrackerState, _next_beta, _Walk, count_from
from numpyro_ebm.kernels import GibbsSweeps, MALAStep

NUM_UNITS, NUM_HIDDEN = 8, 6
NUM_SEEDS = 32


def rbm_of(params):
    return ebm.RBM(params["weights"], params["bias"], jnp.zeros(NUM_HIDDEN))


def train(batch):
    weights = numpyro.param(
        "weights", lambda key: 0.05 * jax.random.normal(key, (NUM_UNITS, NUM_HIDDEN))
    )
    rbm = rbm_of({"weights": weights, "bias": numpyro.param("bias", jnp.zeros(NUM_UNITS))})
    ebm.persistent_chains("chains", 20, rbm)
    with numpyro.plate("rows", len(batch)):
        numpyro.sample("v", rbm, obs=batch)


@cache
def run_of_models():
    """Models along a training run, every tenth update of 300."""
    rng = np.random.default_rng(0)
    modes = rng.integers(0, 2, (3, NUM_UNITS))
    rows = modes[rng.integers(0, 3, 60)] ^ (rng.random((60, NUM_UNITS)) < 0.1)
    data = jnp.asarray(rows.astype(np.uint8))
    svi = SVI(train, lambda batch: None, optax.adam(0.02), ebm.PersistentContrastiveDivergence())
    state = svi.init(jax.random.key(0), data)

    def update(state, _):
        state, _ = svi.update(state, data)
        return state, svi.get_params(state)

    params = jax.lax.scan(update, state, length=300)[1]
    return [rbm_of(jax.tree.map(lambda x, i=i: x[i], params)) for i in range(9, 300, 10)]


@cache
def log_z_of_models():
    return np.array([exact(model).log_evidence for model in run_of_models()])


def follow(tracker, seed, models):
    """Estimates and standard errors at every model, or every tenth of many."""
    keys = jax.random.split(jax.random.key(seed), len(models))
    state, found = tracker.init(keys[0], models[0]), []
    for i, model in enumerate(models):
        if i:
            state = tracker.update(keys[i], state, model)
        if len(models) > 10 and i % 10 != 9:
            continue
        estimate = tracker.estimate(state, issue=False)
        found.append((estimate.log_evidence, estimate.std_error))
    return np.array(found).T, state


@pytest.mark.slow
@doubtful
def test_calibrated_along_a_training_run():
    models, truth = run_of_models(), log_z_of_models()
    assert truth[-1] - truth[0] > 3
    tracker = LogZTracker(num_particles=400)
    found = np.array([follow(tracker, seed, models)[0] for seed in range(NUM_SEEDS)])
    scores = (found[:, 0] - truth[9::10]) / found[:, 1]
    rms, mean = np.sqrt((scores**2).mean(0)), scores.mean(0)
    print("RMS", np.round(rms, 2), "mean", np.round(mean, 2), "se", found[:, 1].mean(0))
    assert np.all((rms > 0.7) & (rms < 1.5))
    assert np.all(np.abs(mean) < 4 / NUM_SEEDS**0.5)


@doubtful
@pytest.mark.parametrize("max_bridges", [1, 1000])
def test_z_is_unbiased_for_any_number_of_bridges(max_bridges):
    """Exactly so where the models between are fixed, as with one bridge."""
    models, truth = run_of_models()[::15], log_z_of_models()[::15]
    tracker = LogZTracker(num_particles=400, max_bridges=max_bridges)
    islands = []
    for seed in range(NUM_SEEDS):
        _, state = follow(tracker, seed, models)
        islands.append(np.asarray(state.log_z - state.rounding, np.float64))
    ratios = np.exp(np.concatenate(islands) - truth[-1])
    assert abs(ratios.mean() - 1) < 4 * ratios.std(ddof=1) / ratios.size**0.5
    assert (int(state.num_jumps) > 0) == (max_bridges == 1)


def lattice(coupling):
    return ebm.Ising.lattice((3, 3), coupling)


def pairwise(scale):
    couplings = scale * jnp.asarray(np.random.default_rng(1).normal(0, 1, (6, 6)))
    couplings = jnp.triu(couplings, 1)
    return ebm.BoltzmannMachine(couplings + couplings.T, jnp.linspace(-1, 1, 6))


def gaussian(scale):
    weights = scale * jnp.asarray(np.random.default_rng(2).normal(0, 1, (4, 3)))
    return ebm.RBM(weights, ebm.units.Gaussian(jnp.zeros(4), jnp.ones(4)), jnp.zeros(3))


CASES = {
    "Ising": (lattice, None, [0.1, 0.3, 0.5]),
    "Boltzmann machine": (pairwise, None, [0.0, 0.5, 1.0]),
    "Gaussian visible": (gaussian, None, [0.0, 0.4, 0.8]),
    "Gaussian visible by MALA": (gaussian, MALAStep(0.3, 3), [0.0, 0.4, 0.8]),
    "Ising by sweeps": (lattice, GibbsSweeps(2), [0.1, 0.3, 0.5]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_model(name):
    build, kernel, scales = CASES[name]
    models = [build(jnp.float32(scale)) for scale in scales]
    found, state = follow(LogZTracker(num_particles=1000, kernel=kernel), 0, models)
    truth = [exact(model).log_evidence for model in models]
    print(np.round(found[0] - truth, 3), found[1])
    assert np.all(np.abs(found[0] - truth) < 4 * found[1] + 1e-4)
    assert np.all(found[1] < 0.2)
    assert int(state.num_jumps) == 0


def well(params, x):
    return params["weight"] * ((x**2 - 1) ** 2).sum(-1) + 0.5 * (x**2).sum(-1)


@pytest.mark.slow
def test_a_neural_energy():
    def model(weight):
        return ebm.NeuralEnergy(well, {"weight": jnp.float32(weight)}, event_shape=(2,))

    base = numpyro.distributions.Normal(0, 1).expand([2]).to_event(1)
    tracker = LogZTracker(num_particles=1000, kernel=MALAStep(0.3, 3), base=base)
    found, _ = follow(tracker, 0, [model(w) for w in (0.0, 0.5, 1.0)])
    grid = np.linspace(-6, 6, 4001)
    for weight, log_z, error in zip((0.0, 0.5, 1.0), *found, strict=True):
        density = np.exp(-weight * (grid**2 - 1) ** 2 - 0.5 * grid**2)
        truth = 2 * np.log(np.trapezoid(density, grid))
        assert abs(log_z - truth) < 4 * error + 1e-4


@pytest.mark.slow
def test_particles_stay_on_the_model():
    models = run_of_models()
    _, state = follow(LogZTracker(num_particles=4000), 0, models[:10])
    weights = np.exp(np.asarray(state.log_weights, np.float64)).ravel() / 20
    assert abs(weights.sum() - 1) < 1e-5
    visible = np.asarray(models[9].visible(state.chain), np.float64)
    draws = np.asarray(models[9].sample(jax.random.key(1), (20_000,)), np.float64)
    islands = (weights[:, None] * visible).reshape(20, -1, NUM_UNITS).sum(1) * 20
    error = np.hypot(islands.std(0, ddof=1) / 20**0.5, draws.std(0) / len(draws) ** 0.5)
    assert np.all(np.abs(islands.mean(0) - draws.mean(0)) < 4 * error)


@pytest.mark.slow
def test_a_long_step_leaves_particles_on_the_new_model():
    """One step from model to model: weighted, then moved by the kernel of the new model."""
    first, last = run_of_models()[0], run_of_models()[12]
    tracker = LogZTracker(num_particles=8000, max_bridges=1)
    state = tracker.update(jax.random.key(1), tracker.init(jax.random.key(0), first), last)
    weights = np.exp(np.asarray(state.log_weights, np.float64))[..., None]
    visible = np.asarray(last.visible(state.chain), np.float64).reshape(20, -1, NUM_UNITS)
    islands = (weights * visible).sum(1) / weights.sum(1)
    states = (np.arange(2**NUM_UNITS)[:, None] >> np.arange(NUM_UNITS)) & 1
    log_probs = -np.asarray(last.energy(jnp.asarray(states)), np.float64)
    probs = np.exp(log_probs - np.logaddexp.reduce(log_probs))
    scores = (islands.mean(0) - probs @ states) / (islands.std(0, ddof=1) / 20**0.5)
    print(np.round(scores, 1))
    assert np.all(np.abs(scores) < 4)
    moved = tracker.update(jax.random.key(2), state, last)
    assert np.mean(np.asarray(moved.chain.visible) != np.asarray(state.chain.visible)) > 0.1
    np.testing.assert_allclose(moved.log_z, state.log_z, atol=1e-5)


def test_the_start_is_as_precise_as_float64():
    tracker, log_z = LogZTracker(num_particles=40), 1000 / 3
    state = tracker.init(jax.random.key(0), run_of_models()[0])
    none = state._replace(log_z=jnp.zeros(20), rounding=jnp.zeros(20))
    rounded = np.float32(log_z)
    shifted = count_from(none, rounded, np.float32(log_z - float(rounded)))
    assert abs(float(rounded) - log_z) > 1e-6
    estimate = tracker.estimate(shifted)
    np.testing.assert_allclose(estimate.log_evidence, log_z, rtol=0, atol=1e-9)


def test_the_models_between_are_interpolated():
    first, last = run_of_models()[0], run_of_models()[-1]
    segment = Segment(first, last)
    for beta, model in ((0.0, first), (1.0, last)):
        jax.tree.map(np.testing.assert_array_equal, segment.at(beta), model)
    np.testing.assert_allclose(
        segment.at(0.25).weights, 0.75 * first.weights + 0.25 * last.weights, rtol=1e-6
    )
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, NUM_UNITS)))
    chain = segment.at(0.25).refresh(first.chain_at(rows))
    expected = segment.at(0.25).energy(rows) - segment.at(0.5).energy(rows)
    increment = segment.log_weight_increment(chain, 0.25, 0.5)
    np.testing.assert_allclose(increment, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [0.8, 0.95])
def test_a_step_has_the_effective_sample_size_asked_for(target):
    first, last = run_of_models()[5], run_of_models()[-1]
    segment = Segment(first, last)
    chain = first.refresh(first.chain_at(first.sample(jax.random.key(0), (4000,))))
    zero, index = jnp.zeros(()), jnp.zeros((), jnp.int32)
    weights = jnp.full((20, 200), -np.log(200))
    state = TrackerState(first, chain, weights, zero, zero, index, index, zero)
    beta = _next_beta(segment, _Walk(state, zero, index), target)
    assert 0.05 < beta < 0.9
    ratio = np.exp(np.asarray(segment.log_weight_increment(chain, 0.0, beta), np.float64))
    assert abs(ratio.mean() ** 2 / (ratio**2).mean() - target) < 0.25 * (1 - target)


@pytest.mark.slow
def test_small_terms_are_not_lost_in_the_sum():
    """Millions of tiny growths next to a large log Z, in float32."""
    model = ebm.RBM(jnp.zeros((784, 2)), jnp.zeros(784), jnp.zeros(2))
    tracker = LogZTracker(num_particles=40)
    state = tracker.init(jax.random.key(0), model)

    def update(i, state):
        shifted = ebm.RBM(jnp.zeros((784, 2)), jnp.zeros(784), jnp.full(2, 1e-5 * (i + 1)))
        return tracker.update(jax.random.fold_in(jax.random.key(1), i), state, shifted)

    state = jax.jit(lambda state: jax.lax.fori_loop(0, 1000, update, state))(state)
    estimate = tracker.estimate(state)
    truth = 784 * np.log(2) + 2 * np.log1p(np.exp(np.float32(1e-5) * 1000))
    np.testing.assert_allclose(estimate.log_evidence, truth, atol=2e-5)


def test_nothing_is_compiled_again():
    models, tracker = run_of_models(), LogZTracker(num_particles=40)
    state = tracker.update(jax.random.key(1), tracker.init(jax.random.key(0), models[0]), models[1])
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr(jax._src.dispatch, "log_elapsed_time", lambda *a, **k: compiled.append(a))
        other = LogZTracker(num_particles=40)
        other.update(jax.random.key(2), state, models[2])
    assert not compiled


@doubtful
def test_restarting():
    models = run_of_models()
    tracker = LogZTracker(num_particles=400)
    _, state = follow(tracker, 0, models)
    fresh = tracker.restart(jax.random.key(1), state)
    estimate = tracker.estimate(fresh)
    assert abs(estimate.log_evidence - log_z_of_models()[-1]) < 4 * estimate.std_error
    off = state._replace(log_z=state.log_z + 10)
    with pytest.warns(EvidenceWarning, match="log Z changed by -"):
        tracker.restart(jax.random.key(1), off)


@pytest.mark.slow
def test_doubts():
    first, last = run_of_models()[0], run_of_models()[-1]
    tracker = LogZTracker(num_particles=100, max_bridges=1)
    state = tracker.init(jax.random.key(0), first)
    state = tracker.update(jax.random.key(1), state, last)
    with pytest.warns(EvidenceWarning) as caught:
        estimate = tracker.estimate(state)
    assert any("farther than 1 models reach" in str(w.message) for w in caught)
    assert not estimate.ok
    assert estimate.diagnostics["num_jumps"] >= 1
    assert {w.filename for w in caught} == {__file__}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_particles": 10}, ValueError, "`num_particles` of at least 40"),
        ({"num_islands": 1}, ValueError, "`num_islands` of at least 2"),
        ({"target_ess": 1.0}, ValueError, "`target_ess` between 0 and 1"),
        ({"num_steps": 0}, ValueError, "`num_steps` of at least 1"),
        ({"init_every": 0}, ValueError, "`init_every` of at least 1"),
        ({"kernel": 3}, TypeError, "expected `kernel` with methods"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        LogZTracker(**settings)


def test_other_models_are_refused():
    tracker, model = LogZTracker(num_particles=40), run_of_models()[0]
    state = tracker.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match="structure and shapes of the one before, a RBM"):
        tracker.update(jax.random.key(1), state, lattice(0.1))
    wider = ebm.RBM(jnp.zeros((NUM_UNITS, 2)), jnp.zeros(NUM_UNITS), jnp.zeros(2))
    with pytest.raises(ValueError, match="structure and shapes"):
        tracker.update(jax.random.key(1), state, wider)
    batch = ebm.RBM(jnp.zeros((2, NUM_UNITS, 2)), jnp.zeros(NUM_UNITS), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"batch shape \(\), one log Z; got \(2,\)"):
        tracker.init(jax.random.key(0), batch)
    with pytest.raises(TypeError, match="LogZTracker.update: expected `target`"):
        tracker.update(jax.random.key(1), state, 3)
