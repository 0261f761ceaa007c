"""Twin Delayed DDPG (arXiv 1802.09477), on TorchRL's loss."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate, TD3Loss

from dqs_lightning.agents.graph import ExplorationGraph
from dqs_lightning.agents.twin import TwinCritic, of_observation
from dqs_lightning.diffusion import MLP, Backbone
from dqs_lightning.finite import magnitude
from dqs_lightning.nn.backbones import FeedForward
from dqs_lightning.ranges import Count, Fraction, NonNegative, Positive, Share, checked


class TD3(TwinCritic):
    """Twin Delayed DDPG: a deterministic policy that explores by Gaussian noise, and two critics.

    Defaults are those of the paper and of Stable-Baselines3, whose step size is 1e-3.

    Args:
        observation_dim: dimension of the flat observation.
        action_dim: dimension of the action; actions are in [-1, 1].
        critic_backbone: hidden layers of the critics. Default: MLP, (256, 256).
        actor_backbone: hidden layers of the policy. Default: MLP, (256, 256).
        learning_rate: Adam's step size; > 0.
        exploration_noise: standard deviation of the noise on an action that is not deterministic; >= 0.
        policy_noise: standard deviation of the noise on the target policy's action; >= 0.
        noise_clip: bound of that noise; >= 0.
        actor_every: updates of the critics for each one of the policy and of all targets; >= 1.
        discount: gamma, in [0, 1].
        tau: weight of the online networks in each update of their targets, in (0, 1].
        max_grad_norm: maximum norm of the gradient, which is clipped to it; None: no clipping.
        best_of: noisy actions drawn for each decision, of which the one of highest Q is taken.
        normalise_observations: whether networks receive normalised observations (see `ObservationNorm`).
        action_dims: of several tasks (`MultiTask`), the dimension of each one's action; None: there is one task.
    """

    TARGETS = ("qvalue", "actor")

    @checked
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        critic_backbone: Backbone | None = None,
        actor_backbone: Backbone | None = None,
        learning_rate: Positive = 1e-3,
        exploration_noise: NonNegative = 0.1,
        policy_noise: NonNegative = 0.2,
        noise_clip: NonNegative = 0.5,
        actor_every: Count = 2,
        discount: Fraction = 0.99,
        tau: Share = 0.005,
        max_grad_norm: Positive | None = None,
        best_of: Count = 1,
        normalise_observations: bool = False,
        action_dims: list[int] | None = None,
    ) -> None:
        super().__init__(observation_dim, action_dim, max_grad_norm, best_of, normalise_observations, action_dims)
        critic_backbone, actor_backbone = critic_backbone or MLP(), actor_backbone or MLP()
        self.save_hyperparameters()
        self.learning_rate, self.discount, self.tau, self.actor_every = learning_rate, discount, tau, actor_every
        self.exploration_noise = exploration_noise
        policy = nn.Sequential(FeedForward(observation_dim, action_dim, actor_backbone), nn.Tanh())
        self.loss = TD3Loss(
            TensorDictModule(policy, ["observation"], ["action"]),
            self.make_critics(critic_backbone),
            bounds=(-torch.ones(action_dim), torch.ones(action_dim)),
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function="l2",
        )
        self.loss.make_value_estimator(gamma=discount)

    @torch.no_grad()
    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        with self.loss.actor_network_params.to_module(self.loss.actor_network):
            best: Tensor = self.loss.actor_network(of_observation(self.observation_norm(observation)))["action"]
        best = self.existing(observation, best).expand(num, *best.shape)
        if deterministic:
            return best
        return self.existing(observation, (best + self.exploration_noise * torch.randn_like(best)).clamp(-1, 1))

    def policy_graph(self, deterministic: bool = False) -> ExplorationGraph:
        deviation = 0.0 if deterministic else self.exploration_noise
        with self.loss.actor_network_params.to_module(self.loss.actor_network):
            network = self.loss.actor_network.module
            return ExplorationGraph(self.observation_norm, network, deviation, self.action_mask)

    def learn(self, batch: TensorDictBase, targets: SoftUpdate) -> None:
        critic_loss, found = self.loss.value_loss(batch)
        metrics = {"critic_loss": critic_loss}
        actor_learns = self.actor_learns()
        if actor_learns:
            metrics["actor_loss"] = self.loss.actor_loss(batch)[0]
        loss = torch.stack(list(metrics.values())).sum()
        unchanged = () if actor_learns else self.loss.actor_network_params.values(True, True)
        self.update(loss, {"critic_target": magnitude(found["target_value"]), **metrics}, unchanged)
        if actor_learns:
            targets.step()
        self.accumulate(**metrics)
