"""Losses that train unnormalized models through ``numpyro.infer.SVI``."""

from numpyro_ebm.losses.adversarial import GenerativeAdversarial
from numpyro_ebm.losses.amortized import AmortizedMaximumLikelihood
from numpyro_ebm.losses.block_pseudolikelihood import BlockPseudoLikelihood
from numpyro_ebm.losses.chains import persistent_chains
from numpyro_ebm.losses.conditional_noise_contrastive import ConditionalNoiseContrastiveEstimation
from numpyro_ebm.losses.contrastive import ContrastiveDivergence
from numpyro_ebm.losses.denoising import DenoisingScoreMatching, update_counter
from numpyro_ebm.losses.energy_discrepancy import EnergyDiscrepancy
from numpyro_ebm.losses.fast_weights import FastPersistentContrastiveDivergence
from numpyro_ebm.losses.generalized_score_matching import GeneralizedScoreMatching
from numpyro_ebm.losses.health import ChainHealth, chain_health
from numpyro_ebm.losses.learnt_log_z import learnt_log_z
from numpyro_ebm.losses.likelihood import MaximumLikelihood
from numpyro_ebm.losses.loss import EnergyLoss
from numpyro_ebm.losses.mean_field_cd import MeanFieldContrastiveDivergence
from numpyro_ebm.losses.noise import contrast_noise
from numpyro_ebm.losses.noise_contrastive import NoiseContrastiveEstimation
from numpyro_ebm.losses.persistent import PersistentContrastiveDivergence
from numpyro_ebm.losses.pseudolikelihood import PseudoLikelihood
from numpyro_ebm.losses.ranking import RankingNoiseContrastiveEstimation
from numpyro_ebm.losses.ratio_matching import RatioMatching
from numpyro_ebm.losses.sampler import neural_sampler
from numpyro_ebm.losses.score_matching import ScoreMatching
from numpyro_ebm.losses.sliced_score_matching import SlicedScoreMatching
from numpyro_ebm.losses.stein import SteinContrastiveDivergence
from numpyro_ebm.losses.up_down import UpDown
from numpyro_ebm.losses.wake_sleep import WakeSleep

__all__ = [
    "AmortizedMaximumLikelihood",
    "BlockPseudoLikelihood",
    "ChainHealth",
    "ConditionalNoiseContrastiveEstimation",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "EnergyDiscrepancy",
    "EnergyLoss",
    "FastPersistentContrastiveDivergence",
    "GeneralizedScoreMatching",
    "GenerativeAdversarial",
    "MaximumLikelihood",
    "MeanFieldContrastiveDivergence",
    "NoiseContrastiveEstimation",
    "PersistentContrastiveDivergence",
    "PseudoLikelihood",
    "RankingNoiseContrastiveEstimation",
    "RatioMatching",
    "ScoreMatching",
    "SlicedScoreMatching",
    "SteinContrastiveDivergence",
    "UpDown",
    "WakeSleep",
    "chain_health",
    "contrast_noise",
    "learnt_log_z",
    "neural_sampler",
    "persistent_chains",
    "update_counter",
]
