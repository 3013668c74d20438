"""Models for NumPyro's ``SVI``, ``MCMC`` and ``Predictive`` beside the energy-based ones."""

from numpyro_ebm.models.autoencoder import Autoencoder
from numpyro_ebm.models.classifier import DeepClassifier
from numpyro_ebm.models.sigmoid_belief_network import SigmoidBeliefNetwork

__all__ = ["Autoencoder", "DeepClassifier", "SigmoidBeliefNetwork"]
