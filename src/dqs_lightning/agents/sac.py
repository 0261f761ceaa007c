"""Soft Actor-Critic with automatic temperature (arXiv 1812.05905), on TorchRL's loss."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal
from torchrl.objectives import SACLoss, SoftUpdate

from dqs_lightning.agents.graph import TanhNormalGraph
from dqs_lightning.agents.masked_normal import MaskedTanhNormal
from dqs_lightning.agents.twin import TwinCritic, of_observation
from dqs_lightning.diffusion import MLP, Backbone
from dqs_lightning.finite import magnitude
from dqs_lightning.nn.backbones import FeedForward
from dqs_lightning.ranges import Count, Finite, Fraction, Positive, Share, checked


class SAC(TwinCritic):
    """Soft Actor-Critic: a tanh-normal policy and two critics, with the networks of `DQS`.

    Defaults are those of Stable-Baselines3: one step size for critics, policy and temperature; the temperature starts
    at 1 and keeps the policy's entropy at minus the action dimension.

    Args:
        observation_dim: dimension of the flat observation.
        action_dim: dimension of the action; actions are in [-1, 1].
        critic_backbone: hidden layers of the critics. Default: MLP, (256, 256).
        actor_backbone: hidden layers of the policy. Default: MLP, (256, 256).
        learning_rate: Adam's step size; > 0.
        initial_temperature: alpha at the start; > 0.
        target_entropy: in nats, of the whole action; None: minus the action dimension, its mean over several tasks.
        actor_every: updates of the critics for each one of policy and temperature; >= 1.
        discount: gamma, in [0, 1].
        tau: weight of the online critics in each update of the target critics, in (0, 1].
        max_grad_norm: maximum norm of the gradient, which is clipped to it; None: no clipping.
        best_of: actions drawn for each decision, of which the one of highest Q is taken; 1 samples the policy.
        normalise_observations: whether networks receive normalised observations (see `ObservationNorm`).
        action_dims: of several tasks (`MultiTask`), the dimension of each one's action; None: there is one task.
    """

    @checked
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        critic_backbone: Backbone | None = None,
        actor_backbone: Backbone | None = None,
        learning_rate: Positive = 3e-4,
        initial_temperature: Positive = 1.0,
        target_entropy: Finite | None = None,
        actor_every: Count = 1,
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
        policy = nn.Sequential(FeedForward(observation_dim, 2 * action_dim, actor_backbone), NormalParamExtractor())
        modules, keys = [TensorDictModule(policy, ["observation"], ["loc", "scale"])], ["loc", "scale"]
        if self.action_mask:
            modules.append(TensorDictModule(self.action_mask, ["observation"], ["mask"]))
            keys.append("mask")
        actor = ProbabilisticActor(
            TensorDictSequential(*modules) if self.action_mask else modules[0],
            in_keys=keys,
            distribution_class=MaskedTanhNormal if self.action_mask else TanhNormal,
            return_log_prob=True,
        )
        dims = action_dims or [action_dim]
        self.loss = SACLoss(
            actor,
            self.make_critics(critic_backbone),
            loss_function="l2",
            alpha_init=initial_temperature,
            target_entropy=-sum(dims) / len(dims) if target_entropy is None else target_entropy,
        )
        self.loss.make_value_estimator(gamma=discount)
        # TorchRL makes this buffer at its first use; a checkpoint that has it needs it from the start.
        assert self.loss.target_entropy_buffer is not None

    @torch.no_grad()
    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        with self.loss.actor_network_params.to_module(self.loss.actor_network):
            distribution = self.loss.actor_network.get_dist(of_observation(self.observation_norm(observation)))
        if deterministic:
            mode: Tensor = distribution.deterministic_sample
            return mode.expand(num, *mode.shape)
        drawn: Tensor = distribution.sample((num,))
        return drawn

    def policy_graph(self, deterministic: bool = False) -> TanhNormalGraph:
        with self.loss.actor_network_params.to_module(self.loss.actor_network):
            policy = self.loss.actor_network[0]
            network = policy[0].module if self.action_mask else policy.module
            return TanhNormalGraph(self.observation_norm, network, deterministic, self.action_mask)

    def learn(self, batch: TensorDictBase, targets: SoftUpdate) -> None:
        if self.actor_learns():
            found = self.loss(batch)
            metrics = {
                "critic_loss": found["loss_qvalue"],
                "actor_loss": found["loss_actor"],
                "temperature": found["alpha"],
                "entropy": found["entropy"],
            }
            # Each of the three has parameters of its own: one backward serves them all, and plain DDP.
            loss = found["loss_qvalue"] + found["loss_actor"] + found["loss_alpha"]
            self.update(loss, {"td_error": magnitude(batch["td_error"]), **metrics})
        else:
            loss, errors = self.loss.qvalue_v2_loss(batch)
            metrics = {"critic_loss": loss}
            unchanged = [*self.loss.actor_network_params.values(True, True), self.loss.log_alpha]
            self.update(loss, {"td_error": magnitude(errors["td_error"]), **metrics}, unchanged)
        targets.step()
        self.accumulate(**metrics)
