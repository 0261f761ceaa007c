"""The trials of a search: which run is next, which trial is pruned, and what a trial's value is."""

import json
import shlex
from pathlib import Path
from typing import Any

from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.cli.sweep_manifest import Manifest, Trial
from dqs_lightning.cli.sweep_plan import Run, runs_of, search_of
from dqs_lightning.cli.sweep_process import STOP
from dqs_lightning.cli.sweep_returns import Curve, evaluations, is_value, mean_curve, total_frames, value_of
from dqs_lightning.cli.sweep_space import Value, overrides_of
from dqs_lightning.cli.sweep_study import should_prune, suggest
from dqs_lightning.cli.sweep_table import best_of, write_tables
from dqs_lightning.sharing.text import printable


class Search:
    """The runs of a search, of which each trial adds one for each task and seed.

    The manifest is its only state: trials with their parameters, and runs. Suggestions depend on the finished trials
    there, so that a search that is continued suggests what it would have suggested.

    Refuses a manifest of another search; only the number of trials may change.

    Args:
        file: the sweep file.
        content: its content.
        manifest: of the sweep's folder, without runs.
    """

    def __init__(self, file: Path, content: dict[str, Any], manifest: Manifest) -> None:
        self.file, self.content, self.manifest = file, content, manifest
        self.settings = search_of(content)
        self.trials = manifest.trials
        self.runs: list[Run] = []
        self._runs_of: list[list[Run]] = []
        self._trial_of: dict[str, int] = {}
        self._started: set[str] = set()  # by this process, which tries a run once
        self._compared: dict[int, set[tuple[int, int]]] = {}
        self._cached: dict[str, Curve] = {}
        self._check_manifest()
        for trial in self.trials:
            self._add_runs(trial.parameters)
            if trial.state != "pruned":
                trial.state, trial.value, trial.deviation = "running", None, None
        for number in range(len(self.trials)):
            self._settle(number)

    def next(self) -> Run | None:
        """Returns the run that is to be started next; None if there is none, now and later."""
        for trial, runs in zip(self.trials, self._runs_of, strict=True):
            for run in runs if trial.state == "running" else ():
                if run.name not in self._started and self.manifest.state(run) != "done":
                    self._started.add(run.name)
                    return run
        if len(self.trials) >= self.settings.trials:
            return None
        self._ask()
        return self.next()

    def watch(self) -> None:
        """Prunes the trials that the median rule stops after a new evaluation."""
        before = [trial.state for trial in self.trials]
        for number in range(len(self.trials)):
            self._prune(number)
        if before != [trial.state for trial in self.trials]:
            self.manifest.write()

    def ended(self, run: Run) -> None:
        """Updates the trial of a run whose process has ended."""
        self._settle(self._trial_of[run.name])
        self.manifest.write()
        self.report()

    def unfinished(self) -> bool:
        """Whether a trial is neither done nor pruned, or has not been suggested yet."""
        missing = any(trial.state in ("running", "failed") for trial in self.trials)
        return missing or len(self.trials) < self.settings.trials

    def report(self) -> str:
        """Writes the tables of the trials; returns that of the best."""
        folders = [[run.name for run in runs] for runs in self._runs_of]
        write_tables(self.manifest.file.parent, self.settings, self.trials, folders)
        return best_of(self.settings, self.trials, folders)

    def preview(self) -> str:
        """Returns the space, and the commands of the trials so far and of those that are suggested at random."""
        runs = len(self.content["seeds"]) * len(self.content.get("tasks", [""]))
        lines = [f"# trials: {self.settings.trials}, runs of each: {runs}; parameters:"]
        lines += [f"#   {name}: {options}" for name, options in self.settings.space.items()]
        while len(self.trials) < min(self.settings.trials, self.settings.random_trials):
            self._ask()
        lines += [shlex.join(run.command) for run in self.runs]
        if (left := self.settings.trials - len(self.trials)) > 0:
            lines.append(f"# trials whose parameters depend on returns: {left}")
        return "\n".join(lines)

    def _check_manifest(self) -> None:
        """Refuses trials of another search, and trials that cannot be of this one."""
        if not self.trials:
            return
        was, now = comparable(self.manifest.written), comparable(self.content)
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                there, here = (printable(json.dumps(of.get(key)), 200) for of in (was, now))
                differ = f"{key} was {there}\nand is {here}"
                raise InputError(f"{self.manifest.file}: of another search\n{differ}\nGive another name or --out")
        space = self.settings.space
        for number, trial in enumerate(self.trials):
            known = trial.parameters.keys() == space.keys()
            if not known or not all(space[name].contains(value) for name, value in trial.parameters.items()):
                raise InputError(f"{self.manifest.file}: trials.{number}: has parameters outside of the ranges")
            if not is_value(trial.value) or (trial.state == "pruned" and None in (trial.value, trial.frames)):
                raise InputError(f"{self.manifest.file}: trials.{number}: is no trial of dqs-sweep")

    def _ask(self) -> None:
        parameters = suggest(self.settings, self.trials)
        self.trials.append(Trial(parameters))
        self._add_runs(parameters)

    def _add_runs(self, parameters: dict[str, Value]) -> None:
        number = len(self._runs_of)
        variants = {f"trial-{number:03}": overrides_of(parameters)}
        runs = runs_of(self.file, self.content, variants, self.manifest.file.parent)
        for run in runs:
            self.manifest.add(run)
            self._trial_of[run.name] = number
        self._runs_of.append(runs)
        self.runs += runs

    def _curve(self, run: Run) -> Curve:
        """Returns the evaluations of a run; those of a run without a process are read once."""
        if self.manifest.state(run) not in ("done", "pruned"):
            return evaluations(run.folder)
        if run.name not in self._cached:
            self._cached[run.name] = evaluations(run.folder)
        return self._cached[run.name]

    def _prune(self, number: int) -> None:
        """Prunes a trial if the median rule stops it after an evaluation that was not compared before.

        Its mean return over the runs that have started is compared with that of the finished trials over the same
        tasks and seeds, at the same frames. The last evaluation of the last run is not compared.
        """
        trial, runs, prune = self.trials[number], self._runs_of[number], self.settings.prune
        if prune is None or trial.state != "running":
            return
        started = [index for index, run in enumerate(runs) if self.manifest.records[run.name].start]
        curve = mean_curve([self._curve(runs[index]) for index in started])
        end = total_frames(runs[0].folder) if len(started) == len(runs) else None
        compared = self._compared.setdefault(number, set())
        for frames in curve:
            if (len(started), frames) in compared or frames == end:
                continue
            compared.add((len(started), frames))
            so_far = {step: value for step, value in curve.items() if step <= frames}
            if should_prune(so_far, self._finished_curves(started), prune):
                trial.state, trial.value, trial.frames = "pruned", curve[frames], frames
                for run in runs:
                    if self.manifest.state(run) == "running":
                        run.folder.mkdir(parents=True, exist_ok=True)
                        (run.folder / STOP).touch()
                return

    def _finished_curves(self, indices: list[int]) -> list[Curve]:
        finished = [runs for trial, runs in zip(self.trials, self._runs_of, strict=True) if trial.state == "done"]
        return [mean_curve([self._curve(runs[index]) for index in indices]) for runs in finished]

    def _settle(self, number: int) -> None:
        """Updates a trial's state and value from the states and evaluations of its runs."""
        self._prune(number)
        trial, runs = self.trials[number], self._runs_of[number]
        states = {run.name: self.manifest.state(run) for run in runs}
        if trial.state == "pruned":
            for run in runs:
                if states[run.name] not in ("done", "running"):
                    self.manifest.mark(run, "pruned")
        elif any(state == "failed" and name in self._started for name, state in states.items()):
            trial.state = "failed"
        elif set(states.values()) == {"done"}:
            curves = [self._curve(run) for run in runs]
            for run, curve in zip(runs, curves, strict=True):
                if not curve:
                    self.manifest.mark(run, "failed", "scores.jsonl holds no evaluation")
                    trial.state = "failed"
            if trial.state != "failed":
                num_tasks = len(runs) // len(self.content["seeds"])
                trial.value, trial.deviation = value_of(curves, self.settings.objective, num_tasks)
                trial.state = "done"


def comparable(content: dict[str, Any]) -> dict[str, Any]:
    """Returns what must be the same for a search to be continued: everything but the number of trials."""
    flat = {key: value for key, value in content.items() if key not in ("file", "search")}
    search = content.get("search")
    flat |= {f"search.{key}": value for key, value in search.items()} if isinstance(search, dict) else {}
    flat.pop("search.trials", None)
    with refusing("search: ", TypeError, ValueError):
        same: dict[str, Any] = json.loads(json.dumps(flat, default=str))
    return same
