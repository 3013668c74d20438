"""The models that every checkpoint test runs over: a new model is one row in ``MODELS``."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from dbm_models import CASES
from numpyro.distributions import constraints
from registry import CONDITIONAL, SINGLE
from sequence_models import MODELS as SEQUENCES

import numpyro_ebm as ebm
from numpyro_ebm import couplings, units

_MATRIX = np.array([[0.0, 0.5, -0.25], [0.5, 0.0, 0.0], [-0.25, 0.0, 0.0]])


def _normals(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _quartic(params, x):
    return jnp.sum(params["scale"] * x**4)


def _neural():
    return ebm.NeuralEnergy(_quartic, {"scale": _normals(0, 2) ** 2}, event_shape=(2,))


def _binary_energy():
    rbm = SINGLE[0].build()
    return ebm.ProductOfExperts(
        [rbm, dist.Bernoulli(logits=_normals(1, 3)).to_event(1)], normalizer=jnp.float32(2.5)
    )


def _gaussian_product():
    experts = [dist.Normal(_normals(k, 2), 1.0 + k).to_event(1) for k in range(2)]
    return ebm.ProductOfExperts(experts, kernel=ebm.kernels.MALAStep(0.1))


_POTTS = ebm.conditionals.CategoricalLogits(3)
_MIXTURE = ebm.conditionals.GaussianMixture(2)


def _made():
    degrees = ebm.MADE.Degrees.random(1, 3, [4, 5])
    return ebm.MADE(**ebm.MADE.init_params(jax.random.key(1), 3, [4, 5]), degrees=degrees)


def _network():
    return {"network": ebm.models.SigmoidBeliefNetwork(3, [2]), "weights_1": _normals(0, 3, 2)}


def _deep_belief_network(**settings):
    lower = ebm.RBM(_normals(0, 3, 2), units.Gaussian(_normals(1, 3), jnp.ones(3)), _normals(2, 2))
    top = ebm.RBM(_normals(3, 2, 3), _normals(4, 2), units.Spin(_normals(5, 3)))
    return ebm.DBN([lower, top], **settings, recognition=[lower] if settings else None)


def _autoencoder():
    return ebm.models.Autoencoder.unroll(_deep_belief_network().layers, code_noise=4.0)


def _classifier():
    return ebm.models.DeepClassifier.on_top_of(_deep_belief_network().layers, 3)


def _factors(kind):
    data = np.random.default_rng(0).normal(size=(9, 3))
    scale = jnp.float32(0.5) if kind.shared_noise else _normals(1, 3) ** 2
    params = {"loc": _normals(2, 3), "loadings": _normals(3, 3, 2), "scale": scale}
    return {"model": kind(3, 2), "params": params, "data": data}


MODELS = {
    **{f"RBM {case.name}": case.build for case in SINGLE},
    "DBM": CASES["multimodal"].build,
    **{case.name: case.build for case in CONDITIONAL},
    "autoregressive RBM": SEQUENCES["window"].make,
    "recurrent temporal RBM": SEQUENCES["recurrent Gaussian-Spin"].make,
    "temporal RBM": SEQUENCES["temporal"].make,
    "RBM, exact": partial(SINGLE[0].build, normalizer="exact"),
    "RBM, known log Z": partial(SINGLE[1].build, normalizer=jnp.float32(3.0)),
    "class RBM": lambda: ebm.ClassRBM(
        _normals(0, 6, 2), (_normals(1, 3), _normals(2, 3)), [0.0, 1.0]
    ),
    "multimodal RBM": lambda: ebm.MultimodalRBM(
        _normals(0, 4, 2),
        [units.Gaussian(_normals(1, 2)), units.Poisson(_normals(2, 2))],
        [0.0, 1.0],
    ),
    "Boltzmann machine": lambda: ebm.BoltzmannMachine(_MATRIX, _normals(0, 3)),
    "with hidden units": lambda: ebm.BoltzmannMachine(_MATRIX, _normals(0, 3), num_visible=2),
    "batch": lambda: ebm.BoltzmannMachine(np.stack([_MATRIX, -_MATRIX]), _normals(0, 2, 3)),
    "Ising": lambda: ebm.Ising(_MATRIX, _normals(0, 3)),
    "Ising, edges": lambda: ebm.Ising(
        couplings.Edges([(0, 1), (1, 2)], _normals(0, 2), 3), _normals(1, 3)
    ),
    "Ising, lattice": lambda: ebm.Ising.lattice((3, 4), 0.4, 0.1, periodic=False),
    "Potts": lambda: ebm.Potts(_MATRIX, _normals(0, 3, 3)),
    "Potts, lattice": lambda: ebm.Potts.lattice((2, 3), 0.4, 3),
    "NADE": lambda: ebm.NADE(**ebm.NADE.init_params(jax.random.key(0), 3, 2)),
    "NADE, categories in order": lambda: ebm.NADE(
        **ebm.NADE.init_params(jax.random.key(0), 3, 2, conditional=_POTTS),
        conditional=_POTTS,
        order=[2, 0, 1],
    ),
    "MADE": _made,
    "MADE, mixtures": lambda: ebm.MADE(
        **ebm.MADE.init_params(jax.random.key(0), 3, [4], conditional=_MIXTURE),
        conditional=_MIXTURE,
    ),
    "ensemble": lambda: _made().ensemble(
        [ebm.MADE.Degrees.random(seed, 3, [4, 5]) for seed in (1, 2)]
    ),
    "DBN": _deep_belief_network,
    "DBN, recognition weights": partial(_deep_belief_network, normalizer="exact"),
    "autoencoder": _autoencoder,
    "classifier": _classifier,
    "product": _binary_energy,
    "product of normals": _gaussian_product,
    "neural energy": _neural,
    "neural energy with support": lambda: ebm.NeuralEnergy(
        _quartic, {"scale": jnp.ones(2)}, event_shape=(2,), support=constraints.boolean
    ),
    "units": lambda: [units.Spin(_normals(0, 3)), units.Gaussian(_normals(1, 2), jnp.ones(2))],
    "sigmoid belief network": _network,
    "PPCA": partial(_factors, ebm.models.PPCA),
    "factor analysis": partial(_factors, ebm.models.FactorAnalysis),
}
"""How to build each model, or a tree that holds it."""
FROM_CODE = ("neural energy", "neural energy with support")
"""Models that hold functions, so that a file alone is not enough."""
