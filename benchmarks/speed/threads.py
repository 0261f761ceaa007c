"""What a second torch thread gains for an update of DQS, by the width of the hidden layers: walker's sizes, wall time.

    python benchmarks/speed/threads.py --out benchmarks/results/threads.json

The numbers of threads take turns, so that a machine that slows down slows all of them. `dqs-fit` chooses the number by
`cli.machine.threads_for`. The machine must be quiet: a thread that waits for another process's core makes all wait.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from update import Step

from dqs_lightning.cli.machine import available_cores, keep_freed_memory, threads_for
from dqs_lightning.cli.provenance import about
from dqs_lightning.diffusion import MLP


def main() -> None:
    """Time updates with one thread and with more, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=24, help="timed updates of each cell")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, available_cores()])
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for width in options.widths:
        hidden = (width, width)
        step = Step({"critic_backbone": MLP(hidden, layer_norm=True), "actor_backbone": MLP(hidden)})
        seconds: dict[int, list[float]] = {threads: [] for threads in options.threads}
        for turn in range(-1, options.updates):
            for threads in options.threads:
                torch.set_num_threads(threads)
                start = time.perf_counter()
                step()
                if turn >= 0:
                    seconds[threads].append((time.perf_counter() - start) / step.updates)
        medians = {threads: statistics.median(values) for threads, values in seconds.items()}
        chosen = threads_for(step.agent, available_cores())
        rows.append({"width": width, "median_s": medians, "chosen": chosen})
        first = medians[options.threads[0]]
        gains = ", ".join(f"{threads} threads {first / median:.2f}" for threads, median in medians.items())
        print(f"width {width}: {first * 1e3:.1f} ms; rate / first: {gains}; chosen: {chosen}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, "about": about()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
