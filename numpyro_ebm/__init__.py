"""Energy-based models as first-class citizens of NumPyro."""

from numpyro_ebm import datasets, evidence, plots, units
from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.distributions import RBM
from numpyro_ebm.kernels import BlockGibbs, energy_sites
from numpyro_ebm.losses import (
    ContrastiveDivergence,
    EnergyLoss,
    PersistentContrastiveDivergence,
    persistent_chains,
)
from numpyro_ebm.normalizer import NormalizerError

__all__ = [
    "RBM",
    "BlockGibbs",
    "ContrastiveDivergence",
    "EnergyDistribution",
    "EnergyLoss",
    "NormalizerError",
    "PersistentContrastiveDivergence",
    "datasets",
    "energy_sites",
    "evidence",
    "persistent_chains",
    "plots",
    "units",
]
