from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from contrast_models import (
    RECOVERED,
    Real,
    assert_consistent,
    check_evaluate,
    check_garbage,
    check_guide,
    check_plates,
    check_subsample,
)
from helpers import assert_moments
from loss_models import DATA, NUM_ROWS, PARAMS, no_guide, rbm_of, recorder, update
from numpyro import optim
from numpyro.distributions import constraints, transforms
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from numpyro.nn import AutoregressiveNN

from numpyro_ebm import (
    NADE,
    RBM,
    NoiseContrastiveEstimation,
    NormalizerError,
    RankingNoiseContrastiveEstimation,
    contrast_noise,
    learnt_log_z,
    units,
)

NUM_NOISE = 3
DRAWS = jnp.array([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0]])
BOTH = pytest.mark.parametrize(
    "estimation", [NoiseContrastiveEstimation, RankingNoiseContrastiveEstimation]
)


class FixedNoise(dist.Distribution):
    """Independent bits of which the same are drawn every time."""

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits):
        self.logits = logits
        super().__init__((), logits.shape)

    def sample(self, key, sample_shape=()):
        draws = DRAWS.reshape(NUM_NOISE, *[1] * (len(sample_shape) - 1), NUM_ROWS)
        return jnp.broadcast_to(draws, (*sample_shape, NUM_ROWS))

    def log_prob(self, value, intermediates=None):
        return dist.Bernoulli(logits=self.logits).to_event(1).log_prob(value)


LOGITS = jnp.linspace(-0.5, 1.0, NUM_ROWS)
FIXED = FixedNoise(LOGITS)


def noise_log_prob(value):
    probs = 1 / (1 + np.exp(-np.asarray(LOGITS)))
    return jnp.log(jnp.where(value == 1, probs, 1 - probs)).sum(-1)


def nce_rows(params, data, num_noise=NUM_NOISE):
    """The loss as in the papers: probabilities of the two classes."""
    rbm = rbm_of(params["weights"], params["bias"])

    def densities(value):
        noise = num_noise * jnp.exp(noise_log_prob(value))
        return jnp.exp(-rbm.energy(value) - params["log_z"]), noise

    def log_prob_of_class(index, value):
        return jnp.log(densities(value)[index] / sum(densities(value)))

    return -log_prob_of_class(0, data) - sum(log_prob_of_class(1, draw) for draw in DRAWS)


def ranking_rows(params, data):
    rbm = rbm_of(params["weights"], params["bias"])

    def weight(value):
        return jnp.exp(-rbm.energy(value) - noise_log_prob(value))

    return -jnp.log(weight(data) / (weight(data) + sum(weight(draw) for draw in DRAWS)))


ROWS = {
    "NCE": (NoiseContrastiveEstimation(FIXED, NUM_NOISE), nce_rows),
    "ranking": (RankingNoiseContrastiveEstimation(FIXED, NUM_NOISE), ranking_rows),
}
EACH = pytest.mark.parametrize(("loss", "row_loss"), ROWS.values(), ids=ROWS)


# ----- values and gradients ----------------------------------------------------------------


@EACH
def test_in_plates_with_masks(loss, row_loss):
    check_plates(loss, row_loss)


@BOTH
def test_rows_that_are_not_finite(estimation):
    check_garbage(estimation(Real.noise, 2))


@EACH
def test_subsampled(loss, row_loss):
    check_subsample(loss, row_loss)


@EACH
def test_evaluate(loss, row_loss):
    check_evaluate(loss, row_loss)


@pytest.mark.parametrize("make_guide", [AutoDelta, AutoNormal])
@EACH
def test_under_a_guide_of_several_particles(loss, row_loss, make_guide):
    particles = 1 if make_guide is AutoDelta else 3
    check_guide(type(loss)(FIXED, NUM_NOISE, num_particles=particles), row_loss, make_guide)


def loss_of_rows(loss, distribution, data):
    return -loss.surrogate(jax.random.key(0), "v", distribution, {})(data)


@pytest.mark.parametrize("normalizer", ["exact", "known", "ignore"])
def test_log_z_of_the_model_itself(normalizer):
    given = jnp.array(2.5) if normalizer == "known" else normalizer
    rbm = rbm_of(**PARAMS, normalizer=given)
    log_z = {"exact": rbm_of(**PARAMS).exact_log_z(), "known": 2.5, "ignore": 0.0}[normalizer]
    actual = loss_of_rows(NoiseContrastiveEstimation(FIXED, NUM_NOISE), rbm, DATA)
    expected = nce_rows({**PARAMS, "log_z": log_z}, DATA)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_gradient_of_an_exact_model_reaches_log_z():
    def total(bias):
        rbm = rbm_of(PARAMS["weights"], bias, normalizer="exact")
        return loss_of_rows(NoiseContrastiveEstimation(FIXED, NUM_NOISE), rbm, DATA).sum()

    def expected(bias):
        log_z = rbm_of(PARAMS["weights"], bias).exact_log_z()
        return nce_rows({**PARAMS, "bias": bias, "log_z": log_z}, DATA).sum()

    gradients = [jax.grad(f)(PARAMS["bias"]) for f in (total, expected)]
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_log_two_where_model_and_noise_are_equal():
    rbm = rbm_of(**PARAMS, normalizer="exact")
    value = loss_of_rows(NoiseContrastiveEstimation(rbm), rbm, DATA)
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-5)
    value = loss_of_rows(RankingNoiseContrastiveEstimation(rbm, 4), rbm, DATA)
    np.testing.assert_allclose(value, np.log(5), rtol=1e-5)


def test_ratios_of_hundreds_of_nats_stay_finite():
    rbm = rbm_of(40 * PARAMS["weights"], 80 * PARAMS["bias"], normalizer="ignore")
    for loss, _ in ROWS.values():
        value, slope = jax.value_and_grad(lambda m, at=loss: loss_of_rows(at, m, DATA).sum())(rbm)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slope)))


@BOTH
def test_draws_are_fresh_for_every_row_and_update(estimation):
    loss = estimation(dist.Bernoulli(0.5 * jnp.ones(NUM_ROWS)).to_event(1), 2)
    rbm, same = rbm_of(**PARAMS, normalizer="ignore"), jnp.zeros((4, NUM_ROWS), jnp.uint8)
    values = [-loss.surrogate(jax.random.key(i), "v", rbm, {})(same) for i in range(2)]
    assert len(np.unique(np.concatenate(values))) == 8


def test_a_plate_of_models_has_its_own_log_z():
    scale = jnp.array([0.5, -1.0])
    data = jnp.stack([DATA, 1 - DATA], axis=1)

    def model(data):
        with numpyro.plate("models", 2, dim=-1):
            rbm = rbm_of(scale[:, None, None] * PARAMS["weights"], scale[:, None] + PARAMS["bias"])
            assert learnt_log_z("log_z", rbm, jnp.array([0.3, 0.9])).shape == (2,)
            with numpyro.plate("rows", NUM_ROWS, dim=-2):
                numpyro.sample("v", rbm, obs=data)

    loss = NoiseContrastiveEstimation(FIXED, NUM_NOISE)
    gradient, _, value = update(loss, model, data)
    total = 0.0
    for i, log_z in enumerate((0.3, 0.9)):
        params = {"weights": scale[i] * PARAMS["weights"], "bias": scale[i] + PARAMS["bias"]}
        own, slope = jax.value_and_grad(
            lambda c, i=i, p=params: nce_rows({**p, "log_z": c}, data[:, i]).sum()
        )(log_z)
        np.testing.assert_allclose(gradient["log_z"][i], slope, rtol=1e-4)
        total += own
    np.testing.assert_allclose(value, total, rtol=1e-5)


# ----- recovery of known parameters --------------------------------------------------------


@RECOVERED
@BOTH
def test_consistent(estimation, family):
    """Log Z too: for real units it is compared with quadrature."""
    loss = estimation(family.noise, 4)
    assert_consistent(loss, family, learns_log_z=estimation is NoiseContrastiveEstimation)


@pytest.mark.slow
def test_learnt_log_z_of_a_trained_rbm_agrees_with_enumeration():
    truth = RBM(jnp.array([[2.0], [-1.0], [1.0]]), jnp.array([-0.5, 0.5, 0.0]), jnp.zeros(1))
    noise = dist.Bernoulli(0.5 * jnp.ones(3)).to_event(1)

    def model(data):
        weights = numpyro.param("weights", jnp.array([[0.5], [-0.5], [0.5]]))
        rbm = RBM(weights, numpyro.param("bias", jnp.zeros(3)), jnp.zeros(1))
        learnt_log_z("log_z", rbm, 4 * jnp.log(2))
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    svi = SVI(
        model,
        no_guide,
        optim.Adam(lambda i: 0.1 / (1 + i / 50)),
        NoiseContrastiveEstimation(noise, 4),
    )

    @jax.jit
    @jax.vmap
    def error(rng_key):
        data = truth.sample(rng_key, (500,))
        state = svi.init(rng_key, data)
        state = jax.lax.fori_loop(0, 300, lambda _, state: svi.update(state, data)[0], state)
        params = svi.get_params(state)
        rbm = RBM(params["weights"], params["bias"], jnp.zeros(1))
        return params["log_z"] - rbm.exact_log_z()

    errors = error(jax.random.split(jax.random.key(1), 24))
    assert np.std(errors) < 0.2
    assert_moments(errors[:, None], 0.0)


# ----- trained noise -----------------------------------------------------------------------

EPSILON = jnp.array([[0.3, -1.1], [-0.4, 0.8]])
POINTS = jnp.array([[0.5, -0.2], [1.5, 0.7], [-0.3, 0.1]])


class Reparametrized(dist.Distribution):
    """A normal whose standardized draws are the same every time."""

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}
    reparametrized_params = ["loc", "scale"]
    support = constraints.real_vector

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale
        super().__init__((), (2,))

    def sample(self, key, sample_shape=()):
        epsilon = EPSILON.reshape(2, *[1] * (len(sample_shape) - 1), 2)
        return self.loc + self.scale * jnp.broadcast_to(epsilon, (*sample_shape, 2))

    def log_prob(self, value, intermediates=None):
        return dist.Normal(self.loc, self.scale).log_prob(value).sum(-1)


NOISE_PARAMS = {"loc": jnp.array([0.2, -0.1]), "scale": jnp.array(1.5)}
ENERGY_PARAMS = {"weights": jnp.array([[0.5], [-0.8]]), "log_z": jnp.array(0.4)}


def real_rbm(weights):
    return RBM(weights, units.Gaussian(jnp.array([0.1, 0.3])), jnp.array([0.2]))


def contrast(estimation, energy, noise):
    """Sum of the losses of the points, by ratios of densities."""
    rbm, draws = real_rbm(energy["weights"]), noise["loc"] + noise["scale"] * EPSILON
    log_z = energy["log_z"] if estimation is NoiseContrastiveEstimation else 0.0

    def ratio(value):
        log_noise = dist.Normal(noise["loc"], noise["scale"]).log_prob(value).sum(-1)
        return jnp.exp(-rbm.energy(value) - log_z - log_noise)

    if estimation is RankingNoiseContrastiveEstimation:
        return -jnp.log(ratio(POINTS) / (ratio(POINTS) + ratio(draws).sum())).sum()
    noise_part = jnp.log(2 / (2 + ratio(draws))).sum()
    return -jnp.log(ratio(POINTS) / (2 + ratio(POINTS))).sum() - len(POINTS) * noise_part


@pytest.mark.parametrize("train", [None, "likelihood", "adversarial"])
@BOTH
def test_what_trains_the_noise_and_what_the_energy(estimation, train):
    def model(data):
        rbm = real_rbm(numpyro.param("weights", ENERGY_PARAMS["weights"]))
        learnt_log_z("log_z", rbm, ENERGY_PARAMS["log_z"])
        noise = {name: numpyro.param(name, value) for name, value in NOISE_PARAMS.items()}
        contrast_noise(rbm, Reparametrized(**noise), train=train)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    gradient, _, value = update(estimation(num_noise=2), model, POINTS)
    expected, (energy, noise) = jax.value_and_grad(partial(contrast, estimation), argnums=(0, 1))(
        ENERGY_PARAMS, NOISE_PARAMS
    )
    if train == "likelihood":
        noise = jax.grad(lambda n: -Reparametrized(**n).log_prob(POINTS).sum())(NOISE_PARAMS)
    else:
        sign = {None: 0.0, "adversarial": -1.0}[train]
        noise = {name: sign * slope for name, slope in noise.items()}
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, slope in {**energy, **noise}.items():
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("train", ["likelihood", "adversarial"])
def test_a_flow_is_trained_beside_the_energy(train):
    init, network = AutoregressiveNN(2, [4])

    def model(data):
        rbm = real_rbm(numpyro.param("weights", ENERGY_PARAMS["weights"]))
        learnt_log_z("log_z", rbm)
        params = numpyro.param("flow", lambda key: init(key, (2,))[1])
        flow = transforms.ComposeTransform(
            [dist.transforms.AffineTransform(numpyro.param("loc", jnp.zeros(2)), 2.0)]
        )
        autoregressive = dist.flows.InverseAutoregressiveTransform(partial(network, params))
        base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
        contrast_noise(rbm, dist.TransformedDistribution(base, [autoregressive, flow]), train=train)
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    gradient, _, value = update(NoiseContrastiveEstimation(num_noise=2), model, POINTS)
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    assert np.abs(gradient["loc"]).min() > 0
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient["flow"])) > 0


@pytest.mark.slow
def test_trained_nade_approaches_the_data_and_the_energy_log_z():
    data = jnp.tile(jnp.array([[1, 1, 0], [0, 0, 1]]), (100, 1))

    def model(data):
        weights = numpyro.param("weights", 0.1 * jnp.ones((3, 2)))
        rbm = RBM(weights, numpyro.param("bias", jnp.zeros(3)), jnp.zeros(2))
        learnt_log_z("log_z", rbm, 5 * jnp.log(2))
        contrast_noise(
            rbm, NADE(**numpyro.param("nade", NADE.init_params(jax.random.key(0), 3, 4)))
        )
        with numpyro.plate("rows", len(data)):
            numpyro.sample("v", rbm, obs=data)

    svi = SVI(model, no_guide, optim.Adam(0.05), NoiseContrastiveEstimation())
    result = svi.run(jax.random.key(0), 300, data, progress_bar=False)
    likelihood = NADE(**result.params["nade"]).log_prob(data).mean()
    assert -0.8 < likelihood <= -np.log(2) + 1e-3
    np.testing.assert_allclose(result.losses[-20:].mean() / len(data), 2 * np.log(2), rtol=0.1)


# ----- pairings that do not fit ------------------------------------------------------------


def normal(size):
    return dist.Normal(jnp.zeros(size), 1.0).to_event(1)


def bits(size):
    return dist.Bernoulli(0.5 * jnp.ones(size)).to_event(1)


def run(model_noise, rbm, loss_noise=None, log_z=True, **kwargs):
    def model():
        if log_z:
            learnt_log_z("log_z", rbm)
        if model_noise is not None:
            contrast_noise(rbm, model_noise, **kwargs)
        numpyro.sample("v", rbm, obs=rbm.support.feasible_like(jnp.zeros(rbm.event_shape)))

    svi = SVI(model, no_guide, recorder(), NoiseContrastiveEstimation(loss_noise))
    svi.update(svi.init(jax.random.key(0)))


def rbm(visible=None):
    visible = units.Bernoulli(jnp.zeros(3)) if visible is None else visible
    return RBM(jnp.zeros((*visible.feature_shape, 1)), visible, jnp.zeros(1))


GAUSSIAN = units.Gaussian(jnp.zeros(3))
ERRORS = {
    "no noise": (lambda: run(None, rbm()), "expected noise either.*got neither"),
    "two noises": (lambda: run(bits(3), rbm(), bits(3)), "got both"),
    "no log Z": (lambda: run(bits(3), rbm(), log_z=False), "ebm.learnt_log_z.*ebm.RankingNoise"),
    "real noise of bits": (lambda: run(normal(3), rbm()), "expected noise on the support"),
    "bits for real": (lambda: run(bits(3), rbm(GAUSSIAN)), "expected noise on the support"),
    "bits for spins": (lambda: run(bits(3), rbm(units.Spin(jnp.zeros(3)))), "on the support"),
    "counts": (lambda: run(dist.Poisson(jnp.ones(3)).to_event(1), rbm()), "on the support"),
    "positive for real": (
        lambda: run(dist.Exponential(jnp.ones(3)).to_event(1), rbm(GAUSSIAN)),
        "on the support",
    ),
    "real for nonnegative": (
        lambda: run(normal(3), rbm(units.ReLU(jnp.zeros(3)))),
        "on the support",
    ),
    "event shape": (lambda: run(bits(4), rbm()), r"event shape \(3,\) of RBM.*\(4,\)"),
    "no to_event": (lambda: run(dist.Bernoulli(0.5 * jnp.ones(3)), rbm()), "Use .to_event"),
    "unnormalized": (lambda: run(rbm(), rbm()), 'normalized noise.*normalizer="guard"'),
    "discrete adversary": (
        lambda: run(bits(3), rbm(), train="adversarial"),
        "draws can be differentiated",
    ),
    "train": (lambda: run(bits(3), rbm(), train="both"), "`train` to be one of.*got 'both'"),
    "num_noise": (lambda: NoiseContrastiveEstimation(bits(3), 0), "`num_noise` to be a positive"),
    "two log Z": (
        lambda: learnt_log_z("c", rbm_of(**PARAMS, normalizer="exact")),
        'normalizer="exact"',
    ),
    "log Z shape": (lambda: learnt_log_z("c", rbm(), jnp.zeros(2)), "broadcast to the batch shape"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_log_z_is_an_error_of_the_normalizer():
    with pytest.raises(NormalizerError, match="ebm.learnt_log_z"):
        run(bits(3), rbm(), log_z=False)


TYPE_ERRORS = {
    "noise of the loss": (lambda: NoiseContrastiveEstimation(3), "NumPyro distribution; got int"),
    "noise of the model": (lambda: contrast_noise(rbm(), None), "distribution; got NoneType"),
    "model": (lambda: contrast_noise(normal(2), normal(2)), "energy-based model.*got Independent"),
    "model of log Z": (lambda: learnt_log_z("c", normal(2)), "energy-based model.*Independent"),
}


@pytest.mark.parametrize(("call", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()


LAYERS = {
    "spins": units.Spin(jnp.array([0.3, -0.2, 0.0])),
    "Potts": units.Categorical(jnp.array([[0.3, -0.2, 0.0], [0.1, 0.0, 0.4]])),
    "nonnegative": units.ReLU(jnp.array([0.3, 0.2])),
    "mixed": units.Concatenate([units.Gaussian(jnp.zeros(2)), units.Bernoulli(jnp.zeros(1))]),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_independent_units_are_noise_for_every_kind_of_unit(layer):
    """Where the weights are zero, model and noise are equal."""
    model, noise = rbm(layer), layer.conditional(jnp.zeros(layer.num_features))
    model = RBM(model.weights, layer, jnp.zeros(1), normalizer="exact")
    value = loss_of_rows(
        NoiseContrastiveEstimation(noise), model, noise.sample(jax.random.key(0), (4,))
    )
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-5)
