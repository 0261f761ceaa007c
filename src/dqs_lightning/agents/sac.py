"""Soft Actor-Critic with automatic temperature (arXiv 1812.05905), on TorchRL's loss."""

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal
from torchrl.objectives import SACLoss, SoftUpdate

from dqs_lightning.agents.base import Agent
from dqs_lightning.networks import QNetwork


class SAC(Agent):
    """The baseline: a tanh-normal policy and two critics of the networks that `DQS` has.

    Defaults are those of Stable-Baselines3: one step size for critics, policy and temperature, which starts at 1 and
    holds the policy's entropy at minus the action dimension.

    Args:
        observation_dim: dimension of the flat observation.
        action_dim: dimension of the action; actions lie in [-1, 1].
        hidden: widths of the hidden layers of critics and policy.
        learning_rate: Adam's step size; > 0.
        initial_temperature: alpha at the start; > 0.
        target_entropy: in nats, of the whole action; None: minus the action dimension.
        discount: gamma, in [0, 1].
        tau: share of the online critics taken into the target critics at each update, in (0, 1].
        max_grad_norm: clip the gradient to this norm; None: no clipping.
        best_of: actions drawn for each decision, of which the one of highest Q is taken; 1 samples the policy.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        discount: float = 0.99,
        tau: float = 0.005,
        max_grad_norm: float | None = None,
        best_of: int = 1,
    ) -> None:
        super().__init__(observation_dim, action_dim, max_grad_norm, best_of)
        for name, value in (("learning_rate", learning_rate), ("initial_temperature", initial_temperature)):
            if not value > 0:
                raise ValueError(f"{name}={value}: allowed is a number > 0")
        for name, value, least in (("discount", discount, 0.0), ("tau", tau, 1e-12)):
            if not least <= value <= 1:
                raise ValueError(f"{name}={value}: allowed is {'0 to 1' if least == 0 else 'above 0, to 1'}")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden={list(hidden)}: allowed is one or more widths of at least 1")
        self.save_hyperparameters()
        self.learning_rate, self.discount, self.tau = learning_rate, discount, tau
        policy = nn.Sequential(
            MLP(observation_dim, 2 * action_dim, num_cells=list(hidden), activation_class=nn.ReLU),
            NormalParamExtractor(),
        )
        actor = ProbabilisticActor(
            TensorDictModule(policy, ["observation"], ["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            return_log_prob=True,
        )
        critics = [
            TensorDictModule(
                _Column(observation_dim, action_dim, hidden), ["observation", "action"], ["state_action_value"]
            )
            for _ in range(2)
        ]
        self.loss = SACLoss(
            actor,
            critics,
            loss_function="l2",
            alpha_init=initial_temperature,
            target_entropy=-float(action_dim) if target_entropy is None else target_entropy,
        )
        self.loss.make_value_estimator(gamma=discount)
        # TorchRL makes this buffer at its first use; a checkpoint that has it needs it from the start.
        assert self.loss.target_entropy_buffer is not None
        self._target_updater: SoftUpdate | None = None

    @torch.no_grad()
    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        with self.loss.actor_network_params.to_module(self.loss.actor_network):
            law = self.loss.actor_network.get_dist(TensorDict({"observation": observation}, observation.shape[:-1]))
        if deterministic:
            mode: Tensor = law.deterministic_sample
            return mode.expand(num, *mode.shape)
        drawn: Tensor = law.sample((num,))
        return drawn

    def q_value(self, observation: Tensor, action: Tensor) -> Tensor:
        values = []
        for params in self.loss.qvalue_network_params.unbind(0):
            with params.to_module(self.loss.qvalue_network):
                values.append(self.loss.qvalue_network.module(observation, action))
        return torch.stack(values).amin(0).squeeze(-1)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        if self._target_updater is None:  # not before the parameters are on their device
            self._target_updater = self._make_target_updater()
        found = self.loss(batch)
        # Each of the three has parameters of its own: one backward serves them all, and plain DDP.
        self.update(found["loss_qvalue"] + found["loss_actor"] + found["loss_alpha"])
        self._target_updater.step()
        self.record(
            critic_loss=found["loss_qvalue"],
            actor_loss=found["loss_actor"],
            temperature=found["alpha"],
            entropy=found["entropy"],
        )

    def _make_target_updater(self) -> SoftUpdate:
        # TorchRL's begins by making both sides equal; a run that continues keeps the targets that it has.
        targets = self.loss.target_qvalue_network_params
        kept = targets.data.clone()
        updater = SoftUpdate(self.loss, tau=self.tau)
        targets.data.update_(kept)
        return updater

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for critics, policy and log temperature."""
        return torch.optim.Adam(self.loss.parameters(), lr=self.learning_rate, fused=True)


class _Column(QNetwork):
    """Q as a column [..., B, 1], which is how TorchRL has rewards."""

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return super().forward(observation, action).unsqueeze(-1)
