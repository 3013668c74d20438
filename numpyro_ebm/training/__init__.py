"""Training loops: epochs, the likelihood on the way, early stopping and checkpoints."""

from numpyro_ebm.training.divergence import DivergenceError
from numpyro_ebm.training.fit import FitResult, fit
from numpyro_ebm.training.greedy import GreedyResult, fit_greedy
from numpyro_ebm.training.observed import distribution_of
from numpyro_ebm.training.stopping import EarlyStopping

__all__ = [
    "DivergenceError",
    "EarlyStopping",
    "FitResult",
    "GreedyResult",
    "distribution_of",
    "fit",
    "fit_greedy",
]
