"""What NumPyro, JAX, pickle and ArviZ ask of sequence models, and that they learn."""

import pickle
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from helpers import assert_moments
from numpyro import handlers
from numpyro.infer import MCMC, SVI, Predictive
from sequence_models import BINARY, MODELS, all_sequences, log_probs, over

import numpyro_ebm as ebm

FEW = ("window Categorical-Gaussian", "recurrent Gaussian-Spin", "temporal")


@jax.jit
def log_prob(model, frames):
    return model.log_prob(frames)


@jax.jit
def everything(model, key):
    frames = model.sample(key, (4,))
    chain = model.gibbs_step(key, model.init_chain(key, (4,)))
    one = model.generate(key, frames, 2)
    return frames, chain, one, model.log_prob(frames), model.energy(model.visible(chain))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@over(FEW)
def test_shapes_and_types(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        model = MODELS[name].make(dtype)
        frames, chain, more, *scores = jax.eval_shape(everything, model, jax.random.key(0))
        kinds = model.is_discrete, model.visible_units.dtype
    assert frames.shape == chain.shape == (4, 3, 2)
    assert more.shape == (4, 2, 2)
    assert frames.dtype == more.dtype == ("int32" if kinds[0] else dtype)
    assert chain.dtype == kinds[1]
    assert {(score.shape, str(score.dtype)) for score in scores} == {((4,), dtype)}


@over(FEW, fast=FEW[1:2])
def test_transformations_that_rebuild_it(name):
    model = MODELS[name].make()
    frames = jax.jit(model.sample, static_argnums=1)(jax.random.key(0), (3,))
    expected = log_prob(model, frames)
    leaves, structure = jax.tree.flatten(model)
    for copy in (jax.tree.unflatten(structure, leaves), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(log_prob(copy, frames), expected, rtol=1e-6)
    mapped = jax.vmap(log_prob, in_axes=(None, 0))(model, frames)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), model)
    mapped = jax.vmap(log_prob, in_axes=(0, None))(stacked, frames)
    np.testing.assert_allclose(mapped[1], expected, rtol=1e-5)


@pytest.mark.slow
def test_batches_come_with_the_history():
    model = MODELS["window"].make()
    starts = np.array([[[0, 1], [1, 1]], [[1, 0], [0, 0]]])
    parts = model.weights, model.visible_units, model.hidden_units
    both = ebm.AutoregressiveRBM(*parts, model.visible_weights, model.hidden_weights, starts, 3)
    assert (both.batch_shape, both.event_shape) == ((2,), (3, 2))
    frames = both.sample(jax.random.key(0), (5,))
    for row, start in enumerate(starts):
        one = ebm.AutoregressiveRBM(*parts, model.visible_weights, model.hidden_weights, start, 3)
        expected = one.log_prob(frames[:, row])
        np.testing.assert_allclose(both.log_prob(frames)[:, row], expected, rtol=1e-5)


# ----- in a NumPyro model ------------------------------------------------------------------


def rows_of(model, num_rows, data=None):
    with numpyro.plate("row", num_rows):
        return numpyro.sample("x", model, obs=data)


@over(BINARY, fast=["recurrent"])
def test_site_of_a_model(name):
    model = MODELS[name].make()
    data = Predictive(rows_of, num_samples=2)(jax.random.key(0), model, 5)["x"]
    assert data.shape == (2, 5, 3, 2)
    site = handlers.trace(rows_of).get_trace(model, 5, data[0])["x"]
    np.testing.assert_allclose(log_prob(site["fn"], data[0]), log_prob(model, data[0]), rtol=1e-6)


@pytest.mark.slow
@over(["recurrent", "temporal"])
def test_clamped_chains_in_mcmc_have_the_posterior(name):
    model = MODELS[name].make()
    sequences = all_sequences(model)
    probs = np.exp(log_probs(name, model, sequences))
    mask, data = np.array([[True], [False], [True]]), sequences[20]
    agrees = ((sequences == data) | ~mask).all((1, 2))
    probs = probs[agrees] / probs[agrees].sum()

    def site():
        numpyro.sample("x", model, infer={"event_dims": ["frame", "unit"]})

    kernel = ebm.BlockGibbs(site, num_sweeps=8, clamp={"x": (mask, data)})
    mcmc = MCMC(
        kernel,
        num_warmup=2,
        num_samples=1,
        num_chains=3000,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    draws = np.asarray(mcmc.get_samples()["x"])
    assert draws.dtype == np.uint8
    indicators = (draws[:, None] == sequences[agrees]).all((2, 3))
    assert_moments(indicators, probs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more chains than draws
        assert az.from_numpyro(mcmc).posterior["x"].dims[2:] == ("frame", "unit")


# ----- learning ----------------------------------------------------------------------------


def gradients(loss, model, data, keys):
    """Gradients of a loss in all floating parameters, one row for each key."""
    leaves, structure = jax.tree.flatten(model)
    floating = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    values = {f"p{i}": leaves[i] for i in floating}

    def observed():
        params = {i: numpyro.param(f"p{i}", values[f"p{i}"]) for i in floating}
        made = structure.unflatten([params.get(i, leaf) for i, leaf in enumerate(leaves)])
        rows_of(made, len(data), data)

    def gradient(key):
        found = jax.grad(lambda p: loss.loss(key, p, observed, lambda: None))(values)
        return jnp.concatenate([leaf.ravel() for leaf in found.values()])

    return jax.jit(jax.vmap(gradient))(keys)


@over(["window", "recurrent"], fast=["recurrent"])
def test_long_chains_in_each_frame_have_the_gradient_of_the_likelihood(name):
    """That of the exact likelihood is checked against finite differences elsewhere."""
    model = MODELS[name].make()
    data = all_sequences(model)[[5, 20, 44]]
    keys = jax.random.split(jax.random.key(0), 1500)
    exact = gradients(ebm.MaximumLikelihood(), model, data, keys[:1])[0]
    found = gradients(ebm.ContrastiveDivergence(60), model, data, keys)
    assert_moments(found, exact)


@pytest.mark.slow
def test_the_heuristic_of_the_temporal_rbm_holds_its_means_fixed():
    """Its gradient is that of the frames given the inferred means."""
    model = MODELS["temporal"].make()
    data = all_sequences(model)[[5, 20]]
    keys = jax.random.split(jax.random.key(0), 1500)
    conditions = model.conditions(data)[..., :-1, :]

    def minus_log_prob(made):
        rbm = made.frame_given(conditions)
        return (rbm.energy(data) + rbm.exact_log_z()).sum()

    wanted = jnp.concatenate([x.ravel() for x in jax.tree.leaves(jax.grad(minus_log_prob)(model))])
    assert_moments(gradients(ebm.ContrastiveDivergence(60), model, data, keys), wanted)


def test_chains_that_persist_are_refused():
    model = MODELS["recurrent"].make()

    def observed():
        ebm.persistent_chains("chains", 5, model)
        rows_of(model, 1, np.zeros((1, 3, 2), int))

    svi = SVI(observed, lambda: None, optax.sgd(0.1), ebm.PersistentContrastiveDivergence())
    with pytest.raises(ValueError, match="RecurrentTemporalRBM is another one for each condition"):
        svi.init(jax.random.key(0))


def learn(make, shapes, data, loss, num_steps, step_size):
    """Parameters of a model of sequences after some updates."""

    def observed():
        def draw(name, shape):
            return numpyro.param(name, lambda key: 0.05 * jax.random.normal(key, shape))

        params = {name: draw(name, shape) for name, shape in shapes.items()}
        with numpyro.plate("rows", len(data), subsample_size=50):
            frames = numpyro.subsample(data, event_dim=2)
            made, frames = make(params, frames)
            numpyro.sample("x", made, obs=frames)

    svi = SVI(observed, lambda: None, optax.adam(step_size), loss)
    return svi.run(jax.random.key(0), num_steps, progress_bar=False).params


SIZE, HIDDEN, LENGTH, GAP = 6, 30, 10, slice(4, 6)


def recurrent_rbm(params, frames):
    made = ebm.RecurrentTemporalRBM(
        params["w"], params["b"], params["c"], params["u"], LENGTH, hidden_to_visible=params["v"]
    )
    return made, frames


def window_rbm(params, frames):
    made = ebm.AutoregressiveRBM(
        params["w"], params["b"], params["c"], params["a"], params["u"], frames[:, :2], LENGTH - 2
    )
    return made, frames[:, 2:]


N = SIZE**2
UNITS = {"w": (N, HIDDEN), "b": (N,), "c": (HIDDEN,)}
LEARNERS = {
    "recurrent": (recurrent_rbm, UNITS | {"u": (HIDDEN, HIDDEN), "v": (HIDDEN, N)}),
    "window": (window_rbm, UNITS | {"a": (2, N, N), "u": (2, N, HIDDEN)}),
}


@over(LEARNERS, fast=["recurrent"])
def test_missing_frames_of_a_bouncing_ball_beat_the_last_one_carried_forward(name):
    films = ebm.datasets.bouncing_balls(1000, LENGTH, size=SIZE, radius=1.2, seed=1)
    train, test = films[:500], films[500:]
    make, shapes = LEARNERS[name]
    params = learn(make, shapes, jnp.asarray(train), ebm.ContrastiveDivergence(5), 1000, 3e-3)
    made, frames = make(params, test)
    known = np.ones(LENGTH, bool)
    known[GAP] = False
    known = known[LENGTH - frames.shape[1] :]
    draws = np.asarray(
        made.impute(
            jax.random.key(1), frames, known, num_samples=10, num_sweeps=20, method="filtering"
        )
    )[:, :, ~known]
    carried = test[:, GAP.start - 1 : GAP.start]

    def errors(filled):
        return ((filled - test[:, GAP].astype(float)) ** 2).sum((1, 2))

    # Squared errors of a draw, as sharp as the frame carried forward, and of the mean of draws.
    for filled, other in (
        (draws[0], carried),
        (draws.mean(0), carried),
        (draws.mean(0), train.mean((0, 1))),
    ):
        gain = errors(other) - errors(filled)
        assert gain.mean() > 4 * gain.std(ddof=1) / np.sqrt(len(gain))
