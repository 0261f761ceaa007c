"""Non-finite values within an update: the run stops before weights or checkpoint contain them and names the source."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import small, small_data, trainer
from torch import Tensor

from dqs_callbacks import FiniteGuard, NonFiniteError
from dqs_lightning.agents import DQS, PPO, SAC, TD3, Agent, Quantiles
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.diffusion import Estimate, MultiStart
from dqs_lightning.diffusion.estimators import Posterior
from dqs_lightning.envs import Maze
from dqs_lightning.run.checkpoint import RunCheckpoint

VALUES = (math.nan, math.inf, -math.inf, 1e38)
AGENTS: dict[type[Agent], dict[str, Any]] = {
    DQS: {},
    SAC: {"normalise_observations": True},
    TD3: {},
    PPO: {"rollout_steps": 8, "minibatch_size": 4, "epochs": 1},
}


def run(
    folder: Path, cls: type[Agent], fault: "Fault", *callbacks: L.Callback, **changes: Any
) -> tuple[Agent, L.Trainer]:
    """Fit an agent on blocks of eight steps, with two updates after each block but the first."""
    data = small_data(
        environment=Maze(),
        steps_per_collect=4,
        total_frames=40,
        init_random_frames=8,
        batch_size=4,
        updates_per_step=0.25,
    )
    agent = cls(data.observation_dim, data.action_dim, **small((4, 4)), **AGENTS[cls], **changes)
    fault.into(agent)
    fit = trainer(folder, [fault, *callbacks])
    fit.fit(agent, data)
    return agent, fit


class Fault(L.Callback):
    """Adds a value to one quantity of an agent from its third update on, and keeps the state before each update."""

    def __init__(self, source: str, value: float) -> None:
        self.source, self.value = source, value
        self.armed = False
        self.agent: Agent

    def add(self, tensor: Tensor) -> Tensor:
        return tensor + self.value if self.armed else tensor

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Agent, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.armed = True
            if self.source == "weight":
                with torch.no_grad():
                    self.parameter().fill_(self.value)
            if self.source == "step size":
                trainer.optimizers[0].param_groups[0]["lr"] = self.value
            if self.source in ("observation", "action"):
                batch[self.source][1, 0] = self.value
            if self.source in ("reward", "next observation"):
                batch["next", self.source.removeprefix("next ")][1, 0] = self.value
        self.before = self.state(trainer, pl_module)

    @staticmethod
    def state(trainer: L.Trainer, agent: Agent) -> dict[str, Tensor]:
        kept = trainer.optimizers[0].state_dict()["state"]
        optimizer = {f"{i} {name}": value for i, state in kept.items() for name, value in state.items()}
        return {name: value.detach().clone() for name, value in {**agent.state_dict(), **optimizer}.items()}

    def parameter(self) -> Tensor:
        """The parameter of a critic's last layer that receives the fault."""
        trained = ((name, p) for name, p in self.agent.named_parameters() if p.requires_grad)
        return [p for name, p in trained if ("critic" in name or "qvalue" in name) and name.endswith("weight")][-1]

    def into(self, agent: Agent) -> None:
        self.agent = agent
        if self.source == "gradient":
            self.parameter().register_hook(self.add)
        elif isinstance(agent, DQS):
            self._into_dqs(agent)
        elif self.source == "critic loss" and not isinstance(agent, TD3):
            key = "loss_critic" if isinstance(agent, PPO) else "loss_qvalue"
            agent.loss.register_forward_hook(lambda *call: call[-1].set(key, self.add(call[-1][key])))
        elif self.source == "critic loss":
            value_loss = agent.loss.value_loss
            agent.loss.value_loss = lambda batch: (self.add((found := value_loss(batch))[0]), found[1])
        elif self.source == "target" and isinstance(agent, PPO):
            agent.advantage.register_forward_hook(
                lambda *call: call[-1].set("value_target", self.add(call[-1]["value_target"]))
            )
        elif self.source == "target":
            estimator = agent.loss.value_estimator
            value_estimate = estimator.value_estimate
            estimator.value_estimate = lambda batch: self.add(value_estimate(batch))

    def _into_dqs(self, agent: DQS) -> None:
        fault = self

        class FaultyLoss(Quantiles):
            def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
                return fault.add(super().loss(outputs, target))

        class FaultyEstimator(MultiStart):
            def estimate(self, posterior: Posterior) -> Estimate:
                found = super().estimate(posterior)
                return found._replace(denoised=fault.add(found.denoised))

        if self.source == "critic loss":
            agent.critic_loss = FaultyLoss()
        if self.source == "score target":
            agent.diffusion.energy_estimator = FaultyEstimator(8)
        for source, critic in (("q", agent.critic), ("target", agent.target_critic)):
            if self.source == source:
                critic.members[0].last.register_forward_hook(lambda *call: self.add(call[-1]))


NAMES = {
    (DQS, "weight"): r"critic\.members\.1\.last\.weight",
    (DQS, "q"): "q",
    (DQS, "target"): "critic_target",
    (DQS, "critic loss"): "critic_loss",
    (DQS, "score target"): "score_target",
    (DQS, "gradient"): r"norm of the gradient of critic\.members\.1\.last\.weight",
    (SAC, "weight"): r"loss\.qvalue_network_params\S+weight",
    (SAC, "target"): "td_error",
    (SAC, "critic loss"): "critic_loss",
    (SAC, "gradient"): r"norm of the gradient of loss\.qvalue_network_params\S+weight",
    (TD3, "weight"): r"loss\.qvalue_network_params\S+weight",
    (TD3, "target"): "critic_target",
    (TD3, "critic loss"): "critic_loss",
    (TD3, "gradient"): r"norm of the gradient of loss\.qvalue_network_params\S+weight",
    (PPO, "weight"): r"loss\.critic_network\S+weight",
    (PPO, "target"): "value_target",
    (PPO, "critic loss"): "critic_loss",
    (PPO, "gradient"): "norm of the gradient of parameter group 0",  # its gradient is clipped
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("cls", "source"), NAMES, ids=lambda case: getattr(case, "__name__", case))
def test_a_non_finite_quantity_stops_the_run_before_the_weights_change(
    tmp_path: Path, cls: type[Agent], source: str, value: float
) -> None:
    fault = Fault(source, value)
    update = 4 if (cls, source) == (PPO, "target") else 2  # PPO computes the value targets of a whole rollout
    message = rf"update {update}: {NAMES[cls, source]} is (nan|-?inf|-?\d\S*e\+3\d); must be at most 1.8e"
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, cls, fault, FiniteGuard())
    after = fault.state(fault.agent.trainer, fault.agent)
    assert all(torch.equal(entry, fault.before[name]) or source == "weight" for name, entry in after.items())
    assert all(entry.isfinite().all() for entry in after.values()) or source == "weight"


@pytest.mark.parametrize("value", VALUES)
def test_a_non_finite_reward_in_the_batch_is_named(tmp_path: Path, value: float) -> None:
    """The reward itself is checked, because quantile regression has a finite gradient even for an infinite reward."""
    fault = Fault("reward", value)
    with pytest.raises(NonFiniteError, match=rf"update 2: reward in the batch is {value:.4g};".replace("+", r"\+")):
        run(tmp_path, DQS, fault, FiniteGuard())
    assert all(torch.equal(v, fault.before[name]) for name, v in fault.state(fault.agent.trainer, fault.agent).items())


@pytest.mark.parametrize("source", ["observation", "action", "next observation"])
@pytest.mark.parametrize("cls", [DQS, SAC, TD3])
def test_non_finite_data_in_the_batch_is_named(tmp_path: Path, cls: type[Agent], source: str) -> None:
    with pytest.raises(NonFiniteError, match=rf"update 2: {source} in the batch is nan;"):
        run(tmp_path, cls, Fault(source, math.nan), FiniteGuard())


@pytest.mark.parametrize("value", [1e30, math.inf])
def test_weights_are_checked_before_they_are_saved(tmp_path: Path, value: float) -> None:
    """An optimizer step that is too large makes the weights non-finite; the checkpoint of the update before is kept."""
    with pytest.raises(NonFiniteError, match=r"update 3: critic\S+ is (nan|-?inf|-?\d\S*e\+\d\d); not saved"):
        run(tmp_path, DQS, Fault("step size", value), FiniteGuard(), RunCheckpoint(str(tmp_path), every_n_updates=1))
    kept = safe_load(tmp_path / "last.ckpt")
    assert kept["global_step"] == 2 and any(tmp_path.glob("step=2-*-rank=0.pt"))
    assert all(entry.isfinite().all() for entry in kept["state_dict"].values())


def test_nothing_is_saved_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        run(tmp_path, DQS, Fault("q", math.inf), FiniteGuard(), RunCheckpoint(str(tmp_path), every_n_updates=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=2-frames=16-rank=0.pt"]


def test_the_guard_can_be_switched_off(tmp_path: Path) -> None:
    _, fit = run(tmp_path, DQS, Fault("critic loss", math.nan), FiniteGuard(enabled=False))
    assert fit.global_step == 8
