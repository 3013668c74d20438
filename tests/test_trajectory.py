"""Training trajectories: recorded while an RBM learns, and used to sample it."""

import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from chains import Posterior, assert_posterior, run
from helpers import BruteForce, z_scores
from numpyro.infer import SVI
from tempered_models import assert_same_moments

import numpyro_ebm as ebm
from numpyro_ebm import RBM, ParallelTrajectoryTempering, Trajectory, TrajectoryRecorder
from numpyro_ebm.kernels import ParallelTemperingStep, parallel_tempering

BARS = jnp.asarray(ebm.datasets.bars_and_stripes(3))
NUM_HIDDEN = 6


def of_params(params):
    return RBM(params["weights"], params["visible"], params["hidden"])


def training(data):
    shape = (data.shape[1], NUM_HIDDEN)
    start = 0.01 * jnp.cos(jnp.arange(54.0)).reshape(shape)
    params = {
        "weights": numpyro.param("weights", start),
        "visible": numpyro.param("visible", jnp.zeros(shape[0])),
        "hidden": numpyro.param("hidden", jnp.zeros(shape[1])),
    }
    rbm = of_params(params)
    ebm.persistent_chains("chains", 200, rbm)
    with numpyro.plate("rows", len(data)):
        numpyro.sample("v", rbm, obs=data)


@cache
def recorded():
    loss = ebm.PersistentContrastiveDivergence(2)
    svi = SVI(training, lambda data: None, optax.adam(0.02), loss)
    recorder = TrajectoryRecorder(of_params)
    return ebm.record_trajectory(
        jax.random.key(0), svi, 800, BARS, recorder=recorder, check_every=5
    )


def trained():
    trajectory = recorded().trajectory
    return trajectory.target


def trained_model():
    numpyro.sample("v", trained())


@pytest.mark.slow
def test_a_run_is_recorded():
    result = recorded()
    assert result.losses.shape == (800,)
    assert 3 <= len(result.trajectory) <= 30
    for name, leaf in (("weights", trained().weights), ("hidden", trained().hidden_units.logits)):
        np.testing.assert_array_equal(leaf, result.params[name])
    brute = BruteForce(trained())
    is_bars = (brute.visible.values[:, None] == np.asarray(BARS)).all(-1).any(-1)
    assert brute.probs[is_bars].sum() > 0.6  # it has learnt the modes


def test_snapshots_are_apart_as_asked():
    trajectory, rates = recorded().trajectory, []
    for k in range(len(trajectory) - 1):
        models = [
            jax.tree.map(jnp.asarray, trajectory.at(b / (len(trajectory) - 1))) for b in (k, k + 1)
        ]
        brute = [BruteForce(m) for m in models]
        rng = np.random.default_rng(k)
        low, high = (b.draw(rng, 2000) for b in brute)
        gain = [b.energy(low) - b.energy(high) for b in brute]
        rates.append(np.minimum(1, np.exp(gain[0] - gain[1])).mean())
    assert min(rates) > 0.03  # the recorder's chains lag behind
    assert np.mean(rates) < 0.7


@cache
def sampled():
    kernel = ParallelTrajectoryTempering(trained_model, recorded().trajectory)
    fields = ("swap_rate", "round_trips")
    options = {"num_chains": 16, "num_warmup": 200, "num_samples": 1000}
    return run(kernel, extra_fields=fields, **options)


@pytest.mark.slow
def test_the_trained_model_is_sampled_right():
    assert_posterior(sampled(), Posterior(trained()))


@pytest.mark.slow
def test_replicas_make_round_trips():
    fields = sampled().get_extra_fields(group_by_chain=True)
    trips = np.asarray(fields["round_trips"])[:, -1]
    assert trips.min() > 0
    assert trips.sum() > 30
    assert fields["swap_rate"].shape == (16, 1000, len(recorded().trajectory) - 1)


# ----- exactness ---------------------------------------------------------------------------


def rbm(scale, seed=0):
    weights = np.random.default_rng(seed).normal(0, 1, (4, 2))
    return RBM(jnp.float32(scale * weights), jnp.float32(0.5 * scale * weights[:, 0]), jnp.zeros(2))


@cache
def three():
    return Trajectory([rbm(0.0), rbm(1.0, 1), rbm(2.0, 2)])


def joint_drift(num_steps=4):
    models = [rbm(0.0), rbm(1.0, 1), rbm(2.0, 2)]
    rng = np.random.default_rng(0)
    start = jnp.stack([jnp.uint8(BruteForce(m).draw(rng, 20_000)) for m in models])
    kernel = ParallelTemperingStep(betas=(0.0, 0.5, 1.0), path=three(), adapt=False)
    state = kernel.init_at(start, models[-1])
    step = jax.jit(lambda key, state: kernel.step(key, state, models[-1])[0])
    for i in range(num_steps):
        state = step(jax.random.key(i), state)
    for before, after in zip(start, state.replicas.visible, strict=True):
        assert_same_moments(before, after)


def test_every_model_is_left_invariant():
    joint_drift()


def test_a_wrong_swap_is_caught(monkeypatch):
    monkeypatch.setattr(parallel_tempering, "swap_log_ratio", lambda low, high: low)
    with pytest.raises(AssertionError):
        joint_drift()


@pytest.mark.slow
def test_increments_are_the_models_own_energies():
    trajectory, value = three(), jnp.uint8([[1, 0, 1, 1], [0, 0, 1, 0]])
    chain = trajectory.target.refresh(trajectory.target.chain_at(value))
    gain = trajectory.log_weight_increment(chain, 0.5, 1.0)
    expected = rbm(1.0, 1).energy(value) - rbm(2.0, 2).energy(value)
    np.testing.assert_allclose(gain, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(trajectory.log_z0, 6 * np.log(2), rtol=1e-6)
    draws = trajectory.sample(jax.random.key(0), 4000).visible
    assert np.all(np.abs(z_scores(draws, 0.5)) < 4)


def test_annealing_along_a_trajectory():
    target = three().target
    log_z = BruteForce(target).log_z
    evidence = ebm.evidence.ais(
        jax.random.key(0), target, base=three(), num_temperatures=3, num_particles=5000
    )
    assert abs(evidence.log_evidence - log_z) < 4 * evidence.std_error


def test_a_trajectory_is_a_pytree():
    trajectory = pickle.loads(pickle.dumps(three()))
    leaves, treedef = jax.tree.flatten(trajectory)
    again = jax.tree.unflatten(treedef, leaves)
    assert len(again) == 3
    at = jax.jit(lambda path, beta: path.at(beta).weights)
    np.testing.assert_array_equal(at(again, 0.5), rbm(1.0, 1).weights)
    other = again.retarget(rbm(0.25))
    np.testing.assert_array_equal(at(other, 1.0), rbm(0.25).weights)
    np.testing.assert_array_equal(at(other, 0.0), rbm(0.0).weights)


# ----- recording ---------------------------------------------------------------------------


def test_recorder_stores_when_swaps_get_rare():
    recorder = TrajectoryRecorder(lambda scale: rbm(scale), threshold=0.5)
    scales = [0.0, 0.01, 3.0, 3.0, 3.0]
    stored = [recorder.update(jax.random.key(i), s) for i, s in enumerate(scales)]
    assert stored == [True, False, True, True, False]  # 0.01 when 3 turns out too far, then 3
    assert recorder.acceptance > 0.9
    weights = next(x for x in recorder.trajectory().earlier if np.shape(x) == (3, 4, 2))
    np.testing.assert_allclose(weights, [rbm(s).weights for s in (0.0, 0.01, 3.0)])
    recorder.store(3.5)
    assert len(recorder) == 4
    assert len(recorder.trajectory()) == 4
    assert len(recorder.trajectory(4.0)) == 5


def test_recorder_compiles_once():
    recorder = TrajectoryRecorder(lambda scale: rbm(scale))
    recorder.update(jax.random.key(0), 0.0)
    recorder.update(jax.random.key(0), 0.1)
    size = ebm.kernels.recording._acceptance._cache_size()
    for scale in (0.2, 0.3):
        recorder.update(jax.random.key(0), scale)
    assert ebm.kernels.recording._acceptance._cache_size() == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "`threshold` between 0 and 1; got 0"),
        ({"threshold": 1.5}, "`threshold` between 0 and 1"),
        ({"num_chains": 0}, "`num_chains` to be a positive integer"),
        ({"num_sweeps": 1.5}, "`num_sweeps` to be a positive integer"),
    ],
)
def test_recorders_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryRecorder(of_params, **options)


def test_what_a_recorder_builds_is_checked():
    with pytest.raises(TypeError, match="`distribution` to build a model"):
        TrajectoryRecorder(rbm(1.0))
    with pytest.raises(TypeError, match="to return an energy-based distribution; got dict"):
        TrajectoryRecorder(lambda params: params).update(jax.random.key(0), {})
    recorder = TrajectoryRecorder(lambda scale: rbm(scale))
    with pytest.raises(ValueError, match="call `update` first"):
        recorder.store(1.0)
    with pytest.raises(ValueError, match="two or more models"):
        recorder.trajectory()


def test_trajectories_are_checked():
    with pytest.raises(ValueError, match="two or more models.*got 1"):
        Trajectory([rbm(1.0)])
    with pytest.raises(TypeError, match="energy-based distributions; got int"):
        Trajectory([1, rbm(1.0)])
    other = RBM(np.ones((3, 2)), np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="structure of the last of `models`"):
        Trajectory([other, rbm(1.0)])
    with pytest.raises(ValueError, match="structure of the trajectory"):
        three().retarget(other)
    with pytest.raises(TypeError, match=r"`trajectory` to be an ebm\.Trajectory; got list"):
        ParallelTrajectoryTempering(trained_model, [rbm(1.0)])
    with pytest.raises(ValueError, match="`check_every` to be a positive integer"):
        ebm.record_trajectory(jax.random.key(0), None, 3, recorder=None, check_every=0)
