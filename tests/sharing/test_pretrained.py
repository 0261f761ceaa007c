"""An agent that is saved into a folder is the same one when it is loaded, with a card and the records of its run."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import small, small_data, trainer
from records import ROW

from dqs_lightning.agents import DQS, SAC, load_agent
from dqs_lightning.checkpoint.archive import CheckpointError, safe_load
from dqs_lightning.cli import evaluate, fit
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import DMControl


def test_a_loaded_agent_is_the_saved_one(run: Path, tmp_path: Path) -> None:
    agent = load_agent(run)  # a run directory as well as its checkpoint
    agent.save_pretrained(tmp_path / "mine")
    found, observation = load_agent(tmp_path / "mine"), torch.randn(9, 5)
    assert type(found) is DQS and found.env_frames == 480
    torch.testing.assert_close(found.act(observation, True), agent.act(observation, True), rtol=0, atol=0)
    actions = torch.rand(9, 1)
    torch.testing.assert_close(found.q_value(observation, actions), agent.q_value(observation, actions))
    assert found.hparams["critic_lr"] == agent.hparams["critic_lr"]
    data = OnlineData.load_from_checkpoint(tmp_path / "mine" / "agent.ckpt")
    assert data.environment.name == "cartpole-swingup"
    assert not {"optimizer_states", "loops", "callbacks"} & safe_load(tmp_path / "mine" / "agent.ckpt").keys()


def test_the_folder_has_a_card_and_the_records_of_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_agent(run).save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    names = {"agent.ckpt", "README.md", "config.yaml", "scores.jsonl", "replay.mp4"}
    assert {file.name for file in Path("mine").iterdir()} == names
    text = Path("mine/README.md").read_text()
    assert "| 20.0 | [19.0, 22.0] | 5 | 480 | without noise |" in text and "(<replay.mp4>)" in text
    assert "| `velocity` | 3:5 |" in text
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    values: dict[str, Any] = {}
    exec(program, values)
    assert values["action"].shape == (1, 1) and "act(torch.zeros(1, 5), deterministic=True)" in program  # as evaluated
    assert yaml.safe_load(Path("mine/config.yaml").read_text())["seed_everything"] == 7
    monkeypatch.setattr(sys, "argv", ["dqs-fit", "--config=mine/config.yaml", "--print_config"])
    with pytest.raises(SystemExit) as stop:
        fit.main()
    assert stop.value.code == 0 and "critic_lr: 0.5" in capsys.readouterr().out
    assert evaluate.main(["mine", "--episodes=2", "--max_steps=2"]) == 0
    assert capsys.readouterr().out.startswith("cartpole-swingup  DQS at 480 frames  return ")


def test_an_agent_in_python_has_the_records_of_its_trainer(tmp_path: Path) -> None:
    data = small_data(environment=DMControl("cartpole", "swingup", 2), total_frames=480)
    agent = DQS(data.observation_dim, data.action_dim, **small((8,)))
    (tmp_path / "place").mkdir()
    trainer(tmp_path / "place").fit(agent, data)
    (tmp_path / "place" / "scores.jsonl").write_text(f"{json.dumps(ROW)}\n")
    agent.save_pretrained(tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "# DQS on cartpole-swingup" in text and "for 480 frames" in text and "| 20.0 |" in text
    torch.testing.assert_close(
        load_agent(tmp_path / "mine").act(torch.ones(1, 5), True), agent.eval().act(torch.ones(1, 5), True)
    )


def test_an_agent_without_a_run_is_saved_alone(tmp_path: Path) -> None:
    SAC(3, 2, **small((8,)), learning_rate=0.25).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"agent.ckpt", "README.md"}
    assert "# SAC on an unknown task" in (tmp_path / "README.md").read_text()
    found = load_agent(tmp_path)
    assert isinstance(found, SAC) and found.learning_rate == 0.25


def test_changed_arguments_are_saved_and_texts_of_the_environment_stay_hidden(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TASK", "swingup")
    content = safe_load(run / "checkpoints" / "last.ckpt")
    content["datamodule_hyper_parameters"]["environment"]["init_args"]["task"] = "${oc.env:MY_TASK}"
    torch.save(content, tmp_path / "a.ckpt")
    DQS.load_from_checkpoint(tmp_path / "a.ckpt", critic_lr=0.125).save_pretrained(tmp_path / "mine")
    saved = safe_load(tmp_path / "mine" / "agent.ckpt")
    assert saved["datamodule_hyper_parameters"]["environment"]["init_args"]["task"] == "${oc.env:MY_TASK}"
    found = load_agent(tmp_path / "mine")
    assert isinstance(found, DQS) and found.critic_lr == 0.125


def test_a_readme_of_the_user_is_kept(tmp_path: Path) -> None:
    agent = SAC(3, 2, **small((8,)))
    (tmp_path / "README.md").write_text("mine")
    agent.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine" and "# SAC" in (tmp_path / "agent.md").read_text()
    (tmp_path / "agent.md").write_text("mine too")
    (tmp_path / "agent.ckpt").unlink()
    with pytest.raises(ValueError, match=r"README.md and .*agent.md were not written by dqs-lightning"):
        agent.save_pretrained(tmp_path)
    assert not (tmp_path / "agent.ckpt").exists()


def test_a_folder_without_an_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last.ckpt: no such checkpoint file"):
        load_agent(tmp_path)
