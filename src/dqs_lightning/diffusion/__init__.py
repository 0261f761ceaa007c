"""Sampling from exp(log_prob) by diffusion, from an energy alone. Imports torch and nothing else.

One file a concept: `schedules` (how much noise), `support` (where samples live), `estimators` (the score of the
noised law from the energy), `denoiser` (the network that learns it), `samplers` (noise to samples).
"""

from dqs_lightning.diffusion.denoiser import EDM, Denoiser, Preconditioning, RawScore
from dqs_lightning.diffusion.estimators import (
    EnergyEstimator,
    Estimate,
    GuidedDefensive,
    Importance,
    TargetScore,
    score,
)
from dqs_lightning.diffusion.samplers import Ancestral, EulerMaruyama, Sampler
from dqs_lightning.diffusion.schedules import Cosine, Geometric, Karras, Linear, NoiseSchedule, Power
from dqs_lightning.diffusion.support import Box, LogProb, Support, Tanh, Unbounded

__all__ = [
    "EDM",
    "Ancestral",
    "Box",
    "Cosine",
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
    "NoiseSchedule",
    "Power",
    "Preconditioning",
    "RawScore",
    "Sampler",
    "Support",
    "Tanh",
    "TargetScore",
    "Unbounded",
    "score",
]
