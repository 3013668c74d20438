"""Losses that train unnormalized models through ``numpyro.infer.SVI``."""

from numpyro_ebm.losses.contrastive import (
    ContrastiveDivergence,
    PersistentContrastiveDivergence,
    persistent_chains,
)
from numpyro_ebm.losses.loss import EnergyLoss

__all__ = [
    "ContrastiveDivergence",
    "EnergyLoss",
    "PersistentContrastiveDivergence",
    "persistent_chains",
]
