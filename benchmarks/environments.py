"""Trains DQS for 2,000 frames in every environment with continuous actions, and writes the table of the outcomes.

    PYTHONPATH=src:callbacks python benchmarks/environments.py

The environments are those that gymnasium[box2d,mujoco] and gymnasium-robotics register, the newest version of each
id, and all tasks of the Control Suite. Each is a `dqs-fit` process with a time limit, forked from one that has
imported everything; quadruped-escape is a process of its own, with MUJOCO_GL=egl. Rows are kept in
`results/environments.csv`, and the page `docs/environments.md` is written from them. Environments with a row are
skipped, so that an interrupted run continues; `--again PATTERN` runs those that match once more.
"""

import argparse
import contextlib
import csv
import fnmatch
import io
import json
import os
import shlex
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium
import yaml
from environments_page import FIELDS, page
from faults.runs import FORKED, REAL, ROOT, Launcher, Run
from provenance import about

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "environments.csv", ROOT / "docs" / "environments.md"
PACKAGES = ("torch", "torchrl", "mujoco", "dm_control", "gymnasium", "gymnasium-robotics", "Box2D")
SOURCES = {
    "gymnasium": ("gymnasium.envs.classic_control", "gymnasium.envs.box2d", "gymnasium.envs.mujoco"),
    "gymnasium-robotics": ("gymnasium_robotics",),
}
"""Modules of the environments of each package; the others of Gymnasium have discrete actions or require JAX."""
SETTINGS = [
    "--data.num_envs=4", "--data.total_frames=2000", "--data.init_random_frames=200", "--data.updates_per_step=0.1",
    "--evaluate.every_frames=2000", "--evaluate.episodes=2", "--evaluate.max_steps=200",
    "--trainer.log_every_n_steps=10", "--trainer.accelerator=cpu",
]  # fmt: skip
UNBOUNDED = "lqr"
BOUNDS = ["--data.environment.action_low=-1", "--data.environment.action_high=1"]
"""Of the domain whose actions have none, and that is refused without them."""
RUN = "run"
LIMIT_S = 900.0
REFUSED = 2
NOT_CONTINUOUS = "must be a Box of floats"


class Task(NamedTuple):
    """An environment: the package that has it, its name, and the arguments that choose it."""

    suite: str
    name: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The arguments of `dqs-fit`, but for the run directory."""
        return ["--config", str(ROOT / "configs" / "default.yaml"), *self.arguments, *SETTINGS]


def gymnasium_tasks() -> Iterator[Task]:
    """The newest version of each id."""
    with contextlib.suppress(ImportError), contextlib.redirect_stdout(None):  # it announces changes of its rewards
        import gymnasium_robotics  # noqa: F401  (registers its environments)
    newest: dict[tuple[str | None, str], Any] = {}
    for spec in gymnasium.registry.values():
        key = (spec.namespace, spec.name)
        if key not in newest or (spec.version or 0) > (newest[key].version or 0):
            newest[key] = spec
    for suite, modules in SOURCES.items():
        for spec in newest.values():
            if str(spec.entry_point).startswith(modules):
                package = modules[0] if suite == "gymnasium-robotics" else ""
                chosen = [f"--data.environment.id={package}:{spec.id}", f"--trust={package}"]
                arguments = chosen if package else [f"--data.environment.id={spec.id}"]
                yield Task(suite, spec.id, ("--data.environment=Gym", *arguments))


def suite_tasks() -> Iterator[Task]:
    """All tasks of the Control Suite."""
    from dm_control import suite

    for domain, task in suite.ALL_TASKS:
        chosen = [f"--data.environment.domain={domain}", f"--data.environment.task={task}"]
        bounds = BOUNDS if domain == UNBOUNDED else []
        yield Task("Control Suite", f"{domain}-{task}", ("--data.environment=DMControl", *chosen, *bounds))


def train(launcher: Launcher, task: Task, folder: Path) -> Run:
    """Start the run of a task."""
    argv = [*task.command, f"--run_dir={RUN}"]
    if task.name != "quadruped-escape":
        return launcher.start(argv, folder, how=FORKED)
    with mock.patch.dict(os.environ, MUJOCO_GL="egl"):
        return launcher.start(argv, folder, how=REAL)


def row_of(task: Task, run: Run, code: int | None, stuck: bool) -> dict[str, Any]:
    """The row of a run that has ended."""
    lines = [line for line in run.err.splitlines() if line.startswith("dqs-fit: ")]
    said = lines[-1].removeprefix("dqs-fit: ") if lines else f"exit code {code}"
    reason = said.partition(f"{task.name}: ")[2] or said
    if stuck:
        outcome, reason = "failed", f"did not end within {LIMIT_S:.0f} s"
    elif code == REFUSED:
        outcome = "discrete" if NOT_CONTINUOUS in reason else "refused"
    elif code:
        outcome = "stopped" if lines else "failed"
    else:
        outcome, reason = "trains", "refused without action_low and action_high" if BOUNDS[0] in task.arguments else ""
    return {"suite": task.suite, "environment": task.name, **measured(run.cwd / RUN), "outcome": outcome,
            "reason": reason}  # fmt: skip


def measured(folder: Path) -> dict[str, Any]:
    """Sizes, frames, updates, return and rates of a run directory, as far as it has them."""
    found: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        sizes = yaml.safe_load((folder / "hparams.yaml").read_text())
        found = {"observation_size": sizes["observation_dim"], "action_size": sizes["action_dim"]}
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        rates = [float(row["time/env_fps"]) for row in rows if row.get("time/env_fps")]
        errors = [float(row["env/physics_errors"]) for row in rows if row.get("env/physics_errors")]
        found["frames_per_s"] = f"{statistics.median(rates):.3g}" if rates else ""
        found["physics_errors"] = f"{errors[-1]:.0f}" if errors else ""
        score = json.loads((folder / "scores.jsonl").read_text().splitlines()[-1])
        found |= {"frames": score["env_frames"], "updates": score["updates"], "return": f"{score['return_mean']:.6g}"}
    return found


def versions() -> str:
    """The packages that the outcomes depend on."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def write(tasks: Sequence[Task], rows: dict[str, dict[str, Any]], results: Path, text: Path) -> None:
    """Write the table and the page, in the order of the tasks."""
    ordered = [rows[task.name] for task in tasks if task.name in rows]
    table = io.StringIO()
    writer = csv.DictWriter(table, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    for file, content in ((results, table.getvalue()), (text, page(ordered, len(tasks)))):
        beside = file.with_suffix(".part")
        beside.write_text(content)
        beside.replace(file)


def main() -> None:
    """Run what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names: what to run, in this order")
    parser.add_argument("--again", default="", help="run those whose names match this pattern although they have a row")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV file")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page")
    options = parser.parse_args()
    tasks = [*suite_tasks(), *gymnasium_tasks()]
    commit, packages = about()["commit"], versions()
    rows: dict[str, dict[str, Any]] = {}
    if options.results.exists():
        with options.results.open() as file:
            rows = {row["environment"]: dict(row) for row in csv.DictReader(file)}
    launcher = Launcher()
    try:
        matching = (task for only in options.only for task in tasks if fnmatch.fnmatch(task.name, only))
        for task in dict.fromkeys(matching):
            if task.name in rows and not fnmatch.fnmatch(task.name, options.again):
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = train(launcher, task, Path(folder))
                ended = run.end(LIMIT_S)
                row = row_of(task, run, ended.code, bool(ended.left))
            command = shlex.join(["dqs-fit", "--config", "configs/default.yaml", *task.arguments, *SETTINGS])
            rows[task.name] = {**row, "command": command, "commit": commit, "versions": packages}
            print(task.name, row["outcome"], row.get("return", ""), row["reason"], flush=True)
            write(tasks, rows, options.results, options.page)
    finally:
        launcher.close()
    write(tasks, rows, options.results, options.page)


if __name__ == "__main__":
    main()
