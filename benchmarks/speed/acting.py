"""What one decision costs: the default agent at walker's sizes, eager, compiled and exported, beside SAC's.

    python benchmarks/speed/acting.py --turns 60 --out benchmarks/results/acting.json

One thread, process time, medians of one run. The rows take turns of `--block` decisions, so that a machine that slows
down slows all of them; with --block 1 each decision finds the caches full of what the other rows left. Each row draws
its own random numbers. ONNX Runtime, a C++ compiler and Stable-Baselines3 (not a dependency of this project: pip
install stable-baselines3) are wanted for their rows only. The last line holds name=value pairs, milliseconds of one
action and `ratio`, eager / ONNX.
"""

import argparse
import copy
import importlib.util
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from dqs_lightning.agents import DQS
from dqs_lightning.cli.export.graph import load, write
from dqs_lightning.cli.provenance import about

OBSERVATION, ACTION = 24, 6
BATCHES = (1, 64)
Row = Callable[[torch.Tensor], object]


def exported(agent: DQS, suffix: str, compiled: bool = False) -> Row:
    """The policy written and read again; its noise is drawn outside the graph.

    Compiled, each batch size has a program of its own, which is made here. It is the package that is compiled: the
    agent's own code works out its last noise level on the host, which torch.compile does not follow.
    """
    graph = agent.policy_graph()
    with tempfile.TemporaryDirectory() as folder:
        write(graph, agent, Path(folder) / f"policy{suffix}", {})
        act = load(Path(folder) / f"policy{suffix}")
    if compiled:
        act = torch.compile(act, dynamic=False)

    @torch.no_grad()
    def row(observation: torch.Tensor) -> torch.Tensor:
        return act(observation, torch.stack([torch.randn(len(observation), ACTION) for _ in range(graph.draws)]))

    for size in BATCHES:
        row(torch.randn(size, OBSERVATION))
    return row


def sac() -> Row:
    """`predict` of Stable-Baselines3's SAC with the same hidden layers; it takes and returns NumPy arrays."""
    import gymnasium
    import stable_baselines3

    class Nothing(gymnasium.Env[np.ndarray, np.ndarray]):
        observation_space = gymnasium.spaces.Box(-10, 10, (OBSERVATION,))
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,))

    model = stable_baselines3.SAC(
        "MlpPolicy", Nothing(), buffer_size=10, device="cpu", policy_kwargs={"net_arch": [256, 256]}
    )
    return lambda observation: model.predict(observation.numpy())


def rows(agent: DQS) -> tuple[dict[str, Row], list[str]]:
    """All rows that can run here, and why the others cannot."""
    five = copy.deepcopy(agent)
    five.diffusion = five.diffusion.with_steps(5)
    found: dict[str, Row] = {"eager": agent.act, "eager_5_steps": five.act}
    notes = []
    try:
        found["compile"] = exported(agent, ".pt2", compiled=True)
    except Exception as error:  # every kind, by platform: no compiler, no headers, no support
        notes.append(f"compile: skipped, {' '.join(str(error).split())[:100]}")
    found["export"] = exported(agent, ".pt2")
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        found["onnx"] = exported(agent, ".onnx")
        found["onnx_5_steps"] = exported(five, ".onnx")
    else:
        notes.append('onnx: skipped, pip install "dqs-lightning[export]"')
    if importlib.util.find_spec("stable_baselines3"):
        found["sb3_sac"] = sac()
    else:
        notes.append("sb3_sac: skipped, pip install stable-baselines3")
    return found, notes


def versions() -> dict[str, str]:
    """Of what is measured beside torch, as far as it is installed."""
    found = {}
    for package in ("onnxruntime", "onnxscript", "stable-baselines3"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Time the rows in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60, help="turns of each row, for each batch size")
    parser.add_argument("--block", type=int, default=10, help="decisions of one turn")
    parser.add_argument("--brief", action="store_true", help="five turns")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    turns = 5 if options.brief else options.turns
    warnings.filterwarnings("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators that are not in use here
    torch.set_num_threads(1)
    torch.manual_seed(0)
    agent = DQS(OBSERVATION, ACTION).eval()
    found, notes = rows(agent)
    medians: dict[str, dict[str, float]] = {name: {} for name in found}
    for size in BATCHES:
        observation = torch.randn(size, OBSERVATION)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(turns):
            for name, row in found.items():
                for _ in range(options.block):
                    start = time.process_time()
                    row(observation)
                    seconds[name].append(time.process_time() - start)
        for name, taken in seconds.items():
            medians[name][f"batch_{size}_ms"] = 1e3 * statistics.median(taken)
    sampler = f"{type(agent.diffusion.sampler).__name__}, {agent.diffusion.sampler.steps} steps"
    print(f"default sampler: {sampler}")
    print(f"{'row':16}" + "".join(f"{f'batch {size}, ms':>16}" for size in BATCHES))
    for name, values in medians.items():
        print(f"{name:16}" + "".join(f"{value:16.3f}" for value in values.values()))
    for note in notes:
        print(note)
    if options.out:
        content = {
            "median": medians,
            "sampler": sampler,
            "turns": turns,
            "block": options.block,
            "notes": notes,
            "versions": versions(),
            "about": about(),
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    pairs = {f"{name}_ms": values["batch_1_ms"] for name, values in medians.items()}
    if "onnx" in medians:
        pairs["ratio"] = pairs["eager_ms"] / pairs["onnx_ms"]
    print(" ".join(f"{name}={value:.3f}" for name, value in pairs.items()))


if __name__ == "__main__":
    main()
