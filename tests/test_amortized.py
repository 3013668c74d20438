"""Samplers trained beside an energy: who gets which gradient, scales, convergence, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from loss_models import no_guide
from numpyro import handlers
from numpyro.contrib.einstein import RBFKernel
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
    differences,
    energy,
    rbm_of,
    svgd_step,
    update,
)

import numpyro_ebm as ebm

NUM_SAMPLES, PACE = 5, 0.4
NOISE = RNG.normal(size=(NUM_SAMPLES, 2))
SAMPLER = {"shift": np.array([-0.4, 0.9]), "log_scale": np.array([0.2, -0.3])}
ALL = PARAMS | SAMPLER


def sampler_of(shift, log_scale):
    """A sampler whose draws do not depend on the key, so that a test can repeat them."""

    def sample_fn(rng_key, num_samples):
        return shift + jnp.exp(log_scale) * NOISE[:num_samples]

    return sample_fn


def trained():
    values = {name: numpyro.param(name, jnp.asarray(ALL[name])) for name in ALL}
    rbm = rbm_of(values["weights"], values["loc"])
    ebm.neural_sampler(rbm, sampler_of(values["shift"], values["log_scale"]))
    return rbm


def plain(data):
    with numpyro.plate("rows", len(data)):
        numpyro.sample("v", trained(), obs=data)


def passed(data):
    with numpyro.plate("rows", 3 * len(data), subsample_size=len(data)):
        numpyro.sample("v", trained(), obs=data)


def without_plate(data):
    numpyro.sample("v", trained().expand([len(data)]).to_event(1), obs=data)


def masked(data):
    with numpyro.plate("rows", len(data)), handlers.mask(mask=MASK):
        numpyro.sample("v", trained(), obs=jnp.where(MASK[:, None], data, jnp.nan))


STEINGAN = {"num_samples": NUM_SAMPLES, "step_size": PACE, "length_scale": LENGTH}
MIXED = STEINGAN | {"contrastive_weight": 0.3, "contrastive_step_size": STEP}
LOSSES = {
    "SteinGAN": ebm.AmortizedMaximumLikelihood(**STEINGAN),
    "mixed": ebm.AmortizedMaximumLikelihood(**MIXED),
    "GAN": ebm.GenerativeAdversarial(num_samples=NUM_SAMPLES),
}


# ----- by hand, in NumPy -------------------------------------------------------------------


def draws_of(params):
    return params["shift"] + np.exp(params["log_scale"]) * NOISE


DRAWS = draws_of(SAMPLER)
PHI = svgd_step(PARAMS, DRAWS, 1.0, LENGTH) - DRAWS


def softplus(x):
    return np.logaddexp(0, x)


def model_loss(name, params, rows, weights):
    """What the model minimizes, with every negative sample fixed."""
    if name == "GAN":
        generated = softplus(-energy(params, DRAWS)).mean()
        return (weights * (softplus(energy(params, rows)) + generated)).sum()
    negative = energy(params, DRAWS).mean()
    if name == "mixed":
        moved = svgd_step(PARAMS, rows, STEP, LENGTH)
        negative = 0.7 * negative + 0.3 * energy(params, moved)
    return (weights * (energy(params, rows) - negative)).sum()


def sampler_loss(name, params):
    """What the sampler minimizes, with the model and its pull fixed."""
    draws = draws_of(params)
    if name == "GAN":
        return softplus(energy(PARAMS, draws)).mean()
    return -PACE * (PHI * draws).sum() / NUM_SAMPLES


def expected(name, rows=DATA, weights=1.0):
    gradient = differences(lambda p: model_loss(name, p, rows, weights), PARAMS)
    gradient |= differences(lambda p: sampler_loss(name, p), SAMPLER)
    return model_loss(name, PARAMS, rows, weights), gradient


# ----- gradients ---------------------------------------------------------------------------

WAYS = {
    "full batch": (plain, np.ones(NUM_ROWS)),
    "to_event": (without_plate, np.ones(NUM_ROWS)),
    "passed minibatch": (passed, 3 * np.ones(NUM_ROWS)),
    "scale and mask": (handlers.scale(handlers.mask(plain, MASK), 0.5), 0.5 * MASK),
    "garbage under a mask": (masked, 1.0 * MASK),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("model", "weights"), WAYS.values(), ids=WAYS)
def test_each_gets_its_own_gradient(name, model, weights):
    """The model's grows with the rows and their scale, the sampler's is the same throughout."""
    with jax.enable_x64(True):
        found = update(LOSSES[name], model)
    keep = weights > 0
    assert_same(found, expected(name, DATA[keep], weights[keep]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_subsampled_plate(name):
    def model(data):
        with numpyro.plate("rows", len(data), subsample_size=2):
            numpyro.sample("v", trained(), obs=numpyro.subsample(data, event_dim=1))

    with jax.enable_x64(True):
        found = update(LOSSES[name], model)
    pairs = [[i, j] for j in range(NUM_ROWS) for i in range(j)]
    values = [model_loss(name, PARAMS, DATA[pair], NUM_ROWS / 2) for pair in pairs]
    best = pairs[np.argmin(np.abs(np.array(values) - float(found[0])))]
    assert_same(found, expected(name, DATA[best], NUM_ROWS / 2))


def test_each_site_trains_its_own_sampler():
    def model(data):
        for i, rows in enumerate((data, 2 * data)):
            rbm = rbm_of(PARAMS["weights"], numpyro.param(f"loc{i}", jnp.asarray(PARAMS["loc"])))
            shift = numpyro.param(f"shift{i}", jnp.asarray(SAMPLER["shift"]) + i)
            ebm.neural_sampler(rbm, sampler_of(shift, SAMPLER["log_scale"]))
            with numpyro.plate(f"rows{i}", len(data)):
                numpyro.sample(f"v{i}", rbm, obs=rows)

    with jax.enable_x64(True):
        _, gradient = update(LOSSES["SteinGAN"], model)
    np.testing.assert_allclose(gradient["shift0"], -PACE * PHI.mean(0), rtol=1e-9)
    other = svgd_step(PARAMS, DRAWS + 1, 1.0, LENGTH) - DRAWS - 1
    np.testing.assert_allclose(gradient["shift1"], -PACE * other.mean(0), rtol=1e-9)
    wanted = expected("SteinGAN", DATA)[1]["loc"]
    np.testing.assert_allclose(gradient["loc0"], wanted, rtol=1e-7)


def with_priors(observe):
    def model(data):
        shift = numpyro.param("shift", jnp.asarray(SAMPLER["shift"], jnp.float32))
        loc = numpyro.sample("loc", dist.Normal(0, 2).expand([2]).to_event(1))
        rbm = rbm_of(jnp.asarray(PARAMS["weights"], jnp.float32), loc)
        observe(data, rbm, sampler_of(shift, jnp.zeros(2)))

    return model


@pytest.mark.parametrize(("make_guide", "num_particles"), [(AutoDelta, 1), (AutoNormal, 3)])
def test_under_a_guide(make_guide, num_particles):
    """As NumPyro's own loss has it, with everything written as a factor."""
    options = STEINGAN | {"num_particles": num_particles}

    def observe(data, rbm, sample_fn):
        ebm.neural_sampler(rbm, sample_fn)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    def observe_factor(data, rbm, sample_fn):
        draws = sample_fn(None, NUM_SAMPLES)
        fixed, frozen = jax.lax.stop_gradient((draws, rbm))
        s = -jax.grad(lambda x: frozen.energy(x).sum())(fixed)
        k = jnp.exp(-((fixed[:, None] - fixed) ** 2).sum(-1) / (2 * LENGTH**2))
        push = (k[..., None] * (fixed[:, None] - fixed)).sum(1) / LENGTH**2
        phi = jax.lax.stop_gradient((k @ s + push) / NUM_SAMPLES)
        pull = PACE * (phi * draws).sum() / NUM_SAMPLES
        contrast = (rbm.energy(data) - rbm.energy(fixed).mean()).sum()
        numpyro.factor("v", pull - jax.lax.stop_gradient(pull) - contrast)

    data = jnp.asarray(DATA, jnp.float32)
    results = []
    for loss, observed in (
        (ebm.AmortizedMaximumLikelihood(**options), observe),
        (Trace_ELBO(num_particles), observe_factor),
    ):
        model = with_priors(observed)
        results.append(update(loss, model, data, make_guide(model)))
    assert_same(*results, rtol=5e-4)


@pytest.mark.slow
def test_evaluate_draws_anew_at_each_update_and_compiles_once():
    calls = []

    def model(data):
        calls.append(1)
        rbm = rbm_of(PARAMS["weights"], numpyro.param("loc", jnp.zeros(2)))
        shift = numpyro.param("shift", jnp.zeros(2))
        ebm.neural_sampler(rbm, lambda key, n: shift + jax.random.normal(key, (n, 2)))
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    svi = SVI(model, no_guide, optax.sgd(0.0), ebm.AmortizedMaximumLikelihood())
    state, step = svi.init(KEY, DATA), jax.jit(svi.update)
    evaluated = svi.evaluate(state, DATA)
    values = []
    for _ in range(3):
        state, value = step(state, DATA)
        values.append(float(value))
        calls = calls if len(values) > 1 else []
    np.testing.assert_allclose(evaluated, values[0], rtol=1e-5)
    assert len(set(values)) == 3
    assert not calls


# ----- refusals ----------------------------------------------------------------------------


def observed(rbm, data):
    with numpyro.plate("rows", len(data)):
        numpyro.sample("v", rbm, obs=data)


def no_sampler(data):
    observed(rbm_of(PARAMS["weights"], numpyro.param("loc", jnp.zeros(2))), data)


def of_another(data):
    trained()
    no_sampler(data)


def declares_inside(data):
    rbm = rbm_of(PARAMS["weights"], jnp.zeros(2))
    ebm.neural_sampler(rbm, lambda key, n: numpyro.param("late", jnp.zeros(2)) + NOISE[:n])
    observed(rbm, data)


def wrong_shape(data):
    rbm = rbm_of(PARAMS["weights"], numpyro.param("loc", jnp.zeros(2)))
    ebm.neural_sampler(rbm, lambda key, n: jnp.zeros((n, 3)))
    observed(rbm, data)


def discrete(data):
    rbm = ebm.RBM(jnp.zeros((2, 1)), jnp.zeros(2), jnp.zeros(1))
    ebm.neural_sampler(rbm, lambda key, n: jnp.zeros((n, 2)))
    observed(rbm, (data > 0) * 1)


def make(**options):
    return lambda: ebm.AmortizedMaximumLikelihood(**options)


ERRORS = {
    "no sampler": (lambda: update(LOSSES["SteinGAN"], no_sampler), "call|ebm.neural_sampler"),
    "of another": (lambda: update(LOSSES["GAN"], of_another), "same distribution object"),
    "declares": (lambda: update(LOSSES["GAN"], declares_inside), r"declares \['late'\] itself"),
    "shape": (lambda: update(LOSSES["GAN"], wrong_shape), r"shape \(5, 2\); got .*\(5, 3\)"),
    "discrete": (lambda: update(LOSSES["SteinGAN"], discrete), "real units.*PseudoLikelihood"),
    "discrete GAN": (lambda: update(LOSSES["GAN"], discrete), "real or nonnegative units"),
    "num_samples": (make(num_samples=0), "`num_samples` to be a positive integer; got 0"),
    "step_size": (make(step_size=-1.0), "`step_size` to be positive"),
    "weight": (make(contrastive_weight=1.5), r"`contrastive_weight` in \[0, 1\]; got 1.5"),
    "no move": (make(contrastive_weight=0.5), "`contrastive_step_size` to be positive.*got None"),
    "num_steps": (make(num_steps=0), "`num_steps` to be a positive integer"),
    "length_scale": (make(kernel=RBFKernel(), length_scale=1.0), "no `length_scale` with"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=f"(Amortized|Generative).*: .*({message})"):
        call()


GAUSSIAN = rbm_of(**PARAMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((dist.Normal(0, 1), lambda key, n: None), "energy-based model.*got Normal"),
        ((GAUSSIAN, jnp.zeros(3)), "function of .rng_key, num_samples."),
    ],
)
def test_type_errors(arguments, message):
    with pytest.raises(TypeError, match=f"neural_sampler: .*{message}"):
        ebm.neural_sampler(*arguments)
