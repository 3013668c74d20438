"""Every kernel that claims to be exact, and the targets it is tried on.

A new kernel is one row in ``KERNELS``; a new target one entry in ``TARGETS``.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from continuous_targets import draws_of_gaussian, draws_of_mixture
from dbm_models import ExactLayers, draw_visible
from dbm_models import model as deep_model
from helpers import BruteForce
from pairwise_models import CASES, brute, torus_draw
from registry import NUM_STATES, Case
from tempered_models import ExactReplicas

from numpyro_ebm import Ising, Potts, kernels

NUM_CHAINS = 20_000


class Target(NamedTuple):
    """A distribution and exact draws from it.

    Attributes:
        distribution: The target.
        draw: Maps a NumPy generator and a number to exact draws.
        num_states: States of categorical units.
    """

    distribution: Any
    draw: Callable[[np.random.Generator, int], np.ndarray]
    num_states: int | None = None


def of_rbm(visible, hidden, seed):
    """An RBM of the registry; exact draws by enumeration."""

    def make():
        case = Case(visible, hidden, seed)
        rbm = case.build()
        states = NUM_STATES if visible == "Categorical" else None
        return Target(rbm, BruteForce(rbm).draw, states)

    return make


def of_continuous(visible, hidden, seed, draw):
    """An RBM with continuous visible units; exact draws in closed form."""

    def make():
        rbm = Case(visible, hidden, seed).build()
        return Target(rbm, draw(rbm))

    return make


def of_pairwise(name, num_states=None, **kwargs):
    """A small pairwise model; exact draws by enumeration."""

    def make():
        return Target(CASES[name].build(**kwargs), brute(name).draw, num_states)

    return make


def of_torus(cls, kind, num_states, coupling, field):
    """A 4x4 periodic lattice; exact draws by a transfer matrix."""

    def make():
        def draw(rng, size):
            return torus_draw(kind, num_states, coupling, field, 4, rng, size)

        own = {"num_states": num_states, "fields": field} if kind == "Potts" else {"field": field}
        model = cls.lattice((4, 4), coupling, **own)
        return Target(model, draw, num_states if kind == "Potts" else None)

    return make


def of_dbm(name):
    """A deep Boltzmann machine; exact draws by enumeration."""

    def make():
        return Target(deep_model(name), draw_visible(name))

    return make


TARGETS = {
    "RBM binary": of_rbm("Bernoulli", "Bernoulli", 900),
    "RBM spin": of_rbm("Spin", "Bernoulli", 901),
    "RBM Potts": of_rbm("Categorical", "Spin", 902),
    "RBM mixed": of_rbm("Categorical+Spin", "Bernoulli", 903),
    "RBM Gaussian": of_continuous("Gaussian", "Gaussian", 910, draws_of_gaussian),
    "RBM mixture": of_continuous("Gaussian", "Bernoulli", 911, draws_of_mixture),
    "RBM rectified": of_continuous("ReLU", "Bernoulli", 912, draws_of_mixture),
    **{name: of_pairwise(name, 3 if name.startswith("Potts") else None) for name in CASES},
    "DBM two": of_dbm("two"),
    "DBM three": of_dbm("three"),
    "DBM multimodal": of_dbm("multimodal"),
    "Ising dense random": of_pairwise("Ising dense", scan="random"),
    "Ising odd cycle in order": of_pairwise("Ising odd cycle", scan="sequential"),
    "Potts 3x3 in order": of_pairwise("Potts 3x3", 3, scan="sequential"),
    "Ising 4x4": of_torus(Ising, "spin", 2, 0.4375, 0.0625),
    "Potts 4x4": of_torus(Potts, "Potts", 3, 0.875, (0.125, 0.0, -0.125)),
}
"""Builders of targets by name."""

CONTINUOUS = ("RBM Gaussian", "RBM mixture", "RBM rectified")
SWEPT = (
    "BM 16 frustrated",
    "BM hidden",
    "Ising dense",
    "Ising dense random",
    "Ising hidden",
    "Ising odd cycle",
    "Ising odd cycle in order",
    "Ising 3x3 fields",
    "Ising 3x4 free",
    "Ising 2x2x3",
    "Ising 4x4",
    "Potts 3x3 in order",
    "Potts odd cycle",
    "Potts 4x4",
)
RBMS = ("RBM binary", "RBM spin", "RBM Potts")
TEMPERED = ("RBM mixed", "BM dense", "BM hidden", "Potts 2x3 free")


class Row(NamedTuple):
    """A kernel, the targets it is tried on, and what those need to start it."""

    kernel: Any
    targets: tuple[str, ...]


def tempered(name, **options):
    """Parallel tempering of a target, every replica started exactly, and the target."""
    kernel = kernels.ParallelTemperingStep(num_temperatures=3, **options)
    return ExactReplicas(kernel, lambda: target(name).distribution), (name,)


KERNELS = {
    "GibbsSweeps": Row(kernels.GibbsSweeps(), (*RBMS, "RBM mixed", *SWEPT)),
    **{
        f"GibbsSweeps of layers, {name}": Row(
            ExactLayers(kernels.GibbsSweeps(), name), (f"DBM {name}",)
        )
        for name in ("three", "multimodal")
    },
    "GibbsWithGradientsStep": Row(
        kernels.GibbsWithGradientsStep(), (*RBMS, "RBM mixed", "BM hidden", "Potts 4x4", "DBM two")
    ),
    "GibbsWithGradientsStep of 3": Row(
        kernels.GibbsWithGradientsStep("barker", num_flips=3), ("RBM Potts",)
    ),
    "GibbsWithGradientsStep max": Row(kernels.GibbsWithGradientsStep("max"), ("RBM spin",)),
    "DiscreteLangevinStep": Row(
        kernels.DiscreteLangevinStep(0.4), (*RBMS, "RBM mixed", "BM 16 frustrated", "Ising 4x4")
    ),
    "DiscreteLangevinStep of 3": Row(
        kernels.DiscreteLangevinStep(2.0, num_steps=3), ("RBM Potts",)
    ),
    "MALAStep": Row(kernels.MALAStep(0.8), CONTINUOUS),
    "MALAStep of 3": Row(kernels.MALAStep(0.4, num_steps=3), ("RBM mixture",)),
    "GibbsLangevinStep": Row(
        kernels.GibbsLangevinStep(0.8, num_steps=3),
        ("RBM mixture", "RBM rectified", "RBM Gaussian"),
    ),
    "SwendsenWangStep": Row(
        kernels.SwendsenWangStep(), ("Ising 3x3 fields", "Ising 4x4", "Potts 4x4")
    ),
    "WolffStep": Row(kernels.WolffStep(), ("Ising 3x4 free", "Potts odd cycle", "Potts 4x4")),
    **{f"ParallelTemperingStep {name}": Row(*tempered(name)) for name in TEMPERED},
    "ParallelTemperingStep by MALA": Row(*tempered("RBM mixture", kernel=kernels.MALAStep(0.8))),
    "TemperedTransitionsStep": Row(
        kernels.TemperedTransitionsStep(num_temperatures=4),
        ("RBM Potts", "RBM mixture"),
    ),
    "TemperedTransitionsStep by flips": Row(
        kernels.TemperedTransitionsStep(
            kernels.GibbsWithGradientsStep(num_flips=4), num_temperatures=3, min_beta=0.25
        ),
        ("BM dense",),
    ),
    "SimulatedTemperingStep": Row(
        kernels.SimulatedTemperingStep(num_temperatures=3),
        ("RBM spin", "RBM mixture", "Potts odd cycle"),
    ),
}
"""Kernels that leave their target invariant."""


@cache
def target(name):
    """The target of that name."""
    return TARGETS[name]()


@cache
def exact_start(name, num_chains=NUM_CHAINS):
    """Exact draws in the compact type of the target's chains."""
    distribution = target(name).distribution
    draws = jnp.asarray(target(name).draw(np.random.default_rng(7), num_chains))
    return distribution.visible(distribution.chain_at(draws))


_FAST = 2
"""Targets of each kernel that the fast tests try; the slow tests try the others too."""


def pairs():
    """Every kernel with every target of its row, as parameters of a test."""
    for kernel, row in KERNELS.items():
        for i, name in enumerate(row.targets):
            marks = [pytest.mark.slow] if i >= _FAST else []
            yield pytest.param(kernel, name, id=f"{kernel} on {name}", marks=marks)
