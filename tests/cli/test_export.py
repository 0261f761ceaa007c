"""An exported policy returns the same actions as its agent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small, small_agent, small_data, trainer
from torch import nn

from dqs_lightning.agents import DQS, SAC, load_agent
from dqs_lightning.cli import export
from dqs_lightning.cli.errors import InputError
from dqs_lightning.diffusion import MomentMatched, ProbabilityFlow, Sampler, Tanh
from dqs_lightning.envs import DMControl
from dqs_lightning.registry import components
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.temperature import LogLinear

DRAWS = {"MomentMatched": 3, "EulerMaruyama": 4, "ProbabilityFlow": 1}  # for three sampling steps
CASES = [(name, ".onnx") for name in DRAWS] + [(name, ".pt2") for name in sorted(components(Sampler))]


def checkpoint(folder: Path, **changes: object) -> Path:
    """Saves a checkpoint of an agent whose actions depend on every input: observation, noise and temperature."""
    agent = DQS(5, 2, **{"temperature": LogLinear(1.0, 0.01, 100), **small(), **changes})
    nn.init.normal_(agent.diffusion.denoiser.last.weight, std=0.3)
    for _ in range(50):
        agent.temperature.step()
    agent.trainer = writer = trainer(folder)
    writer.strategy.connect(agent)
    writer.save_checkpoint(folder / "a.ckpt", weights_only=False)
    return folder / "a.ckpt"


def as_the_sampler_draws(draws: int, batch: int) -> torch.Tensor:
    return torch.stack([torch.randn(batch, 2) for _ in range(draws)])


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_an_exported_graph_returns_the_agents_actions(tmp_path: Path, name: str, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path, out = checkpoint(tmp_path, sampler=components(Sampler)[name](3)), tmp_path / f"policy{suffix}"
    printed = export.export(path, out)
    agent, act = load_agent(path), export.load(out)
    draws = export.Policy(agent).draws
    assert draws == DRAWS.get(name, 3)
    assert printed.startswith(f"{out}  observation [batch, 5], noise [{draws}, batch, 2]  largest difference ")
    for batch in (1, 6):
        observation = torch.randn(batch, 5)
        torch.manual_seed(3)
        expected = agent.act(observation)
        torch.manual_seed(3)
        noise = as_the_sampler_draws(draws, batch)
        torch.testing.assert_close(act(observation, noise), expected, atol=1e-5, rtol=0)
        for index in range(draws):  # every draw changes the action
            other = noise.clone()
            other[index] += 0.1
            assert (act(observation, other) - expected).abs().max() > 1e-4
    assert [file.name for file in tmp_path.iterdir() if "policy" in file.name] == [out.name]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_noise_free_policy_takes_observations_only(tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path, out = checkpoint(tmp_path, sampler=MomentMatched(2)), tmp_path / f"policy{suffix}"
    assert "noise [" not in export.export(path, out, deterministic=True)
    observation = torch.randn(4, 5)
    expected = load_agent(path).act(observation, deterministic=True)
    torch.testing.assert_close(export.load(out)(observation), expected, atol=1e-5, rtol=0)


def test_the_command_takes_a_run_and_prints_what_it_wrote(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    data = small_data(environment=DMControl("cartpole", "swingup"), total_frames=480)
    agent = small_agent(data, support=Tanh(-0.5, 0.5), best_of=3)
    trainer(tmp_path, [RunCheckpoint(str(tmp_path / "run" / "checkpoints"))]).fit(agent, data)
    arguments = [sys.executable, "-m", "dqs_lightning.cli.export", str(tmp_path / "run"), "--out=new/policy.onnx"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("new/policy.onnx  observation [batch, 5], noise [3, batch, 1]  largest difference ")
    assert "ms at batch 1, eager" in first and "best_of=3 is not exported" in second
    model = onnx.load(tmp_path / "new" / "policy.onnx")
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts.items() >= {"task": "cartpole-swingup", "action_low": "-0.5", "action_high": "0.5"}.items()
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"observation": ["batch", 5], "noise": [3, "batch", 1], "action": ["batch", 1]}
    bound = export.load(tmp_path / "new" / "policy.onnx")(torch.randn(200, 5), 9 * torch.randn(3, 200, 1))
    assert 0.4 < bound.abs().max() <= 0.5


def test_an_exported_package_holds_only_its_metadata_and_the_denoiser(tmp_path: Path) -> None:
    export.export(checkpoint(tmp_path, sampler=ProbabilityFlow(1)), tmp_path / "policy.pt2")
    held = {"facts.json": ""}
    program = torch.export.load(tmp_path / "policy.pt2", extra_files=held)
    assert json.loads(held["facts.json"])["action_high"] == "1.0"
    assert {name.rpartition(".denoiser.")[0] for name in program.state_dict} == {"diffusion"}
    assert not program.module()(torch.randn(1, 5), torch.randn(1, 1, 2)).requires_grad


@pytest.mark.parametrize("error", [2e-5, float("nan")])
def test_a_graph_whose_actions_differ_from_the_agents_is_refused_and_the_old_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    load = export.load
    monkeypatch.setattr(export, "load", lambda path: lambda *inputs: load(path)(*inputs) + error)
    (tmp_path / "policy.pt2").write_text("old")
    with pytest.raises(InputError, match=r"policy.pt2: differs from the agent by .*, at most 1e-05"):
        export.export(checkpoint(tmp_path, sampler=ProbabilityFlow(1)), tmp_path / "policy.pt2")
    assert {file.name for file in tmp_path.iterdir()} == {"a.ckpt", "policy.pt2"}
    assert (tmp_path / "policy.pt2").read_text() == "old"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert export.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_bad_input_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = refusal(capsys, str(tmp_path), "--out=policy.txt")  # checked before the run is read
    assert wrong == "dqs-export: --out=policy.txt: must be a file that ends in .onnx or .pt2\n"
    assert "last.ckpt: no such checkpoint" in refusal(capsys, str(tmp_path), "--out=policy.pt2")
    (tmp_path / "folder.pt2").mkdir()
    assert "is a directory" in refusal(capsys, str(tmp_path), f"--out={tmp_path / 'folder.pt2'}")


def test_a_missing_package_is_named_with_the_command_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    line = refusal(capsys, "nothing", "--out=policy.onnx")
    assert "onnxruntime" in line and 'pip install "dqs-lightning[export]"' in line
    assert "no such checkpoint" in refusal(capsys, "nothing", "--out=policy.pt2")  # .pt2 needs no further package


def test_an_agent_without_an_exporter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "load_agent", lambda path: SAC(2, 2, **small((8,))))
    with pytest.raises(InputError, match="class SAC; only DQS has an exporter"):
        export.export(tmp_path / "a.ckpt", tmp_path / "policy.pt2")
