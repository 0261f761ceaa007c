"""Sampling from exp(log_prob) by diffusion, from an energy alone. Imports torch, and rich for a progress bar.

One file a concept: `schedules` (how much noise), `support` (where samples live), `estimators`, `importance`,
`guided` and `biased` (the moments of the denoised law from the energy), `denoiser` (the network that learns them),
`backbones` (its hidden layers), `samplers` (noise to samples), `matching` (where and towards what the network is
trained), `entropy` (entropy and likelihood of a sampler), `boltzmann` (all of it together, for any energy).
"""

from dqs_lightning.diffusion.biased import PosteriorMode, QScore
from dqs_lightning.diffusion.boltzmann import BoltzmannSampler
from dqs_lightning.diffusion.denoiser import EDM, Denoiser, Preconditioning, RawScore
from dqs_lightning.diffusion.entropy import path_entropy
from dqs_lightning.diffusion.estimators import (
    ControlVariate,
    EnergyEstimator,
    Estimate,
    NoiseSplit,
    Posterior,
    TargetScore,
    score,
)
from dqs_lightning.diffusion.guided import GuidedDefensive, MultiStart
from dqs_lightning.diffusion.importance import Defensive, Importance, Resampling
from dqs_lightning.diffusion.matching import AroundActions, NoisedPoints, OnPath, match
from dqs_lightning.diffusion.samplers import (
    Ancestral,
    Denoise,
    DPMSolverSDE,
    EulerMaruyama,
    MomentMatched,
    Moments,
    Path,
    ProbabilityFlow,
    Sampler,
)
from dqs_lightning.diffusion.schedules import Cosine, Geometric, Karras, Linear, NoiseSchedule, Power
from dqs_lightning.diffusion.support import Box, LogProb, Support, Tanh, Unbounded
from dqs_lightning.nn.backbones import MLP, Backbone, SimBa

__all__ = [
    "EDM",
    "MLP",
    "Ancestral",
    "AroundActions",
    "Backbone",
    "BoltzmannSampler",
    "Box",
    "ControlVariate",
    "Cosine",
    "DPMSolverSDE",
    "Defensive",
    "Denoise",
    "Denoiser",
    "EnergyEstimator",
    "Estimate",
    "EulerMaruyama",
    "Geometric",
    "GuidedDefensive",
    "Importance",
    "Karras",
    "Linear",
    "LogProb",
    "MomentMatched",
    "Moments",
    "MultiStart",
    "NoiseSchedule",
    "NoiseSplit",
    "NoisedPoints",
    "OnPath",
    "Path",
    "Posterior",
    "PosteriorMode",
    "Power",
    "Preconditioning",
    "ProbabilityFlow",
    "QScore",
    "RawScore",
    "Resampling",
    "Sampler",
    "SimBa",
    "Support",
    "Tanh",
    "TargetScore",
    "Unbounded",
    "match",
    "path_entropy",
    "score",
]
