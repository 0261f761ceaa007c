"""Simulates runs on 1 to 8 GPUs, 1 to 1,000 actors and 1 to 64 nodes, from costs that `measure.py` has measured.

    python benchmarks/scaling/simulate.py --costs benchmarks/results/cluster_costs.json --out benchmarks/results/cluster

Events are the ends of tasks on cores, which share the cores of their node equally, and of messages on links, which are
sent one after the other. One rank is simulated with its actors; the others do the same, and each update ends with an
all-reduce. A run is simulated for `BLOCKS` blocks of each actor, the first third of which is not counted. What limits a
configuration is the part that is busy for the largest share of the time. `--check` compares the simulation with runs on
this machine.
"""

import argparse
import csv
import heapq
import itertools
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BLOCKS = 12
RAY = -2
LEARNER = ("environment", "update", "all-reduce", "receiving")
GPU_UPDATE_S = 1e-3
"""An assumption, of an update on a GPU; it has not been measured."""
NETWORK_BYTES_S, NETWORK_LATENCY_S = 1.25e9, 1e-4
"""An assumption: 10 Gbit/s between nodes."""
NVLINK_BYTES_S, NVLINK_LATENCY_S = 2e11, 2e-5
"""An assumption, between the GPUs of a node."""
GPUS_PER_NODE = 8
CORES_PER_NODE = 32


@dataclass(frozen=True)
class Costs:
    """Seconds of work on one core, and sizes.

    Attributes:
        update: one gradient update of a rank.
        step: one step of an environment with the action of the policy.
        block: fixed cost of a block in the learner: to receive and store it.
        send: fixed cost of a block in an actor: the weights and the block are read and written.
        put: to write the weights for the actors.
        ray: of Ray's own processes, for a block.
        weights: bytes that an actor receives.
        gradients: bytes of an all-reduce.
        row: bytes of a transition.
        reduce: seconds by which an update takes longer on two ranks of one machine, of which each waits for the other.
        crowding: share by which work grows for each task on a core beyond the first.
    """

    update: float
    step: float
    block: float
    send: float
    put: float
    ray: float
    weights: float
    gradients: float
    row: float
    reduce: float
    crowding: float


@dataclass(frozen=True)
class Layout:
    """A configuration of a run.

    Attributes:
        ranks: learners, each with a GPU or a core.
        actors: of all ranks together; 0: each rank collects in its own process.
        nodes: machines, over which the actors are divided; the learners are on the first ones.
        steps: of the environments in a block.
        updates_per_step: gradient updates for each step, of each rank.
        gpu: whether updates are made on GPUs, and so need no core.
        cores: of a node.
        reduce: seconds of the all-reduce of an update.
        bytes_s: of the links between the learner and its actors.
        latency_s: of these links.
    """

    ranks: int
    actors: int
    nodes: int
    steps: int = 32
    updates_per_step: float = 1.0
    gpu: bool = True
    cores: int = CORES_PER_NODE
    reduce: float = 0.0
    bytes_s: float = NETWORK_BYTES_S
    latency_s: float = NETWORK_LATENCY_S


class Cores:
    """Cores of a node, shared equally by the tasks on it (processor sharing).

    All tasks of a node progress at the same rate, so that each ends when the common progress has reached a number that
    is known when it starts.

    Args:
        number: of cores.
        crowding: as in `Costs`.
    """

    def __init__(self, number: int, crowding: float) -> None:
        self.number, self.crowding = number, crowding
        self.now, self.progress = 0.0, 0.0
        self.tasks: list[tuple[float, int]] = []

    def _rate(self) -> float:
        """Returns the work of each task in a second."""
        each = max(1.0, len(self.tasks) / self.number)
        return 1 / (each * (1 + self.crowding * (each - 1)))

    def _advance(self, now: float) -> None:
        self.progress += (now - self.now) * self._rate()
        self.now = now

    def add(self, task: int, work: float, now: float) -> None:
        """Starts a task of some seconds of work."""
        self._advance(now)
        heapq.heappush(self.tasks, (self.progress + work, task))

    def end(self) -> float:
        """Returns when the next task ends; infinity without one."""
        if not self.tasks:
            return math.inf
        left = max(self.tasks[0][0] - self.progress, 0.0)
        return self.now + left / self._rate()

    def pop(self, now: float) -> int:
        """Ends the next task, and returns it."""
        self._advance(now)
        return heapq.heappop(self.tasks)[1]


@dataclass(frozen=True)
class Found:
    """What a simulated run reaches.

    Attributes:
        frames_s: environment steps in a second, of all ranks.
        updates_s: gradient updates in a second.
        shares: share of the time in which each part is busy.
    """

    frames_s: float
    updates_s: float
    shares: dict[str, float]

    @property
    def limit(self) -> str:
        """The part that is busy for the longest time; what the learner does one after the other counts together."""
        learner = [name for name in self.shares if name in LEARNER]
        others = [name for name in self.shares if name not in LEARNER]
        busiest = max(others, key=self.shares.__getitem__, default=None)
        if busiest and self.shares[busiest] > sum(self.shares[name] for name in learner):
            return busiest
        return max(learner, key=self.shares.__getitem__)


def simulate(costs: Costs, layout: Layout) -> Found:
    """Returns the rates of a run in this layout."""
    per_rank = max(1, layout.actors // layout.ranks)
    own = math.ceil(layout.updates_per_step * layout.steps)
    update = costs.update + layout.reduce
    if not layout.actors:
        seconds = layout.steps * costs.step + costs.block + own * update
        shares = {
            "environment": layout.steps * costs.step,
            "update": own * costs.update,
            "all-reduce": own * layout.reduce,
        }
        rate = layout.ranks * layout.steps / seconds
        return Found(rate, own / seconds, {name: each / seconds for name, each in shares.items()})
    nodes = [Cores(layout.cores, costs.crowding) for _ in range(layout.nodes)]
    link_free = link_busy = 0.0
    time, updating, reducing, receiving, blocks = 0.0, 0.0, 0.0, 0.0, 0
    messages: list[tuple[float, int, str, int]] = []
    order = itertools.count()
    ready: list[int] = []
    learning: tuple[str, int] | None = None  # what the learner does: the phase, and updates that are left
    gpu_done = math.inf
    learner = -1
    first, total = (BLOCKS // 3) * per_rank, BLOCKS * per_rank  # rates are those between these two
    began = 0.0

    def place(actor: int) -> Cores:
        return nodes[actor % layout.nodes]

    def send(size: float, kind: str, actor: int) -> None:
        nonlocal link_free, link_busy
        seconds = size / layout.bytes_s
        link_free = max(link_free, time) + seconds
        link_busy += seconds
        heapq.heappush(messages, (link_free + layout.latency_s, next(order), kind, actor))

    def learn(work: float) -> None:
        nonlocal gpu_done
        if layout.gpu:
            gpu_done = time + work
        else:
            nodes[0].add(learner, work, time)

    for actor in range(per_rank):
        send(costs.weights, "weights", actor)
    while blocks < total:
        if learning is None and ready:
            learning = ("receive", ready.pop(0))
            nodes[0].add(learner, costs.block + costs.put, time)
        ends = [node.end() for node in nodes]
        of_cores, of_messages = min(ends), messages[0][0] if messages else math.inf
        time = min(of_cores, of_messages, gpu_done)
        if gpu_done <= time:
            gpu_done, finished = math.inf, learner
        elif of_messages <= time:
            _, _, kind, actor = heapq.heappop(messages)
            if kind == "weights":
                place(actor).add(actor, costs.send + layout.steps * costs.step, time)
                place(actor).add(RAY, costs.ray, time)
            else:
                ready.append(actor)
            continue
        else:
            finished = nodes[ends.index(of_cores)].pop(time)
        if finished == RAY:
            continue
        if finished != learner:
            send(layout.steps * costs.row, "block", finished)
            continue
        assert learning is not None
        phase, value = learning
        if phase == "receive":
            blocks += 1
            if blocks == first:
                began, updating, reducing, receiving, link_busy = time, 0.0, 0.0, 0.0, 0.0
            send(costs.weights, "weights", value)
            receiving += costs.block + costs.put
            learning = ("update", own) if own else None
        else:
            updating += costs.update
            reducing += layout.reduce
            learning = ("update", value - 1) if value > 1 else None
        if learning is not None:
            learn(update)
    measured, seconds = total - first, time - began
    shares = {
        "update": updating / seconds,
        "all-reduce": reducing / seconds,
        "receiving": receiving / seconds,
        "network": link_busy / seconds,
        "actors": measured * (costs.send + layout.steps * costs.step) / per_rank / seconds,
    }
    return Found(layout.ranks * measured * layout.steps / seconds, measured * own / seconds, shares)


def ring(ranks: int, size: float, bytes_s: float, latency_s: float) -> float:
    """Returns the seconds of a ring all-reduce."""
    return 2 * (ranks - 1) * (latency_s + size / ranks / bytes_s) if ranks > 1 else 0.0


def layouts(costs: Costs) -> list[Layout]:
    """Returns the configurations of the page: GPUs, actors, nodes, and updates for each step."""
    found = []
    for ranks, actors, nodes, ratio in itertools.product(
        (1, 2, 4, 8), (1, 8, 64, 256, 1000), (1, 8, 64), (1.0, 1 / 16)
    ):
        if actors < ranks or actors < nodes or actors > nodes * CORES_PER_NODE:
            continue
        slow = ranks > GPUS_PER_NODE
        speed, latency = (NETWORK_BYTES_S, NETWORK_LATENCY_S) if slow else (NVLINK_BYTES_S, NVLINK_LATENCY_S)
        reduce = ring(ranks, costs.gradients, speed, latency)
        found.append(Layout(ranks, actors, nodes, updates_per_step=ratio, reduce=reduce))
    return found


def check(costs: Costs, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns measured and simulated updates and frames in a second of the runs on this machine."""
    rows = []
    for run in runs:
        local = {"gpu": False, "cores": run["cores"], "bytes_s": run["bytes_s"], "latency_s": 0.0}
        reduce = costs.reduce if run["ranks"] > 1 else 0.0
        layout = Layout(run["ranks"], run["actors"], 1, run["steps"], run["updates_per_step"], reduce=reduce, **local)
        found = simulate(costs, layout)
        ratio = found.frames_s / run["frames_s"]
        rows.append(
            {**run, "simulated_frames_s": round(found.frames_s, 1), "ratio": round(ratio, 3), "limit": found.limit}
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="beginning of the names of a .csv and a .md file")
    parser.add_argument("--check", action="store_true", help="compare with the runs in the file of costs alone")
    options = parser.parse_args()
    content = json.loads(options.costs.read_text())
    costs = Costs(**content["costs"])
    rows = check(costs, content["runs"])
    for row in rows:
        print(row)
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"worst={worst:.3f}")
    if options.check:
        return 0 if worst <= 0.2 else 1
    on_gpu = replace(costs, update=GPU_UPDATE_S)
    table = []
    for layout in layouts(costs):
        found = simulate(on_gpu, layout)
        table.append(
            {
                "GPUs": layout.ranks,
                "actors": layout.actors,
                "nodes": layout.nodes,
                "updates per step": f"{layout.updates_per_step:g}",
                "steps/s": f"{found.frames_s:.3g}",
                "updates/s": f"{found.updates_s:.3g}",
                "limit": found.limit,
            }
        )
    if options.out:
        with options.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    for line in table:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
