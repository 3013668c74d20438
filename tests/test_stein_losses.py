"""SteinCD: the move, the gradient, consistency, every way to observe data, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from loss_models import no_guide
from numpyro import handlers
from numpyro.contrib.einstein import IMQKernel, RandomFeatureKernel, RBFKernel
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from stein_models import (
    DATA,
    KEY,
    LENGTH,
    MASK,
    NUM_ROWS,
    PARAMS,
    RNG,
    STEP,
    assert_same,
    contrast,
    differences,
    rbm_of,
    svgd_step,
    update,
)

import numpyro_ebm as ebm
from numpyro_ebm.kernels.stein import direction
from numpyro_ebm.losses.stein_direction import radial_direction


def trained():
    return rbm_of(*(numpyro.param(name, jnp.asarray(PARAMS[name])) for name in PARAMS))


def plain(data):
    with numpyro.plate("rows", len(data)):
        numpyro.sample("v", trained(), obs=data)


def steincd(num_steps=1, length_scale=LENGTH, **kwargs):
    return ebm.SteinContrastiveDivergence(
        STEP, num_steps=num_steps, length_scale=length_scale, **kwargs
    )


def expected(rows, weights, moved=None):
    moved = svgd_step(PARAMS, rows, STEP, LENGTH) if moved is None else moved
    value = contrast(PARAMS, rows, moved, weights)
    return value, differences(lambda p: contrast(p, rows, moved, weights), PARAMS)


# ----- the direction -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kernel"), [("rbf", RBFKernel()), ("imq", IMQKernel())])
def test_matrix_products_agree_with_differentiated_pairs(name, kernel):
    """Also that the default bandwidth is the one of `svgd`."""
    with jax.enable_x64(True):
        x, s = jnp.asarray(RNG.normal(size=(9, 3))), jnp.asarray(RNG.normal(size=(9, 3)))
        np.testing.assert_allclose(
            radial_direction(x + 5, s, name), direction(kernel, KEY, x, s), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_rows_that_do_not_count_have_no_influence(kernel):
    with jax.enable_x64(True):
        x, s = jnp.asarray(RNG.normal(size=(9, 3))), jnp.asarray(RNG.normal(size=(9, 3)))
        keep = jnp.arange(9) % 3 != 1
        found = radial_direction(jnp.where(keep[:, None], x, 1e3), s, kernel, counts=keep)
        np.testing.assert_array_equal(found[~keep], 0)
        wanted = radial_direction(x[keep], s[keep], kernel)
        np.testing.assert_allclose(found[keep], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_degenerate_batches_are_finite():
    x = jnp.ones((4, 2))
    np.testing.assert_allclose(radial_direction(x, -x, "rbf"), -x)  # no repulsion between equals
    np.testing.assert_allclose(radial_direction(x[:1], -x[:1], "rbf"), -x[:1])
    none = radial_direction(x, -x, "rbf", counts=jnp.zeros(4, bool))
    np.testing.assert_array_equal(none, 0)


# ----- the gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2])
def test_gradient_holds_the_moved_rows_fixed(num_steps):
    moved = DATA
    for _ in range(num_steps):
        moved = svgd_step(PARAMS, moved, STEP, LENGTH)
    with jax.enable_x64(True):
        found = update(steincd(num_steps), plain)
    assert_same(found, expected(DATA, 1.0, moved))


def test_gradient_of_a_small_step_is_that_of_the_stein_discrepancy():
    step = 1e-5

    def discrepancy(params):
        result = ebm.kernelized_stein_discrepancy(
            rbm_of(**params), DATA, kernel="rbf", length_scale=LENGTH
        )
        return step * NUM_ROWS / 2 * result.v_statistic

    with jax.enable_x64(True):
        loss = ebm.SteinContrastiveDivergence(step, length_scale=LENGTH)
        _, gradient = update(loss, plain)
        wanted = differences(discrepancy, {n: jnp.asarray(v) for n, v in PARAMS.items()})
    for name in PARAMS:
        np.testing.assert_allclose(gradient[name], wanted[name], rtol=1e-3)


def test_kernels_of_numpyro():
    kernel = RandomFeatureKernel()
    with jax.enable_x64(True):
        own = update(steincd(length_scale=None), plain)
        assert_same(update(steincd(length_scale=None, kernel=RBFKernel()), plain), own)
        random = update(steincd(length_scale=None, kernel=kernel), plain)
    assert np.isfinite(random[0])
    assert kernel._random_weights is None  # the user's own kernel is left alone


# ----- consistency -------------------------------------------------------------------------

SIZES, NUM_SEEDS = (20, 80, 320), 24
TRUE = np.array([0.7, -0.4])


def errors_of(num_rows, num_iterations=150):
    """Errors of the estimated locations, over independent data sets."""

    def model(data):
        loc = numpyro.param("loc", jnp.zeros(2))
        rbm = ebm.RBM(jnp.array([[1.0], [0.5]]), ebm.units.Gaussian(loc), jnp.zeros(1))
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    def estimate(rng_key):
        key_h, key_v = jax.random.split(rng_key)
        # exact draws: the hidden unit is on with the probability that its Gaussian mass has
        shift = np.array([1.0, 0.5])
        log_odds = TRUE @ shift + shift @ shift / 2
        h = jax.random.bernoulli(key_h, jax.nn.sigmoid(log_odds), (num_rows, 1))
        data = TRUE + h * shift + jax.random.normal(key_v, (num_rows, 2))
        svi = SVI(model, no_guide, numpyro.optim.SGD(10.0 / num_rows), loss)
        return svi.run(rng_key, num_iterations, data, progress_bar=False).params["loc"]

    loss = ebm.SteinContrastiveDivergence(0.2, length_scale=1.5)
    keys = jax.random.split(jax.random.key(num_rows), NUM_SEEDS)
    return np.asarray(jax.jit(jax.vmap(estimate))(keys)) - TRUE


@pytest.mark.slow
def test_error_falls_like_the_root_of_the_number_of_rows():
    squares = [(errors_of(size) ** 2).sum(1) for size in SIZES]
    log_rms = np.array([np.log(square.mean()) / 2 for square in squares])
    variances = [s.var(ddof=1) / len(s) / (2 * s.mean()) ** 2 for s in squares]
    x = np.log(SIZES) - np.log(SIZES).mean()
    slope = x @ log_rms / (x @ x)
    standard_error = np.sqrt((x**2) @ variances) / (x @ x)
    assert standard_error < 0.1
    assert abs(slope + 0.5) < 4 * standard_error, (slope, standard_error)
    assert log_rms[-1] < np.log(0.15)


# ----- plates, masks, scales, guides -------------------------------------------------------


def expanded(data):
    with numpyro.plate("rows", len(data)):
        numpyro.sample("v", trained().expand([len(data)]), obs=data)


def to_event(data):
    numpyro.sample("v", trained().expand([len(data)]).to_event(1), obs=data)


def nested(data):
    with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 3, dim=-1):
        numpyro.sample("v", trained(), obs=data.reshape(2, 3, -1))


def passed(data):
    with numpyro.plate("rows", 3 * len(data), subsample_size=len(data)):
        numpyro.sample("v", trained(), obs=data)


def garbage(data):
    with numpyro.plate("rows", len(data)), handlers.mask(mask=MASK):
        numpyro.sample("v", trained(), obs=jnp.where(MASK[:, None], data, jnp.nan))


def masked_inside(data):
    fn = trained().expand([2, 3]).mask(MASK.reshape(2, 3)).to_event(1)
    with numpyro.plate("rows", 2):
        numpyro.sample("v", fn, obs=data.reshape(2, 3, 2))


WAYS = {
    "full batch": (plain, np.ones(NUM_ROWS)),
    "expand": (expanded, np.ones(NUM_ROWS)),
    "to_event": (to_event, np.ones(NUM_ROWS)),
    "nested plates": (nested, np.ones(NUM_ROWS)),
    "passed minibatch": (passed, 3 * np.ones(NUM_ROWS)),
    "scale and mask": (handlers.scale(handlers.mask(plain, MASK), 0.5), 0.5 * MASK),
    "garbage under a mask": (garbage, 1.0 * MASK),
    "mask under to_event": (masked_inside, 1.0 * MASK),
}


@pytest.mark.parametrize(("model", "weights"), WAYS.values(), ids=WAYS)
def test_every_way_to_observe_data(model, weights):
    """Rows under a mask are neither moved nor felt by the others."""
    with jax.enable_x64(True):
        found = update(steincd(), model)
    keep = weights > 0
    assert_same(found, expected(DATA[keep], weights[keep]))


def test_a_subsampled_plate_moves_the_rows_it_draws():
    def model(data):
        with numpyro.plate("rows", len(data), subsample_size=2):
            numpyro.sample("v", trained(), obs=numpyro.subsample(data, event_dim=1))

    with jax.enable_x64(True):
        found = update(steincd(), model)
    pairs = [[i, j] for j in range(NUM_ROWS) for i in range(j)]
    values = [expected(DATA[pair], NUM_ROWS / 2)[0] for pair in pairs]
    best = pairs[np.argmin(np.abs(np.array(values) - float(found[0])))]
    assert_same(found, expected(DATA[best], NUM_ROWS / 2))


def with_priors(observe):
    def model(data):
        weights = numpyro.sample("weights", dist.Normal(0, 1).expand([2, 1]).to_event(2))
        loc = numpyro.sample("loc", dist.Normal(0, 2).expand([2]).to_event(1))
        observe(data, weights, loc)

    return model


@pytest.mark.parametrize(("make_guide", "num_particles"), [(AutoDelta, 1), (AutoNormal, 3)])
def test_under_a_guide_it_is_a_factor_with_the_moved_rows_fixed(make_guide, num_particles):
    loss = steincd(num_particles=num_particles)

    def observe(data, weights, loc):
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm_of(weights, loc), obs=data)

    def observe_factor(data, weights, loc):
        rbm = rbm_of(weights, loc)
        frozen = jax.lax.stop_gradient(rbm)
        s = -jax.grad(lambda x: frozen.energy(x).sum())(data)
        moved = data + STEP * radial_direction(data, s, "rbf", LENGTH)
        numpyro.factor("v", (rbm.energy(moved) - rbm.energy(data)).sum())

    data = jnp.asarray(DATA, jnp.float32)
    results = []
    for used, observed in ((loss, observe), (Trace_ELBO(num_particles), observe_factor)):
        model = with_priors(observed)
        results.append(update(used, model, data, make_guide(model)))
    assert_same(*results, rtol=2e-4)


def test_evaluate_is_the_loss_of_the_next_update_and_runs_compile_once():
    calls = []

    def counted(data):
        calls.append(1)
        plain(data)

    svi = SVI(counted, no_guide, numpyro.optim.Adam(0.01), steincd())
    state, step = svi.init(KEY, DATA), jax.jit(svi.update)
    evaluated = svi.evaluate(state, DATA)
    state, value = step(state, DATA)
    np.testing.assert_allclose(evaluated, value, rtol=1e-5)
    num_calls = len(calls)
    for _ in range(2):
        state, _ = step(state, DATA)
    assert len(calls) == num_calls
    losses = svi.run(KEY, 3, DATA, progress_bar=False).losses
    assert np.isfinite(losses).all()


# ----- refusals ----------------------------------------------------------------------------


def discrete(data):
    numpyro.sample("v", ebm.RBM(jnp.zeros((2, 1)), jnp.zeros(2), jnp.zeros(1)), obs=data)


def batch(data):
    rbm = rbm_of(jnp.zeros((NUM_ROWS, 2, 1)), numpyro.param("loc", jnp.zeros((NUM_ROWS, 2))))
    with numpyro.plate("rows", NUM_ROWS):
        numpyro.sample("v", rbm, obs=data)


def make(**options):
    return lambda: ebm.SteinContrastiveDivergence(**{"step_size": 0.1, **options})


NAMED_KERNEL = {"length_scale": None, "kernel": RBFKernel()}
ERRORS = {
    "discrete": (lambda: update(steincd(), discrete, (DATA > 0) * 1), "PseudoLikelihood"),
    "batch": (lambda: update(steincd(), batch), r"batch shape \(6,\).*site of its own"),
    "mask": (
        lambda: update(steincd(**NAMED_KERNEL), handlers.mask(plain, MASK)),
        "no mask with RBFKernel.*kernel='rbf'",
    ),
    "step_size": (make(step_size=0.0), "`step_size` to be positive and finite; got 0.0"),
    "step_size nan": (make(step_size=float("nan")), "`step_size` to be positive"),
    "num_steps": (make(num_steps=0), "`num_steps` to be a positive integer; got 0"),
    "length_scale": (make(length_scale=-1.0), "`length_scale` to be positive"),
    "length_scale twice": (make(kernel=RBFKernel(), length_scale=1.0), "no `length_scale` with"),
    "particles": (make(num_particles=0), "`num_particles` to be a positive integer"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=f"SteinContrastiveDivergence: .*{message}"):
        call()


def test_unknown_kernels():
    with pytest.raises(TypeError, match="`kernel` to be 'rbf', 'imq' or a kernel of.*got 'linear'"):
        ebm.SteinContrastiveDivergence(0.1, kernel="linear")
