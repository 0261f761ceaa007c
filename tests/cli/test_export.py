"""An exported policy returns the same actions as its agent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import saved_run, small, small_agent, small_data, trainer
from torch import Tensor, nn

from dqs_lightning.agents import DQS, PPO, SAC, TD3, Agent, load_agent
from dqs_lightning.agents.graph import PolicyGraph
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.export import command as export
from dqs_lightning.cli.export.graph import load
from dqs_lightning.diffusion import MomentMatched, ProbabilityFlow, Sampler, Tanh
from dqs_lightning.envs import DMControl
from dqs_lightning.envs.transforms import CatFrames, SignTransform
from dqs_lightning.registry import components, describe
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.temperature import LogLinear

DRAWS = {"MomentMatched": 3, "EulerMaruyama": 4, "ProbabilityFlow": 1}  # for three sampling steps
CASES = [(name, ".onnx") for name in DRAWS] + [(name, ".pt2") for name in sorted(components(Sampler))]


def saved(agent: Agent, folder: Path) -> Path:
    """Saves a checkpoint of an agent alone."""
    agent.trainer = writer = trainer(folder)
    writer.strategy.connect(agent)
    writer.save_checkpoint(folder / "a.ckpt", weights_only=False)
    return folder / "a.ckpt"


def checkpoint(folder: Path, **changes: object) -> Path:
    """Saves a checkpoint of an agent whose actions depend on every input: observation, noise and temperature."""
    agent = DQS(5, 2, **{"temperature": LogLinear(1.0, 0.01, 100), **small(), **changes})
    nn.init.normal_(agent.diffusion.denoiser.last.weight, std=0.3)
    for _ in range(50):
        agent.temperature.step()
    return saved(agent, folder)


class _Linear(Agent):
    """An agent of another package: a linear policy with noise, and the one method that exports it."""

    def __init__(self, observation_dim: int, action_dim: int, normalise_observations: bool = False) -> None:
        super().__init__(observation_dim, action_dim, normalise_observations=normalise_observations)
        self.save_hyperparameters()
        self.policy, self.critic = nn.Linear(observation_dim, action_dim), nn.Linear(observation_dim, 1)

    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        action = self.policy(self.observation_norm(observation)).expand(num, *observation.shape[:-1], self.action_dim)
        return torch.tanh(action if deterministic else action + torch.randn_like(action))

    def policy_graph(self, deterministic: bool = False) -> PolicyGraph:
        return LinearGraph(self.observation_norm, self.policy, 0 if deterministic else 1)


class LinearGraph(PolicyGraph):
    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        action = self.network(self.observation_norm(observation))
        return torch.tanh(action if noise is None else action + noise[0])


AGENTS = {
    "SAC": (SAC, small()),
    "TD3": (TD3, {**small(), "exploration_noise": 0.8}),
    "PPO": (PPO, small()),
    "Linear": (_Linear, {}),
}


def baseline(folder: Path, name: str) -> Path:
    """Saves a checkpoint of an agent that has seen observations far from the standard normal distribution."""
    cls, arguments = AGENTS[name]
    agent = cls(5, 2, normalise_observations=True, **arguments)
    agent.update_observation_norm(20 + 10 * torch.randn(100, 5))
    return saved(agent, folder)


def as_the_sampler_draws(draws: int, batch: int) -> torch.Tensor:
    return torch.stack([torch.randn(batch, 2) for _ in range(draws)])


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_an_exported_graph_returns_the_agents_actions(tmp_path: Path, name: str, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path, out = checkpoint(tmp_path, sampler=components(Sampler)[name](3)), tmp_path / f"policy{suffix}"
    printed = export.export(path, out)
    agent, act = load_agent(path), load(out)
    draws = agent.policy_graph().draws
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
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_is_exported_with_its_normalisation(
    tmp_path: Path, name: str, deterministic: bool, suffix: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path, out = baseline(tmp_path, name), tmp_path / f"policy{suffix}"
    export.export(path, out, deterministic)
    agent, act = load_agent(path), load(out)
    for batch in (1, 6):
        observation = 20 + 10 * torch.randn(batch, 5)  # as the environment has it
        torch.manual_seed(3)
        expected = agent.act(observation, deterministic)
        torch.manual_seed(3)
        noise = () if deterministic else (torch.randn(1, batch, 2),)
        torch.testing.assert_close(act(observation, *noise), expected, atol=1e-5, rtol=0)
        assert expected.abs().min() < 0.99  # not all of them at a bound, where every graph would agree
        if noise:
            assert (act(observation, noise[0] + 0.5) - expected).abs().max() > 1e-3


def test_without_exploration_noise_td3_takes_no_noise(tmp_path: Path) -> None:
    path, out = saved(TD3(5, 2, exploration_noise=0.0, **small()), tmp_path), tmp_path / "policy.pt2"
    assert "noise [" not in export.export(path, out)
    observation = torch.randn(4, 5)
    torch.testing.assert_close(load(out)(observation), load_agent(path).act(observation), atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_learned_range_of_temperatures_is_an_input(tmp_path: Path, deterministic: bool, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path = checkpoint(tmp_path, sampler=MomentMatched(3), temperature_range=(0.1, 4))
    out = tmp_path / f"policy{suffix}"
    assert "observation [batch, 5], temperature [batch, 1]" in export.export(path, out, deterministic)
    agent, act, observation = load_agent(path), load(out), torch.randn(6, 5)
    present, found = float(agent.temperature()), []
    for factor in (0.1, 1.0, 4.0):
        torch.manual_seed(3)
        expected = agent.act(observation, deterministic, temperature=factor * present)
        torch.manual_seed(3)
        noise = () if deterministic else (as_the_sampler_draws(3, 6),)
        found.append(act(observation, torch.full((6, 1), factor * present), *noise))
        torch.testing.assert_close(found[-1], expected, atol=1e-5, rtol=0)
    assert (found[0] - found[2]).abs().max() > 1e-3
    card = next(tmp_path.glob("*.md")).read_text()
    assert f"{0.1 * present:.3g} to {4 * present:.3g}" in card


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_noise_free_policy_takes_observations_only(tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path, out = checkpoint(tmp_path, sampler=MomentMatched(2)), tmp_path / f"policy{suffix}"
    assert "noise [" not in export.export(path, out, deterministic=True)
    observation = torch.randn(4, 5)
    expected = load_agent(path).act(observation, deterministic=True)
    torch.testing.assert_close(load(out)(observation), expected, atol=1e-5, rtol=0)


def test_the_command_takes_a_run_and_prints_what_it_wrote(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    data = small_data(environment=DMControl("cartpole", "swingup"), total_frames=480)
    agent = small_agent(data, support=Tanh(-0.5, 0.5), best_of=3)
    trainer(tmp_path, [RunCheckpoint(str(tmp_path / "run" / "checkpoints"))]).fit(agent, data)
    arguments = [sys.executable, "-m", "dqs_lightning.cli.export", str(tmp_path / "run"), "--out=new/policy.onnx"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    first, second, card = done.stdout.splitlines()
    assert card == "new/README.md" and (tmp_path / card).is_file()
    assert first.startswith("new/policy.onnx  observation [batch, 5], noise [3, batch, 1]  largest difference ")
    assert "ms at batch 1, eager" in first and "best_of=3 is not exported" in second
    model = onnx.load(tmp_path / "new" / "policy.onnx")
    facts = {item.key: item.value for item in model.metadata_props}
    texts = ("task", "agent", "action_low", "action_high", "observation_normalisation")
    assert [facts[key] for key in texts] == ["cartpole-swingup", "DQS", "-0.5", "0.5", "included"]
    found = {key: json.loads(facts[key]) for key in facts.keys() - {*texts, "action_mapping"}}
    assert found.pop("versions").keys() == {"dqs-lightning", "torch", "dm_control", "mujoco"}
    assert found == {
        "env_frames": 480,
        "deterministic": False,
        "action_repeat": 2,
        "control_period_s": 0.02,
        "observation": [{"name": "position", "start": 0, "stop": 3}, {"name": "velocity", "start": 3, "stop": 5}],
        "observation_transforms": [],
        "environment_action_low": [-1.0],
        "environment_action_high": [1.0],
    }
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"observation": ["batch", 5], "noise": [3, "batch", 1], "action": ["batch", 1]}
    bound = load(tmp_path / "new" / "policy.onnx")(torch.randn(200, 5), 9 * torch.randn(3, 200, 1))
    assert 0.4 < bound.abs().max() <= 0.5


def test_an_exported_package_holds_only_its_metadata_and_the_denoiser(tmp_path: Path) -> None:
    export.export(checkpoint(tmp_path, sampler=ProbabilityFlow(1)), tmp_path / "policy.pt2")
    held = {"facts.json": ""}
    program = torch.export.load(tmp_path / "policy.pt2", extra_files=held)
    assert json.loads(held["facts.json"])["action_high"] == 1.0
    parts = {".".join(name.split(".")[:2]) for name in program.state_dict}
    assert parts == {
        "network.denoiser",
        "observation_norm.mean",
        "observation_norm.variance",
        "observation_norm.batches",
    }
    assert not program.module()(torch.randn(1, 5), torch.randn(1, 1, 2)).requires_grad


def test_transforms_that_the_graph_lacks_are_named(tmp_path: Path) -> None:
    cartpole, transforms = DMControl("cartpole", "swingup", 2), [CatFrames(2), SignTransform(["reward"])]
    data = small_data(environment=cartpole, total_frames=480, transforms=transforms)
    agent = small_agent(data)
    trainer(tmp_path, [RunCheckpoint(str(tmp_path / "checkpoints"))]).fit(agent, data)
    out = tmp_path / "policy.pt2"
    printed = export.export(tmp_path / "checkpoints" / "last.ckpt", out).splitlines()
    assert printed[1].endswith("these transforms, which are not in the graph: CatFrames")
    held = {"facts.json": ""}
    torch.export.load(out, extra_files=held)
    facts = json.loads(held["facts.json"])
    assert [transform["init_args"]["N"] for transform in facts["observation_transforms"]] == [2]
    names = [part["name"] for part in facts["observation"]]
    assert names == ["position[t-1]", "velocity[t-1]", "position", "velocity"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (("walker", "walk"), "its environment has 24 observations and 6 actions, its agent 5 and 1"),
        (("lqr", "lqr_2_1"), None),
    ],
)
def test_another_environment_is_refused_and_one_that_cannot_be_made_is_unknown(
    tmp_path: Path, task: tuple[str, str], message: str | None
) -> None:
    path, out = saved_run(tmp_path) / "checkpoints" / "last.ckpt", tmp_path / "policy.pt2"
    content = safe_load(path)
    content["datamodule_hyper_parameters"]["environment"] = describe(DMControl(*task))
    torch.save(content, path)
    if message:
        with pytest.raises(InputError, match=message):
            export.export(path, out)
        assert not out.exists()
    else:
        unknown = export.export(path, out).splitlines()[1]
        start = "Observation order, action bounds and control period are unknown: domain=lqr, task=lqr_2_1: its action "
        assert unknown.startswith(start)


@pytest.mark.parametrize("error", [2e-5, float("nan")])
def test_a_graph_whose_actions_differ_from_the_agents_is_refused_and_the_old_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
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


class _Unexported(_Linear):
    policy_graph = Agent.policy_graph


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (_Unexported(2, 2), "a.ckpt: _Unexported cannot be exported: it has no method policy_graph"),
        (DQS(2, 2, amortised=False, **small((8,))), "a.ckpt: DQS with amortised=False cannot be exported: it has no"),
    ],
)
def test_an_agent_without_a_graph_is_refused(tmp_path: Path, agent: Agent, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export.export(saved(agent, tmp_path), tmp_path / "policy.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]
