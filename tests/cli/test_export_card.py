"""The model card that `dqs-export` writes beside a graph."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import saved_run, small

from dqs_lightning.agents import PPO
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.export import command as export
from dqs_lightning.envs import Gym

SCORES = [(240, 10.0), (480, 20.0), (1000, 99.0)]
"""Frames and mean return of evaluations; the checkpoint has 480 frames."""
STARTS = [
    {"command": ["dqs-fit", "--config", "/home/me/configs/cartpole.yaml"], "commit": "01" * 20, "torch": "2.10"},
    {"command": ["dqs-fit", "--ckpt_path=auto"], "torch": "2.11"},
]
SETTINGS = {
    "model": {"init_args": {"tau": 0.5}},
    "data": {"map": ["/home/me/maze.txt"]},
    "evaluate": {"deterministic": False, "best_of": 16},
}
FACTS: dict[str, Any] = {
    "task": "Pendulum-v1", "method": "mine", "seed": 3, "starts": STARTS, "settings": SETTINGS,
}  # fmt: skip


def add_records(run: Path, facts: dict[str, Any] = FACTS) -> None:
    """Adds the files of a run that its callbacks and `dqs-fit` write."""
    rows = ({"env_frames": n, "return_mean": mean, "return_ci95": [mean - 1, mean + 2], "episodes": 5}
            for n, mean in SCORES)  # fmt: skip
    (run / "scores.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run / "run.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved_run(tmp_path_factory.mktemp("place") / "run", environment=Gym("Pendulum-v1", action_repeat=2))
    add_records(folder)
    return folder


@pytest.fixture
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_card_says_what_the_policy_is_and_its_program_runs(
    run: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    printed = export.export(checkpoint, tmp_path / f"policy{suffix}")
    assert printed.splitlines()[-1] == str(tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert text.count("# DQS on Pendulum-v1\n") == 1 and "by the method `mine` for 480 frames" in text
    assert "| 20.0 | [19.0, 22.0] | 5 | 480 | the one of the highest Q of 16 samples |" in text
    assert "one sample of the policy for each observation. The best of several samples needs the critics" in text
    assert "| `observation` | 0:3 |" in text and "| 0 | -2 | 2 |" in text
    assert "applied for 2 frames: a control period 0.1 s" in text
    assert "```bash\ndqs-fit --config configs/cartpole.yaml\n```" in text and "/home" not in text
    assert "seed_everything: 3\nmodel:\n  init_args:\n    tau: 0.5\n" in text
    assert "    tau: 0.5\ndata:\n  map:\n  - maze.txt\n" in text
    assert "| torch | `2.11` | `" in text
    assert "Video" not in text
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    exec(program, values)
    assert tuple(values["action"].shape) == (1, 1)
    assert values["environment_action"].item() == pytest.approx(2 * values["action"].item())
    assert values["metadata"]["task"] == "Pendulum-v1"


def test_the_front_matter_is_that_of_the_hub(checkpoint: Path, tmp_path: Path) -> None:
    export.export(checkpoint, tmp_path / "policy.pt2", deterministic=True)
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "dqs-lightning" and front["pipeline_tag"] == "reinforcement-learning"
    assert "Pendulum-v1" in front["tags"]
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 20.0 and result["dataset"]["name"] == "Pendulum-v1"
    assert "It returns the action without noise" in text and "noise =" not in text
    hub = pytest.importorskip("huggingface_hub")
    (found,) = hub.ModelCard(text).data.eval_results
    assert (found.metric_type, found.metric_value, found.dataset_name) == ("mean_reward", 20.0, "Pendulum-v1")


def test_the_newest_video_is_linked(run: Path, checkpoint: Path) -> None:
    (run / "videos").mkdir()
    (run / "videos" / "frames=480.mp4").touch()
    export.export(checkpoint, run / "policies" / "policy.pt2")
    assert "(<../videos/frames%3D480.mp4>)" in (run / "policies" / "README.md").read_text()
    (run / "videos" / "frames=480.mp4").unlink()
    (run / "videos").rmdir()


def test_without_a_run_the_card_says_what_is_unknown(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(checkpoint.read_bytes())
    (tmp_path / "scores.jsonl").write_text("of something else")
    export.export(tmp_path / "a.ckpt", tmp_path / "policy.pt2")
    text = (tmp_path / "README.md").read_text()
    assert "No evaluation of this policy is known." in text and "The command is unknown." in text
    assert "model-index" not in text


def test_an_agent_without_q_was_judged_by_one_sample(tmp_path: Path) -> None:
    run = saved_run(tmp_path, PPO(3, 1, **small((8,)), rollout_steps=16, minibatch_size=16, epochs=1),
                    environment=Gym("Pendulum-v1"))  # fmt: skip
    add_records(run)
    export.export(run / "checkpoints" / "last.ckpt", tmp_path / "policy.pt2")
    text = (tmp_path / "README.md").read_text()
    assert "| one sample |" in text and "highest Q" not in text and "critics" not in text


def test_a_file_of_the_user_is_kept_and_a_card_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    readme, other, out = tmp_path / "README.md", tmp_path / "policy.md", tmp_path / "policy.pt2"
    export.export(checkpoint, out)
    export.export(checkpoint, out, deterministic=True)  # replaces the card that nobody changed
    assert "without noise" in readme.read_text() and not other.exists()
    changed = readme.read_text().replace("# DQS", "# My DQS")
    readme.write_text(changed)
    assert export.export(checkpoint, out).splitlines()[-1] == str(other)
    assert readme.read_text() == changed and "# DQS on" in other.read_text()
    other.write_text("mine")
    out.write_text("old")
    with pytest.raises(InputError, match=r"no place for the model card: .*README.md and .*policy.md were not written"):
        export.export(checkpoint, out)
    assert (other.read_text(), out.read_text()) == ("mine", "old")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.jsonl", "{}\n", "scores.jsonl, line 1: not what Evaluate writes"),
        ("scores.jsonl", '{"env_frames": 1, "return_mean": [], "episodes": 1}\n', "scores.jsonl, line 1: not what"),
        ("run.json", "[]", "run.json: not what dqs-fit writes"),
        ("run.json", json.dumps({**FACTS, "starts": []}), "run.json: not what dqs-fit writes"),
        ("run.json", "\0\xff", "run.json: not what dqs-fit writes"),
    ],
)
def test_a_damaged_record_is_refused_and_nothing_is_written(
    run: Path, checkpoint: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    before = (run / name).read_text()
    (run / name).write_text(content)
    try:
        with pytest.raises(InputError, match=message):
            export.export(checkpoint, tmp_path / "policy.pt2")
    finally:
        (run / name).write_text(before)
    assert not list(tmp_path.iterdir())


def test_texts_of_a_run_cannot_leave_their_place_in_the_card(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    bad = "x\n```\n<script>alert(1)</script> `|` \x1b]0;x\x07"
    facts = {**FACTS, "method": bad, "settings": {"model": bad}, "starts": [{"command": ["dqs-fit", bad]}]}
    add_records(run, facts)
    try:
        export.export(checkpoint, tmp_path / "policy.pt2")
    finally:
        add_records(run)
    text = (tmp_path / "README.md").read_text()
    assert "\x1b" not in text and "\x07" not in text
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    assert "script" in text and "script" not in outside
