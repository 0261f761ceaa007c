"""`dqs-eval` and `dqs-export` refuse input that they cannot read, in one line, before an environment is made."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import saved_run, short_task, small, small_data

from dqs_lightning.agents import PPO, SAC, load_agent
from dqs_lightning.checkpoint import restore
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.cli import evaluate
from dqs_lightning.cli.eval_policy import chosen_policy
from dqs_lightning.cli.export import command as export
from dqs_lightning.envs import DMControl, Gym, Maze, MultiTask
from dqs_lightning.registry import describe

Refusal = Callable[..., str]
COMMANDS = {"dqs-eval": (evaluate.main, []), "dqs-export": (export.main, ["--out=policy.pt2"])}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def without_q(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = small_data(total_frames=480)
    agent = PPO(data.observation_dim, data.action_dim, **small((8,)), rollout_steps=64)
    return saved_run(tmp_path_factory.mktemp("ppo"), agent)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(restore, "_trusted", set())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_poles"]:
        del sys.modules[name]


@pytest.fixture
def refusal(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Returns the message of a command that must refuse its arguments, write nothing and make no environment."""

    def make(*_: object) -> None:
        raise AssertionError("an environment was made")

    def call(command: str, *arguments: str) -> str:
        main, more = COMMANDS[command]
        before = sorted(here.rglob("*"))
        with monkeypatch.context() as patched:
            patched.setattr(type(short_task()), "make", make)
            try:
                code = main([*arguments, *more])
            except SystemExit as stop:
                code = stop.code
        out, err = capsys.readouterr()
        assert code == 2 and out == "" and sorted(here.rglob("*")) == before
        line = err.splitlines()[-1]
        assert line.startswith(f"{command}: ") and len(err.splitlines()) <= 8, err
        return line

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes=0"], "--episodes=0: must be 1 to 10000"),
        (["--threads=0"], "--threads=0: must be 1 to 1024"),
        (["--episodes=100000000"], "--episodes=100000000: must be 1 to 10000"),
        (["--seed=-1"], "--seed=-1: must be 0 to 4294967285"),
        (["--seed=1180591620717411303424"], "must be 0 to 4294967285"),
        (["--seed=4294967295"], "--seed=4294967295: must be 0 to 4294967285"),
        (["--best_of=0"], "--best_of=0: must be 1 to 100000"),
        (["--device=nonsense"], "--device=nonsense: "),
        (["--device=meta"], "--device=meta: "),
        (["--device=cuda:9999"], "--device=cuda:9999: "),
        (["--device="], "--device=: "),
        (["--episode=3"], "unrecognized arguments: --episode=3"),
        (["--determ"], "unrecognized arguments: --determ"),
        (["--temperature=0.5"], "--temperature=0.5: must be "),
        (["--weights", "1", "2"], "--weights=[1.0, 2.0]: must be one number for each of two or more runs"),
        (["--trust=no-package"], "--trust=no-package: must be the import name of a package"),
        (["--trust=my_missing"], "--trust=my_missing: cannot be imported: No module named 'my_missing'"),
    ],
)
def test_bad_options_of_an_evaluation_are_refused(
    saved: Path, refusal: Refusal, arguments: list[str], message: str
) -> None:
    assert message in refusal("dqs-eval", str(saved), *arguments)


def test_several_runs_are_evaluated_together(saved: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(saved), str(saved), "--weights", "1", "0.5", "--episodes=2", "--max_steps=3"]) == 0
    assert "DQS at 480 frames + DQS at 480 frames  return " in capsys.readouterr().out


def test_the_policy_of_a_run_with_itself_is_its_own_at_another_temperature(saved: Path) -> None:
    agents, found = [load_agent(saved)] * 2, []
    observation = torch.randn(6, agents[0].observation_dim)
    for more in (["--weights", "1", "0", "--temperature=0.1"], ["--temperature=0.2"], ["--temperature=0.1"]):
        policy = chosen_policy(agents, evaluate.parse(["r", "r", *more]))
        torch.manual_seed(0)
        found.append(policy(observation))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_runs_that_cannot_be_composed_are_refused(saved: Path, without_q: Path, refusal: Refusal) -> None:
    assert "PPO has no Q(s, a): its agents cannot be composed" in refusal("dqs-eval", str(saved), str(without_q))
    message = refusal("dqs-eval", str(saved), str(saved), "--weights", "1", "2", "3")
    assert "--weights=[1.0, 2.0, 3.0]: must be one number for each of two or more runs" in message


def test_an_agent_without_a_temperature_is_not_evaluated_at_one(without_q: Path, refusal: Refusal) -> None:
    message = refusal("dqs-eval", str(without_q), "--temperature=0.1")
    assert message == "dqs-eval: --temperature=0.1: PPO is not sampled at a temperature"


def test_the_largest_seed_is_accepted(saved: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small_data(environment=DMControl("cartpole", "swingup", action_repeat=500))
    content = safe_load(saved / "checkpoints" / "last.ckpt")
    content["datamodule_hyper_parameters"]["environment"]["init_args"]["action_repeat"] = data.environment.action_repeat
    torch.save(content, here / "short.ckpt")
    assert evaluate.main([str(here / "short.ckpt"), "--episodes=2", "--seed=4294967293"]) == 0
    assert "DQS at 480 frames  return" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, threads", [([], 1), (["--threads=2"], 2)])
def test_the_number_of_threads_is_that_of_the_option_or_depends_on_the_networks(
    saved: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert evaluate.main([str(saved), "--episodes=1", "--max_steps=2", *arguments]) == 0
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_best_of_requires_an_agent_with_q(without_q: Path, refusal: Refusal) -> None:
    assert "--best_of=4: PPO has no Q(s, a) to choose by" in refusal("dqs-eval", str(without_q), "--best_of=4")


def test_the_best_agent_of_a_run_is_measured(
    saved: Path, here: Path, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(saved / "checkpoints" / "best.ckpt")
    assert f"{missing}: no such checkpoint" in refusal("dqs-eval", str(saved), "--best")
    last = saved / "checkpoints" / "last.ckpt"
    assert f"--best: needs a run directory, not {last}" in refusal("dqs-eval", str(last), "--best")
    run = here / "run" / "checkpoints"
    run.mkdir(parents=True)
    torch.save({**safe_load(last), "env_frames": 320}, run / "best.ckpt")
    assert evaluate.main([str(here / "run"), "--best", "--episodes=1", "--max_steps=2"]) == 0
    assert "DQS at 320 frames  return" in capsys.readouterr().out


def test_abbreviated_options_of_an_export_are_refused(saved: Path, refusal: Refusal) -> None:
    assert "unrecognized arguments: --determ" in refusal("dqs-export", str(saved), "--determ")


@pytest.mark.parametrize("command", COMMANDS)
def test_anything_but_a_checkpoint_of_a_run_is_refused(saved: Path, here: Path, refusal: Refusal, command: str) -> None:
    whole = (saved / "checkpoints" / "last.ckpt").read_bytes()
    content = safe_load(saved / "checkpoints" / "last.ckpt")
    (here / "empty").write_bytes(b"")
    (here / "half").write_bytes(whole[: len(whole) // 2])
    (here / "utf16").write_bytes("data: 5".encode("utf-16"))
    (here / "yaml").write_text("data: 5")
    (here / "folder").mkdir()
    (here / "loop").symlink_to(here / "loop")
    torch.save([1, 2], here / "list")
    torch.save({**content, "state_dict": {}}, here / "no weights")
    torch.save({**content, "state_dict": 5}, here / "number")
    torch.save({name: value for name, value in content.items() if "hyper" not in name}, here / "bare")
    environment = {"class_path": "dqs_lightning.envs.Gym", "init_args": {"id": "Nobody-v0"}}
    message = {
        **{name: "not a readable checkpoint" for name in ("empty", "half", "utf16", "yaml")},
        "list": "not a run's checkpoint; use its last.ckpt",
        next((saved / "checkpoints").glob("step=*-rank=0.pt")): "not a run's checkpoint; use its last.ckpt",
        "folder": "folder/checkpoints/last.ckpt: no such checkpoint",
        "loop": "loop: no such checkpoint",
        "nowhere": "nowhere: no such checkpoint",
        "x" * 5000: "File name too long",
        "no weights": "does not fit the DQS of this version: ",
        "number": "does not fit the DQS of this version: ",
        "bare": "holds no arguments of ",
    }
    for name, text in message.items():
        assert text in refusal(command, str(name)), name
    content["datamodule_hyper_parameters"]["environment"] = environment
    torch.save(content, here / "gym")
    assert "gym: its data cannot be built here: Gym: id=Nobody-v0: not registered" in (line := refusal(command, "gym"))
    assert line.endswith("a package that registers an environment is imported by --trust PACKAGE")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_package_that_was_trusted_in_training_has_to_be_trusted_again(
    saved: Path, here: Path, refusal: Refusal, command: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = safe_load(saved / "checkpoints" / "last.ckpt")
    pole = {"class_path": "my_poles.poles.Pole", "init_args": {}}
    content["datamodule_hyper_parameters"]["environment"] = pole
    torch.save(content, here / "a.ckpt")
    hint = "names my_poles.poles.Pole, which is neither imported nor of a trusted package; if you trust my_poles, add"
    assert hint in refusal(command, "a.ckpt")
    assert "--trust=my_poles: cannot be imported: No module named 'my_poles'" in refusal(
        command, "a.ckpt", "--trust", "my_poles"
    )
    folder = here / "my_poles"
    folder.mkdir()
    (folder / "__init__.py").touch()
    source = "class Pole(DMControl):\n    def __init__(self): super().__init__('cartpole', 'swingup', 500)\n"
    (folder / "poles.py").write_text(f"from dqs_lightning.envs import DMControl\n{source}")
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert hint in refusal(command, "a.ckpt")
    if command == "dqs-export":  # it succeeds and writes its file
        monkeypatch.setattr(export, "write", full)
        assert "policy.pt2: cannot be written: No space" in refusal(command, "a.ckpt", "--trust=my_poles")
    else:
        assert evaluate.main(["a.ckpt", "--trust=my_poles", "--episodes=2"]) == 0
        assert capsys.readouterr().out.startswith("cartpole-swingup  DQS at 480 frames  return ")


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_an_agent_of_another_environment_is_refused(
    saved: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = saved / "checkpoints" / "last.ckpt"
    content = safe_load(last)
    content["datamodule_hyper_parameters"]["environment"] = describe(Maze())
    torch.save(content, here / "a.ckpt")
    assert evaluate.main(["a.ckpt"]) == 2
    message = f"its environment has 2 observations and 2 actions, its agent {load_agent(last).observation_dim} and 1"
    assert message in capsys.readouterr().err


def test_an_environment_that_cannot_be_made_is_refused(
    saved: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(*_: Any) -> None:
        raise OSError("no such\ndisplay \x1b[2J")

    monkeypatch.setattr(type(short_task()), "make", make)
    assert evaluate.main([str(saved)]) == 2
    err = capsys.readouterr().err
    assert err.endswith(f"its environment {short_task().name} cannot be made here: OSError: no such display \\x1b[2J\n")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/policy.pt2", "file is not a folder"),
        ("loop/policy.pt2", "loop is not a folder"),
        ("x" * 300 + "/policy.pt2", "a part of the path is too long"),
        ("x" * 300 + ".pt2", "File name too long"),
        ("pipe.pt2", "is no regular file"),
        ("folder.pt2", "is a directory"),
    ],
)
def test_an_output_path_that_cannot_be_written_is_refused(
    saved: Path, here: Path, refusal: Refusal, out: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").touch()
    (here / "loop").symlink_to(here / "loop")
    (here / "folder.pt2").mkdir()
    os.mkfifo(here / "pipe.pt2")
    monkeypatch.setitem(COMMANDS, "dqs-export", (export.main, [f"--out={out}"]))
    assert message in refusal("dqs-export", str(saved))


@pytest.mark.parametrize("out", ["policy.pt2", "new/deep/policy.pt2"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_partial_one(
    saved: Path, here: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (here / "policy.pt2").write_text("old")
    monkeypatch.setattr(export, "write", full)
    monkeypatch.setitem(COMMANDS, "dqs-export", (export.main, [f"--out={out}"]))
    assert f"--out={out}: cannot be written: No space left on device" in refusal("dqs-export", str(saved))
    assert (here / "policy.pt2").read_text() == "old"


def test_several_tasks_have_a_return_each_and_an_exported_policy(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = MultiTask([Gym("Pendulum-v1", kwargs={"max_episode_steps": 5}), Maze()], label="two")
    sizes = small_data(environment=environment)
    agent = SAC(sizes.observation_dim, sizes.action_dim, **small((8,)), action_dims=sizes.action_dims)
    run = saved_run(here / "run", agent, environment=environment)
    assert evaluate.main([str(run), "--episodes=2", "--max_steps=6"]) == 0
    line, *each = capsys.readouterr().out.splitlines()
    assert line.startswith("two  SAC at 480 frames") and line.endswith("2 episodes")
    assert [text.split("  ")[1] for text in each] == ["Pendulum-v1", "maze-four-goals"]
    mean = float(line.split("return ")[1].split()[0])
    assert mean == pytest.approx(sum(float(text.split()[-1]) for text in each) / 2, abs=0.11)
    assert export.main([str(run), "--out=two.pt2"]) == 0
    assert "unknown: two: each task has its own" in capsys.readouterr().out
