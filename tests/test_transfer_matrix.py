"""Narrow lattices by transfer matrix, against enumeration and Kaufman's closed form."""

import arviz as az
import ising_exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from exact_fit import fit_score
from jax import random
from jax.scipy.special import logsumexp
from numpyro.infer import MCMC, NUTS
from pairwise_models import Bond, Brute, field_of, lattice_bonds

import numpyro_ebm as ebm
from numpyro_ebm import BoltzmannMachine, Ising, Potts, couplings
from numpyro_ebm.distributions.pairwise_sum import joint_states
from numpyro_ebm.distributions.transfer_matrix import best_cut, transfer_log_z

NUM_DRAWS = 4000
SHAPES = [
    ((3, 4), True),
    ((3, 4), (True, False)),
    ((4, 3), (True, False)),
    ((3, 3), False),
    ((2, 5), True),
    ((2, 2), (False, True)),
    ((1, 4), True),
    ((5,), True),
    ((6,), False),
    ((1,), True),
    ((2, 3, 2), (True, False, True)),
    ((2, 2, 2), True),
]
"""Boundaries of every kind, with axes of length 1 and 2."""


def random_lattice(kind, shape, periodic, batch=(), num_states=3, seed=0):
    """A model with a coupling for every bond and a field for every site."""
    rng = np.random.default_rng(seed)
    bonds = [jnp.asarray(0.7 * rng.normal(size=(*batch, *shape))) for _ in shape]
    axes = np.broadcast_to(periodic, len(shape))
    bonds = [b if axes[k] else b.at[..., *_last(shape, k)].set(0) for k, b in enumerate(bonds)]
    bonds = [b if axes[k] else _shorter(b, shape, k) for k, b in enumerate(bonds)]
    own = (num_states,) if kind is Potts else ()
    field = jnp.asarray(rng.normal(size=(*batch, *shape, *own)))
    return kind(couplings.Lattice(shape, bonds, periodic), field)


def _last(shape, axis):
    return [slice(None) if k != axis else -1 for k in range(len(shape))]


def _shorter(bonds, shape, axis):
    return jnp.take(bonds, np.arange(shape[axis] - 1), axis=bonds.ndim - len(shape) + axis)


def enumerated_log_z(model):
    """Log Z from the energies of all joint states."""
    states = joint_states(model, jnp.arange(model.num_joint_states))
    ones = [1] * len(model.batch_shape)
    return logsumexp(-model.units_energy(states.reshape(-1, *ones, *model.couplings.shape)), axis=0)


CASES = [(Ising, *case) for case in SHAPES]
CASES += [(BoltzmannMachine, (2, 4), True), (BoltzmannMachine, (3, 3), (False, True))]
CASES += [(Potts, (2, 3), True), (Potts, (2, 3), False), (Potts, (2, 2, 1), (True, False, True))]


@pytest.mark.parametrize(
    ("kind", "shape", "periodic"), CASES, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_log_z_and_gradient_agree_with_enumeration(kind, shape, periodic):
    with jax.enable_x64(True):
        model = random_lattice(kind, shape, periodic)
        cut = best_cut(model)
        found, slope = jax.value_and_grad(lambda m: transfer_log_z(m, cut))(model)
        expected, gradient = jax.jit(jax.value_and_grad(enumerated_log_z))(model)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_batches_precision_and_transformations():
    model = random_lattice(Ising, (3, 4), (True, False), batch=(2, 3))
    expected = enumerated_log_z(model)
    assert expected.shape == (2, 3)
    for found in (model.exact_log_z(), jax.vmap(lambda m: transfer_log_z(m, best_cut(m)))(model)):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(ebm.evidence.exact(model).log_evidence, expected, rtol=1e-5)
    one = Ising.lattice((3, 4), jnp.array([0.1, 0.2, 0.3]).reshape(3, 1), 0.1)  # batch by coupling
    np.testing.assert_allclose(one.exact_log_z(), enumerated_log_z(one), rtol=1e-5)

    def log_z(coupling):
        return Ising.lattice((3, 4), coupling, 0.1).exact_log_z()

    slopes = jax.jit(jax.vmap(jax.grad(log_z)))(jnp.array([0.1, 0.3]))
    steps = [(log_z(c + 0.01) - log_z(c - 0.01)) / 0.02 for c in (0.1, 0.3)]
    np.testing.assert_allclose(slopes, jnp.array(steps), rtol=1e-2)


@pytest.mark.parametrize(
    ("shape", "coupling"),
    [
        ((6, 6), 0.3),
        ((8, 9), 0.4407),
        ((20, 7), 0.6),
        pytest.param((12, 13), 0.4407, marks=pytest.mark.slow),
        pytest.param((12, 12), 0.2, marks=pytest.mark.slow),
    ],
)
def test_log_z_agrees_with_kaufman(shape, coupling):
    model = Ising.lattice(shape, jnp.float32(coupling))
    found = ebm.evidence.exact(model).log_evidence
    assert found == pytest.approx(ising_exact.log_z(*shape, np.float32(coupling)), rel=1e-12)
    assert model.exact_log_z() == pytest.approx(found, rel=1e-6)


def test_strong_couplings_and_fields_do_not_underflow():
    """Rows of opposite fields, so that what is rare in one row is frequent in the next."""
    field = 30 * np.repeat([[1.0], [-1.0], [1.0], [-1.0]], 4, axis=1)
    model = Ising.lattice((4, 4), jnp.float32(7.0), field.astype(np.float32), (False, True))
    with jax.enable_x64(True):
        exact = enumerated_log_z(Ising.lattice((4, 4), 7.0, jnp.asarray(field), (False, True)))
    assert transfer_log_z(model, best_cut(model)) == pytest.approx(float(exact), rel=1e-6)


def by_enumeration(model):
    """The same model by a list of bonds."""
    kind = {Ising: "spin", BoltzmannMachine: "binary", Potts: "Potts"}[type(model)]
    first, second, values = model.edge_list()
    bonds = [Bond(*edge) for edge in zip(first, second, np.asarray(values), strict=True)]
    field = np.asarray(model._site_field).reshape(model.couplings.num_units, -1)
    field = field if kind == "Potts" else field[:, 0]
    return Brute(kind, model.couplings.shape, bonds, field, getattr(model, "num_visible", None))


@pytest.mark.parametrize(
    "model",
    [
        lambda: random_lattice(Ising, (3, 4), True),
        lambda: random_lattice(BoltzmannMachine, (4, 3), (True, False)),
        lambda: random_lattice(Potts, (2, 3), True),
        lambda: random_lattice(Ising, (2, 2, 3), (False, True, True)),
        lambda: Ising(
            couplings.Lattice((7,), [jnp.ones(7)]), jnp.asarray(field_of(70, 7)), num_visible=4
        ),
    ],
    ids=["torus", "cylinder", "Potts", "three dimensions", "hidden units on a ring"],
)
def test_draws_agree_with_enumeration(model):
    model = model()
    draws = model.exact_sample(random.key(0), (NUM_DRAWS,), method="transfer_matrix")
    assert draws.shape == (NUM_DRAWS, *model.event_shape)
    assert draws.dtype == jnp.int32
    assert fit_score(by_enumeration(model), draws) < 4


def test_draws_of_a_batch():
    fields = jnp.array([-0.5, 0.5]).reshape(2, 1, 1)
    model = Ising.lattice((3, 4), 0.3, fields, (False, True))
    draws = model.exact_sample(random.key(0), (NUM_DRAWS // 4, 4), method="transfer_matrix")
    assert draws.shape == (NUM_DRAWS // 4, 4, 2, 3, 4)
    for k, field in enumerate([-0.5, 0.5]):
        bonds = lattice_bonds((3, 4), 0.3, (False, True))
        exact = Brute("spin", (3, 4), bonds, np.full(12, field))
        assert fit_score(exact, draws[:, :, k].reshape(-1, 12)) < 4


@pytest.mark.slow
def test_draws_under_jit_and_vmap():
    def draw(key, coupling):
        return Ising.lattice((4, 4), coupling, 0.1).exact_sample(key, (3,))

    keys, values = random.split(random.key(0), 2), jnp.array([0.1, 0.4])
    batched = jax.jit(jax.vmap(draw))(keys, values)
    assert batched.shape == (2, 3, 4, 4)
    assert jnp.array_equal(batched[1], draw(keys[1], values[1]))


# ----- where it is used --------------------------------------------------------------------


def test_the_cheaper_sum_is_used():
    assert Ising.lattice((4, 4), 0.3).exact_sampler == "transfer_matrix"
    assert Ising.lattice((2, 2), 0.3).exact_sampler == "enumeration"
    assert list(Ising.lattice((4, 4), 0.3).exact_terms) == ["transfer_matrix", "enumeration"]
    assert list(Ising.lattice((2, 2), 0.3).exact_terms) == ["enumeration", "transfer_matrix"]
    strip = Ising.lattice((12, 40), 0.3, periodic=(True, False))
    assert strip.exact_terms == {"transfer_matrix": 2**12}
    draw = ebm.perfect_sample(random.key(0), strip)
    assert draw.method == "transfer_matrix"
    assert draw.value.shape == (12, 40)
    assert Ising.lattice((13, 13), 0.3).exact_sampler is None
    assert Potts.lattice((7, 9), 0.3, 3).exact_sampler == "transfer_matrix"
    assert Potts.lattice((8, 9), 0.3, 3).exact_sampler is None
    assert Ising(couplings.Lattice((4, 4), 0.3).dense(), 0.0).exact_sampler == "enumeration"


def test_a_wide_lattice_says_what_can_be_summed():
    with pytest.raises(ebm.NormalizerError, match="narrow lattice .* at most 4096 joint states"):
        Ising.lattice((13, 13), 0.3).exact_log_z()


def test_log_prob_of_a_narrow_lattice():
    coupling = 0.3
    model = Ising.lattice((6, 6), coupling, normalizer="exact")
    up = jnp.ones((6, 6), int)
    expected = 72 * coupling - ising_exact.log_z(6, 6, coupling)
    assert model.log_prob(up) == pytest.approx(expected, rel=1e-5)


def lattice_model(values, periodic):
    coupling = numpyro.sample("coupling", dist.Normal(0.2, 0.2))
    field = numpyro.sample("field", dist.Normal(0.0, 0.3))
    lattice = Ising.lattice((6, 6), coupling, field, periodic, normalizer="exact")
    numpyro.sample("values", lattice, obs=values)


def grid_posterior(values, periodic):
    """Mean and standard deviation of both parameters on a fine grid."""
    axes = np.linspace(-0.4, 0.8, 81), np.linspace(-0.9, 0.9, 81)

    def log_density(coupling, field):
        prior = -0.5 * ((coupling - 0.2) / 0.2) ** 2 - 0.5 * (field / 0.3) ** 2
        model = Ising.lattice((6, 6), coupling, field, periodic, normalizer="exact")
        return prior + model.log_prob(values)

    rows = jax.jit(jax.vmap(jax.vmap(log_density, (None, 0)), (0, None)))
    log_p = np.asarray(rows(jnp.float32(axes[0]), jnp.float32(axes[1])), np.float64)
    probs = np.exp(log_p - log_p.max())
    moments = []
    for k, axis in enumerate(axes):
        marginal = probs.sum(1 - k) / probs.sum()
        mean = marginal @ axis
        moments.append((mean, np.sqrt(marginal @ (axis - mean) ** 2)))
    return moments


@pytest.mark.parametrize(
    "periodic", [(True, False), pytest.param(True, marks=pytest.mark.slow)], ids=str
)
def test_nuts_agrees_with_the_posterior_on_a_grid(periodic):
    data = ebm.perfect_sample(random.key(0), Ising.lattice((6, 6), 0.3, 0.1, periodic)).value
    mcmc = MCMC(NUTS(lattice_model), num_warmup=300, num_samples=700, progress_bar=False)
    mcmc.run(random.key(1), data, periodic)
    posterior = grid_posterior(data, periodic)
    for name, (mean, std) in zip(("coupling", "field"), posterior, strict=True):
        draws = np.asarray(mcmc.get_samples()[name], np.float64)
        spread = (draws - mean) ** 2
        for own, expected in ((draws, mean), (spread, std**2)):
            error = own.std() / np.sqrt(float(az.ess(own[None])))
            assert abs(own.mean() - expected) < 4 * error
