"""Energy-based models as first-class citizens of NumPyro."""

from numpyro_ebm import units
from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.distributions import RBM
from numpyro_ebm.normalizer import NormalizerError

__all__ = ["RBM", "EnergyDistribution", "NormalizerError", "units"]
