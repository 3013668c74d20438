"""Markov kernels for energy-based models, as NumPyro MCMC kernels."""

from numpyro_ebm.kernels.gibbs import BlockGibbs, GibbsSweeps
from numpyro_ebm.kernels.sites import energy_sites

__all__ = ["BlockGibbs", "GibbsSweeps", "energy_sites"]
