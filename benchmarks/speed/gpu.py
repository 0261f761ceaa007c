"""Updates per second on a GPU: eager and as a CUDA graph, compiled or not, by K and precision; walker's sizes.

    python benchmarks/speed/gpu.py --out benchmarks/results/gpu.json

Every row makes full updates (losses, gradients, Adam, target critics) on batches that are on the device, and takes
turns with the others; times are wall times of blocks between synchronisations. Before it is timed, a graph's losses are
compared with the eager ones of the same random numbers. On the CPU the rows run as they are, without graphs, to test
this script. The last line holds name=value pairs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peers import ACTION, OBSERVATION, batch

from dqs_lightning.agents import DQS
from dqs_lightning.agents.fused import Captured
from dqs_lightning.cli.provenance import about
from dqs_lightning.diffusion import MultiStart, OnTrajectory
from dqs_lightning.nn.critics import soft_update

CANDIDATES = (8, 64, 256, 1000)
BRIEF = ("eager", "graph_k8")
TOLERANCE = 1e-3
"""Of a graph's losses against the eager ones, relative: kernels may sum in another order."""


def rows() -> dict[str, dict[str, Any]]:
    """Changes of the default by the name of a row; those with `cuda_graph` are captured."""
    found: dict[str, dict[str, Any]] = {"eager": {}, "eager_float32": {"inner_precision": "float32"}}
    for num in CANDIDATES:
        found[f"graph_k{num}"] = {"energy_estimator": MultiStart(num), "cuda_graph": True}
        found[f"compiled_graph_k{num}"] = found[f"graph_k{num}"] | {"compile_losses": True}
    found["graph_k64_float32"] = found["graph_k64"] | {"inner_precision": "float32"}
    found["graph_k64_256_states"] = found["graph_k64"] | {"training_points": OnTrajectory(256)}
    return found


class Step:
    """An update on the device, through the graph where the agent has one."""

    def __init__(self, changes: dict[str, Any], device: str) -> None:
        self.agent = DQS(OBSERVATION, ACTION, **changes).to(device)
        self.optimizer = self.agent.configure_optimizers()
        self.batches = [batch().to(device) for _ in range(8)]
        self.count = 0

    def losses(self) -> dict[str, torch.Tensor]:
        """Losses and gradients of the next batch."""
        self.count += 1
        data = self.batches[self.count % len(self.batches)]
        if self.agent.cuda_graph:
            return self.agent.captured(data)
        self.agent.zero_grad()
        loss, metrics = self.agent.fused_losses(data)
        loss.backward()
        return metrics

    def __call__(self) -> None:
        """One update."""
        self.losses()
        self.optimizer.step()
        soft_update(self.agent.target_critic, self.agent.critic, self.agent.tau)

    def check(self) -> None:
        """Raises ValueError when the graph's losses are not the eager ones."""
        for _ in range(8):
            self.losses()
        torch.manual_seed(7)
        found = self.losses()
        self.count -= 1
        self.agent.cuda_graph = False
        torch.manual_seed(7)
        expected = self.losses()
        self.agent.cuda_graph = True
        self.agent.zero_grad()
        # Its gradients were replaced: capture anew.
        self.agent.captured = Captured(self.agent.fused_losses, self.agent)
        for name, value in expected.items():
            if not torch.allclose(found[name], value, rtol=TOLERANCE, atol=TOLERANCE):
                raise ValueError(f"{name} is {found[name].item()} in the graph and {value.item()} without it")


def main() -> None:
    """Check, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=20, help="blocks of each row")
    parser.add_argument("--block", type=int, default=50, help="updates of a block")
    parser.add_argument("--brief", action="store_true", help="two rows, two blocks of three updates")
    parser.add_argument("--tf32", action="store_true", help="let float32 products be rounded to TF32")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    on_gpu = options.device != "cpu"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    turns, block = (2, 3) if options.brief else (options.turns, options.block)
    wanted = BRIEF if options.brief else rows()
    steps = {name: Step(changes, options.device) for name, changes in rows().items() if name in wanted}
    for step in steps.values():
        if step.agent.cuda_graph:
            step.check()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-1, turns):
        for name, step in steps.items():
            wait()
            start = time.perf_counter()
            for _ in range(block):
                step()
            wait()
            if turn >= 0:
                seconds[name].append((time.perf_counter() - start) / block)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:24} {median * 1e3:8.3f} ms {1 / median:9.1f} updates/s")
    if options.out:
        device = torch.cuda.get_device_name() if on_gpu else "cpu"
        result = {"median_s": medians, "device": device, "tf32": options.tf32, "about": about()}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(" ".join(f"{name}_updates_per_s={1 / median:.2f}" for name, median in medians.items()))


if __name__ == "__main__":
    main()
