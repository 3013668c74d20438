"""Posteriors in which the pseudolikelihood stands for a likelihood whose log Z is unknown."""

from numpyro_ebm.kernels.pseudolikelihood import Pseudolikelihood
from numpyro_ebm.pseudoposterior.adjustment import GodambeAdjustment, godambe_adjustment
from numpyro_ebm.pseudoposterior.model import pseudolikelihood

__all__ = ["GodambeAdjustment", "Pseudolikelihood", "godambe_adjustment", "pseudolikelihood"]
