"""The share of a default training step that is not arithmetic: loop, hooks, callbacks, data, logging.

    python benchmarks/speed/overhead.py --out benchmarks/results/overhead.json

A run of `dqs-fit --config configs/walker.yaml`, built by the command line's own code: its callbacks, loggers and
replay buffer, at action repeat 2 and one update for each agent step. After each of its updates the same batch goes
through `Step` of update.py, the bare arithmetic, whose time is taken off the run's, as is that of the collector (what
it costs is in collect.py). One thread, process CPU time; the first block of updates is not counted.

Two figures. `overhead_share` adds up clocks around the functions in `PARTS`, each without what it calls of the
others; arithmetic is `training_step` with backward and optimizer but without Lightning's wrapping of them, and what no
clock saw is Lightning's loop. `paired_share` is (run - bare) / run over groups of updates, the median of groups, and
needs no clocks, but is as noisy as the machine. `Diagnostics` acts every 1000 updates and is spread over them; a
checkpoint is timed once, and is left out of both. The last line holds name=value pairs.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

import lightning as L
import torch
from clock import Clock
from lightning.pytorch.core.optimizer import LightningOptimizer
from torchrl.collectors import Collector
from update import Step

import dqs_callbacks
from dqs_callbacks.diagnostics import diagnose
from dqs_lightning.agents import DQS
from dqs_lightning.agents.base import Agent
from dqs_lightning.cli import run_dir
from dqs_lightning.cli.provenance import about
from dqs_lightning.cli.training import FitCLI
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.loader import OnlineLoader
from dqs_lightning.collection.replay import Replay
from dqs_lightning.run.checkpoint import RunCheckpoint

GROUP = 50
"""Updates of a group: the interval of logging, so that groups are alike."""
AIM = 0.03
ARITHMETIC, COLLECTING, BARE, LOOP = "arithmetic", "collecting", "bare", "lightning_loop_and_hooks"
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step", "on_before_zero_grad")
PARTS: list[tuple[Any, str, str]] = [
    (DQS, "training_step", ARITHMETIC),
    (torch.Tensor, "backward", ARITHMETIC),
    (torch.optim.Adam, "step", ARITHMETIC),
    (LightningOptimizer, "step", "lightning_backward_and_optimizer"),
    (Agent, "manual_backward", "lightning_backward_and_optimizer"),
    (Agent, "accumulate", "accumulate"),
    (Agent, "log_metrics", "logging"),
    (Replay, "batches", "replay"),
    (OnlineData, "transfer_batch_to_device", "replay"),
    *(
        (callback, hook, callback.__name__)
        for callback in (*(getattr(dqs_callbacks, name) for name in dqs_callbacks.__all__), RunCheckpoint)
        for hook in HOOKS
        if hook in vars(callback)
    ),
]


class Beside(L.Callback):
    """After each update of the run: the bare arithmetic on the same batch, and the books of the group."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.groups = clock, list[dict[str, float]]()
        self.step: Step | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        with self.clock.part(BARE, whole=True):
            if self.step is None:
                self.step = Step({})
                self.step.agent.load_state_dict(pl_module.state_dict())
            self.step.batch = args[1]
            self.step.update((trainer.global_step - 1) % self.step.updates)
        if trainer.global_step % GROUP == 0:
            self.groups.append({**self.clock.seconds, "clock": time.process_time()})


def command_line(config: Path, folder: Path, updates: int) -> FitCLI:
    """The run that `dqs-fit` would start; its last update, which ends with a checkpoint, belongs to no group."""
    os.environ.pop(run_dir.VARIABLE, None)
    frames = 5000 + 2 * (updates + 2 * GROUP)  # more than max_steps takes, so that nothing is evaluated at the end
    sys.argv = ["dqs-fit", f"--config={config}", f"--run_dir={folder}", f"--data.total_frames={frames}",
                "--trainer.accelerator=cpu", f"--trainer.max_steps={updates + GROUP + 1}"]  # fmt: skip
    return FitCLI()


def run(config: Path, folder: Path, updates: int) -> tuple[FitCLI, list[dict[str, float]]]:
    """The fit, and for each group of updates the CPU seconds of its parts, with all of them as `total`."""
    cli, clock = command_line(config, folder, updates), Clock()
    beside = Beside(clock)
    cli.callbacks.append(beside)  # the Trainer's own list
    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(sys.stderr):
        for owner, name, part in PARTS:
            stack.enter_context(clock.around(owner, name, part))
        stack.enter_context(clock.iterating(Collector, COLLECTING))
        stack.enter_context(clock.iterating(OnlineLoader, "replay"))
        cli.fit()
    totals = beside.groups
    spent = []
    for before, after in pairwise(totals):
        group = {name: after[name] - before.get(name, 0.0) for name in after}
        group["total"] = group.pop("clock") - group[BARE] - group.pop(COLLECTING, 0.0)
        spent.append(group)
    return cli, spent


def occasional(cli: FitCLI, times: int) -> dict[str, float]:
    """CPU seconds of one measurement of `Diagnostics` and of one checkpoint."""
    agent, taken = cli.model, []
    observation = cli.datamodule.rank_state()["replay"]["observation"][:64]
    for _ in range(times):
        start = time.process_time()
        with torch.no_grad():
            diagnose(agent, observation)
        taken.append(time.process_time() - start)
    start = time.process_time()
    cli.trainer.save_checkpoint(Path(cli.trainer.default_root_dir) / "one.ckpt")
    return {"diagnostics_s": statistics.median(taken), "checkpoint_s": time.process_time() - start}


def attribution(config: Path, folder: Path, updates: int, most: int = 12) -> dict[str, float]:
    """Milliseconds an update in Lightning's own functions, without what they call, as cProfile has them (inflated)."""
    cli, profiler = command_line(config, folder, updates), cProfile.Profile()
    with contextlib.redirect_stdout(sys.stderr):
        profiler.runcall(cli.fit)
    rows = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]  # untyped there
    own = {
        f"{Path(file).stem}.{name}": spent[2] / cli.trainer.global_step * 1e3
        for (file, _, name), spent in rows
        if "lightning" in Path(file).parts and spent[1] >= updates
    }
    return dict(sorted(own.items(), key=lambda item: -item[1])[:most])


def main() -> None:
    """Run, take stock, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=400, help="timed updates of the run and of the bare step")
    parser.add_argument("--brief", action="store_true", help="a hundred updates: half a minute")
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[2] / "configs" / "walker.yaml")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    provenance = about()
    updates = 2 * GROUP if options.brief else options.updates
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cli, groups = run(options.config, Path(folder) / "run", updates)
        once = occasional(cli, 3)
        lightning = attribution(options.config, Path(folder) / "profiled", GROUP)
    every = next(c.every_updates for c in cli.callbacks if isinstance(c, dqs_callbacks.Diagnostics))
    total = sum(group["total"] for group in groups)
    parts = {name: sum(group.get(name, 0.0) for group in groups) for name in groups[0] if name not in (BARE, "total")}
    parts[LOOP] = total - sum(parts.values())
    diagnostics = len(groups) * GROUP * once["diagnostics_s"] / every
    parts["Diagnostics"] = parts.get("Diagnostics", 0.0) + diagnostics
    total += diagnostics
    share = {name: seconds / total for name, seconds in sorted(parts.items(), key=lambda item: -item[1])}
    milliseconds = {name: seconds / (len(groups) * GROUP) * 1e3 for name, seconds in parts.items()}
    print(f"{'part':36} {'ms an update':>13} {'share':>8}")
    for name, value in share.items():
        print(f"{name:36} {milliseconds[name]:13.3f} {value:8.2%}")
    overhead = 1 - share[ARITHMETIC]
    paired = statistics.median((group["total"] - group[BARE]) / group["total"] for group in groups)
    bare = statistics.median(group[BARE] for group in groups) / GROUP * 1e3
    print("\nLightning's own functions, ms an update under cProfile: "
          + ", ".join(f"{name} {value:.3f}" for name, value in lightning.items()))  # fmt: skip
    if options.out:
        content = {"overhead_share": overhead, "paired_share": paired, "aim": AIM, "aim_met": overhead < AIM,
                   "shares": share, "ms_an_update": milliseconds, "bare_ms": bare, "updates": len(groups) * GROUP,
                   "once": once, "lightning_own_ms_under_cprofile": lightning, "about": provenance}  # fmt: skip
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"overhead_share={overhead:.4f} paired_share={paired:.4f} bare_ms={bare:.2f} "
          f"run_ms={total / (len(groups) * GROUP) * 1e3:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
