from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from helpers import BruteForce, assert_moments, z_scores
from loss_models import (
    DATA,
    NUM_ROWS,
    ONES,
    PARAMS,
    assert_gradients_close,
    contrast,
    no_guide,
    observe,
    rbm_of,
    recorder,
    trained,
)
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta

from numpyro_ebm import (
    RBM,
    ContrastiveDivergence,
    Ising,
    PersistentContrastiveDivergence,
    Trajectory,
    TrajectoryRecorder,
    kernels,
    persistent_chains,
    record_trajectory,
    units,
)

PCD = PersistentContrastiveDivergence()
TEMPERING = kernels.ParallelTemperingStep(num_temperatures=4)


# ----- the gradient on average -------------------------------------------------------------

NUM_REPLICATES, NUM_CHAINS = 60, 10


class Bimodal:
    """An RBM with two deep modes of different weight, and its likelihood by enumeration."""

    def __init__(self):
        weights = 3 * np.array([[4.0, -2.0], [4.0, 2.0], [2.0, 3.0]])  # all on, all off
        bias = np.array([0.8, 0.4, 0.3]) - weights.sum(1) / 2
        self.params = {"weights": weights, "visible": bias, "hidden": -weights.sum(0) / 2}
        self.params = {name: jnp.asarray(x, jnp.float32) for name, x in self.params.items()}
        self.rows = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 1]])
        brute = BruteForce(RBM(**self.params))
        states, self.probs = brute.visible.values, brute.probs
        frequency = (self.rows[:, None] == states).all(-1).mean(0)
        energies = jax.jacobian(lambda params: RBM(**params).energy(states))(self.params)
        flat = np.column_stack([np.asarray(x).reshape(len(states), -1) for x in energies.values()])
        self.likelihood = (frequency - self.probs) @ flat

    def path(self, scales=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0)):
        """Models along a training run that would have led to this one."""
        return [RBM(**{name: c * x for name, x in self.params.items()}) for c in scales]


@pytest.fixture(scope="module")
def bimodal():
    return Bimodal()


def gradients(bimodal, kernel, num_updates=100, burn_in=50):
    """PCD at fixed parameters from chains at others: mean gradients of independent runs."""

    def model(data, params):
        rbm = RBM(**{name: numpyro.param(name, value) for name, value in params.items()})
        persistent_chains("chains", NUM_CHAINS, rbm, kernel=kernel)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    flat = jax.tree.map(jnp.zeros_like, bimodal.params)  # the state starts at other parameters

    def loss(params, state, rng_key):
        out = PCD.loss_with_mutable_state(
            rng_key, {**params, "chains": state}, model, lambda *_: None, bimodal.rows, params
        )
        return out["loss"] / len(bimodal.rows), out["mutable_state"]["chains"]

    def run(rng_key):
        with numpyro.handlers.seed(rng_seed=rng_key), numpyro.handlers.trace() as trace:
            model(bimodal.rows, flat)

        def update(state, key):
            gradient, state = jax.grad(loss, has_aux=True)(bimodal.params, state, key)
            return state, jnp.concatenate([g.ravel() for g in gradient.values()])

        keys = jax.random.split(rng_key, num_updates)
        return jax.lax.scan(update, trace["chains"]["value"], keys)[1][burn_in:].mean(0)

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), NUM_REPLICATES))


def tempering(bimodal):
    return kernels.ParallelTemperingStep(num_temperatures=6)


def trajectory_tempering(bimodal):
    models = bimodal.path()
    models[-1] = RBM(**{name: 1.5 * x for name, x in bimodal.params.items()})  # not the present
    betas = tuple(float(b) for b in np.linspace(0, 1, len(models)))
    path = Trajectory(models)
    return kernels.ParallelTemperingStep(betas=betas, path=path, adapt=False)


@pytest.mark.parametrize("make", [tempering, trajectory_tempering])
def test_tempered_chains_have_the_likelihood_gradient(bimodal, make):
    """Wherever the state was initialized, at the present parameters."""
    assert_moments(gradients(bimodal, make(bimodal)), bimodal.likelihood)


def test_gibbs_chains_have_another(bimodal):
    assert np.abs(z_scores(gradients(bimodal, None), bimodal.likelihood)).max() > 4


# ----- the state of a kernel -------------------------------------------------------------------


class Seen(NamedTuple):
    value: jax.Array
    bias: jax.Array
    count: jax.Array


class Witness:
    """Keeps the bias that it was refreshed for, and the number of its steps."""

    def init(self, value, target):
        return Seen(value, target.visible_units.logits, jnp.zeros((), jnp.int32))

    def step(self, rng_key, state, target):
        same = jnp.all(state.bias == target.visible_units.logits)
        return state._replace(count=state.count + jnp.where(same, 1, -100)), None

    def refresh(self, state, target):
        return state._replace(bias=target.visible_units.logits)

    def value(self, state, target):
        return 1 - state.value


def model_of(kernel, num_chains=5):
    def model(data):
        rbm = trained()
        persistent_chains("chains", num_chains, rbm, kernel=kernel)
        observe(rbm, data)

    return model


@pytest.mark.slow
def test_states_are_refreshed_for_the_present_parameters():
    loss = PersistentContrastiveDivergence(num_steps=3)
    svi = SVI(model_of(Witness()), no_guide, optax.adam(0.1), loss)
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    start = state.mutable_state["chains"]["state"]
    for count in (3, 6, 9):
        bias = svi.get_params(state)["bias"]
        state, _ = update(state, DATA)
        kept = state.mutable_state["chains"]
        np.testing.assert_array_equal(kept["state"].bias, bias)
        assert kept["state"].count == count
        np.testing.assert_array_equal(kept["state"].value, start.value)
        np.testing.assert_array_equal(kept["chain"].visible, 1 - start.value)


@pytest.mark.parametrize("kernel", [TEMPERING, kernels.GibbsSweeps(2)], ids=["PT", "Gibbs"])
def test_gradient_is_the_contrast_with_the_coldest_replicas(kernel):
    def model(data):
        shape = PARAMS["weights"].shape
        weights = numpyro.sample("weights", dist.Normal(0, 0.5).expand(shape).to_event(2))
        rbm = rbm_of(weights, numpyro.param("bias", PARAMS["bias"]))
        persistent_chains("chains", 5, rbm, kernel=kernel)
        with numpyro.plate("rows", 2 * len(data), subsample_size=len(data)):
            numpyro.sample("v", rbm, obs=data)

    guide = AutoDelta(model, init_loc_fn=numpyro.infer.init_to_value(values=PARAMS))
    svi = SVI(model, guide, recorder(), PCD)
    state, _ = jax.jit(svi.update)(svi.init(jax.random.key(0), DATA), DATA)
    kept = state.mutable_state["chains"]
    coldest = kernel.value(kept["state"], rbm_of(**PARAMS))
    np.testing.assert_array_equal(kept["chain"].visible, coldest)
    expected = jax.grad(contrast)(PARAMS, DATA, coldest, 2 * ONES)
    expected = {
        "weights_auto_loc": expected["weights"] + PARAMS["weights"] / 0.5**2,
        "bias": expected["bias"],
    }
    assert_gradients_close(state.optim_state[1][1], expected)


@pytest.mark.slow
def test_replicas_survive_updates():
    svi = SVI(model_of(TEMPERING), no_guide, optax.adam(0.05), PCD)
    result = svi.run(jax.random.key(0), 5, DATA, progress_bar=False)
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    for _ in range(5):
        state, _ = update(state, DATA)
    kept, expected = (s.mutable_state["chains"]["state"] for s in (result.state, state))
    assert int(kept.count) == 5
    np.testing.assert_array_equal(kept.replicas.visible, expected.replicas.visible)
    np.testing.assert_array_equal(kept.betas, np.linspace(0, 1, 4, dtype=np.float32))
    sizes = {leaf.shape for leaf in jax.tree.leaves(kept)}
    assert PARAMS["weights"].shape not in sizes  # no copy of the parameters


def test_no_recompilation_from_update_to_update():
    svi = SVI(model_of(TEMPERING), no_guide, optax.adam(0.05), PCD)
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    for _ in range(3):
        state, _ = update(state, DATA)
    assert update._cache_size() <= 2  # the state of `init` may be weakly typed


@pytest.mark.slow
def test_adaptation_stops_after_the_warmup():
    kernel = kernels.MALAStep(5.0, num_warmup=20)

    def model(data):
        rbm = RBM(
            numpyro.param("weights", 0.1 * jnp.ones((3, 2))),
            units.Gaussian(jnp.zeros(3)),
            jnp.zeros(2),
        )
        persistent_chains("chains", 5, rbm, kernel=kernel)
        numpyro.sample("v", rbm.expand([len(data)]), obs=data)

    svi = SVI(model, no_guide, optax.sgd(0.01), PCD)
    data = jax.random.normal(jax.random.key(0), (10, 3))
    state = svi.init(jax.random.key(1), data)

    def update(state, _):
        state, _ = svi.update(state, data)
        return state, state.mutable_state["chains"]["state"].step_size[0]

    sizes = jax.jit(lambda state: jax.lax.scan(update, state, length=30)[1])(state)
    assert len(np.unique(sizes[:20])) == 20
    assert len(np.unique(sizes[20:])) == 1
    assert sizes[-1] != sizes[0]


@pytest.mark.slow
def test_a_recorded_stage_continues_on_its_trajectory():
    def build(params):
        return rbm_of(**params)

    def stage(kernel):
        def model(data):
            params = {name: numpyro.param(name, value) for name, value in PARAMS.items()}
            rbm = build(params)
            persistent_chains("chains", 5, rbm, kernel=kernel)
            observe(rbm, data)

        return SVI(model, no_guide, optax.adam(0.05), PCD)

    recorder = TrajectoryRecorder(build, num_chains=20)
    first = record_trajectory(jax.random.key(0), stage(None), 20, DATA, recorder=recorder)
    path = first.trajectory
    betas = tuple(float(b) for b in np.linspace(0, 1, len(path)))
    second = stage(kernels.ParallelTemperingStep(betas=betas, path=path, adapt=False))
    result = second.run(jax.random.key(1), 5, DATA, init_params=first.params, progress_bar=False)
    assert np.isfinite(result.losses).all()
    replicas = result.state.mutable_state["chains"]["state"].replicas.visible
    assert replicas.shape == (len(path), 5, NUM_ROWS)


# ----- consistency -------------------------------------------------------------------------

SIZES, NUM_SEEDS = (100, 400, 1600), 24
COUPLINGS = jnp.array([[0, 0.6, -0.4], [0.6, 0, 0.3], [-0.4, 0.3, 0]])
UPPER = np.triu_indices(3, 1)


@pytest.mark.parametrize(
    "kernel",
    [
        None,
        pytest.param(kernels.ParallelTemperingStep(num_temperatures=3), marks=pytest.mark.slow),
    ],
    ids=["Gibbs", "PT"],
)
def test_errors_of_learnt_parameters_fall_with_the_root_of_the_data(kernel):
    field = jnp.array([0.3, -0.2, 0.1])
    truth = Ising(COUPLINGS, field)

    def model(data, size):
        params = numpyro.param("params", jnp.zeros(6))
        matrix = jnp.zeros((3, 3)).at[UPPER].set(params[:3])
        learnt = Ising(matrix + matrix.T, params[3:])
        persistent_chains("chains", 300, learnt, kernel=kernel)
        is_row = jnp.arange(len(data)) < size
        with numpyro.plate("rows", len(data)), numpyro.handlers.mask(mask=is_row):
            numpyro.sample("x", learnt, obs=data)

    def squared_error(rng_key, size):
        data = truth.sample(rng_key, (SIZES[-1],))
        rate = optax.linear_schedule(0.3, 0.0, 200)
        svi = SVI(model, no_guide, optax.sgd(lambda count: rate(count) / size), PCD)

        def update(state, _):
            return svi.update(state, data, size)

        state, _ = jax.lax.scan(update, svi.init(rng_key, data, size), length=200)
        params = svi.get_params(state)["params"]
        return ((params - jnp.concatenate([COUPLINGS[UPPER], field])) ** 2).mean()

    keys = jax.random.split(jax.random.key(1), (len(SIZES), NUM_SEEDS))
    squares = jax.jit(jax.vmap(jax.vmap(squared_error, (0, None))))(keys, jnp.array(SIZES))
    squares = np.asarray(squares)
    log_rms = np.log(squares.mean(1)) / 2
    errors = squares.std(1, ddof=1) / squares.mean(1) / 2 / np.sqrt(NUM_SEEDS)
    x = np.log(SIZES) - np.log(SIZES).mean()
    slope, error = x @ log_rms / (x @ x), np.sqrt(x**2 @ errors**2) / (x @ x)
    assert abs(slope + 0.5) < 4 * error
    assert error < 0.5 / 4  # so that errors which do not fall would be seen


# ----- errors ------------------------------------------------------------------------------


def run(loss, model, **kwargs):
    svi = SVI(model, no_guide, recorder(), loss)
    svi.update(svi.init(jax.random.key(0), DATA), DATA)


def changed_kernel():
    svi = SVI(model_of(TEMPERING), no_guide, recorder(), PCD)
    state = svi.init(jax.random.key(0), DATA)
    other = SVI(model_of(kernels.GibbsSweeps()), no_guide, recorder(), PCD)
    other.init(jax.random.key(0), DATA)
    other.update(state, DATA)


def two_kernels():
    run(PersistentContrastiveDivergence(kernel=kernels.GibbsSweeps(3)), model_of(TEMPERING))


def particles():
    run(ContrastiveDivergence(num_particles=2), model_of(TEMPERING))


ERRORS = {
    "two kernels": (two_kernels, "one kernel for the chains of site 'v'.*Leave `kernel` out"),
    "another kernel": (changed_kernel, "the state of another kernel. Start a new state"),
    "particles": (particles, "`num_particles=1` for a model with mutable sites"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kernel", ["gibbs", kernels.GibbsSweeps])
def test_what_is_no_kernel(kernel):
    with pytest.raises(TypeError, match="persistent_chains: expected `kernel` with the methods"):
        run(PCD, model_of(kernel))


def test_the_same_kernel_in_both_places():
    run(
        PersistentContrastiveDivergence(kernel=kernels.GibbsSweeps(2)),
        model_of(kernels.GibbsSweeps(2)),
    )
