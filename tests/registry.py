"""The RBMs that every test runs over: a new kind of unit is one row in ``UNITS``.

Parameters are multiples of 1/64, so that they are the same numbers in every precision.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BruteForce

from numpyro_ebm import RBM, ConditionalRBM, units

NUM_STATES = 3
"""States of a Categorical unit."""
CONTINUOUS = ("Gaussian", "ReLU")
UNBOUNDED = (*CONTINUOUS, "Poisson")
"""Kinds of units with infinitely many states."""
LARGEST_COUPLING = 0.5
"""Largest singular value of scale * weights * scale between unbounded layers."""


def dyadic(x):
    """Round to multiples of 1/64."""
    return np.round(np.asarray(x) * 64) / 64


class Kind(NamedTuple):
    """How to make a layer of one kind of unit for the tests."""

    num_visible: int
    make: Callable[..., Any]


def _discrete(unit, *event):
    def make(rng, n, dtype, batch=()):
        return unit(jnp.asarray(dyadic(rng.normal(0, 0.6, (*batch, n, *event))), dtype))

    return make


def _quadratic(unit):
    def make(rng, n, dtype, batch=()):
        loc = dyadic(rng.uniform(-0.6, 0.6, (*batch, n)))
        scale = dyadic(rng.uniform(0.7, 1.2, (*batch, n)))
        return unit(jnp.asarray(loc, dtype), jnp.asarray(scale, dtype))

    return make


def _concatenate(*names):
    def make(rng, n, dtype, batch=()):
        batches = [batch] + [()] * (len(names) - 1)  # batch dimensions in the first part only
        parts = zip(names, batches, strict=True)
        return units.Concatenate(
            [UNITS[k].make(rng, 1 + (k == "Spin"), dtype, b) for k, b in parts]
        )

    return make


UNITS = {
    "Bernoulli": Kind(3, _discrete(units.Bernoulli)),
    "Spin": Kind(3, _discrete(units.Spin)),
    "Categorical": Kind(2, _discrete(units.Categorical, NUM_STATES)),
    "Gaussian": Kind(2, _quadratic(units.Gaussian)),
    "ReLU": Kind(2, _quadratic(units.ReLU)),
    "Poisson": Kind(2, _discrete(units.Poisson)),
}
CONCATENATED = {
    "+".join(names): Kind(0, _concatenate(*names))
    for names in (
        ("Gaussian", "Bernoulli"),
        ("Categorical", "Spin"),
        ("ReLU", "Categorical"),
        ("Gaussian", "ReLU", "Spin"),
        ("Gaussian", "Poisson"),
    )
}
KINDS = UNITS | CONCATENATED


class Case(NamedTuple):
    """One RBM of small size."""

    visible: str
    hidden: str
    seed: int
    batches: tuple[tuple[int, ...], ...] = ((), (), ())
    """Batch shapes of the weights, the visible and the hidden units."""

    @property
    def name(self):
        """Name in test reports."""
        batch = "".join(str(b) for b in self.batches if b).replace(" ", "")
        return f"{self.visible}-{self.hidden}{batch}"

    def build(self, dtype="float32", **kwargs):
        """Return the RBM; keyword arguments go to its constructor."""
        rng = np.random.default_rng(self.seed)
        weights_batch, visible_batch, hidden_batch = self.batches
        visible = KINDS[self.visible].make(
            rng, KINDS[self.visible].num_visible, dtype, visible_batch
        )
        hidden = KINDS[self.hidden].make(rng, 2, dtype, hidden_batch)
        event = visible.feature_shape + hidden.feature_shape
        weights = rng.normal(0, 0.5, (*weights_batch, *event))
        if all(any(k in name for k in CONTINUOUS) for name in (self.visible, self.hidden)):
            matrix = weights.reshape(-1, visible.num_features, hidden.num_features)
            weights *= LARGEST_COUPLING / np.linalg.norm(matrix, 2, axis=(1, 2)).max() / 1.2**2
        if {self.visible, self.hidden} == {"ReLU", "Poisson"}:  # only inhibition has a finite Z
            weights = -np.abs(weights) / 8
        return RBM(jnp.asarray(dyadic(weights), dtype), visible, hidden, **kwargs)


class ConditionalCase(Case):
    """One RBM for each of some inputs; the batch of the visible units is that of the inputs."""

    @property
    def name(self):
        """Name in test reports."""
        return f"conditional {super().name}"

    def build(self, dtype="float32", **kwargs):
        """Return the conditional RBM; keyword arguments go to its constructor."""
        inner = Case(self.visible, self.hidden, self.seed).build(dtype)
        rng = np.random.default_rng(self.seed + 1)
        visible, hidden = inner.visible_units, inner.hidden_units
        shapes = (2, *visible.feature_shape), (2, *hidden.feature_shape), (*self.batches[1], 2)
        directed = [jnp.asarray(dyadic(rng.normal(0, 0.4, shape)), dtype) for shape in shapes]
        return ConditionalRBM(inner.weights, visible, hidden, *directed, **kwargs)


COUNTS = [
    Case("Poisson", "Bernoulli", 31),
    Case("Poisson", "Categorical", 32),
    Case("Spin", "Poisson", 33),
    Case("Poisson", "ReLU", 34),
    Case("ReLU", "Poisson", 35),
]
"""Pairings with counts whose log Z is finite and can be summed."""
_COUPLED = [kind for kind in UNITS if kind != "Poisson"]
PAIRINGS = [
    Case(visible, hidden, seed)
    for seed, (visible, hidden) in enumerate((v, h) for v in _COUPLED for h in _COUPLED)
] + COUNTS
MULTIMODAL = [
    Case("Gaussian+Bernoulli", "Spin", 100),
    Case("Categorical", "Gaussian+Bernoulli", 101),
    Case("ReLU+Categorical", "Categorical+Spin", 102),
    Case("Gaussian+Bernoulli", "ReLU", 103),
    Case("Categorical+Spin", "Gaussian+ReLU+Spin", 104),
    Case("Gaussian+Poisson", "Bernoulli", 105),
]
BATCHED = [
    Case("Bernoulli", "Bernoulli", 200, ((3,), (3,), (3,))),
    Case("Spin", "Categorical", 201, ((2, 3), (), (3,))),
    Case("Categorical", "Gaussian", 202, ((), (), (2,))),
    Case("Gaussian", "Gaussian", 203, ((3,), (2, 1), ())),
    Case("Gaussian", "ReLU", 204, ((), (3,), ())),
    Case("ReLU", "Bernoulli", 205, ((2,), (), ())),
    Case("Gaussian+Bernoulli", "Categorical+Spin", 206, ((), (2,), ())),
    Case("ReLU+Categorical", "Bernoulli", 207, ((2,), (), (3, 1))),
]
SINGLE = PAIRINGS + MULTIMODAL
CONDITIONAL = [
    ConditionalCase("Gaussian+Bernoulli", "Bernoulli", 300),
    ConditionalCase("Categorical", "Spin", 301, ((), (3,), ())),
]


def parametrize(cases):
    """Run a test over cases, named."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


@cache
def brute_force(case):
    """Return the answers for a case without batch dimensions."""
    return BruteForce(case.build())


def event_dim(unit):
    """Number of event dimensions of a unit's parameters."""
    return 2 if isinstance(unit, units.Categorical) else 1


def member_of_unit(unit, index):
    """One member of a batch of units; ``index`` counts dimensions from the right."""
    if isinstance(unit, units.Concatenate):
        return units.Concatenate([member_of_unit(part, index) for part in unit.units])
    return type(unit)(*(_pick(getattr(unit, f), event_dim(unit), index) for f in unit.fields))


def _pick(array, num_event, index):
    batch = array.shape[: array.ndim - num_event]
    own = index[len(index) - len(batch) :]
    return np.asarray(array)[
        tuple(0 if size == 1 else i for size, i in zip(batch, own, strict=True))
    ]


def member(rbm, index):
    """One RBM of a batch."""
    num_event = len(rbm.visible_units.feature_shape) + len(rbm.hidden_units.feature_shape)
    weights = _pick(rbm.weights, num_event, index)
    visible, hidden = (member_of_unit(u, index) for u in (rbm.visible_units, rbm.hidden_units))
    return RBM(weights, visible, hidden)


@cache
def brute_force_of_members(case):
    """Return the answers for every member of a batch."""
    rbm = case.build()
    return {index: BruteForce(member(rbm, index)) for index in np.ndindex(rbm.batch_shape)}
