"""The files that the commands read, each with the command that reads it, for `payloads`."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import saved_run
from payloads import (
    MODULE,
    SOURCE,
    Form,
    checkpoints,
    configurations,
    replaced,
    run_facts,
    score_rows,
)

from dqs_callbacks import StartFrom
from dqs_lightning.agents import load_agent
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.cli import evaluate, export, fit, sweep
from dqs_lightning.cli.errors import BAD_INPUT, DONE, InputError
from dqs_lightning.cli.report import command as report
from dqs_lightning.cli.report.files import write_study
from dqs_lightning.cli.report.measure import measure
from dqs_lightning.cli.report.runs import read_runs
from dqs_lightning.cli.report.tables import tables_of
from dqs_lightning.cli.sweep_manifest import Manifest, View
from dqs_lightning.cli.sweep_plan import expand
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.sharing.card import card
from dqs_lightning.sharing.run import read

ROW = {"env_frames": 1000, "updates": 500, "wall_s": 10.0, "episodes": 10, "return_mean": 100.0}
FACTS = {
    "task": "walker-walk",
    "method": "dqs",
    "seed": 0,
    "action_repeat": 2,
    "total_frames": 1000,
    "settings": {"model": {"class_path": "dqs_lightning.agents.DQS", "init_args": {"sampler": "Ancestral"}}},
    "starts": [{"python": "3.11", "torch": "2.13", "commit": "01" * 20, "command": ["dqs-fit", "--config=a.yaml"]}],
}
NETWORK = {"class_path": "MLP", "init_args": {"hidden": [8]}}
BASE = {
    "model": {"class_path": "SAC", "init_args": {"critic_backbone": NETWORK, "actor_backbone": NETWORK}},
    "data": {
        "environment": {"class_path": "Maze", "init_args": {}},
        "total_frames": 96, "init_random_frames": 64, "batch_size": 8, "num_envs": 4,
    },
    "evaluate": {"every_frames": 1000, "episodes": 2},
    "trainer": {"enable_progress_bar": False, "accelerator": "cpu"},
}  # fmt: skip
SWEEP = {
    "config": "base.yaml",
    "seeds": [0],
    "variants": {"a": ["data.total_frames=96"]},
    "overrides": ["model.tau=0.1"],
}
RUN = Path("sweep/base/a/seed=0")
STUDY = Path("study/scores.csv")
RANK = Path("rank.pt")
"""Replaces the run's own rank file, whose name contains its step."""


def none(value: Any) -> list[bytes]:
    """Returns no contents, for a file that holds no values in which something could be named."""
    return []


def first_of(values: Callable[[Any], list[bytes]]) -> Callable[[Any], list[bytes]]:
    """Keeps only the contents with the value at its first place."""
    return lambda value: values(value)[:1]


@dataclass(frozen=True)
class Target:
    """A file and the command that reads it.

    Attributes:
        name: name of the file and the command.
        file: path below the folder in which the command runs.
        command: reads the file; returns an exit code or None.
        values: returns contents of the file, each with the value at one of the possible places; empty if there is none.
        slow: whether the default tests skip it, because it trains or exports, or another target runs the same code.
        quick: whether the default tests try every place of a value instead of one for each form.
    """

    name: str
    file: Path
    command: Callable[[], int | None]
    values: Callable[[Any], list[bytes]] = none
    slow: bool = False
    quick: bool = False

    def contents(self, form: Form, place: Path) -> list[bytes]:
        """Returns the contents of the file for a form of payload."""
        made = form.make(place)
        return [made] if isinstance(made, bytes) else self.values(made)


def main(command: Callable[..., int], *arguments: str) -> Callable[[], int]:
    """Makes a function that calls a command with arguments and returns its exit code."""

    def call() -> int:
        before, sys.argv = sys.argv, [command.__module__, *arguments]
        os.environ.pop("DQS_RUN_DIR", None)
        try:
            return command() if command is fit.main else command(list(arguments))
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
        finally:
            sys.argv = before
            os.environ.pop("DQS_RUN_DIR", None)

    return call


def fitted(*arguments: str) -> Callable[[], int]:
    """Makes a function that runs dqs-fit with a new run directory."""

    def call() -> int:
        shutil.rmtree("new", ignore_errors=True)
        return main(fit.main, *arguments, "--run_dir=new")()

    return call


def resumed() -> int:
    """Runs dqs-fit to continue a copy of the run in `fit` that contains the payload."""
    shutil.rmtree("new", ignore_errors=True)
    shutil.copytree("fit", "new")
    if RANK.exists():
        shutil.copyfile(RANK, next(Path("new/checkpoints").glob("*rank=0.pt")))
    return main(
        fit.main, "--config=base.yaml", "--run_dir=new", "--ckpt_path=auto", "--data.total_frames=128"
    )()  # fmt: skip


def variables(value: Any) -> list[bytes]:
    """Returns environment variables that jsonargparse, Lightning and torch would read."""
    text = json.dumps(value)
    names = (
        "DQS_FIT_MODEL", "DQS_FIT_DATA__ENVIRONMENT", "DQS_FIT_TRAINER__LOGGER", "DQS_FIT_CONFIG", "PL_TRAINER_LOGGER",
        "PL_TRAINER_CALLBACKS", "DQS_RUN_DIR",
    )  # fmt: skip
    return [json.dumps({"JSONARGPARSE_DEFAULT_ENV": "true", name: text}).encode() for name in names]


def with_variables() -> int:
    """Runs dqs-fit with the environment variables that a file holds, if any."""
    try:
        found = json.loads(Path("variables.json").read_text())
    except (ValueError, RecursionError):
        return BAD_INPUT
    with pytest.MonkeyPatch.context() as patched:
        for name, value in found.items() if isinstance(found, dict) else ():
            patched.setenv(name, value)
        return fitted("--config=base.yaml")()


def viewed() -> None:
    """Reads what dqs-sweep reads of its runs while they are running."""
    runs = expand(Path("sweep.yaml"), Path("sweep"))
    manifest = Manifest(Path("sweep"), runs)
    manifest.started(runs[0])
    manifest.ended(runs[0], 2, 1.0, asked=False)
    View(runs, manifest).table()


def reported(*arguments: str) -> Callable[[], int]:
    def call() -> int:
        return main(report.main, "sweep", "--out=report", "--published=none", *arguments)()

    return call


def loaded() -> None:
    """Loads a checkpoint with the library's functions."""

    def start(path: Path) -> None:
        StartFrom(str(path)).give(torch.nn.Linear(1, 1))

    for load in (safe_load, load_agent, OnlineData.load_from_checkpoint, start):
        try:
            load(CHECKPOINT)
        except Exception as error:  # every function must be called
            assert error is not None


def prepare(place: Path) -> None:
    """Fill a folder with valid files of every kind and with the module that a payload names."""
    (place / f"{MODULE}.py").write_text(SOURCE)
    saved_run(place / "run")
    file = place / "run" / "checkpoints" / "last.ckpt"
    content = safe_load(file)
    content["datamodule_hyper_parameters"]["environment"]["init_args"]["action_repeat"] = 500  # two steps an episode
    torch.save(content, file)
    (place / "run" / "checkpoints" / "rank.pt").write_bytes(file.read_bytes())
    (place / "base.yaml").write_text(yaml.safe_dump(BASE))
    (place / "child.yaml").write_text("extends: [base.yaml, payload.yaml]\n")
    (place / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    (place / "others.yaml").write_text(yaml.safe_dump({**SWEEP, "config": "payload.yaml"}))
    folder = place / RUN
    folder.mkdir(parents=True)
    (folder / "scores.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / "run.json").write_text(json.dumps(FACTS))
    (folder / "metrics.csv").write_text("step,time/updates_per_s\n1,40\n")
    (folder / "log.txt").write_text("$ dqs-fit\n")
    write_study(read_runs([folder]), (place / STUDY).parent)
    shutil.copyfile(place / STUDY, place / "whole.csv")
    shutil.copytree(place / "run" / "checkpoints", folder / "checkpoints")


def manifests(value: Any) -> list[bytes]:
    record = {"command": ["dqs-fit"], "settings": [], "digest": "", "state": "done", "start": None, "wall_s": 1.0,
              "exit_code": 0, "note": ""}  # fmt: skip
    whole = {"runs": {RUN.relative_to("sweep").as_posix(): record}}
    name = RUN.relative_to("sweep").as_posix()
    changed = [{"runs": {name: part}} for part in replaced(record, value, *record)]
    return [json.dumps(content).encode() for content in (*changed, *replaced(whole, value, "runs", "file", "about"))]


def reported_by_a_process() -> int:
    """Runs dqs-report in a new process, in which Matplotlib reads its style file again."""
    shutil.rmtree("report", ignore_errors=True)
    command = [sys.executable, "-m", "dqs_lightning.cli.report", "sweep", "--out=report", "--published=none"]
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path.cwd())])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def styles(value: Any) -> list[bytes]:
    """Returns Matplotlib settings that import a module, call a function, or start TeX."""
    if not isinstance(value, str) or not value.startswith(MODULE):
        return []
    tex = "text.usetex: True\ntext.latex.preamble: \\immediate\\write18{touch ran}"
    lines = (f"backend: module://{MODULE}", f"figure.hooks: {MODULE}:function", tex)
    return [f"{line}\n".encode() for line in lines]


def summaries(value: Any) -> list[bytes]:
    return [json.dumps(part).encode() for part in replaced({"made_by": "dqs-report"}, value, "files", "made_by")]


def sweeps(value: Any) -> list[bytes]:
    places = ("config", "seeds", "seeds.0", "variants", "variants.a", "variants.a.0", "overrides", "tasks", "my_key")
    return [yaml.safe_dump(content).encode() for content in replaced(SWEEP, value, *places)]


def saved_checkpoints(value: Any) -> list[bytes]:
    return checkpoints(safe_load(Path("run/checkpoints/rank.pt")), value)


CHECKPOINT = Path("run/checkpoints/last.ckpt")


def studies(value: Any) -> list[bytes]:
    """Returns files of a study in which one cell of a row is the value."""
    head, row = csv.reader(Path("whole.csv").read_text().splitlines())
    text, files = value if isinstance(value, str) else json.dumps(value), []
    for place in range(len(head)):
        stream = io.StringIO()
        csv.writer(stream).writerows([head, [*row[:place], text, *row[place + 1 :]]])
        files.append(stream.getvalue().encode())
    return files


def measured(folder: str = "sweep", *arguments: str) -> Callable[[], int]:
    """Makes a function that computes a report without its figures."""

    def call() -> int:
        options = report.parse([folder, "--out=report", "--published=none", *arguments])
        try:
            report.earlier_files(options.out)
            tables = tables_of(measure(read_runs(options.runs), options))
            assert all(table.markdown() for table in tables)
        except InputError:
            return BAD_INPUT
        return DONE

    return call


def carded() -> int:
    """Writes the model card of a run that dqs-export writes, without its graph."""
    facts = {"agent": "DQS", "task": "maze", "env_frames": 1000, "versions": {"torch": "2.13"}}
    try:
        text = card(facts, read(RUN, 1000), "## Use", best_of=1)
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    print(text)
    return DONE


TARGETS = [
    Target("configuration: dqs-fit", Path("payload.yaml"),
           fitted("--config=base.yaml", "--config=payload.yaml"), configurations),
    Target("configuration alone: dqs-fit", Path("payload.yaml"), fitted("--config=payload.yaml")),
    Target("extended configuration: dqs-fit", Path("payload.yaml"),
           fitted("--config=child.yaml"), configurations, slow=True),
    Target("file of a component: dqs-fit", Path("payload.yaml"),
           fitted("--config=base.yaml", "--model=payload.yaml"), lambda value: [yaml.safe_dump(value).encode()],
           slow=True),
    Target("sweep file: dqs-sweep", Path("sweep.yaml"),
           main(sweep.main, "sweep.yaml", "--dry-run", "--out=sweep"), sweeps),
    Target("configuration of a sweep: dqs-sweep", Path("payload.yaml"),
           main(sweep.main, "others.yaml", "--dry-run", "--out=new"), configurations, slow=True),
    Target("manifest.json: dqs-sweep", Path("sweep/manifest.json"),
           main(sweep.main, "sweep.yaml", "--dry-run", "--out=sweep"), manifests),
    Target("log.txt: dqs-sweep", RUN / "log.txt", viewed),
    Target("scores.jsonl: dqs-sweep", RUN / "scores.jsonl", viewed, lambda value: score_rows(ROW, value)),
    *(
        target
        for name, file, values, arguments in (
            ("run.json", RUN / "run.json", lambda value: run_facts(FACTS, value), ()),
            ("scores.jsonl", RUN / "scores.jsonl", lambda value: score_rows(ROW, value), ()),
            ("metrics.csv", RUN / "metrics.csv", none, ()),
            ("manifest.json", Path("sweep/manifest.json"), manifests, ()),
            ("summary.json", Path("report/summary.json"), summaries, ()),
            ("last.ckpt", RUN / "checkpoints/last.ckpt", none, ("--time-actions",)),
        )
        for target in (
            Target(f"{name}: dqs-report", file, measured("sweep", *arguments), values),
            Target(f"{name}: dqs-report, whole", file, reported(*arguments), first_of(values), slow=True),
        )
    ),
    Target("scores.csv: dqs-report", STUDY, measured("study"), studies),
    Target("matplotlibrc: dqs-report", Path("matplotlibrc"), reported_by_a_process, styles, slow=True),
    Target("last.ckpt: dqs-eval", CHECKPOINT, main(evaluate.main, "run", "--episodes=1"), saved_checkpoints),
    Target("last.ckpt: dqs-export", CHECKPOINT,
           main(export.main, "run", "--out=new.pt2"), saved_checkpoints, slow=True),
    Target("scores.jsonl: dqs-export", RUN / "scores.jsonl", carded, lambda value: score_rows(ROW, value), quick=True),
    Target("run.json: dqs-export", RUN / "run.json", carded, lambda value: run_facts(FACTS, value), quick=True),
    Target("last.ckpt: the library", CHECKPOINT, loaded, saved_checkpoints, quick=True),
    Target("old .pt2: dqs-export", Path("new.pt2"), main(export.main, "run", "--out=new.pt2"), slow=True),
    Target("last.ckpt of StartFrom: dqs-fit", CHECKPOINT,
           fitted("--config=base.yaml", "--trainer.callbacks+=StartFrom", "--trainer.callbacks.run=run"),
           saved_checkpoints, slow=True),
    Target("environment variables: dqs-fit", Path("variables.json"), with_variables, variables, slow=True),
    Target("last.ckpt: dqs-fit continues", Path("fit/checkpoints/last.ckpt"), resumed, saved_checkpoints, slow=True),
    Target("rank file: dqs-fit continues", RANK, resumed, slow=True),
    Target("run.json: dqs-fit continues", Path("fit/run.json"), resumed,
           lambda value: run_facts(FACTS, value), slow=True),
    Target("scores.jsonl: dqs-fit continues", Path("fit/scores.jsonl"), resumed,
           lambda value: score_rows(ROW, value), slow=True),
    Target("metrics.csv: dqs-fit continues", Path("fit/metrics.csv"), resumed, slow=True),
]  # fmt: skip
