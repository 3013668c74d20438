"""Wake-sleep: which argument is the data, minibatches, state, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_moments, z_scores
from loss_models import gradient_in, recorder
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal
from numpyro.primitives import mutable
from test_wake_sleep import (
    DATA,
    KEY,
    NUM_REPLICATES,
    PARAMS,
    RECOGNITION,
    SBN,
    SCALE,
    SLOPE,
    X,
    flat,
    inverse,
    linear,
    sleep_objective,
    update,
    wake_objective,
)

import numpyro_ebm as ebm


def keyword(*, other, x):
    linear(x)


def keyword_inverse(*, other, x):
    inverse(x)


def subsampled(x):
    slope = numpyro.param("slope", SLOPE)
    with numpyro.plate("rows", len(x), subsample_size=2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        obs = numpyro.subsample(x, event_dim=0)
        numpyro.sample("x", dist.Normal(slope * z, 1.0), obs=obs)


def indexed(x):
    slope = numpyro.param("slope", SLOPE)
    with numpyro.plate("rows", len(x), subsample_size=2) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(slope * z, 1.0), obs=x[rows])


def indexed_inverse(x):
    slope = numpyro.param("inverse", RECOGNITION)
    with numpyro.plate("rows", len(x), subsample_size=2) as rows:
        numpyro.sample("z", dist.Normal(slope * x[rows], SCALE))


def as_array(program):
    return lambda x: program(jnp.asarray(x))


AT_0 = ebm.WakeSleep(observed={"x": 0})
CALLS = {
    "argument": (linear, inverse, (X,), {}, ebm.WakeSleep()),
    "keyword": (keyword, keyword_inverse, (), {"x": X, "other": -X}, ebm.WakeSleep()),
    "named keyword": (
        keyword,
        keyword_inverse,
        (),
        {"x": X, "other": X},
        ebm.WakeSleep(observed={"x": "x"}),
    ),
    "subsample": (subsampled, indexed_inverse, (X,), {}, ebm.WakeSleep()),
    "index": (indexed, indexed_inverse, (X,), {}, AT_0),
    "list": (as_array(linear), as_array(inverse), ([0.5, -1.5, 2.0, 1.0],), {}, AT_0),
}


@pytest.mark.parametrize(("model", "guide", "args", "kwargs", "loss"), CALLS.values(), ids=CALLS)
def test_the_guide_sees_the_dream_in_the_place_of_the_data(model, guide, args, kwargs, loss):
    """Its gradient is that of dreams; data left in their place would give another."""
    params = {"slope": SLOPE, "inverse": RECOGNITION}

    def one(key):
        return jax.grad(loss.loss, argnums=1)(key, params, model, guide, *args, **kwargs)

    found = jax.jit(jax.vmap(one))(jax.random.split(KEY, NUM_REPLICATES))["inverse"]
    sleep = -len(X) * (SLOPE - RECOGNITION * (SLOPE**2 + 1)) / SCALE**2
    awake = len(X) * RECOGNITION * (X**2).mean() / SCALE**2  # dreamt z beside the data
    assert_moments(np.asarray(found)[:, None], sleep)
    assert np.abs(z_scores(np.asarray(found)[:, None], awake)) > 10


@pytest.mark.parametrize("options", [{}, {"subsample_size": 2}, {"num_rows": 12}])
def test_minibatches_of_a_belief_network_are_unbiased(options):
    scale = options.get("num_rows", len(DATA)) / len(DATA)

    def one(key):
        return flat(
            jax.grad(ebm.WakeSleep().loss, argnums=1)(
                key, PARAMS, SBN.model, SBN.recognition, DATA, **options
            )
        )

    gradients = jax.jit(jax.vmap(one))(jax.random.split(KEY, 500))
    parts = (flat(jax.grad(f)(PARAMS, PARAMS)) for f in (wake_objective, sleep_objective))
    assert_moments(gradients, scale * sum(parts))


def test_a_site_that_the_guide_does_not_look_at():
    def model(x, y):
        with numpyro.plate("labels", len(y)):
            numpyro.sample("y", dist.Normal(numpyro.param("mean", 0.0), 1.0), obs=1.0 * y + 0.0)
        linear(x)

    def guide(x, y):
        inverse(x)

    svi = SVI(model, guide, recorder(), ebm.WakeSleep(observed={"y": None}))
    state, value = jax.jit(svi.update)(svi.init(KEY, X, X), X, X)
    np.testing.assert_allclose(gradient_in(state)["mean"], -X.sum(), rtol=1e-5)
    assert np.isfinite(value)


def counted(x):
    count = mutable("count", {"value": jnp.array(0)})
    count["value"] = count["value"] + 1
    linear(x)


def test_mutable_state_advances_once_an_update():
    svi = SVI(counted, inverse, numpyro.optim.Adam(0.01), ebm.WakeSleep())
    state = svi.init(KEY, X)
    start = state.mutable_state["count"]["value"]
    for _ in range(2):
        state, _ = jax.jit(svi.update)(state, X)
    assert state.mutable_state["count"]["value"] == start + 2


# ----- refusals ----------------------------------------------------------------------------


def prior_only(x):
    with numpyro.plate("rows", len(x)):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def without_params(x):
    with numpyro.plate("rows", len(x)):
        numpyro.sample("z", dist.Normal(x, 1.0))


def without_sites(x):
    numpyro.param("unused", 0.0)


def with_extra(x):
    inverse(x)
    numpyro.sample("extra", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})


def changed(x):
    linear(2 * x)


def other_shape(x, y):
    linear(x)


def loss_of(model, guide, loss=None, args=(X,)):
    return lambda: update_once(model, guide, loss or ebm.WakeSleep(), args)


def update_once(model, guide, loss, args):
    svi = SVI(model, guide, recorder(), loss)
    jax.jit(svi.update)(svi.init(KEY, *args), *args)


def inverse_of_two(x, y):
    inverse(x)


ERRORS = {
    "no observed site": (loss_of(prior_only, inverse), "an observed site to dream of"),
    "no parameters": (loss_of(linear, without_params), "guide with parameters to train"),
    "extra": (loss_of(linear, with_extra), r"lacks \[\] and has \['extra'\] besides"),
    "changed": (loss_of(changed, inverse), r"it is none of them.*observed=\{'x': 0\}"),
    "twice": (
        lambda: ebm.WakeSleep().loss(KEY, {}, other_shape, inverse_of_two, X, X),
        r"it is each of \[0, 1\]",
    ),
    "no such site": (
        loss_of(linear, inverse, ebm.WakeSleep(observed={"y": 0})),
        r"sites \['y'\], named by `observed`",
    ),
    "no such argument": (
        loss_of(linear, inverse, ebm.WakeSleep(observed={"x": 1})),
        r"got 1 for a call with 1 positional arguments",
    ),
    "other shape": (
        loss_of(other_shape, inverse_of_two, ebm.WakeSleep(observed={"x": 1}), (X, X[:3])),
        r"have the shape that the model dreams, \(4,\).*got \(3,\)",
    ),
    "particles": (lambda: ebm.WakeSleep(num_particles=0), "`num_particles` to be a positive"),
    "particles and state": (
        loss_of(counted, inverse, ebm.WakeSleep(num_particles=2)),
        r"`num_particles=1` with mutable sites \['count'\]",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=f"WakeSleep: expected .*({message})"):
        call()


def test_a_guide_that_lacks_sites():
    def evaluate():
        ebm.WakeSleep().loss(KEY, {"slope": 1.0, "unused": 0.0}, linear, without_sites, X)

    with pytest.raises(ValueError, match=r"lacks \['z'\]"):
        evaluate()


@pytest.mark.slow
def test_guides_that_do_not_look_at_the_data():
    with pytest.raises(TypeError, match="got AutoNormal, which does not look at them"):
        update(linear, AutoNormal(linear), X)
    with pytest.raises(TypeError, match="`observed` to map names"):
        ebm.WakeSleep(observed=0)
