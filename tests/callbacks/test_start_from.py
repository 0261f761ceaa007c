"""Tests of `StartFrom`: a run starts with the weights of another run, and with nothing else of it."""

from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import small, small_agent, small_data, trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from dqs_callbacks import StartFrom
from dqs_lightning.agents import SAC, Agent
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.temperature import LogLinear


class AtStart(L.Callback):
    """Copies the weights with which training begins."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


def fit(folder: Path, agent: Agent | None = None, start: StartFrom | None = None, **settings: object) -> AtStart:
    data = small_data()
    agent = agent or small_agent(data, temperature=LogLinear())
    began = AtStart()
    callbacks = [began, RunCheckpoint(str(folder / "checkpoints")), *([start] if start else [])]
    trainer(folder, callbacks).fit(agent, data, weights_only=True, **settings)
    return began


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    fit(folder)
    return folder


def trained(source: Path) -> dict[str, Tensor]:
    return torch.load(source / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_all_weights_but_the_temperature_are_loaded_by_default(source: Path, tmp_path: Path) -> None:
    began, there = fit(tmp_path, start=StartFrom(str(source))).state, trained(source)
    assert {name for name in began if not torch.equal(began[name], there[name])} == {"temperature.updates"}
    assert began["temperature.updates"] == 0 < there["temperature.updates"]


def test_only_the_requested_parts_are_loaded(source: Path, tmp_path: Path) -> None:
    start = StartFrom(str(source / "checkpoints" / "last.ckpt"), ["diffusion", "temperature"])
    began, there = fit(tmp_path, start=start).state, trained(source)
    differ = {name.partition(".")[0] for name in began if not torch.equal(began[name], there[name])}
    assert differ == {"critic", "target_critic", "observation_norm"}


def test_other_agents_can_start_from_a_run_of_the_same_agent(tmp_path: Path) -> None:
    data = small_data()
    agents = [SAC(data.observation_dim, data.action_dim, **small()) for _ in range(2)]
    fit(tmp_path / "source", agents[0])
    began = fit(tmp_path / "new", agents[1], StartFrom(str(tmp_path / "source"))).state
    assert all(torch.equal(value, began[name]) for name, value in trained(tmp_path / "source").items())


def test_modules_of_modules_can_be_loaded(tmp_path: Path) -> None:
    data = small_data()
    agents = [SAC(data.observation_dim, data.action_dim, **small()) for _ in range(2)]
    fit(tmp_path / "source", agents[0])
    began = fit(tmp_path / "new", agents[1], StartFrom(str(tmp_path / "source"), ["loss.actor_network_params"])).state
    there = trained(tmp_path / "source")
    differ = {".".join(name.split(".")[:2]) for name in began if not torch.equal(began[name], there[name])}
    assert {"loss.log_alpha", "loss.qvalue_network_params"} <= differ and "loss.actor_network_params" not in differ
    wrong = StartFrom(str(tmp_path / "source"), ["loss.actor"])
    with pytest.raises(MisconfigurationException, match=r"parts=loss\.actor: must be .*loss\.actor_network_params"):
        wrong.give(agents[1])


def test_a_run_that_continues_has_its_own_weights_and_does_not_read_the_source(source: Path, tmp_path: Path) -> None:
    fit(tmp_path)
    own = tmp_path / "checkpoints" / "last.ckpt"
    kept = torch.load(own, weights_only=True)["state_dict"]
    agent = small_agent(small_data(), temperature=LogLinear())
    fit(tmp_path, agent, StartFrom(str(source / "gone")), ckpt_path=own)
    assert all(torch.equal(value, kept[name]) for name, value in agent.state_dict().items())


@pytest.mark.parametrize(
    ("run", "parts", "changes", "message"),
    [
        ("nowhere", None, {}, r"StartFrom\.run=.*nowhere: .*no such checkpoint file"),
        ("checkpoints/step=192-frames=*-rank=0.pt", None, {}, r"StartFrom\.run=.*rank=0.pt: not a run's checkpoint"),
        (
            "",
            ["actor"],
            {},
            r"StartFrom\.parts=actor: must be one of critic, diffusion, observation_norm, target_critic, temperature",
        ),
        ("", None, small((8, 8)), r"StartFrom\.run=.*: critic\S* is \[32\] there and \[8\] here; must be"),
        ("", None, {"normalise_observations": False}, r"observation_norm\S* is \[\] there and missing here"),
    ],
)
def test_a_source_that_does_not_fit_is_named_and_changes_no_weights(
    source: Path, tmp_path: Path, run: str, parts: list[str] | None, changes: dict, message: str
) -> None:
    agent = small_agent(small_data(), **changes)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    found = next(source.glob(run)) if "*" in run else source / run
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, agent, StartFrom(str(found), parts))
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
