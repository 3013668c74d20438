from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conditional_models import entry, over, row_gradient, row_losses
from helpers import assert_moments, z_scores
from loss_models import (
    DATA,
    NUM_ROWS,
    ONES,
    PARAMS,
    assert_gradients_close,
    gradient_in,
    no_guide,
    observe,
    rbm_of,
    recorder,
    trained,
    update,
    without_chains,
)
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from scipy.special import logsumexp

from numpyro_ebm import (
    RBM,
    BlockPseudoLikelihood,
    BoltzmannMachine,
    MaximumLikelihood,
    NormalizerError,
    PseudoLikelihood,
    RatioMatching,
)

# ----- exact --------------------------------------------------------------------------------


@over("Bernoulli-Gaussian", "Categorical+Spin-Bernoulli", "BM hidden", "Potts 2x3 free")
def test_exact_loss_and_gradient_are_those_of_enumeration(name):
    found = entry(name)
    rows = found.rows

    def expected(model):
        energies = model.energy(found.states)
        return model.energy(rows) + jax.scipy.special.logsumexp(-energies)

    with jax.enable_x64(True):
        actual = partial(row_losses, MaximumLikelihood(), rows=rows)
        (gradient, value), (wanted, _) = jax.jit(
            lambda model: (row_gradient(actual, model), row_gradient(expected, model))
        )(found.model)
    np.testing.assert_allclose(value, found.row_energies + logsumexp(-found.energies), rtol=1e-7)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


def test_log_z_is_computed_once_for_all_rows(monkeypatch):
    calls = []

    def counted(self):
        calls.append(self.batch_shape)
        return jnp.zeros(self.batch_shape)

    monkeypatch.setattr(RBM, "exact_log_z", counted)
    update(MaximumLikelihood(), without_chains)
    assert set(calls) == {()}


# ----- chains -------------------------------------------------------------------------------

CHAINS = MaximumLikelihood(num_chains=20, num_steps=60)
NUM_REPLICATES = 100


def gradients(loss, rng_key=None):
    """The gradient of the loss in SVI, or independent replicates of it."""
    data = DATA[:, :4]
    weights = 1.5 * PARAMS["weights"][:4]

    def model(data):
        observe(rbm_of(numpyro.param("weights", weights), jnp.zeros(4)), data)

    def gradient(key):
        return jax.grad(loss.loss, argnums=1)(key, {"weights": weights}, model, no_guide, data)

    keys = jax.random.split(jax.random.key(3), NUM_REPLICATES)
    over_keys = jax.jit(jax.vmap(lambda key: gradient(key)["weights"].ravel()))
    return np.asarray(over_keys(keys if rng_key is None else rng_key[None]))


def test_the_gradient_of_burnt_in_chains_is_unbiased():
    exact = gradients(MaximumLikelihood(), jax.random.key(0))[0]
    assert_moments(gradients(CHAINS), exact)


def test_the_gradient_of_chains_that_are_not_burnt_in_is_biased():
    exact = gradients(MaximumLikelihood(), jax.random.key(0))[0]
    once = gradients(MaximumLikelihood(num_chains=20, num_steps=1))
    assert np.abs(z_scores(once, exact)).max() > 8


class Gibbs:
    """The model's own Gibbs step as a kernel."""

    def init(self, value, target):
        return target.chain_at(value)

    def step(self, rng_key, chain, target):
        return target.gibbs_step(rng_key, chain), None

    def value(self, chain, target):
        return target.visible(chain)


def test_the_default_kernel_is_the_gibbs_step():
    own, kernel = (MaximumLikelihood(num_chains=5, num_steps=3, kernel=k) for k in (None, Gibbs()))
    np.testing.assert_allclose(
        gradients(own, jax.random.key(1)), gradients(kernel, jax.random.key(1)), rtol=1e-5
    )


# ----- every way to observe data ------------------------------------------------------------

MASK = jnp.array([1, 1, 0, 1, 0, 1], bool)
BATCH = 2
LOSSES = {
    "ML": MaximumLikelihood(),
    "PL": PseudoLikelihood(),
    "block PL": BlockPseudoLikelihood(2),
    "RM": RatioMatching(),
}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def weighted(loss, params, data, row_weights):
    """The loss with these weights of the rows."""
    return (row_weights * row_losses(loss, rbm_of(**params), data)).sum()


def nested(data):
    with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 3, dim=-1):
        numpyro.sample("v", trained().expand([2, 3]), obs=data.reshape(2, 3, -1))


def to_event(data):
    numpyro.sample("v", trained().expand([len(data)]).to_event(1), obs=data)


def passed(data):
    with numpyro.plate("rows", 3 * len(data), subsample_size=len(data)):
        numpyro.sample("v", trained(), obs=data)


def subsampled(data):
    with numpyro.plate("rows", len(data), subsample_size=BATCH):
        numpyro.sample("v", trained(), obs=numpyro.subsample(data, event_dim=1))


def masked_garbage(data):
    with numpyro.plate("rows", len(data)), handlers.mask(mask=MASK):
        numpyro.sample("v", trained(), obs=jnp.where(MASK[:, None], data, jnp.nan))


WAYS = {
    "full batch": (without_chains, ONES),
    "nested plates": (nested, ONES),
    "to_event": (to_event, ONES),
    "passed minibatch": (passed, 3 * ONES),
    "scale and mask": (handlers.scale(handlers.mask(without_chains, MASK), 0.5), 0.5 * MASK),
    "garbage under a mask": (masked_garbage, MASK),
    "subsample": (subsampled, None),
}


@EVERY
@pytest.mark.parametrize(("model", "row_weights"), WAYS.values(), ids=WAYS)
def test_every_way_to_observe_data(loss, model, row_weights):
    gradient, _, value = update(loss, model)
    each = jax.jit(jax.jacrev(lambda params: row_losses(loss, rbm_of(**params), DATA)))(PARAMS)
    rows = jax.jit(lambda params: row_losses(loss, rbm_of(**params), DATA))(PARAMS)
    if row_weights is None:  # find the rows that were drawn in the gradient of the biases
        row_weights = np.linalg.solve(np.asarray(each["bias"]).T, np.asarray(gradient["bias"]))
        scale = NUM_ROWS / BATCH
        expected = [0] * (NUM_ROWS - BATCH) + [scale] * BATCH
        np.testing.assert_allclose(np.sort(row_weights), expected, atol=1e-2)
        row_weights = scale * jnp.asarray(row_weights > scale / 2)
    wanted = {name: jnp.tensordot(row_weights * ONES, each[name], 1) for name in each}
    assert_gradients_close(gradient, wanted)
    np.testing.assert_allclose(value, (row_weights * rows).sum(), rtol=1e-5)


@EVERY
def test_a_plate_of_models(loss):
    """Each model of a batch is compared with its own data."""
    scale = jnp.array([0.5, 1.0, -1.0])
    params = {
        "weights": scale[:, None, None] * PARAMS["weights"],
        "bias": scale[:, None] + PARAMS["bias"],
    }
    data = jnp.stack([DATA, 1 - DATA, DATA[::-1]], axis=1)

    def model(data):
        with numpyro.plate("models", 3, dim=-1):
            rbm = trained(**params)
            with numpyro.plate("rows", NUM_ROWS, dim=-2):
                numpyro.sample("v", rbm, obs=data)

    gradient, _, _ = update(loss, model, data)
    one = jax.jit(jax.grad(partial(weighted, loss)))
    for i in range(3):
        own = {name: value[i] for name, value in params.items()}
        expected = one(own, data[:, i], ONES)
        assert_gradients_close({name: value[i] for name, value in gradient.items()}, expected)


# ----- guides -------------------------------------------------------------------------------


def with_priors(observe_given):
    """A model with priors on the parameters, observed by ``observe_given(data, params)``."""

    def model(data):
        shape = PARAMS["weights"].shape
        weights = numpyro.sample("weights", dist.Normal(0, 0.5).expand(shape).to_event(2))
        bias = numpyro.sample("bias", dist.Normal(0, 3).expand([NUM_ROWS]).to_event(1))
        observe_given(data, {"weights": weights, "bias": bias})

    return model


def assert_same_as_a_factor(loss, reference_loss, make_guide):
    """NumPyro's own loss, with the same terms written as a factor, has the same gradient."""
    model = with_priors(lambda data, params: observe(rbm_of(**params), data))
    gradient, _, value = update(loss, model, guide=make_guide(model))

    def observe_factor(data, params):
        numpyro.factor("v", -weighted(loss, params, data, ONES))

    reference = with_priors(observe_factor)
    expected, _, reference_value = update(reference_loss, reference, guide=make_guide(reference))
    assert_gradients_close(gradient, expected)
    np.testing.assert_allclose(value, reference_value, rtol=1e-5)


@EVERY
@pytest.mark.parametrize("make_guide", [AutoDelta, AutoNormal])
def test_under_a_guide(loss, make_guide):
    assert_same_as_a_factor(loss, Trace_ELBO(), make_guide)


PARTICLES = {
    "ML": MaximumLikelihood,
    "PL": PseudoLikelihood,
    "block PL": partial(BlockPseudoLikelihood, 2),
    "RM": RatioMatching,
}


@pytest.mark.parametrize("kind", PARTICLES.values(), ids=PARTICLES)
def test_several_particles(kind):
    assert_same_as_a_factor(kind(num_particles=2), Trace_ELBO(num_particles=2), AutoNormal)


@pytest.mark.slow
def test_the_exact_loss_is_the_elbo_of_the_exact_density():
    guarded, exact = (
        with_priors(lambda data, params, kw=kw: observe(rbm_of(**params, **kw), data))
        for kw in ({}, {"normalizer": "exact"})
    )
    gradient, _, value = update(MaximumLikelihood(), guarded, guide=AutoNormal(guarded))
    expected, _, elbo = update(Trace_ELBO(), exact, guide=AutoNormal(exact))
    assert_gradients_close(gradient, expected)
    np.testing.assert_allclose(value, elbo, rtol=1e-5)


# ----- SVI ----------------------------------------------------------------------------------

RANDOM = {
    "chains": MaximumLikelihood(num_chains=5, num_steps=2),
    "sites": PseudoLikelihood(num_sites=2),
    "blocks": BlockPseudoLikelihood(2, random=True),
    "ratios": RatioMatching(num_sites=2),
}


@pytest.mark.parametrize("loss", RANDOM.values(), ids=RANDOM)
def test_random_losses_are_drawn_anew_at_each_update_and_compiled_once(loss):
    traced = []

    def model(data):
        traced.append(len(data))
        without_chains(data)

    svi = SVI(model, no_guide, recorder(), loss)
    state, seen, step = svi.init(jax.random.key(0), DATA), [], jax.jit(svi.update)
    for _ in range(3):
        state, _ = step(state, DATA)
        seen.append(np.asarray(gradient_in(state)["bias"]))
        if len(seen) == 1:
            num_traced = len(traced)
    assert len(traced) == num_traced
    assert not np.allclose(seen[0], seen[1])
    assert not np.allclose(seen[1], seen[2])


@EVERY
def test_evaluate_is_the_loss_of_the_next_update(loss):
    svi = SVI(without_chains, no_guide, recorder(), loss)
    state = svi.init(jax.random.key(0), DATA)
    both = jax.jit(lambda state: (svi.evaluate(state, DATA), svi.update(state, DATA)[1]))(state)
    np.testing.assert_allclose(*both, rtol=1e-5)


@EVERY
def test_run_lowers_the_loss(loss):
    svi = SVI(without_chains, no_guide, optax.adam(0.05), loss)
    losses = svi.run(jax.random.key(0), 30, DATA, progress_bar=False).losses
    assert losses[-1] < losses[0] - 0.1


@EVERY
def test_values_outside_the_support(loss):
    svi = SVI(without_chains, no_guide, recorder(), loss)
    state = svi.init(jax.random.key(0), DATA)
    assert jax.jit(svi.update)(state, DATA.at[3, 2].set(7))[1] == jnp.inf
    with pytest.raises(ValueError, match=r"RBM: expected `obs of site 'v'` in the support"):
        svi.update(state, DATA.at[3, 2].set(7))


# ----- what is refused ----------------------------------------------------------------------

ERRORS = {
    "num_chains 0": ({"num_chains": 0}, "`num_chains` to be a positive integer; got 0"),
    "num_chains 1.5": ({"num_chains": 1.5}, "`num_chains`.*got 1.5"),
    "num_steps 0": ({"num_chains": 1, "num_steps": 0}, "`num_steps`.*got 0"),
    "kernel alone": ({"kernel": Gibbs()}, "`num_chains` beside `kernel`"),
    "particles": ({"num_particles": 0}, "`num_particles`.*got 0"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=f"MaximumLikelihood: expected {message}"):
        MaximumLikelihood(**arguments)


LARGE = {
    "BM": BoltzmannMachine(jnp.zeros((30, 30)), jnp.zeros(30)),
    "RBM": RBM(jnp.zeros((30, 30)), jnp.zeros(30), jnp.zeros(30)),
}


@pytest.mark.parametrize("name", ["BM", "RBM"])
def test_a_model_that_cannot_be_summed_names_the_way_out(name):
    message = r"MaximumLikelihood.*'v'.*MaximumLikelihood\(num_chains=100\).*Persistent"
    with pytest.raises(NormalizerError, match=message):
        MaximumLikelihood().surrogate(jax.random.key(0), "v", LARGE[name], {})
