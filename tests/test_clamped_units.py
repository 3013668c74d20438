"""Clamped units: what is left follows the conditional given what is held."""

import jax
import numpy as np
import numpyro
import pytest
from chains import Posterior, assert_chain_means, assert_posterior, run, sampled_moments
from registry import Case

from numpyro_ebm import BlockGibbs

SMALL = Case("Bernoulli", "Bernoulli", 400)


def model(rbm):
    numpyro.sample("v", rbm)


def in_plate(rbm):
    with numpyro.plate("draw", 3):
        numpyro.sample("v", rbm)


MASK, HELD = [True, False, False], [1, 0, 0]


def test_clamped_units():
    rbm = SMALL.build()
    posterior = Posterior(rbm, lambda states: np.where(states[:, 0] == 1, 0.0, -np.inf))
    mcmc = run(BlockGibbs(model, clamp={"v": (MASK, HELD)}), rbm, num_chains=8)
    assert_posterior(mcmc, posterior)


def test_clamped_units_in_a_plate():
    rbm = Case("Categorical", "Bernoulli", 501).build()
    held = np.array([[2, 0], [0, 0], [0, 1]])
    mask = np.array([[True, False], [False, False], [False, True]])
    mcmc = run(BlockGibbs(in_plate, clamp={"v": (mask, held)}), rbm, num_chains=8)
    samples = np.asarray(mcmc.get_samples(group_by_chain=True)["v"])
    for i in range(3):
        conditional = Posterior(
            rbm, lambda v, i=i: np.where(np.all((v == held[i]) | ~mask[i], axis=-1), 0.0, -np.inf)
        )
        moments = sampled_moments(rbm, samples[:, :, i], rbm.energy(samples[:, :, i]))
        assert_chain_means(moments, conditional.moments())


@pytest.mark.parametrize(
    ("clamp", "message"),
    [
        ({"w": (MASK, HELD)}, r"`clamp` to name latent energy-based sites \('v',\); got \['w'\]"),
        ({"v": MASK}, r"`clamp` as \{site: \(mask, values\)\}"),
        ({"v": ([True, False], HELD)}, r"the mask of `clamp\['v'\]` to broadcast to shape \(3,\)"),
        ({"v": (MASK, [1, 0])}, r"the values of `clamp\['v'\]` to broadcast.*got \(2,\)"),
        ({"v": (MASK, [7, 0, 0])}, r"`clamp\['v'\] values` in the support.*got"),
        ({"v": (True, 0.5)}, r"`clamp\['v'\] values` in the support"),
    ],
)
def test_clamps_are_checked(clamp, message):
    with pytest.raises(ValueError, match=message):
        BlockGibbs(model, clamp=clamp).init(jax.random.key(0), 0, None, (SMALL.build(),), {})


def test_values_of_free_units_do_not_matter():
    kernel = BlockGibbs(model, clamp={"v": (MASK, [1, 7, 7])})
    state = kernel.init(jax.random.key(0), 0, None, (SMALL.build(),), {})
    assert state.z["v"][0] == 1
