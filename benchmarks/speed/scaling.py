"""How the cost of an update grows with its sizes, beside the operations that its matrix products need (floor.py).

    python benchmarks/speed/scaling.py --out benchmarks/results/scaling

From the default at walker's sizes one thing grows at a time: K, the action's dimension, the batch, the sampler's steps,
the width of the hidden layers. All configurations take turns with a measurement of this machine's rate of matrix
products (512 rows, 256 x 256, float32 and bfloat16); one thread, process CPU time, medians of turns. `counted` is what
the products alone would take at that rate, each in its own type; `achieved` is its share of what was measured.
`growth` is cost and arithmetic from a sweep's default to its largest value; the cost grows no faster than the
arithmetic where their ratio, the median of turns, is at most `SLACK`. The count is compared with torch's own counter.
Writes OUT.json and OUT.png; the last line holds name=value pairs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from floor import by_dtype, count, least_seconds, matrix_rate, touched
from peers import ACTION, BATCH
from torch.utils.flop_counter import FlopCounterMode
from update import Step

from dqs_lightning.cli.provenance import about
from dqs_lightning.diffusion import MLP, MomentMatched, MultiStart

SLACK = 1.05
AGENT = Step({}).agent
DEFAULT = {
    "K": AGENT.diffusion.energy_estimator.num_samples,
    "dimension": ACTION,
    "batch": BATCH,
    "steps": AGENT.diffusion.sampler.steps,
    "width": MLP().width,
}
SWEEPS: dict[str, tuple[int, ...]] = {
    "K": (2, 4, 8, 16, 32, 64),
    "dimension": (2, 6, 12, 21, 38),
    "batch": (64, 128, 256, 512, 1024),
    "steps": (2, 3, 6, 10, 20, 40),
    "width": (64, 128, 256, 512, 1024),
}
BRIEF = {"K": (8, 32), "dimension": (6, 38), "batch": (256, 512), "steps": (6, 20), "width": (256, 512)}
LABELS = {
    "K": "candidates K a noised point",
    "dimension": "action dimension",
    "batch": "batch (transitions)",
    "steps": "sampler steps",
    "width": "hidden width (units)",
}
Sizes = tuple[int, ...]
"""In the order of `DEFAULT`."""


def sized(sizes: Sizes) -> Step:
    """Updates of the default agent at these sizes."""
    num, dim, batch, steps, width = sizes
    hidden = (width, width)
    components = {
        "energy_estimator": MultiStart(num),
        "sampler": MomentMatched(steps),
        "critic_backbone": MLP(hidden, layer_norm=True),
        "actor_backbone": MLP(hidden),
    }
    return Step(components, batch, dim)


def sizes_of(sweep: str, value: int) -> Sizes:
    """The default with one size changed."""
    return tuple({**DEFAULT, sweep: value}.values())


def measure(steps: dict[Sizes, Step], turns: int) -> tuple[dict[Sizes, list[float]], dict[str, list[float]]]:
    """CPU seconds of an update of every configuration, and rates of matrix products, by turn, after two of warm-up."""
    seconds: dict[Sizes, list[float]] = {sizes: [] for sizes in steps}
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for turn in range(-2, turns):
        for sizes, step in steps.items():
            start = time.process_time()
            step()
            if turn >= 0:
                seconds[sizes].append((time.process_time() - start) / step.updates)
        for name, rate in matrix_rate(turns=3).items():
            rates[name].append(rate)
    return seconds, rates


def torch_counts(step: Step) -> float:
    """Operations of one update by torch's counter, a mean over `actor_every` of them.

    Raises:
        ValueError: when those of floor.py differ by more than `SLACK`.
    """
    updates = step.agent.actor_every
    with FlopCounterMode(display=False) as counter:
        for index in range(updates):
            step.learn(index)
    found = float(counter.get_total_flops()) / updates
    counted = sum(count(step.agent, len(step.batch)).values())
    if max(counted / found, found / counted) > SLACK:
        raise ValueError(f"floor.py counts {counted:.4g} operations of an update, and torch {found:.4g}")
    return found


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--turns", type=int, default=20, help="timed turns of each configuration, of several updates each"
    )
    parser.add_argument("--brief", action="store_true", help="five turns, two values of each size")
    parser.add_argument("--out", type=Path, help="name of the files without their ending")
    options = parser.parse_args()
    sweeps, turns = (BRIEF, 5) if options.brief else (SWEEPS, options.turns)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    default = sizes_of("K", DEFAULT["K"])
    chosen = {default, *(sizes_of(sweep, value) for sweep, values in sweeps.items() for value in values)}
    steps = {sizes: sized(sizes) for sizes in sorted(chosen)}
    by_torch = {sizes: torch_counts(step) for sizes, step in steps.items()}
    torch_counts(Step({"actor_every": 3}))  # only compared
    seconds, rates = measure(steps, turns)
    rate = {name: statistics.median(values) for name, values in rates.items()}
    print("matrix rate: " + ", ".join(f"{value / 1e9:.0f} GFLOP/s in {name}" for name, value in rate.items()))
    print(f"{'sweep':10} {'value':>6} {'ms':>8} {'counted ms':>11} {'achieved':>9} {'GFLOP':>7} {'/ torch':>8}")
    rows: list[dict[str, Any]] = []
    for sweep, values in sweeps.items():
        for value in sorted({*values, DEFAULT[sweep]}):
            sizes = sizes_of(sweep, value)
            step, batch = steps[sizes], sizes[2]
            median, least = statistics.median(seconds[sizes]), least_seconds(step.agent, batch, rate)
            parts = count(step.agent, batch)
            row = {
                "sweep": sweep,
                "value": value,
                "median_s": median,
                "counted_s": least,
                "achieved": least / median,
                "operations": parts,
                "operations_by_dtype": by_dtype(step.agent, batch),
                "bytes": touched(step.agent, batch),
                "count_over_torch": sum(parts.values()) / by_torch[sizes],
            }
            rows.append(row)
            print(f"{sweep:10} {value:6} {median * 1e3:8.1f} {least * 1e3:11.1f} {row['achieved']:9.2f} "
                  f"{sum(parts.values()) / 1e9:7.2f} {row['count_over_torch']:8.4f}")  # fmt: skip
    growth: dict[str, dict[str, Any]] = {}
    for sweep, values in sweeps.items():
        largest = sizes_of(sweep, max(values))
        cost = statistics.median(b / a for a, b in zip(seconds[default], seconds[largest], strict=True))
        least, least_largest = (least_seconds(steps[s].agent, s[2], rate) for s in (default, largest))
        arithmetic = least_largest / least
        growth[sweep] = {"cost": cost, "arithmetic": arithmetic, "no_faster": cost <= SLACK * arithmetic}
        print(f"{sweep} {DEFAULT[sweep]} -> {max(values)}: cost x {cost:.2f}, arithmetic x {arithmetic:.2f}, "
              f"{'no faster' if growth[sweep]['no_faster'] else 'FASTER'}")  # fmt: skip
    if options.out:
        content = {"default": DEFAULT, "rows": rows, "growth": growth, "matrix_rate": rate, "turns": turns,
                   "about": about()}  # fmt: skip
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        draw(rows, options.out.with_suffix(".png"))
    achieved = next(r["achieved"] for r in rows if r["sweep"] == "K" and r["value"] == DEFAULT["K"])
    print(f"achieved_default={achieved:.3f} "
          + " ".join(f"{sweep}_cost_over_arithmetic={g['cost'] / g['arithmetic']:.2f}" for sweep, g in growth.items())
          + " " + " ".join(f"{name}_gflops={value / 1e9:.0f}" for name, value in rate.items()))  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each sweep: measured and counted milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    plt.rcParams["font.size"] = 15
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), sharey=True, layout="constrained")
    for axis, sweep in zip(axes.flat, SWEEPS, strict=False):
        chosen = [row for row in rows if row["sweep"] == sweep]
        values = [row["value"] for row in chosen]
        for key, label, color, style in (
            ("median_s", "measured CPU time", "#D55E00", "o-"),
            ("counted_s", "counted: matrix products\nat this machine's rate", "#0072B2", "s--"),
        ):
            axis.plot(values, [row[key] * 1e3 for row in chosen], style, color=color, label=label, lw=2.4, ms=8)
        axis.axvline(DEFAULT[sweep], color="0.6", lw=1, ls=":")
        axis.set(xscale="log", yscale="log", xlabel=LABELS[sweep])
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("one update (ms)")
    axes.flat[-1].axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="0.6", lw=1, ls=":"))
    axes.flat[-1].legend(handles, [*labels, "default"], loc="center", frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
