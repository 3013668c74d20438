"""Kinds of units: layers of conditionally independent variables, each an exponential family."""

from numpyro_ebm.units.concatenate import Concatenate
from numpyro_ebm.units.continuous import Gaussian, ReLU
from numpyro_ebm.units.counts import Poisson
from numpyro_ebm.units.discrete import Bernoulli, Categorical
from numpyro_ebm.units.spin import Spin
from numpyro_ebm.units.unit import Unit

__all__ = [
    "Bernoulli",
    "Categorical",
    "Concatenate",
    "Gaussian",
    "Poisson",
    "ReLU",
    "Spin",
    "Unit",
]
