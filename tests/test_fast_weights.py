import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from loss_models import DATA, ONES, PARAMS, assert_gradients_close, contrast, no_guide, recorder
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta

from numpyro_ebm import (
    RBM,
    FastPersistentContrastiveDivergence,
    PersistentContrastiveDivergence,
    kernels,
    persistent_chains,
    units,
)

NUM_ROWS, NUM_CHAINS, STEP_SIZE = 7, 4, 0.05
NAMES = {"weights": "weights", "visible": "visible_units.logits", "hidden": "hidden_units.logits"}


class SameGibbs:
    """The Gibbs step with the same random numbers every time, so that a test can repeat it."""

    def init(self, value, target):
        return target.chain_at(value)

    def step(self, rng_key, chain, target):
        return target.gibbs_step(jax.random.key(5), chain), None

    def value(self, chain, target):
        return target.visible(chain)


def start():
    rng = np.random.default_rng(0)
    sizes = {"weights": (5, 3), "visible": (5,), "hidden": (3,)}
    data = rng.integers(0, 2, (NUM_ROWS, 5), dtype=np.uint8)
    return {name: jnp.asarray(rng.normal(0, 0.7, size)) for name, size in sizes.items()}, data


def model_of(values, plate=None):
    def model(data):
        rbm = RBM(**{name: numpyro.param(name, value) for name, value in values.items()})
        persistent_chains("chains", NUM_CHAINS, rbm, fast_weights=True)
        with numpyro.plate("rows", plate or len(data), subsample_size=len(data)):
            numpyro.sample("v", rbm, obs=data)

    return model


def moments(params, value):
    """Means of v h^T, v and h in NumPy, with h = E[h | v]."""
    v = np.asarray(value, np.float64)
    h = 1 / (1 + np.exp(-(v @ params["weights"] + params["hidden"])))
    return {"weights": v.T @ h / len(v), "visible": v.mean(0), "hidden": h.mean(0)}


def reference(params, data, chains, num_updates, *, num_steps, scale, decay, fast_step_size):
    """The algorithm of Tieleman & Hinton, step by step."""
    params = {name: np.asarray(value) for name, value in params.items()}
    fast = {name: np.zeros_like(value) for name, value in params.items()}
    for _ in range(num_updates):
        displaced = RBM(**{name: jnp.asarray(params[name] + fast[name]) for name in params})
        chain = displaced.chain_at(chains)
        for _ in range(num_steps):
            chain = displaced.gibbs_step(jax.random.key(5), chain)
        chains = np.asarray(chain.visible)
        positive, negative = moments(params, data), moments(params, chains)
        ascent = {name: positive[name] - negative[name] for name in params}
        params = {name: params[name] + STEP_SIZE * scale * ascent[name] for name in params}
        fast = {name: decay * fast[name] + fast_step_size * ascent[name] for name in params}
    return params, fast, chains


@pytest.mark.slow
def test_three_updates_step_by_step():
    """With a plate of which the rows are a part, and two of them masked."""
    settings = {"num_steps": 2, "fast_step_size": 0.8, "decay": 0.9}
    with jax.enable_x64(True):
        values, data = start()
        keep = np.arange(NUM_ROWS) % 4 != 1
        model = handlers.mask(model_of(values, plate=2 * NUM_ROWS), jnp.asarray(keep))
        loss = FastPersistentContrastiveDivergence(kernel=SameGibbs(), **settings)
        svi = SVI(model, no_guide, optax.sgd(STEP_SIZE), loss)
        state = svi.init(jax.random.key(0), data)
        chains = np.asarray(state.mutable_state["chains"]["chain"].visible)
        update = jax.jit(svi.update)
        for _ in range(3):
            state, _ = update(state, data)
        scale = 2 * keep.sum()
        params, fast, chains = reference(values, data[keep], chains, 3, scale=scale, **settings)
        kept = state.mutable_state["chains"]
        np.testing.assert_array_equal(kept["chain"].visible, chains)
        for name, value in svi.get_params(state).items():
            np.testing.assert_allclose(value, params[name], rtol=1e-9, err_msg=name)
            np.testing.assert_allclose(kept["fast_weights"][NAMES[name]], fast[name], rtol=1e-9)


@pytest.mark.slow
def test_without_fast_steps_it_is_pcd():
    values, data = start()
    values = {name: value.astype(jnp.float32) for name, value in values.items()}
    losses = (
        FastPersistentContrastiveDivergence(fast_step_size=0),
        PersistentContrastiveDivergence(),
    )
    states = []
    for loss in losses:
        svi = SVI(model_of(values), no_guide, optax.sgd(0.1), loss)
        states.append(svi.run(jax.random.key(0), 4, data, progress_bar=False))
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)


@pytest.mark.slow
def test_fast_weights_make_chains_leave():
    """Chains that start in one of two deep modes stay there; fast weights drive them on."""
    weights = 8 * jnp.ones((4, 1))  # all on or all off

    def model(data):
        rbm = RBM(weights, numpyro.param("visible", jnp.full(4, -4.0)), jnp.full(1, -16.0))
        persistent_chains("chains", 20, rbm, fast_weights=True)
        numpyro.sample("v", rbm, obs=data)

    data = jnp.concatenate([jnp.zeros((5, 4)), jnp.ones((5, 4))])

    def crossings(fast_step_size):
        loss = FastPersistentContrastiveDivergence(fast_step_size=fast_step_size)
        svi = SVI(model, no_guide, optax.sgd(0.0), loss)

        def update(state, _):
            state, _ = svi.update(state, data)
            return state, state.mutable_state["chains"]["chain"].visible.mean(-1) > 0.5

        state = svi.init(jax.random.key(0), data[:1])
        seen = jax.jit(lambda state: jax.lax.scan(update, state, length=100)[1])(state)
        return np.abs(np.diff(np.asarray(seen, int)[5:], axis=0)).sum()

    assert crossings(0.0) <= 1
    assert crossings(1.0) >= 10  # half of the chains, as half of the data are on the other side


@pytest.mark.parametrize("kernel", [None, kernels.ParallelTemperingStep(num_temperatures=3)])
def test_gradient_under_a_prior_is_the_contrast_at_the_slow_energies(kernel):
    def prior(name):
        value = PARAMS[name]
        return numpyro.sample(name, dist.Normal(0, 1).expand(value.shape).to_event(value.ndim))

    def model(data):
        weights, bias = prior("weights"), prior("bias")
        rbm = RBM(weights, bias, jnp.array([0.5, 0.0, -0.5]))
        persistent_chains("chains", NUM_CHAINS, rbm, kernel=kernel, fast_weights=True)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    loss = FastPersistentContrastiveDivergence(fast_step_size=0.5)
    guide = AutoDelta(model, init_loc_fn=numpyro.infer.init_to_value(values=PARAMS))
    svi = SVI(model, guide, recorder(), loss)
    state, update = svi.init(jax.random.key(0), DATA), jax.jit(svi.update)
    for _ in range(2):
        state, _ = update(state, DATA)
    kept = state.mutable_state["chains"]
    assert max(jnp.abs(leaf).max() for leaf in kept["fast_weights"].values()) > 0.01
    expected = jax.grad(contrast)(PARAMS, DATA, kept["chain"].visible, ONES)
    expected = {f"{name}_auto_loc": g + PARAMS[name] for name, g in expected.items()}
    assert_gradients_close(state.optim_state[1][1], expected)


def test_scales_have_no_fast_weights():
    rbm = RBM(jnp.ones((3, 2)), units.Gaussian(jnp.zeros(3), 1.0), jnp.zeros(2))
    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        persistent_chains("chains", 2, rbm, fast_weights=True)
    names = trace["chains"]["value"]["fast_weights"]
    assert set(names) == {"weights", "visible_units.loc", "hidden_units.logits"}


def without(data):
    rbm = RBM(numpyro.param("weights", jnp.ones((5, 2))), jnp.zeros(5), jnp.zeros(2))
    persistent_chains("chains", 5, rbm)
    numpyro.sample("v", rbm, obs=data)


def run_without():
    svi = SVI(
        without, no_guide, recorder(), FastPersistentContrastiveDivergence(fast_step_size=0.1)
    )
    data = start()[1]
    svi.update(svi.init(jax.random.key(0), data), data)


def fpcd(**kwargs):
    return lambda: FastPersistentContrastiveDivergence(**kwargs)


ERRORS = {
    "not declared": (run_without, r"expected fast weights for site 'v'.*fast_weights=True"),
    "step size": (fpcd(fast_step_size=-1), "`fast_step_size` to be a nonnegative.*got -1"),
    "NaN step size": (fpcd(fast_step_size=float("nan")), "`fast_step_size`.*got nan"),
    "decay": (fpcd(fast_step_size=1, decay=1), "`decay` from 0 to less than 1; got 1"),
    "particles": (fpcd(fast_step_size=1, num_particles=2), "^FastPersistent.*`num_particles=1`"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
