"""A run that is stopped anywhere and continued by the same command ends as if it had not been stopped.

3 tasks (one Gymnasium) x 4 agents x 4 stopping points (warm-up, early, middle, last update) x {0, 2 workers} x {1, 2
ranks}, and compiled losses once. Expected: weights, optimizer, replay, random states, scores.jsonl and metrics.csv
equal to those of the uninterrupted run. Where environments start new episodes (Gymnasium): the state from
which the run continues is equal to the state in which it stopped, and the run ends at the same frames and updates.

    PYTHONPATH=benchmarks python -m faults.resume --jobs 2
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dqs_lightning.checkpoint.archive import safe_load
from faults.compare import differences, rank_files, rows, unequal
from faults.hooks import MARKS, dump_restored, hook, signal_at
from faults.runs import FORKED, REAL
from faults.study import Cell, Lab, Outcome, main
from faults.tasks import AGENTS, RUN, TASKS, arguments

RANKS, WORKERS = (1, 2), (0, 2)
EXACT = {(task, workers): task != "pendulum" for task in TASKS for workers in WORKERS}
"""Whether environments are restored in mid-episode."""
COUNT = "dqs_lightning.collection.loader:EpisodeReturns.add"
STEP = {
    "DQS": "dqs_lightning.agents.dqs:DQS.training_step",
    "SAC": "dqs_lightning.agents.twin:TwinCritic.training_step",
    "TD3": "dqs_lightning.agents.twin:TwinCritic.training_step",
    "PPO": "dqs_lightning.agents.ppo:PPO.training_step",
}
UPDATES = {"DQS": 64, "SAC": 64, "TD3": 64, "PPO": 48}
STOPPED, DONE = 75, 0
COMPILED = ["--model.compile_losses=true"]
LIMIT_S, COMPILED_LIMIT_S = 120.0, 600.0
NEW_EPISODES = ("rank.envs", "rank.returns", "rank.tails")


def cells(brief: bool) -> list[Cell]:
    """Lists all combinations, compiled losses, and two cells as real processes with forked references; brief: two."""
    found = []
    for task in TASKS:
        for agent in AGENTS:
            for workers in WORKERS:
                for ranks in RANKS:
                    for stop in stops(agent):
                        settings = {"task": task, "agent": agent, "workers": workers, "ranks": ranks, "stop": stop}
                        name = f"{task}/{agent}/{ranks} rank{'s' * (ranks - 1)}/{workers} workers/{stop}"
                        found.append(Cell(name, settings))
    if brief:
        chosen = ("maze/DQS/1 rank/0 workers/early", "pendulum/PPO/1 rank/2 workers/middle")
        return [cell for cell in found if cell.name in chosen]
    sample = {"task": "maze", "agent": "DQS", "workers": 0, "ranks": 1, "stop": "middle"}
    found.append(Cell("maze/DQS/1 rank/compiled losses/middle", {**sample, "compiled": True}))
    for ranks, workers in ((1, 0), (2, 2)):
        settings = {**sample, "ranks": ranks, "workers": workers, "how": REAL}
        found.append(Cell(f"maze/DQS/{ranks} rank{'s' * (ranks - 1)}/{workers} workers/middle, real process", settings))
    return found


def stops(agent: str) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Returns the places where a run is stopped: function, number of the call, and expected exit codes."""
    step, updates = STEP[agent], UPDATES[agent]
    return {
        "warm-up": (COUNT, 1 if agent == "PPO" else 4, (STOPPED,)),
        "early": (step, 6, (STOPPED,)),
        "middle": (step, updates // 2 + 2, (STOPPED,)),
        "last update": (step, updates, (STOPPED, DONE)),
    }


def check(lab: Lab, place: Path, settings: dict[str, Any]) -> Outcome:
    task, agent, workers, ranks = (settings[key] for key in ("task", "agent", "workers", "ranks"))
    how = settings.get("how", FORKED)
    compiled = COMPILED if settings.get("compiled") else []
    argv = arguments(task, agent, ranks, workers, compiled)
    name = f"resume-{task}-{agent}-{ranks}-{workers}{'-compiled' if compiled else ''}"
    limit_s = COMPILED_LIMIT_S if compiled else LIMIT_S
    reference = lab.reference(name, argv, ranks, limit_s=limit_s) / RUN
    target, call, codes = stops(agent)[settings["stop"]]
    stop = hook(signal_at, target=target, call=call)
    ended, err = lab.launcher.run(argv, place, limit_s, ranks=ranks, hooks=[stop], how=how)
    problems = [f"still running: {command}" for command in ended.left]
    if ended.code not in codes:
        problems.append(f"stopped with exit code {ended.code}, expected {codes}: {err.strip()[-400:]}")
        return Outcome(problems, {"code": ended.code}, how)
    exact = EXACT[task, workers]
    stopped = list(_saved(place / RUN))
    hooks = [] if exact else [hook(dump_restored)]
    again, err = lab.launcher.run(argv, place, limit_s, ranks=ranks, hooks=hooks, how=how)
    if again.code != DONE or again.left:
        problems.append(f"the same command ended with {again}: {err.strip()[-400:]}")
    elif exact:
        problems += [f"unequal: {path}" for path in unequal(reference, place / RUN)]
    else:
        finished = stopped[0]["global_step"] == UPDATES[agent]  # nothing more is collected then
        problems += new_episodes_alone(stopped, place, finished) + same_length(reference, place / RUN)
    observed = {"code": ended.code, "exact": exact, "stopped_at": stopped[0]["global_step"]}
    return Outcome(problems, observed, how)


def _saved(run: Path) -> Iterator[dict[str, Any]]:
    """Yields the contents of each rank's files, with the names of `dump_restored`."""
    shared = safe_load(run / "checkpoints" / "last.ckpt")
    for path in rank_files(run).values():
        kept = {key: shared[key] for key in ("state_dict", "optimizer_states", "global_step")}
        yield {**kept, "rank": safe_load(path)}


def new_episodes_alone(stopped: list[dict[str, Any]], place: Path, finished: bool) -> list[str]:
    """Returns differences, apart from new episodes, between the state in which a run stopped and the restored one."""
    found = []
    for rank, saved in enumerate(stopped):
        file = place / MARKS / f"restored-{rank}.pt"
        if finished:
            restored = list(_saved(place / RUN))[rank]
        elif not file.exists():
            return [f"rank {rank} restored nothing"]
        else:
            restored = torch.load(file, weights_only=False)
        paths = [path for path in differences(saved, restored) if not path.startswith(NEW_EPISODES)]
        found += [f"rank {rank} continued with another {path}" for path in paths[:4]]
    return found


def same_length(one: Path, other: Path) -> list[str]:
    """Returns the counts that differ between two finished runs: updates, frames, scores and metrics."""
    found = []
    checkpoints = [safe_load(run / "checkpoints" / "last.ckpt") for run in (one, other)]
    for key in ("global_step", "env_frames"):
        if checkpoints[0][key] != checkpoints[1][key]:
            found.append(f"{key}: {checkpoints[0][key]} and {checkpoints[1][key]}")
    for name, keys in (("scores.jsonl", ("env_frames", "updates")), ("metrics.csv", ("step", "env_frames"))):
        pair = [[{key: row.get(key) for key in keys} for row in rows(run / name)] for run in (one, other)]
        if pair[0] != pair[1]:
            found.append(f"{name}: other rows of {' and '.join(keys)}")
    return found


if __name__ == "__main__":
    sys.exit(main("resume", __doc__, cells, check))
