"""Energy-based models as NumPyro distributions."""

from numpyro_ebm.distributions import conditionals
from numpyro_ebm.distributions.autoregressive_rbm import AutoregressiveRBM
from numpyro_ebm.distributions.boltzmann import BoltzmannMachine
from numpyro_ebm.distributions.class_rbm import ClassRBM
from numpyro_ebm.distributions.conditional import ConditionalRBM
from numpyro_ebm.distributions.dbm import DBM
from numpyro_ebm.distributions.dbn import DBN
from numpyro_ebm.distributions.ensemble import AutoregressiveEnsemble
from numpyro_ebm.distributions.ising import Ising
from numpyro_ebm.distributions.made import MADE
from numpyro_ebm.distributions.moment_path import MomentPath
from numpyro_ebm.distributions.multimodal import MultimodalRBM
from numpyro_ebm.distributions.nade import NADE
from numpyro_ebm.distributions.neural import NeuralEnergy
from numpyro_ebm.distributions.potts import Potts
from numpyro_ebm.distributions.product import ProductOfExperts
from numpyro_ebm.distributions.rbm import RBM
from numpyro_ebm.distributions.temporal import RecurrentTemporalRBM
from numpyro_ebm.distributions.temporal_rbm import TemporalRBM

__all__ = [
    "DBM",
    "DBN",
    "MADE",
    "NADE",
    "RBM",
    "AutoregressiveEnsemble",
    "AutoregressiveRBM",
    "BoltzmannMachine",
    "ClassRBM",
    "ConditionalRBM",
    "Ising",
    "MomentPath",
    "MultimodalRBM",
    "NeuralEnergy",
    "Potts",
    "ProductOfExperts",
    "conditionals",
    "RecurrentTemporalRBM",
    "TemporalRBM",
]
