"""Tests acting and updates on the `meta` device, whose tensors have no values, in place of a GPU.

Tensors left on the CPU fail there, and so do device-to-host syncs such as `item()` or an `if`.
"""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from helpers import small
from tensordict import TensorDict
from tensordict.nn import TensorDictParams
from torch import Tensor, nn
from torchrl.modules.distributions import continuous
from torchrl.objectives import SoftUpdate

from dqs_lightning.agents import DQS, PPO, SAC, TD3, Agent, Backup, CriticLoss, MultiObjectiveDQS
from dqs_lightning.agents.measured import Measured
from dqs_lightning.diffusion import (
    Backbone,
    EnergyEstimator,
    Importance,
    NoiseSchedule,
    NoiseSplit,
    Preconditioning,
    Sampler,
    Support,
    TargetScore,
    TrainingPoints,
)
from dqs_lightning.registry import components
from dqs_lightning.temperature import Constant, Temperature

ROWS, OBSERVATION, ACTION = 32, 3, 2
BY_NAME = {
    "energy_estimator": EnergyEstimator,
    "sampler": Sampler,
    "backup": Backup,
    "critic_loss": CriticLoss,
    "temperature": Temperature,
    "noise_schedule": NoiseSchedule,
    "training_points": TrainingPoints,
    "preconditioning": Preconditioning,
    "support": Support,
    "critic_backbone": Backbone,
    "actor_backbone": Backbone,
}
SPECIAL: dict[str, Callable[[], object]] = {"NoiseSplit": lambda: NoiseSplit(TargetScore(4), Importance(4))}
"""Factories of components whose arguments have no defaults."""


def shipped() -> list[tuple[str, str]]:
    """Returns each argument of DQS with each shipped component."""
    return [
        (argument, name)
        for argument, base in BY_NAME.items()
        for name, cls in components(base).items()
        if cls.__module__.startswith("dqs_lightning.")
    ]


def on_meta(agent: Agent) -> Agent:
    """Moves an agent to the meta device. TorchRL's parameters cannot be converted, so they are recreated."""
    for module in list(agent.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, TensorDictParams):
                kind = nn.Parameter if next(iter(child.values(True, True))).requires_grad else nn.Buffer
                setattr(module, name, TensorDictParams(child.data.to("meta").apply(kind), no_convert=True))
    return agent.to("meta")


def batch() -> TensorDict:
    ended = torch.zeros(ROWS, 1, dtype=torch.bool)
    following = {"observation": torch.randn(ROWS, OBSERVATION), "reward": torch.randn(ROWS, 1)}
    following |= {"objectives": torch.randn(ROWS, 1)}
    following |= {"terminated": ended, "truncated": ended, "done": ended}
    drawn = {"observation": torch.randn(ROWS, OBSERVATION), "action": torch.rand(ROWS, ACTION) * 2 - 1}
    return TensorDict({**drawn, "next": TensorDict(following, [ROWS])}, [ROWS])


def update(agent: Agent, updates: int = 2) -> None:
    """Moves an agent to the meta device, makes updates, and acts.

    The first update includes the actor; with `actor_every` > 1 the next one is of the critics only. An on-policy
    agent prepares its rollout before the move, since TorchRL's advantage estimator checks for NaN on the host.
    """
    batches = [agent.prepare(batch().unsqueeze(0)).squeeze(0).to("meta") for _ in range(updates)]
    agent = on_meta(agent)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=10**9)
    trainer.strategy.connect(agent)
    agent.trainer = trainer
    optimizer = agent.configure_optimizers()
    for group in optimizer.param_groups:
        group["fused"] = False  # not available for meta tensors
    trainer.strategy.optimizers = [optimizer]
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
    for number in range(updates):
        progress.completed = number + agent.actor_every * Measured.EVERY  # measures the temperature
        agent.training_step(batches[number], number)
    observation = torch.randn(5, OBSERVATION, device="meta")
    best_of = None if isinstance(agent, PPO) else 4
    assert agent(observation).device.type == agent.act(observation, best_of=best_of).device.type == "meta"
    assert agent.act(observation, deterministic=True).shape == (5, ACTION)
    assert {tensor.device.type for tensor in (*agent.parameters(), *agent.buffers())} == {"meta"}


@pytest.mark.parametrize("cls", [DQS, MultiObjectiveDQS, SAC, TD3, PPO])
def test_acting_and_updates_of_each_agent(cls: type[Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each agent acts and makes updates, with two checks in TorchRL disabled that need values.

    `SoftUpdate` compares addresses in its constructor, once in a run. `TanhNormal` compares its bounds on the host in
    its constructor unless that is compiled: two syncs for each distribution of SAC and PPO.
    """
    monkeypatch.setattr(SoftUpdate, "init_", lambda self: setattr(self, "initialized", True))
    monkeypatch.setattr(continuous, "is_compiling", lambda: True)
    delayed = {} if cls is PPO else {"actor_every": 2}
    update(cls(OBSERVATION, ACTION, **small(), normalise_observations=True, **delayed))


@pytest.mark.parametrize("argument, name", shipped())
def test_dqs_with_each_component(argument: str, name: str) -> None:
    cls = components(BY_NAME[argument])[name]
    changes: dict[str, Any] = {**small(), argument: SPECIAL.get(name, cls)()}
    if name == "Unbounded":  # it has no uniform distribution to measure Q over or to start from
        changes |= {"temperature": Constant(), "energy_estimator": Importance(4)}
    update(DQS(OBSERVATION, ACTION, **changes), updates=1)


class _Synchronising(Constant):
    """Temperature that reads a value from the device."""

    def step(self, *arguments: Any, **others: Any) -> None:
        super().step(*arguments, **others)
        float(self.updates)


class _TensorOnCPU(Constant):
    """Temperature with a tensor that does not follow the module to its device."""

    def __init__(self) -> None:
        super().__init__()
        self.value_on_cpu = torch.ones(1)

    def forward(self) -> Tensor:
        return super().forward() * self.value_on_cpu


@pytest.mark.parametrize("cls", [_Synchronising, _TensorOnCPU])
def test_a_sync_and_a_tensor_on_the_cpu_fail(cls: type[Temperature]) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        update(DQS(OBSERVATION, ACTION, **small(), temperature=cls()), updates=1)
