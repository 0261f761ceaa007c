"""One update of soft actor-critic at walker's sizes, as others write it and on the critic of DQS, to measure DQS by."""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from dqs_lightning import diffusion
from dqs_lightning.agents import SAC

OBSERVATION, ACTION, BATCH, HIDDEN = 24, 6, 256, (256, 256)

Update = Callable[[], object]


def batch(size: int = BATCH, action_dim: int = ACTION) -> TensorDict:
    """Makes up a batch of transitions."""
    following = TensorDict(
        {
            "observation": torch.randn(size, OBSERVATION),
            "reward": torch.rand(size, 1),
            "terminated": torch.zeros(size, 1, dtype=torch.bool),
            "done": torch.zeros(size, 1, dtype=torch.bool),
        },
        [size],
    )
    action = torch.rand(size, action_dim) * 2 - 1
    return TensorDict({"observation": torch.randn(size, OBSERVATION), "action": action, "next": following}, [size])


def sb3_sac() -> Update | None:
    """Stable-Baselines3's SAC, `train(1, 256)` on a filled buffer; None where it is not installed."""
    if importlib.util.find_spec("stable_baselines3") is None:
        return None
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    class Nothing(gymnasium.Env[np.ndarray, np.ndarray]):
        """Spaces of the right size; never stepped."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

    model = SAC("MlpPolicy", Nothing(), buffer_size=2000, batch_size=BATCH, device="cpu")
    model.set_logger(configure(None, []))
    for _ in range(1000):
        observation, following = np.random.randn(2, 1, OBSERVATION)
        action, reward = np.random.rand(1, ACTION) * 2 - 1, np.random.rand(1)
        model.replay_buffer.add(observation, following, action, reward, np.zeros(1), [{}])
    return lambda: model.train(1, BATCH)


def torchrl_sac() -> Update:
    """TorchRL's SACLoss with its SoftUpdate and one fused Adam for all three losses."""
    network = nn.Sequential(MLP(OBSERVATION, 2 * ACTION, num_cells=list(HIDDEN)), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(network, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(OBSERVATION + ACTION, 1, num_cells=list(HIDDEN)), ["observation", "action"])
    loss = SACLoss(actor, critic, num_qvalue_nets=2, target_entropy=-float(ACTION))
    loss.make_value_estimator(gamma=0.99)
    targets = SoftUpdate(loss, tau=0.005)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-4, fused=True)
    data = batch()

    def update() -> None:
        losses = loss(data)
        optimizer.zero_grad()
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
        optimizer.step()
        targets.step()

    return update


class SameCritic:
    """This project's SAC with the critic that DQS has by default: layer norms and normalised observations.

    Args:
        actor_every: updates of the critics for each one of policy and temperature.
    """

    def __init__(self, actor_every: int = 1) -> None:
        self.agent = SAC(
            OBSERVATION,
            ACTION,
            critic_backbone=diffusion.MLP(HIDDEN, layer_norm=True),
            actor_backbone=diffusion.MLP(HIDDEN),
            normalise_observations=True,
        )
        self.updates = actor_every
        self.optimizer = self.agent.configure_optimizers()
        self.targets, self.data = SoftUpdate(self.agent.loss, tau=0.02), batch()

    def __call__(self) -> None:
        """Makes `updates` updates, the first of them with policy and temperature."""
        agent = self.agent
        for index in range(self.updates):
            data = agent.normalised(self.data)
            if index:
                loss = agent.loss.qvalue_v2_loss(data)[0]
            else:
                losses = agent.loss(data)
                loss = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.targets.step()
            agent.update_observation_norm(self.data["observation"])
