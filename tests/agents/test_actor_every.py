"""Tests of `actor_every`: which parameters an update changes, what is logged, and that resumed runs are identical."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import small, small_data, trainer
from torch import nn

from dqs_callbacks import FiniteGuard
from dqs_lightning.agents import DQS, SAC, TD3, Agent
from dqs_lightning.agents.measured import Measured
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import Ancestral, Importance
from dqs_lightning.envs import Maze
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.temperature import Relative, TargetEntropy, TargetESS, Temperature

EVERY = 3
SMALLER = {"energy_estimator": lambda: Importance(4), "sampler": lambda: Ancestral(3)}


def make(cls: type[Agent], data: OnlineData, **changes: Any) -> Agent:
    torch.manual_seed(3)
    own = {name: component() for name, component in SMALLER.items()} if cls is DQS else {}
    sizes = data.observation_dim, data.action_dim
    return cls(*sizes, **{**own, **small(), "actor_every": EVERY, "normalise_observations": True, **changes})


def actor(agent: Agent) -> list[nn.Parameter]:
    if isinstance(agent, DQS):
        return list(agent.diffusion.parameters())
    parts = list(agent.loss.actor_network_params.values(True, True))
    return [*parts, agent.loss.log_alpha] if isinstance(agent, SAC) else parts


def critics(agent: Agent) -> list[nn.Parameter]:
    if isinstance(agent, DQS):
        return list(agent.critic.parameters())
    return list(agent.loss.qvalue_network_params.values(True, True))


class Recorder(L.Callback):
    """Records after each update which parameters have changed, and the values of `watched`."""

    def __init__(self) -> None:
        self.before: dict[str, list[torch.Tensor]] = {}
        self.changed: list[dict[str, bool]] = []
        self.watched: list[dict[str, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Agent) -> None:
        self.before = self.copies(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Agent, *_: Any) -> None:
        now = self.copies(pl_module)
        pairs = {name: zip(self.before[name], now[name], strict=True) for name in now}
        self.changed.append({name: not all(torch.equal(a, b) for a, b in pair) for name, pair in pairs.items()})
        self.watched.append({name: value.item() for name, value in pl_module.watched.items()})
        self.before = now

    @staticmethod
    def copies(agent: Agent) -> dict[str, list[torch.Tensor]]:
        return {
            "actor": [p.detach().clone() for p in actor(agent)],
            "critics": [p.detach().clone() for p in critics(agent)],
        }


@pytest.mark.parametrize("cls", [DQS, SAC, TD3])
def test_critics_learn_at_every_update_and_the_actor_at_every_third(cls: type[Agent], tmp_path: Path) -> None:
    """The critics' parameters change at every update, the actor's at every third.

    The actor's gradients must be absent in between: with zero gradients Adam's momentum would still change it.
    """
    data, recorder = small_data(), Recorder()
    trainer(tmp_path, [recorder], max_steps=7).fit(make(cls, data), data)
    assert [row["critics"] for row in recorder.changed] == [True] * 7
    assert [row["actor"] for row in recorder.changed] == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("cls, name", [(DQS, "score_loss"), (SAC, "actor_loss"), (TD3, "actor_loss")])
def test_logged_values_are_means_over_the_updates_with_that_metric(cls: type[Agent], name: str, tmp_path: Path) -> None:
    data, recorder = small_data(), Recorder()
    fit = trainer(tmp_path, [recorder], max_steps=7, log_every_n_steps=7)
    fit.fit(make(cls, data), data)
    for metric, updates in ((name, (0, 3, 6)), ("critic_loss", range(7))):
        mean = sum(recorder.watched[update][metric] for update in updates) / len(updates)
        assert fit.callback_metrics[f"train/{metric}"].item() == pytest.approx(mean, rel=1e-5), metric
    assert all((name in row) == (update % EVERY == 0) for update, row in enumerate(recorder.watched))


@pytest.mark.parametrize("temperature", [Relative, TargetEntropy, TargetESS])
def test_the_temperature_is_measured_at_updates_of_the_actor(temperature: type[Temperature], tmp_path: Path) -> None:
    data, own = small_data(), temperature()
    trainer(tmp_path, max_steps=2 * EVERY * Measured.EVERY + 1).fit(make(DQS, data, temperature=own), data)
    assert own.updates == 3 * EVERY * Measured.EVERY


@pytest.mark.parametrize(
    "cls, changes",
    [(DQS, {"temperature": TargetEntropy}), (DQS, {"temperature": TargetESS}), (SAC, {})],
    ids=["dqs-entropy", "dqs-ess", "sac"],
)
def test_a_run_stopped_between_two_actor_updates_resumes_bitwise_identically(
    cls: type[Agent], changes: dict[str, type], tmp_path: Path
) -> None:
    weights = []
    for folder, steps in (("whole", (96,)), ("cut", (61, 96))):
        for max_steps in steps:
            data = small_data(environment=Maze())
            agent = make(cls, data, **{name: component(warmup=0) for name, component in changes.items()})
            last = tmp_path / folder / "checkpoints" / "last.ckpt"
            callbacks = [FiniteGuard(), RunCheckpoint(str(last.parent))]
            fit = trainer(tmp_path / folder, callbacks, max_steps=max_steps)
            fit.fit(agent, data, ckpt_path=last if last.exists() else None, weights_only=True)
        weights.append(agent.state_dict())
    assert fit.global_step == 96
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
