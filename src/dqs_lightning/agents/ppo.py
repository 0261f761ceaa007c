"""Proximal Policy Optimization with a clipped objective (arXiv 1707.06347), on TorchRL's loss."""

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from dqs_lightning.agents.base import Agent, Rollout
from dqs_lightning.agents.graph import TanhNormalGraph
from dqs_lightning.diffusion import MLP, Backbone
from dqs_lightning.finite import magnitude
from dqs_lightning.nn.backbones import FeedForward
from dqs_lightning.ranges import Count, Fraction, NonNegative, OpenShare, Positive, checked

SMALLEST_STD = 1e-6
"""Of advantages, below which they are divided by it."""


class PPO(Agent):
    """Proximal Policy Optimization: a tanh-normal policy with the same standard deviation in all states, and a value.

    Defaults are those of Stable-Baselines3: rollouts of 2048 steps, ten epochs in batches of 64. Unlike there, the
    action is squashed and not clipped, so that its density is that of the action that the environment receives.

    Args:
        observation_dim: dimension of the flat observation.
        action_dim: dimension of the action; actions are in [-1, 1].
        critic_backbone: hidden layers of the value. Default: MLP, (256, 256).
        actor_backbone: hidden layers of the policy. Default: MLP, (256, 256).
        learning_rate: Adam's step size; > 0.
        rollout_steps: transitions of each rank, over all its environments, between two rounds of updates; >= 1.
        epochs: passes through a rollout; >= 1.
        minibatch_size: transitions in one update, on each rank; 1 to rollout_steps.
        discount: gamma, in [0, 1].
        gae_lambda: lambda of the generalised advantage (arXiv 1506.02438), in [0, 1].
        clip: bound of the policy's ratio around 1, in (0, 1).
        entropy_coefficient: weight of the policy's entropy; >= 0.
        value_coefficient: weight of the value's squared error; > 0.
        max_grad_norm: maximum norm of the gradient, which is clipped to it; None: no clipping.
        normalise_observations: whether networks receive normalised observations (see `ObservationNorm`).
    """

    @checked
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        critic_backbone: Backbone | None = None,
        actor_backbone: Backbone | None = None,
        learning_rate: Positive = 3e-4,
        rollout_steps: Count = 2048,
        epochs: Count = 10,
        minibatch_size: Count = 64,
        discount: Fraction = 0.99,
        gae_lambda: Fraction = 0.95,
        clip: OpenShare = 0.2,
        entropy_coefficient: NonNegative = 0.0,
        value_coefficient: Positive = 0.5,
        max_grad_norm: Positive | None = 0.5,
        normalise_observations: bool = False,
    ) -> None:
        super().__init__(observation_dim, action_dim, max_grad_norm, normalise_observations=normalise_observations)
        if minibatch_size > rollout_steps:
            raise ValueError(f"minibatch_size={minibatch_size}: must be <= rollout_steps={rollout_steps}")
        critic_backbone, actor_backbone = critic_backbone or MLP(), actor_backbone or MLP()
        self.save_hyperparameters()
        self.learning_rate, self.discount = learning_rate, discount
        self.rollout = Rollout(rollout_steps, epochs, minibatch_size)
        mean = FeedForward(observation_dim, action_dim, actor_backbone)
        actor = ProbabilisticActor(
            TensorDictModule(
                nn.Sequential(mean, AddStateIndependentNormalScale(action_dim)), ["observation"], ["loc", "scale"]
            ),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            return_log_prob=True,
        )
        critic = TensorDictModule(FeedForward(observation_dim, 1, critic_backbone), ["observation"], ["state_value"])
        self.loss = ClipPPOLoss(
            actor,
            critic,
            clip_epsilon=clip,
            entropy_coeff=entropy_coefficient,
            critic_coeff=value_coefficient,
            loss_critic_type="l2",
            normalize_advantage=False,  # it would use the rows of one rank
            functional=False,
        )
        self.advantage = GAE(gamma=discount, lmbda=gae_lambda, value_network=critic)

    def _distribution(self, observation: Tensor) -> TanhNormal:
        seen = TensorDict({"observation": self.observation_norm(observation)}, observation.shape[:-1])
        return self.loss.actor_network.get_dist(seen)

    @torch.no_grad()
    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        distribution = self._distribution(observation)
        if deterministic:
            mode: Tensor = distribution.deterministic_sample
            return mode.expand(num, *mode.shape)
        drawn: Tensor = distribution.sample((num,))
        return drawn

    def policy_graph(self, deterministic: bool = False) -> TanhNormalGraph:
        return TanhNormalGraph(self.observation_norm, self.loss.actor_network[0].module, deterministic)

    @torch.no_grad()
    def prepare(self, block: TensorDictBase) -> TensorDictBase:
        """Normalises observations, and adds log densities of the actions, advantages and value targets."""
        block = block.to(self.device)
        raw = block["observation"]
        block["action_log_prob"] = self._distribution(raw).log_prob(block["action"])
        for key in ("observation", ("next", "observation")):
            block[key] = self.observation_norm(block[key])
        self.advantage(block)
        # Afterwards, since the rollout was collected without it.
        self.update_observation_norm(raw.reshape(-1, self.observation_dim))
        return block

    def normalised(self, advantage: Tensor) -> Tensor:
        """Returns advantages [B, 1] with mean 0 and standard deviation 1 over the minibatches of all ranks."""
        number = advantage.numel() * (1 if self._trainer is None else self.trainer.world_size)
        centred = advantage - self.mean_over_ranks(advantage.mean())
        variance = self.mean_over_ranks(centred.square().mean()) * number / max(number - 1, 1)
        return centred / variance.sqrt().clamp_min(SMALLEST_STD)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        found = self.loss(batch.copy().set("advantage", self.normalised(batch["advantage"])))
        metrics = {
            "critic_loss": found["loss_critic"],
            "actor_loss": found["loss_objective"],
            "entropy": found["entropy"],
            "kl": found["kl_approx"],
            "clip_fraction": found["clip_fraction"],
        }
        loss = found["loss_objective"] + found["loss_critic"] + found["loss_entropy"]
        from_rollout = {name: magnitude(batch[name]) for name in ("value_target", "advantage")}
        self.update(loss, {**from_rollout, **metrics})
        self.accumulate(**metrics)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for policy and value, clipped together."""
        return torch.optim.Adam(self.loss.parameters(), lr=self.learning_rate, fused=True)
