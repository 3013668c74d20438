"""Posteriors in which the pseudolikelihood stands for a likelihood whose log Z is unknown."""

from numpyro_ebm.pseudoposterior.adjustment import GodambeAdjustment, godambe_adjustment
from numpyro_ebm.pseudoposterior.model import Pseudolikelihood, pseudolikelihood

__all__ = ["GodambeAdjustment", "Pseudolikelihood", "godambe_adjustment", "pseudolikelihood"]
