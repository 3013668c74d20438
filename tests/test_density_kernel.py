"""Kernels that move all sites of one kind jointly: which sites, which models, which starts."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import run
from numpyro.handlers import scale
from numpyro.infer.util import log_density
from registry import Case

import numpyro_ebm as ebm
from numpyro_ebm import MALA, NormalizerError
from numpyro_ebm.kernels import MALAStep
from numpyro_ebm.kernels.density import DensityKernel

BINARY = Case("Bernoulli", "Bernoulli", 950).build()
POTTS = Case("Categorical", "Bernoulli", 951).build()
GAUSSIAN = Case("Gaussian", "Bernoulli", 952).build()
SHORT = {"num_warmup": 0, "num_samples": 5}


class Still:
    """A kernel that stays where it is, to look at the target it is given."""

    num_warmup = 0

    def init(self, value, target):
        return value

    def step(self, rng_key, state, target):
        return state, None

    def value(self, state, target):
        return state

    def refresh(self, state, target):
        return state

    def energy(self, state, target):
        return target.energy(state)


class Discrete(DensityKernel):
    def __init__(self, model):
        super().__init__(model, Still(), sites="discrete")


class Continuous(DensityKernel):
    def __init__(self, model):
        super().__init__(model, Still(), sites="continuous")


def several_kinds():
    numpyro.sample("flag", dist.Bernoulli(0.3))
    numpyro.sample("v", BINARY)
    with numpyro.plate("rows", 2):
        numpyro.sample("z", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        numpyro.sample("u", POTTS)


@pytest.mark.slow
def test_discrete_sites_in_one_vector():
    kernel = Discrete(several_kinds)
    start = {"v": np.array([1, 0, 1]), "flag": np.array(1), "z": np.array([2, 0])}
    state = kernel.init(jax.random.key(0), 0, start, (), {})
    sites = {name: np.asarray(value) for name, value in state.z.items()}
    np.testing.assert_array_equal(sites["v"], start["v"])
    expected = -log_density(several_kinds, (), {}, sites)[0]
    np.testing.assert_allclose(state.energy, expected, rtol=1e-6)
    model_trace = kernel._trace(state.z, (), {})
    target, flat = kernel._target(state.z, model_trace, (), {})
    values, allowed = target.unit_states
    assert target.event_shape == flat.shape == (1 + 3 + 2 + 4,)
    assert target.batch_shape == ()
    np.testing.assert_array_equal(allowed.sum(-1), [2, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    np.testing.assert_array_equal(values[0], [0, 1, 1])
    np.testing.assert_array_equal(values[-1], [0, 1, 2])
    together = target.energy(jnp.stack([flat, flat.at[0].set(0)]))
    assert together.shape == (2,)
    np.testing.assert_allclose(together[1] - together[0], np.log(0.3 / 0.7), rtol=1e-4)


@pytest.mark.slow
def test_samples_keep_their_shapes_and_types():
    samples = run(Discrete(several_kinds), num_chains=2, **SHORT).get_samples()
    shapes = {name: (x.shape[1:], x.dtype.name) for name, x in samples.items()}
    assert shapes == {
        "flag": ((), "int32"),
        "v": ((3,), "uint8"),
        "z": ((2,), "int32"),
        "u": ((2, 2), "uint8"),
    }


def constrained():
    numpyro.sample("s", dist.HalfNormal(1.0))
    numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))


def test_continuous_sites_in_one_unconstrained_vector():
    kernel = Continuous(constrained)
    state = kernel.init(jax.random.key(0), 0, {"s": np.array(2.0)}, (), {})
    assert state.chains["joint"].shape == (1 + 2 + 2,)
    np.testing.assert_allclose(state.z["s"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(state.z["w"].sum(), 1.0, rtol=1e-5)
    sites = {name: jnp.asarray(x) for name, x in state.z.items()}
    jacobian = (
        jnp.log(2.0)
        + jnp.linalg.slogdet(
            jax.jacobian(lambda y: dist.biject_to(dist.constraints.simplex)(y)[:2])(
                dist.biject_to(dist.constraints.simplex).inv(sites["w"])
            )
        )[1]
    )
    expected = -log_density(constrained, (), {}, sites)[0] - jacobian
    np.testing.assert_allclose(state.energy, expected, rtol=1e-5)


def test_energy_of_a_lone_site_is_its_own():
    for model, kernel in ((BINARY, Discrete), (GAUSSIAN, Continuous)):
        mcmc = run(
            kernel(lambda m=model: numpyro.sample("v", m)), extra_fields=("energy",), **SHORT
        )
        energies, samples = mcmc.get_extra_fields()["energy"], mcmc.get_samples()["v"]
        np.testing.assert_allclose(energies, model.energy(samples), rtol=1e-5)


# ----- refusals ----------------------------------------------------------------------------


def mixed():
    numpyro.sample("x", dist.Normal())
    numpyro.sample("v", BINARY)


def counts():
    numpyro.sample("n", dist.Poisson(2.0))


def observed_only():
    numpyro.sample("x", dist.Normal(), obs=1.0)


def feeds_unknown_log_z():
    b = numpyro.sample("b", dist.Bernoulli(0.5))
    numpyro.sample("w", ebm.RBM(b * jnp.ones((2, 2)), jnp.zeros(2), jnp.zeros(2)), obs=jnp.ones(2))


def subsampled():
    numpyro.sample("b", dist.Bernoulli(0.5))
    with numpyro.plate("rows", 10, subsample_size=5):
        numpyro.sample("y", dist.Normal(), obs=jnp.zeros(5))


@pytest.mark.parametrize(
    ("kernel", "model", "error", "message"),
    [
        (Discrete, mixed, ValueError, r"discrete latent sites only.*got \['x'\].*Gibbs\(\["),
        (Continuous, mixed, ValueError, r"continuous latent sites only.*got \['v'\].*Gibbs\(\["),
        (Discrete, observed_only, ValueError, "at least one; got none"),
        (Discrete, counts, ValueError, "site 'n' to have finitely many states"),
        (Discrete, feeds_unknown_log_z, NormalizerError, "'b' enters the parameters.*at 'w'"),
        (Discrete, subsampled, ValueError, "without subsampled plates"),
        (Discrete, BINARY, TypeError, "expected `model` to be a NumPyro model.*got RBM"),
    ],
)
def test_refused(kernel, model, error, message):
    with pytest.raises(error, match=message):
        run(kernel(model), **SHORT)


def test_gradients_keep_the_guard():
    def prior_on_weights():
        w = numpyro.sample("w", dist.Normal().expand([2, 2]).to_event(2))
        numpyro.sample("v", ebm.RBM(w, jnp.zeros(2), jnp.zeros(2)), obs=jnp.ones(2))

    with pytest.raises(NormalizerError, match="differentiated|enters the parameters"):
        run(MALA(prior_on_weights), **SHORT)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"flag": 3}, r"`init_params\['flag'\]` in the support"),
        ({"flag": [1, 0]}, r"`init_params` of shape \(\) for site 'flag'; got \(2,\)"),
        ({"other": 1}, r"for sites among \('flag', 'v', 'z', 'u'\); got 'other'"),
    ],
)
def test_starting_values_are_checked(start, message):
    with pytest.raises(ValueError, match=message):
        Discrete(several_kinds).init(jax.random.key(0), 0, start, (), {})


@pytest.mark.slow
def test_starts_where_the_density_is_finite():
    """A prior draw need not be: the start is drawn again."""

    def narrow():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("wall", jnp.where(x > 1.2, 0.0, -jnp.inf))

    keys = jax.random.split(jax.random.key(0), 50)
    states = Continuous(narrow).init(keys, 0, None, (), {})
    assert np.all(np.asarray(states.z["x"]) > 1.2)
    assert np.isfinite(states.energy).all()


def test_scaled_sites_are_scaled():
    def model():
        with scale(scale=2.0):
            numpyro.sample("v", BINARY)

    state = Discrete(model).init(jax.random.key(0), 0, None, (), {})
    np.testing.assert_allclose(state.energy, 2 * BINARY.energy(state.z["v"]), rtol=1e-6)


def test_warmup_reaches_the_kernel():
    kernel = MALA(constrained)
    kernel.init(jax.random.key(0), 123, None, (), {})
    assert kernel._kernel.num_warmup == 123
    assert MALAStep().num_warmup == 0
