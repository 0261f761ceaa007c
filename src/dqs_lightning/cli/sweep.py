"""`dqs-sweep`: trains tasks x variants x seeds, or the trials of a search, from one file, side by side, through Ray."""

import argparse
import contextlib
import fcntl
import importlib.util
import shlex
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dqs_lightning.cli.errors import DONE, STOPPED, InputError, print_all, refusing, reported
from dqs_lightning.cli.provenance import about
from dqs_lightning.cli.shipped import find
from dqs_lightning.cli.sweep_engine import Plan, run_all
from dqs_lightning.cli.sweep_manifest import COLOURS, Manifest
from dqs_lightning.cli.sweep_plan import Run, expand, read_sweep
from dqs_lightning.cli.sweep_slurm import slurm_script

FAILED = 1
"""Exit code of a sweep of which a run failed; the others went on."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="dqs-sweep",
        allow_abbrev=False,
        description="Train tasks x variants x seeds, or search for parameters. The same command again skips what is "
        "finished and continues the rest. Exit codes: 0 all done, 1 a run failed, 2 bad input, 75 stopped by a signal "
        "(run it again).",
    )
    parser.add_argument("file", type=Path, help="the sweep file, or a shipped one, such as sweeps/maze_temperature")
    parser.add_argument("--out", type=Path, help="the sweep's folder (default runs/sweeps/NAME-OF-THE-FILE)")
    parser.add_argument("--dry-run", action="store_true", help="print the dqs-fit command lines and start nothing")
    parser.add_argument("--slurm", action="store_true", help="print a SLURM array script and start nothing")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: as many as the CPUs are enough for)")
    parser.add_argument("--cpus-per-run", type=int, default=1, help="CPUs, and torch's threads, of a run (default 1)")
    parser.add_argument("--gpus-per-run", type=float, default=0, help="GPUs of a run; 0, the default, hides them")
    parser.add_argument("--address", help="a Ray cluster that sees the same disk, host:port or auto (default: here)")
    options = parser.parse_args(arguments)
    for name, least in (("jobs", 1), ("cpus_per_run", 1), ("gpus_per_run", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value < float("inf"):
            parser.error(f"--{name.replace('_', '-')}={value}: must be >= {least}")
    return options


class Listed:
    """The runs of a sweep with variants, which are known from the start."""

    def __init__(self, runs: list[Run], manifest: Manifest) -> None:
        self.runs, self.manifest = runs, manifest
        self._waiting = deque(run for run in runs if manifest.state(run) != "done")

    def next(self) -> Run | None:
        return self._waiting.popleft() if self._waiting else None

    def watch(self) -> None: ...

    def ended(self, run: Run) -> None: ...

    def unfinished(self) -> bool:
        return any(self.manifest.state(run) != "done" for run in self.runs)

    def report(self) -> str:
        return ""

    def preview(self) -> str:
        return "\n".join(shlex.join(run.command) for run in self.runs)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Locks the sweep's folder. Refuses one that another sweep uses, since both would train the same runs."""
    with refusing(f"--out={out}: ", OSError):
        out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"--out={out}: another dqs-sweep is at work there") from error
        yield


def require(package: str, further: str = "") -> None:
    """Refuses to go on without a package of the extra `sweep`."""
    if importlib.util.find_spec(package.lower()) is None:
        raise InputError(f'{package} is not installed; run pip install "dqs-lightning[sweep]"{further}')


def check(file: Path, content: dict[str, Any], out: Path) -> None:
    """Refuses a sweep with a run that dqs-fit would refuse."""
    runs = expand(file, out) if "variants" in content else []
    from dqs_lightning.cli.sweep_rehearsal import check_commands, check_search  # takes seconds

    if runs:
        check_commands(file, runs)
    else:
        check_search(file, content, out)


def planned(file: Path, content: dict[str, Any], out: Path) -> tuple[Plan, Manifest]:
    """Returns the plan of a sweep file's content, and the manifest in `out`; refuses to mix two sweeps there."""
    if "search" not in content:
        runs = expand(file, out)
        manifest = Manifest(out, runs)
        return Listed(runs, manifest), manifest
    from dqs_lightning.cli.sweep_search import Search

    manifest = Manifest(out)
    return Search(file, content, manifest), manifest


def sweep(options: argparse.Namespace) -> int:
    """Runs or prints the sweep; returns the exit code."""
    file, out = find(options.file), (options.out or Path("runs") / "sweeps" / options.file.stem).absolute()
    content = read_sweep(file)
    if "search" in content:
        require("Optuna")
    check(file, content, out)
    if options.dry_run:
        print_all(planned(file, content, out)[0].preview())
        return DONE
    if options.slurm:
        if "search" in content:
            raise InputError("--slurm: a search needs the results of its trials; use --address, on nodes of one job")
        runs = expand(file, out)
        print_all(slurm_script(runs, out, options.jobs, options.cpus_per_run, options.gpus_per_run).rstrip("\n"))
        return DONE
    require("Ray", ", or use --dry-run or --slurm, which need no Ray")
    with alone(out):
        plan, manifest = planned(file, content, out)
        versions = {"optuna": version("optuna")} if "search" in content else {}
        manifest.describe({"file": str(file), **content}, about("dqs-sweep") | versions)
        stopped = plan.unfinished() and run_all(plan, manifest, options)
        print(plan.report(), end="")
    states = Counter[str](manifest.state(run) for run in plan.runs)
    counts = ", ".join(f"{states[state]} {state}" for state in reversed(COLOURS) if states[state])
    print(f"{manifest.file}  {counts}")
    if stopped and plan.unfinished():
        return STOPPED
    return FAILED if states["failed"] else STOPPED if states["stopped"] else DONE


@reported("dqs-sweep")
def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return sweep(parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
