"""Energy-based models as NumPyro distributions."""

from numpyro_ebm.distributions.rbm import RBM

__all__ = ["RBM"]
