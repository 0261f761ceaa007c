"""Agents: LightningModules that learn from batches of transitions."""

from dqs_lightning.agents.backups import Backup, ExpectedQ, Soft
from dqs_lightning.agents.base import Agent
from dqs_lightning.agents.composed import Composed
from dqs_lightning.agents.critic_losses import CriticLoss, Quantiles, SquaredError
from dqs_lightning.agents.dqs import DQS
from dqs_lightning.agents.loading import load_agent
from dqs_lightning.agents.multi_objective import MultiObjectiveDQS
from dqs_lightning.agents.ppo import PPO
from dqs_lightning.agents.sac import SAC
from dqs_lightning.agents.td3 import TD3

__all__ = [
    "DQS",
    "PPO",
    "SAC",
    "TD3",
    "Agent",
    "Backup",
    "Composed",
    "CriticLoss",
    "ExpectedQ",
    "MultiObjectiveDQS",
    "Quantiles",
    "Soft",
    "SquaredError",
    "load_agent",
]
