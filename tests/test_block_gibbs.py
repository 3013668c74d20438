"""Block Gibbs without a likelihood: chains have the moments of the RBM, whatever runs them."""

from functools import lru_cache

import jax
import numpy as np
import numpyro
import pytest
from chains import Posterior, assert_chain_means, assert_posterior, run, sampled_moments
from helpers import BruteForce, features, z_scores
from registry import Case, member, parametrize

from numpyro_ebm import BlockGibbs
from numpyro_ebm.kernels import GibbsSweeps

CASES = [
    Case(visible, hidden, 400 + seed)
    for seed, (visible, hidden) in enumerate(
        [
            ("Bernoulli", "Bernoulli"),
            ("Spin", "Categorical"),
            ("Categorical", "Spin"),
            ("Gaussian", "Bernoulli"),
            ("ReLU", "Gaussian"),
            ("Gaussian+Bernoulli", "ReLU"),
        ]
    )
]
COLLECTED = {"Bernoulli": "uint8", "Spin": "int8", "Categorical": "uint8"}
SMALL = CASES[0]
MOST = [pytest.param(c, id=c.name, marks=[pytest.mark.slow] * ("+" in c.visible)) for c in CASES]


def model(rbm):
    numpyro.sample("v", rbm)


@lru_cache
def sampled(case):
    """Chains on a case, with everything that can be collected."""
    return run(BlockGibbs(model), case.build(), num_chains=16, extra_fields=("energy", "hidden"))


@pytest.mark.parametrize("case", MOST)
def test_moments(case):
    assert_posterior(sampled(case), Posterior(case.build()))


@pytest.mark.parametrize("case", MOST)
def test_collected_types(case):
    samples = sampled(case).get_samples()["v"]
    assert samples.dtype == COLLECTED.get(case.visible, "float32")
    assert samples.nbytes == samples.size * samples.dtype.itemsize


@pytest.mark.parametrize("case", MOST)
def test_energy_is_that_of_the_samples(case):
    mcmc = sampled(case)
    energies = mcmc.get_extra_fields()["energy"]
    np.testing.assert_allclose(
        energies, case.build().energy(mcmc.get_samples()["v"]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("case", MOST)
def test_hidden_units_belong_to_the_samples(case):
    """The hidden units of the last sweep and the visible units are a joint draw."""
    mcmc, brute = sampled(case), BruteForce(case.build())
    hidden = features(brute.rbm.hidden_units, mcmc.get_extra_fields(group_by_chain=True)["hidden"])
    visible = features(brute.rbm.visible_units, mcmc.get_samples(group_by_chain=True)["v"])
    products = (visible[..., :, None] * hidden[..., None, :]).reshape(*hidden.shape[:2], -1)
    assert_chain_means(products, brute.mean_coupling.ravel())
    assert_chain_means(hidden, brute.mean_hidden)


# ----- the kernel itself -------------------------------------------------------------------


def transition(rbm, num_sweeps):
    """Probabilities of the next visible state given the present one, after some sweeps."""
    brute = BruteForce(rbm)
    log_hidden = brute.log_hidden(brute.visible.values)
    log_visible = brute.log_visible(brute.hidden.values)
    sweep = np.exp(log_hidden - log_hidden.max(1, keepdims=True))
    sweep /= sweep.sum(1, keepdims=True)
    back = np.exp(log_visible - log_visible.max(1, keepdims=True))
    return np.linalg.matrix_power(sweep @ (back / back.sum(1, keepdims=True)), num_sweeps)


@pytest.mark.parametrize("num_sweeps", [pytest.param(1, marks=pytest.mark.slow), 3])
@parametrize(CASES[:3])
def test_a_step_makes_as_many_sweeps(case, num_sweeps):
    rbm, brute, kernel = case.build(), BruteForce(case.build()), GibbsSweeps(num_sweeps)
    start = brute.draw(np.random.default_rng(0), 30_000)

    @jax.jit
    def step(value):
        state, info = kernel.step(jax.random.key(0), kernel.init(value, rbm), rbm)
        return kernel.value(state, rbm), info.energy

    value, energy = step(start)
    np.testing.assert_allclose(energy, rbm.energy(value), rtol=1e-5)
    feature = features(rbm.visible_units, brute.visible.values)
    joint = brute.probs[:, None] * transition(rbm, num_sweeps)
    expected = (feature.T @ joint @ feature).ravel()
    before, after = features(rbm.visible_units, start), features(rbm.visible_units, value)
    sampled = (before[:, :, None] * after[:, None, :]).reshape(len(start), -1)
    assert np.all(np.abs(z_scores(sampled, expected)) < 4)


@pytest.mark.parametrize("num_sweeps", [0, -1, 1.5])
def test_number_of_sweeps_is_checked(num_sweeps):
    with pytest.raises(ValueError, match="`num_sweeps` to be a positive integer; got"):
        BlockGibbs(model, num_sweeps=num_sweeps)


def test_a_distribution_is_not_a_model():
    with pytest.raises(TypeError, match="expected `model` to be a NumPyro model.*got RBM"):
        BlockGibbs(SMALL.build())


# ----- how chains are run ------------------------------------------------------------------


@pytest.mark.parametrize("case", [SMALL, pytest.param(CASES[2], marks=pytest.mark.slow)])
def test_chain_methods_give_the_same_chains(case):
    kernel = BlockGibbs(model, num_sweeps=2)
    sequential, parallel, vectorized = (
        run(
            kernel,
            case.build(),
            num_chains=2,
            num_samples=100,
            chain_method=method,
            extra_fields=("energy",),
        )
        for method in ("sequential", "parallel", "vectorized")
    )
    assert parallel.chain_method == "parallel"
    for other in (parallel, vectorized):
        np.testing.assert_array_equal(other.get_samples()["v"], sequential.get_samples()["v"])
        np.testing.assert_allclose(
            other.get_extra_fields()["energy"], sequential.get_extra_fields()["energy"], rtol=1e-5
        )


def test_thinning_keeps_every_third_sample():
    every, third = (
        run(BlockGibbs(model), SMALL.build(), num_samples=90, thinning=thinning)
        for thinning in (1, 3)
    )
    np.testing.assert_array_equal(third.get_samples()["v"], every.get_samples()["v"][2::3])


# ----- several draws and several models ----------------------------------------------------


def in_plate(rbm):
    with numpyro.plate("draw", 3):
        numpyro.sample("v", rbm)


def expanded(rbm):
    numpyro.sample("v", rbm.expand([3]).to_event(1))


def in_two_plates(rbm):
    with numpyro.plate("model", 3, dim=-1), numpyro.plate("draw", 2, dim=-2):
        numpyro.sample("v", rbm)


BATCH = ((3,), (), (3,))


@pytest.mark.parametrize(
    ("model", "batches", "shape"),
    [
        (expanded, ((), (), ()), (3,)),
        (in_plate, BATCH, (3,)),
        pytest.param(in_plate, ((), (), ()), (3,), marks=pytest.mark.slow),
        pytest.param(model, BATCH, (3,), marks=pytest.mark.slow),
        pytest.param(in_two_plates, BATCH, (2, 3), marks=pytest.mark.slow),
    ],
)
def test_batches(model, batches, shape):
    rbm = Case("Bernoulli", "Spin", 500, batches).build()
    mcmc = run(BlockGibbs(model), rbm, num_chains=8, extra_fields=("energy",))
    samples = np.asarray(mcmc.get_samples(group_by_chain=True)["v"])
    assert samples.shape == (8, 1000, *shape, 3)
    total = 0
    for index in np.ndindex(shape):
        single, chosen = member(rbm, index), samples[:, :, *index]
        energies = np.asarray(single.energy(chosen))
        total = total + energies
        assert_chain_means(sampled_moments(single, chosen, energies), Posterior(single).moments())
    collected = mcmc.get_extra_fields(group_by_chain=True)["energy"]
    np.testing.assert_allclose(collected, total, rtol=1e-4, atol=1e-4)


def two_sites(first, second):
    numpyro.sample("first", first)
    numpyro.sample("second", second)


@pytest.mark.slow
def test_several_sites():
    first, second = SMALL.build(), CASES[2].build()
    fields = ("energy", "hidden")
    mcmc = run(BlockGibbs(two_sites), first, second, num_chains=8, extra_fields=fields)
    assert_posterior(mcmc, Posterior(first), "first")
    assert_posterior(mcmc, Posterior(second), "second")
    samples, extra = mcmc.get_samples(), mcmc.get_extra_fields()
    total = first.energy(samples["first"]) + second.energy(samples["second"])
    np.testing.assert_allclose(extra["energy"], total, rtol=1e-4, atol=1e-5)
    assert {name: hidden.shape[1:] for name, hidden in extra["hidden"].items()} == {
        "first": (2,),
        "second": (2,),
    }
