"""Markov kernels for energy-based models, as NumPyro MCMC kernels."""

from numpyro_ebm.kernels.auxiliary import AuxiliaryChain
from numpyro_ebm.kernels.auxiliary_variable import AuxiliaryVariable
from numpyro_ebm.kernels.cluster import SwendsenWang, SwendsenWangStep, Wolff, WolffStep
from numpyro_ebm.kernels.discrepancy import SteinDiscrepancy, kernelized_stein_discrepancy
from numpyro_ebm.kernels.discrete_langevin import DiscreteLangevin, DiscreteLangevinStep
from numpyro_ebm.kernels.drift import AuxiliaryDrift, auxiliary_drift
from numpyro_ebm.kernels.exchange import Exchange
from numpyro_ebm.kernels.gibbs import BlockGibbs, GibbsSweeps
from numpyro_ebm.kernels.gibbs_langevin import GibbsLangevinStep
from numpyro_ebm.kernels.gibbs_with_gradients import GibbsWithGradients, GibbsWithGradientsStep
from numpyro_ebm.kernels.mala import MALA, MALAStep
from numpyro_ebm.kernels.moments import RunningMoments
from numpyro_ebm.kernels.noisy import NoisyHMC, NoisyMALA
from numpyro_ebm.kernels.parallel_tempering import ParallelTempering, ParallelTemperingStep
from numpyro_ebm.kernels.perfect import (
    CoalescenceError,
    CouplingFromThePast,
    Draws,
    ExactDraws,
    PerfectSample,
    perfect_sample,
)
from numpyro_ebm.kernels.pooled import Moments
from numpyro_ebm.kernels.pseudo_marginal import PseudoMarginal
from numpyro_ebm.kernels.recording import TrajectoryRecorder, record_trajectory
from numpyro_ebm.kernels.simulated_tempering import SimulatedTempering, SimulatedTemperingStep
from numpyro_ebm.kernels.sites import discrete_sites, energy_sites
from numpyro_ebm.kernels.stein import SVGDResult, svgd
from numpyro_ebm.kernels.tempered_transitions import (
    TemperedTransitions,
    TemperedTransitionsStep,
)
from numpyro_ebm.kernels.trajectory import ParallelTrajectoryTempering, Trajectory
from numpyro_ebm.kernels.ula import ULA, ULAStep

__all__ = [
    "CoalescenceError",
    "CouplingFromThePast",
    "Draws",
    "ExactDraws",
    "PerfectSample",
    "perfect_sample",
    "AuxiliaryChain",
    "AuxiliaryDrift",
    "AuxiliaryVariable",
    "Exchange",
    "NoisyHMC",
    "NoisyMALA",
    "PseudoMarginal",
    "auxiliary_drift",
    "SVGDResult",
    "SteinDiscrepancy",
    "kernelized_stein_discrepancy",
    "svgd",
    "DiscreteLangevin",
    "DiscreteLangevinStep",
    "GibbsLangevinStep",
    "GibbsWithGradients",
    "GibbsWithGradientsStep",
    "ParallelTempering",
    "ParallelTemperingStep",
    "MALA",
    "MALAStep",
    "Moments",
    "RunningMoments",
    "SwendsenWang",
    "SwendsenWangStep",
    "SimulatedTempering",
    "SimulatedTemperingStep",
    "TemperedTransitions",
    "TemperedTransitionsStep",
    "ParallelTrajectoryTempering",
    "Trajectory",
    "TrajectoryRecorder",
    "record_trajectory",
    "ULA",
    "ULAStep",
    "Wolff",
    "WolffStep",
    "BlockGibbs",
    "GibbsSweeps",
    "discrete_sites",
    "energy_sites",
]
