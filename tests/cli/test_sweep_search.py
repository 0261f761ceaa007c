"""Searches: suggestions, pruning, values and resuming. Runs are played by writing the files that dqs-fit writes."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

optuna = pytest.importorskip("optuna", reason='Optuna is not installed: pip install "dqs-lightning[sweep]"')

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report import command as report
from dqs_lightning.cli.sweep_manifest import Manifest, Trial
from dqs_lightning.cli.sweep_plan import Run, read_sweep
from dqs_lightning.cli.sweep_process import STOP
from dqs_lightning.cli.sweep_returns import evaluations, mean_curve, value_of
from dqs_lightning.cli.sweep_search import Search
from dqs_lightning.cli.sweep_space import Choices, Prune, Range, SearchSettings
from dqs_lightning.cli.sweep_study import should_prune, suggest

SPACE = {"rate": Range(1e-5, 1e-1, log=True), "size": Range(32, 512, step=32), "kind": Choices(("good", "bad"))}
FRAMES = (100, 200, 300, 400)
OVERRIDES = ["data.total_frames=400", "evaluate.every_frames=100"]


def objective(rate: float, size: int, kind: str) -> float:
    """A function whose maximum, 1, is at rate=1e-3, size=256, kind=good."""
    return 1 - (math.log10(rate) + 3) ** 2 - ((size - 256) / 256) ** 2 - (kind == "bad")


def searched(settings: SearchSettings) -> list[Trial]:
    trials: list[Trial] = []
    for _ in range(settings.trials):
        parameters = suggest(settings, trials)
        trials.append(Trial(parameters, "done", objective(**parameters)))
    return trials


@pytest.mark.parametrize("seed", range(3))
def test_suggestions_find_the_optimum_of_a_known_function(seed: int) -> None:
    trials = searched(SearchSettings(SPACE, trials=60, seed=seed))
    best = max(trials, key=lambda trial: trial.value or -math.inf)
    assert best.parameters["kind"] == "good" and best.value is not None and best.value > 0.95
    assert all(SPACE[name].contains(value) for trial in trials for name, value in trial.parameters.items())
    assert all(trial.parameters["size"] % 32 == 0 for trial in trials)
    early, late = ([objective(**trial.parameters) for trial in part] for part in (trials[:10], trials[-10:]))
    assert sum(late) > sum(early)


def test_the_same_seed_and_returns_give_the_same_suggestions() -> None:
    settings = SearchSettings(SPACE, trials=14, random_trials=4)
    one, other = searched(settings), searched(settings)
    assert one == other != searched(SearchSettings(SPACE, trials=14, random_trials=4, seed=1))
    assert suggest(settings, one[:7]) == one[7].parameters  # whatever was suggested before by this process
    changed = [*one[:6], Trial(one[6].parameters, "done", 5.0)]
    assert suggest(settings, changed) != one[7].parameters  # depends on the returns


def test_trials_that_run_side_by_side_get_different_suggestions() -> None:
    settings = SearchSettings(SPACE, trials=12, random_trials=4)
    trials = searched(settings)
    for _ in range(4):
        trials.append(Trial(suggest(settings, trials)))
    assert len({json.dumps(trial.parameters) for trial in trials}) == 16


def test_trials_below_the_median_at_the_same_frames_are_pruned() -> None:
    others = [{100: float(value), 200: 10.0 * value} for value in range(5)]  # medians 2 and 20
    rule = Prune(startup_trials=5)
    assert should_prune({100: 1.0}, others, rule) and not should_prune({100: 3.0}, others, rule)
    assert should_prune({100: 3.0, 200: 3.0}, others, rule)
    assert not should_prune({100: 30.0, 200: 3.0}, others, rule)  # the best so far counts
    assert not should_prune({100: 1.0}, others, Prune(startup_trials=6))
    assert not should_prune({100: 1.0}, others, Prune(5, warmup_frames=150))
    assert not should_prune({150: 1.0}, others, rule)  # the others have no return there


def test_a_value_is_the_mean_over_tasks_and_seeds() -> None:
    curves = [{1: 0.0, 2: 10.0}, {1: 4.0, 2: 20.0}, {1: 2.0, 2: 14.0}, {1: 2.0, 2: 24.0}]  # two tasks, two seeds
    assert value_of(curves, "final", 2) == (17.0, pytest.approx(math.sqrt(8)))
    assert value_of(curves, "mean", 2)[0] == 9.5
    assert value_of(curves[:2], "final", 2) == (15.0, None)
    assert mean_curve([{1: 0.0, 2: 4.0}, {2: 2.0, 3: 5.0}]) == {2: 3.0} and mean_curve([]) == {}


def play(run: Run, value: float | None, frames: int) -> None:
    """Adds the evaluation of a run at some frames, as dqs-fit does; None: half a line, as of a killed process."""
    run.folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "task": "pole", "method": run.folder.parent.name, "seed": int(run.folder.name.partition("=")[2]),
        "action_repeat": 1, "total_frames": FRAMES[-1], "settings": {"evaluate": {"every_frames": FRAMES[0]}},
        "starts": [{}],
    }  # fmt: skip
    (run.folder / "run.json").write_text(json.dumps(facts))
    row = {"env_frames": frames + 7, "updates": frames, "wall_s": frames / 10, "episodes": 2, "return_mean": value}
    with (run.folder / "scores.jsonl").open("a") as file:
        file.write(f"{json.dumps(row)}\n" if value is not None else '{"env_frames": 10')


def test_evaluations_are_read_at_the_frames_at_which_they_were_due(tmp_path: Path) -> None:
    run = Run("a", Path("a"), "", (), tmp_path / "seed=0")
    assert evaluations(run.folder) == {}
    for frames, value in ((-7, 9.0), (100, 1.0), (200, math.nan), (300, 3.0), (400, 4.0), (0, None)):
        play(run, value, frames)
    assert evaluations(run.folder) == {100: 1.0, 300: 3.0, 400: 4.0}  # without that before training


class Killed(Exception):
    pass


class Player:
    """A search whose runs are played in this process, and which is killed after a number of steps."""

    def __init__(
        self, file: Path, out: Path, steps: int | None = None, fails: str = "", evaluates: bool = True
    ) -> None:
        self.manifest = Manifest(out)
        content = read_sweep(file)
        self.search = Search(file, content, self.manifest)
        self.manifest.describe({"file": str(file), **content}, {})
        self.steps, self.taken, self.fails, self.evaluates = steps, 0, fails, evaluates
        self.played: list[str] = []

    def step(self) -> None:
        self.taken += 1
        if self.taken == self.steps:
            raise Killed

    def play(self) -> "Player":
        while (run := self.search.next()) is not None:
            self.played.append(run.name)
            self.manifest.started(run)
            self.step()
            code = 2 if run.name == self.fails else self.train(run)
            self.step()
            self.manifest.ended(run, code, 1.0, asked=False)
            self.step()
            self.search.ended(run)
            (run.folder / STOP).unlink(missing_ok=True)
            self.step()
        return self

    def train(self, run: Run) -> int:
        """Plays a run, from where it was killed; returns its exit code."""
        given = dict(setting.removeprefix("--").split("=", 1) for setting in run.settings)
        best = 100 * objective(float(given["model.tau"]), int(given["data.batch_size"]), "good")
        seed = int(given["seed_everything"])
        for index, frames in enumerate(FRAMES):
            if frames in evaluations(run.folder):
                continue
            (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (run.folder / "checkpoints" / "last.ckpt").touch()
            if self.evaluates:
                play(run, best * (index + 1) / 4 + seed, frames)
            self.step()
            self.search.watch()
            if (run.folder / STOP).exists():
                return 75
            self.step()
        return 0

    @property
    def trials(self) -> list[dict[str, Any]]:
        return [asdict(trial) for trial in self.manifest.trials]

    def states(self) -> dict[str, str]:
        return {name: record.state for name, record in self.manifest.records.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "pole.yaml").write_text("seed_everything: 0\n")
    return written(tmp_path / "s.yaml")


def written(file: Path, seeds: list[int] | None = None, **changes: Any) -> Path:
    search = {
        "parameters": {
            "model.tau": {"low": 1e-5, "high": 1e-1, "log": True},
            "data.batch_size": {"low": 32, "high": 512, "step": 32},
        },
        "trials": 7,
        "random_trials": 3,
        "prune": {"startup_trials": 2},
        **changes,
    }
    content = {"config": "pole.yaml", "seeds": seeds or [0, 1], "overrides": OVERRIDES, "search": search}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_a_search_prunes_and_ranks(file: Path, tmp_path: Path) -> None:
    whole = Player(file, tmp_path / "out").play()
    states = [trial["state"] for trial in whole.trials]
    assert len(states) == 7 and states[:2] == ["done", "done"] and states.count("pruned") >= 1
    assert set(states) == {"done", "pruned"} and not whole.search.unfinished()
    for number, trial in enumerate(whole.trials):
        runs = {name: state for name, state in whole.states().items() if f"trial-{number:03}/" in name}
        assert len(runs) == 2
        if trial["state"] == "done":
            best = 100 * objective(trial["parameters"]["model.tau"], trial["parameters"]["data.batch_size"], "good")
            assert trial["value"] == pytest.approx(best + 0.5) and trial["deviation"] == pytest.approx(math.sqrt(0.5))
            assert set(runs.values()) == {"done"} and trial["frames"] is None
        else:
            assert "pruned" in runs.values() and trial["frames"] in FRAMES
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    done = [float(row["value"]) for row in rows if row["state"] == "done"]
    assert len(rows) == 7 and done == sorted(done, reverse=True)
    assert (
        rows[0]["runs"] == f"pole/trial-{int(rows[0]['trial']):03}/seed=0 pole/trial-{int(rows[0]['trial']):03}/seed=1"
    )
    text = (tmp_path / "out" / "best.md").read_text()
    assert whole.search.report() == text and text.splitlines()[2].startswith(f"| 1 | {rows[0]['trial']} | ")
    assert f"model.tau={rows[0]['model.tau']}" in text.splitlines()[-1]


def test_all_runs_of_a_pruned_trial_are_stopped(file: Path, tmp_path: Path) -> None:
    player = Player(written(file, trials=2, prune={"startup_trials": 1}), tmp_path / "side")
    search, manifest = player.search, player.manifest
    first = [search.next(), search.next()]
    for run in first:
        assert run is not None
        manifest.started(run)
        manifest.ended(run, player.train(run), 1.0, asked=False)
        search.ended(run)
    second = [run for run in (search.next(), search.next()) if run is not None]
    for run in second:
        manifest.started(run)
    play(second[0], -1e6, 100)
    search.watch()
    assert not any((run.folder / STOP).exists() for run in second)  # the other one has no return at these frames
    play(second[1], -1e6, 100)
    search.watch()
    assert all((run.folder / STOP).exists() for run in second) and player.trials[1]["state"] == "pruned"
    for run in second:
        manifest.ended(run, 75, 1.0, asked=False)
        search.ended(run)
    assert [state for name, state in player.states().items() if "trial-001" in name] == ["pruned", "pruned"]
    assert search.next() is None and not search.unfinished()


def test_optuna_reads_the_study(file: Path, tmp_path: Path) -> None:
    whole = Player(file, tmp_path / "out").play()
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "out" / "study.journal"))
    study = optuna.load_study(study_name="dqs-sweep", storage=optuna.storages.JournalStorage(backend))
    values = [trial["value"] for trial in whole.trials if trial["state"] == "done"]
    assert study.best_value == max(values) and len(study.trials) == 7
    assert [trial.params for trial in study.trials] == [trial["parameters"] for trial in whole.trials]


@pytest.mark.parametrize("steps", range(1, 70, 3))
def test_a_killed_search_has_the_trials_of_an_uninterrupted_one(
    file: Path, tmp_path: Path, steps: int, whole: list[dict[str, Any]]
) -> None:
    with pytest.raises(Killed):
        Player(file, tmp_path / "out", steps).play()
    again = Player(file, tmp_path / "out").play()
    assert again.trials == whole
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    assert sorted(int(row["trial"]) for row in rows) == list(range(7))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The trials of an uninterrupted search."""
    place = tmp_path_factory.mktemp("whole")
    (place / "pole.yaml").write_text("seed_everything: 0\n")
    return Player(written(place / "s.yaml"), place / "out").play().trials


def test_finished_and_pruned_trials_are_not_run_again(file: Path, tmp_path: Path) -> None:
    first = Player(file, tmp_path / "out").play()
    again = Player(file, tmp_path / "out").play()
    assert again.played == [] and again.trials == first.trials and again.states() == first.states()
    more = Player(written(file, trials=9), tmp_path / "out").play()  # the number of trials alone may change
    assert more.trials[:7] == first.trials and len(more.trials) == 9
    assert not any(name in more.played for name in first.states())


def test_a_failed_trial_ends_and_is_tried_again_by_the_same_command(file: Path, tmp_path: Path) -> None:
    written(file, prune=False)
    first = Player(file, tmp_path / "out", fails="pole/trial-001/seed=0").play()
    assert first.trials[1]["state"] == "failed" and first.search.unfinished()
    assert "pole/trial-001/seed=1" not in first.played and len(first.trials) == 7
    assert [row["state"] for row in csv.DictReader((tmp_path / "out" / "trials.csv").open())][-1] == "failed"
    again = Player(file, tmp_path / "out").play()
    assert again.played == ["pole/trial-001/seed=0", "pole/trial-001/seed=1"]
    assert again.trials[1]["state"] == "done" and not again.search.unfinished()


def test_a_run_whose_folder_was_removed_is_run_again(file: Path, tmp_path: Path) -> None:
    first = Player(file, tmp_path / "out").play()
    (tmp_path / "out" / "pole" / "trial-000" / "seed=1" / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "out" / "pole" / "trial-000" / "seed=1" / "scores.jsonl").unlink()
    again = Player(file, tmp_path / "out").play()
    assert again.played == ["pole/trial-000/seed=1"] and again.trials == first.trials


def test_a_done_run_without_an_evaluation_fails_its_trial(file: Path, tmp_path: Path) -> None:
    player = Player(file, tmp_path / "out", evaluates=False).play()
    assert {trial["state"] for trial in player.trials} == {"failed"}
    notes = {record.note for record in player.manifest.records.values() if record.state == "failed"}
    assert notes == {"scores.jsonl holds no evaluation"}


OTHER: dict[str, Callable[[Path], Path]] = {
    "seed": lambda file: written(file, seed=1),
    "seeds": lambda file: written(file, seeds=[0]),
    "objective": lambda file: written(file, objective="mean"),
    "prune": lambda file: written(file, prune=False),
    "search.parameters": lambda file: written(file, parameters={"model.tau": {"low": 1e-5, "high": 1.0}}),
}


@pytest.mark.parametrize("key", OTHER)
def test_the_trials_of_another_search_are_refused(file: Path, tmp_path: Path, key: str) -> None:
    Player(file, tmp_path / "out").play()
    before = (tmp_path / "out" / "manifest.json").read_text()
    with pytest.raises(InputError, match=rf"{key} was .*\nand is .*\nGive another name or --out"):
        Player(OTHER[key](file), tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_text() == before


DAMAGE: dict[str, dict[str, Any]] = {
    "no state": {"state": "lost"},
    "outside of the range": {"parameters": {"model.tau": 5.0, "data.batch_size": 64}},
    "text": {"parameters": {"model.tau": "x", "data.batch_size": 64}},
    "other parameters": {"parameters": {"model.tau": 1e-3}},
    "a large value": {"value": 10**400},
    "pruned nowhere": {"state": "pruned", "frames": None},
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_trial_is_refused(file: Path, tmp_path: Path, case: str) -> None:
    Player(file, tmp_path / "out").play()
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["trials"][2] |= DAMAGE[case]
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest.json: "):
        Player(file, tmp_path / "out")


def test_a_report_of_a_search_compares_its_trials(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Player(file, tmp_path / "out").play()
    assert report.main([str(tmp_path / "out"), f"--out={tmp_path / 'report'}"]) == 0, capsys.readouterr().err
    assert "trial-000" in capsys.readouterr().out
