"""Models for NumPyro's ``SVI``, ``MCMC`` and ``Predictive`` beside the energy-based ones."""

from numpyro_ebm.models.autoencoder import Autoencoder
from numpyro_ebm.models.belief_gibbs import BeliefGibbs
from numpyro_ebm.models.belief_network import SigmoidBeliefNetwork
from numpyro_ebm.models.belief_posterior import BeliefPosterior
from numpyro_ebm.models.classifier import DeepClassifier
from numpyro_ebm.models.factor_fit import FactorFit, FitWarning
from numpyro_ebm.models.linear_gaussian import PPCA, FactorAnalysis
from numpyro_ebm.models.programs import factor_analysis, ppca, sigmoid_belief_network

__all__ = [
    "PPCA",
    "Autoencoder",
    "BeliefGibbs",
    "BeliefPosterior",
    "DeepClassifier",
    "FactorAnalysis",
    "FactorFit",
    "FitWarning",
    "SigmoidBeliefNetwork",
    "factor_analysis",
    "ppca",
    "sigmoid_belief_network",
]
