"""Sampling from exp(log_prob) by diffusion, from an energy alone. Imports torch, and rich for a progress bar.

`process` has the model as a whole; `boltzmann` fits it to an energy. Its parts: `schedules` (noise levels), `support`
(the action set), `estimators`, `importance`, `guided` and `biased` (moments of the denoised distribution, from the
energy) with their `proposals`, `denoiser` (the network that learns them), `samplers` (from noise to samples),
`training_points` (where the network is trained), `entropy` (entropy and likelihood of the samples).
"""

from dqs_lightning.diffusion.biased import PosteriorMode, QScore
from dqs_lightning.diffusion.boltzmann import BoltzmannSampler
from dqs_lightning.diffusion.denoiser import EDM, Denoiser, Preconditioning, RawScore
from dqs_lightning.diffusion.entropy import trajectory_entropy
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
from dqs_lightning.diffusion.process import Diffusion, EnergyDiffusion
from dqs_lightning.diffusion.samplers import (
    Ancestral,
    Denoise,
    DPMSolverSDE,
    EulerMaruyama,
    MomentMatched,
    Moments,
    ProbabilityFlow,
    Sampler,
    Trajectory,
)
from dqs_lightning.diffusion.schedules import Cosine, Geometric, Karras, Linear, NoiseSchedule, Power
from dqs_lightning.diffusion.support import Box, LogProb, Support, Tanh, Unbounded
from dqs_lightning.diffusion.training_points import AroundReplayActions, OnTrajectory, TrainingPoints
from dqs_lightning.nn.backbones import MLP, Backbone, SimBa

__all__ = [
    "EDM",
    "MLP",
    "Ancestral",
    "AroundReplayActions",
    "Backbone",
    "BoltzmannSampler",
    "Box",
    "ControlVariate",
    "Cosine",
    "DPMSolverSDE",
    "Defensive",
    "Denoise",
    "Denoiser",
    "Diffusion",
    "EnergyDiffusion",
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
    "OnTrajectory",
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
    "TrainingPoints",
    "Trajectory",
    "Unbounded",
    "score",
    "trajectory_entropy",
]
