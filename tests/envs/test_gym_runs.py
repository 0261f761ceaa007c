"""`dqs-fit` in Gymnasium environments: each of `cases` trains for 2,000 frames, or is refused in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import cases  # noqa: F401  (registers the environments)
import pytest

from dqs_lightning.checkpoint import restore
from dqs_lightning.cli import fit

Run = Callable[..., tuple[int, list[str]]]
SMALL = [
    "--model.critic_backbone.hidden=[8]", "--model.actor_backbone.hidden=[8]", "--model.energy_estimator=Importance",
    "--model.energy_estimator.num_samples=2", "--model.sampler.steps=2", "--trainer.accelerator=cpu",
    "--data.num_envs=4", "--data.batch_size=16", "--data.total_frames=2000", "--data.init_random_frames=400",
    "--data.updates_per_step=0.02", "--evaluate.every_frames=2000", "--evaluate.episodes=2", "--evaluate.best_of=1",
    "--run_dir=run",
]  # fmt: skip
GIVEN = ["--data.environment.action_low=-2", "--data.environment.action_high=[2.0,0.5]"]
TRAIN: dict[str, list[str]] = {
    "Float64": [],
    "UInt8Vector": [],
    "MatrixObservation": [],
    "DiscreteObservation": [],
    "DictObservation": [],
    "NestedDict": [],
    "TupleObservation": [],
    "MatrixAction": [],
    "AsymmetricAction": [],
    "InfiniteAction": GIVEN,
    "HalfInfiniteAction": GIVEN,
    "SaysItOnce": ["--data.environment.action_repeat=2"],
    "OwnFrameskip": ["--data.environment.kwargs.frameskip=3"],
}
REFUSED = ["PixelsBesideState", "InfiniteAction", "HalfInfiniteAction", "DiscreteAction", "DictAction"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `dqs-fit` with a Gymnasium id in an empty folder; returns the exit code and the lines of standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DQS_RUN_DIR", "")  # a run sets it; monkeypatch restores it afterwards
    monkeypatch.delenv("DQS_RUN_DIR")
    monkeypatch.setattr(restore, "_trusted", set(restore._trusted))

    def call(id: str, *arguments: str) -> tuple[int, list[str]]:
        chosen = ["--data.environment=Gym", f"--data.environment.id={id}"]
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *chosen, *SMALL, *arguments])
        try:
            code = fit.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err.splitlines()

    return call


def score() -> dict[str, float]:
    """Returns the last evaluation of the run."""
    found: dict[str, float] = json.loads(Path("run/scores.jsonl").read_text().splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAIN)
def test_a_case_trains_for_2000_frames(run: Run, name: str) -> None:
    code, err = run(f"Case{name}-v0", *TRAIN[name])
    assert code == 0 and not any("Traceback" in line for line in err), err
    assert score()["env_frames"] >= 2_000 and score()["updates"] > 8
    # The reward is -|action|^2 in each of 20 steps; in SaysItOnce it is 1 in each of five steps.
    assert score()["return_mean"] == 5 if name == "SaysItOnce" else score()["return_mean"] < 0


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_in_one_line_before_anything_is_written(run: Run, name: str) -> None:
    code, err = run(f"Case{name}-v0")
    assert code == 2 and len(err) == 1 and err[0].startswith(f"dqs-fit: data.environment.id=Case{name}-v0: "), err
    assert not list(Path().iterdir())


STRANGE = """
import cases
import gymnasium

class Strange(cases.Case):
    def __init__(self, length: int) -> None:
        self.length = length

gymnasium.register("Strange-v0", entry_point=Strange)
"""


@pytest.fixture
def strange(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes a package `my_robots` whose module `my_robots.envs` registers Strange-v0."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "my_robots").mkdir()
    (folder / "my_robots" / "__init__.py").touch()
    (folder / "my_robots" / "envs.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_robots"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("strange")
def test_the_package_of_an_environment_id_is_imported_only_if_it_is_trusted(run: Run) -> None:
    id, arguments = "my_robots.envs:Strange-v0", ["--data.environment.kwargs.length=7"]
    code, err = run(id, *arguments)
    assert code == 2 and len(err) == 1 and "Strange-v0 is not registered" in err[0] and "--trust" in err[0], err
    assert "my_robots" not in sys.modules and not list(Path().iterdir())
    code, err = run(id, *arguments, "--trust=my_robots.envs")
    assert code == 0, err
    assert "length: 7" in Path("run/config.yaml").read_text()
    assert -2 * 7 <= score()["return_mean"] < 0
