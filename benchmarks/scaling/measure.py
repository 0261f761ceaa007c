"""Measures what the parts of a run on several processes cost on this machine, and whole runs to compare with.

    python benchmarks/scaling/measure.py --out benchmarks/results/cluster_costs.json

Sizes are those of walker-walk and the default agent. Costs are medians of seconds of one core. Runs are `dqs-fit` with
one and two ranks, and with one to four actors; their rates are those of the second half of their rows. The last lines
hold name=value pairs.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

import lightning as L
import psutil
import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader

from dqs_callbacks import FiniteGuard, Preempt, RankCores
from dqs_lightning.agents import DQS
from dqs_lightning.agents.base import Agent
from dqs_lightning.cli.provenance import about
from dqs_lightning.collection.behaviour import collector_of
from dqs_lightning.collection.cluster import connect
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.source import TRANSITION
from dqs_lightning.envs import DMControl

STEPS = 32
SMALL_RATIO = 1 / 32
RUNS = [(1, 0, 1.0), (2, 0, 1.0), (1, 1, 1.0), (1, 2, 1.0), *((1, actors, SMALL_RATIO) for actors in (1, 2, 3, 4))]
"""Ranks, actors (0: in the rank's own process) and updates for each step."""


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Returns the median seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def synchronisation_s(repeats: int) -> float:
    """Returns how many seconds longer an update takes on two ranks of this machine than on one."""
    found = []
    for ranks in (1, 2):
        command = [sys.executable, __file__, f"--update-on={ranks}", f"--repeats={repeats}"]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        found.append(float(done.stdout.split("seconds=")[1]))
    return found[1] - found[0]


def collect(begin: float, wall_s: float) -> float:
    """Returns the seconds of a step of the environments, collected from a time of the clock on."""
    data = OnlineData(DMControl("walker", "walk", 2), total_frames=10_000)
    agent = DQS(data.observation_dim, data.action_dim, compile_losses=False)
    blocks = iter(collector_of(data.make_environment(1, 0), agent, STEPS, 0, lambda: 0))
    next(blocks)
    time.sleep(max(0.0, begin - time.time()))
    start, steps = time.perf_counter(), 0
    while time.perf_counter() < start + wall_s:
        next(blocks)
        steps += STEPS
    return (time.perf_counter() - start) / steps


def crowding(wall_s: float) -> float:
    """Returns the share by which work grows where twice as many processes as cores run, beside their sharing."""
    cores, found = len(os.sched_getaffinity(0)), []
    for processes in (cores, 2 * cores):
        begin = time.time() + 10 + 4 * processes  # when all of them have started
        command = [sys.executable, __file__, "--collect", str(begin), str(wall_s)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started = [subprocess.Popen(command, env=environment, **pipes) for _ in range(processes)]
        times = [float(each.communicate()[0].split("seconds=")[1]) for each in started]
        found.append(statistics.median(times))
    return found[1] / found[0] / 2 - 1


def ray_cpu_s() -> float:
    """Returns the CPU seconds so far of Ray's own processes, without its workers."""
    children = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in children if not child.name().startswith("ray::")]
    return float(sum(each.user + each.system for each in times))


def echo(weights: dict[str, torch.Tensor], block: TensorDict) -> TensorDict:
    return block


def costs(repeats: int) -> tuple[dict[str, float], float]:
    """Returns the costs that `simulate.Costs` holds, and the bytes in a second between processes of this machine."""
    data = OnlineData(DMControl("walker", "walk", 2), total_frames=10_000, steps_per_collect=STEPS)
    agent = DQS(data.observation_dim, data.action_dim, compile_losses=False)
    collector = collector_of(data.make_environment(1, 0), agent, STEPS, 0, lambda: 0)
    blocks = iter(collector)
    block = next(blocks)
    step = seconds(lambda: next(blocks), max(3, repeats // 4)) / STEPS
    collector.shutdown()
    update = update_s(agent, data, repeats)
    state = agent.acting_state()
    weights = float(sum(value.numel() * value.element_size() for value in state.values()))
    gradients = float(sum(4 * each.numel() for each in agent.parameters() if each.requires_grad))
    row = float(block.bytes()) / STEPS
    ray = connect(None, 2)
    try:
        remote = ray.remote(num_cpus=1)(echo)
        reference = ray.put(state)
        ray.get(remote.remote(reference, block))
        put = seconds(lambda: ray.put(state), repeats)
        before = ray_cpu_s()
        whole = seconds(lambda: ray.get(remote.remote(reference, block)), 4 * repeats)
        own = (ray_cpu_s() - before) / (4 * repeats)
        big = torch.zeros(8_000_000)
        speed = 4 * big.numel() / seconds(lambda: ray.put(big), 5)
    finally:
        ray.shutdown()
    store = data.source(agent)
    kept = block.select(*TRANSITION)
    extend = seconds(lambda: store.batches(kept, 1), repeats)
    found = {
        "update": update,
        "step": step,
        "block": extend + whole / 2,
        "send": whole / 2,
        "put": put,
        "ray": own,
        "weights": weights,
        "gradients": gradients,
        "row": row,
        "reduce": synchronisation_s(4 * repeats),
        "crowding": crowding(repeats / 4),
    }
    return found, speed


class Watch(L.Callback):
    """Notes when each update ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def update_s(agent: Agent, data: OnlineData, repeats: int, ranks: int = 1) -> float:
    """Returns the seconds of one update in a Trainer, with a batch of 256 and the callbacks of a run."""
    torch.manual_seed(0)
    rows, flags = 256, torch.zeros(256, 1, dtype=torch.bool)
    following = {"observation": torch.randn(rows, data.observation_dim), "reward": torch.randn(rows, 1)}
    following |= {"terminated": flags, "truncated": flags, "done": flags}
    batch = {"observation": torch.randn(rows, data.observation_dim), "next": following}
    whole = TensorDict({**batch, "action": torch.rand(rows, data.action_dim) * 2 - 1}, [rows])
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu", devices=ranks, use_distributed_sampler=False, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[FiniteGuard(), Preempt(), RankCores(), watch],
    )  # fmt: skip
    batches: Any = [whole] * (2 * repeats)
    trainer.fit(agent, DataLoader(batches, batch_size=None, collate_fn=lambda each: each))
    return statistics.median(later - earlier for earlier, later in pairwise(watch.times[len(watch.times) // 4 :]))


def run(ranks: int, actors: int, ratio: float, wall_s: float, speed: float) -> dict[str, Any]:
    """Returns the rates of a run of `dqs-fit`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "dqs_lightning", "--config=walker", f"--trainer.devices={ranks}",
            "--trainer.accelerator=cpu", f"--data.steps_per_collect={STEPS}", "--data.init_random_frames=640",
            "--data.total_frames=10_000_000", f"--data.updates_per_step={ratio}", "--model.compile_losses=false",
            "--evaluate.every_frames=10_000_000", f"--run_dir={folder}/run", "--trainer.enable_progress_bar=false",
            '--trainer.callbacks=[{"class_path": "Throughput"}]',
            "--trainer.log_every_n_steps=32",
            f"--trainer.max_time=00:00:00:{int(wall_s):02d}",
            *(["--data.collector=Ray", f"--data.actors={actors}"] if actors else []),
        ]  # fmt: skip
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        file = Path(folder, "run", "metrics.csv")
        if not file.exists():
            raise RuntimeError(done.stderr[-2000:])
        rows = [row for row in csv.DictReader(file.open()) if row["time/env_fps"]]
    half = rows[len(rows) // 2 :]
    frames = statistics.median(float(row["time/env_fps"]) for row in half) / 2  # two frames a step
    updates = statistics.median(float(row["time/updates_per_s"]) for row in half)
    cores = len(os.sched_getaffinity(0))
    settings = {"ranks": ranks, "actors": actors, "steps": STEPS, "updates_per_step": ratio, "cores": cores}
    return {**settings, "bytes_s": speed, "frames_s": round(frames, 2), "updates_s": round(updates, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--update-on", type=int, help="print the seconds of an update on this many ranks alone")
    parser.add_argument("--collect", nargs=2, type=float, help="print the seconds of a step alone: begin, duration")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--only", nargs="+", help="costs, or numbers of runs from 0 on; the rest of --out is kept")
    parser.add_argument("--brief", action="store_true", help="one short run, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.collect:
        print(f"seconds={collect(*options.collect)}")
        return
    if options.update_on:
        data = OnlineData(DMControl("walker", "walk", 2), total_frames=10_000)
        agent = DQS(data.observation_dim, data.action_dim, compile_losses=False)
        found_s = update_s(agent, data, options.repeats, options.update_on)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"seconds={found_s}")
        return
    everything = ["costs", "2"] if options.brief else ["costs", *map(str, range(len(RUNS)))]
    chosen = options.only or everything
    kept = json.loads(options.out.read_text()) if options.only else {"costs": {}, "runs": [{}] * len(RUNS)}
    if "costs" in chosen:
        kept["costs"], kept["bytes_s"] = costs(4 if options.brief else 40)
        for name, value in kept["costs"].items():
            print(f"{name}={value:.6g}", flush=True)
    for index in (int(each) for each in chosen if each != "costs"):
        kept["runs"][index] = run(*RUNS[index], 20 if options.brief else 40, kept["bytes_s"])
        print(kept["runs"][index], flush=True)
    if options.out:
        options.out.write_text(json.dumps(kept | {"about": about()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
