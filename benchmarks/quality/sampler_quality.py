"""How near samples come to exp(Q/T): networks fitted for 3000 updates at batch 256, judged against exact laws.

    python benchmarks/quality/sampler_quality.py --part main --out benchmarks/results/sampler_quality.json

Parts: `main` is the default estimator on every target for T in 1, .3, .1, .03 and K in 32, 128; `estimators` each
estimator, and the paper's choices together, at T = .1, K = 32; `samplers` each sampler on one network; `all` the three.
Evaluations of the network a sample: 5, 10, 20. SW: sliced Wasserstein-1 (in units of the box's half width); modes:
total variation of the mode masses; TV, KL: on a grid of 24 x 24 cells; gap: (E_truth Q - E_sample Q) / T, positive when
samples are too random. What --out holds already is not measured again; the table that is printed at the end, means over
seeds, holds all of it, and is written beside --out as Markdown. The last line holds name=value pairs.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from targets import Target, all_targets, cell_masses, mode_masses, sliced_wasserstein
from torch import Tensor

from dqs_lightning import diffusion as d
from dqs_lightning.cli.provenance import about

UPDATES, NUM, CELLS = 3000, 20_000, 24
EVALUATIONS = (5, 10, 20)
ESTIMATORS = {
    "MultiStart": d.MultiStart,
    "GuidedDefensive": d.GuidedDefensive,
    "Importance": d.Importance,
    "Defensive": d.Defensive,
    "TargetScore": d.TargetScore,
    "ControlVariate": d.ControlVariate,
    "QScore": d.QScore,
    "PosteriorMode": d.PosteriorMode,
    "Resampling": d.Resampling,
}
PUBLISHED = "Published"
"""The paper's choices together: TargetScore around noised actions, a raw score, its schedule, Euler-Maruyama, tanh."""
SAMPLERS: dict[str, Callable[[], d.Sampler]] = {
    "MomentMatched": d.MomentMatched,
    "Ancestral": d.Ancestral,
    "DPMSolverSDE": d.DPMSolverSDE,
    "ProbabilityFlow": d.ProbabilityFlow,
    "EulerMaruyama": d.EulerMaruyama,
}


def judge(target: Target, temperature: float, samples: Tensor, condition: Tensor | None) -> dict[str, float]:
    """Distances of samples [n, d] to the law at one condition."""
    bound = () if condition is None else (condition.expand(len(samples), -1),)
    truth = target.samples(temperature, len(samples), condition)
    gap = (target.q(truth, *bound).mean() - target.q(samples, *bound).mean()).item() / temperature
    row = {"SW": sliced_wasserstein(samples, truth) / target.half, "gap": gap}
    equal = torch.full((len(samples),), 1 / len(samples), dtype=torch.float64)
    if target.modes is not None:
        centers = target.modes(condition)
        if target.dim == 2:
            exact = mode_masses(*target.grid(temperature, condition), centers)
        else:
            exact = mode_masses(truth, equal, centers)
        row["modes"] = 0.5 * (mode_masses(samples, equal, centers) - exact).abs().sum().item()
    if target.dim == 2:
        exact = cell_masses(*target.grid(temperature, condition), target.half, CELLS)
        found = cell_masses(samples, equal, target.half, CELLS)
        row["TV"] = 0.5 * (exact - found).abs().sum().item()
        smooth = (found * len(samples) + 0.1) / (len(samples) + 0.1 * CELLS**2)
        row["KL"] = (exact * (exact.clamp_min(1e-30) / smooth).log()).sum().item()
    return row


def measure(sampler: d.BoltzmannSampler, target: Target, temperature: float, steps: int, num: int) -> dict[str, float]:
    """Distances of num samples; where there are conditions, the mean over those that are judged, of a fifth each."""
    if target.judged is None:
        return judge(target, temperature, sampler.sample(num, steps=steps), None)
    rows = [judge(target, temperature, sampler.sample(num // 5, c, steps=steps), c) for c in target.judged]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def fitted(target: Target, temperature: float, estimator: str, num: int, seed: int, updates: int) -> d.BoltzmannSampler:
    """A network after `updates` updates at batch 256."""
    torch.manual_seed(seed)
    condition_dim = 0 if target.conditions is None else target.conditions.shape[1]
    if estimator == PUBLISHED:
        sampler = d.BoltzmannSampler(
            target.dim,
            d.Tanh(-target.half, target.half),
            condition_dim,
            noise_schedule=d.Geometric(1e-5, 1.0),
            energy_estimator=d.TargetScore(num),
            training_points=d.AroundReplayActions(),
            preconditioning=d.RawScore(),
            sampler=d.EulerMaruyama(),
        )
    else:
        sampler = d.BoltzmannSampler(
            target.dim,
            d.Box(-target.half, target.half),
            condition_dim,
            noise_schedule=d.Geometric(target.sigma_min, 2.0),
            energy_estimator=ESTIMATORS.get(estimator, d.MultiStart)(num),
        )
    return sampler.fit(
        lambda a, *condition: target.q(a, *condition) / temperature, updates, 256, target.conditions, progress=False
    )


def means(results: dict[str, dict[str, object]]) -> dict[tuple[str, str], tuple[int, dict[str, float]]]:
    """Of every cell and number of evaluations (of every sampler): how many seeds there are, and their mean."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for key, found in results.items():
        for steps, row in found.items():
            if isinstance(row, dict):
                rows.setdefault((key.rsplit(" seed=", 1)[0], steps), []).append(row)
    return {
        at: (len(found), {metric: sum(row[metric] for row in found) / len(found) for metric in found[0]})
        for at, found in rows.items()
    }


def markdown(results: dict[str, dict[str, object]]) -> str:
    """The whole table, by target, temperature and estimator."""
    lines = [
        "Written by `benchmarks/quality/sampler_quality.py`, whose head says what the columns are.",
        "",
        "| target | T | estimator | K | evaluations | seeds | SW | mode masses | TV | KL | gap / T |",
        "|---" * 11 + "|",
    ]
    found = []
    for (cell, steps), (seeds, mean) in means(results).items():
        target, temperature, estimator, num = cell.split()
        sampler, _, evaluations = steps.rpartition(" ")
        kind = f"{sampler} on MultiStart's network" if sampler else estimator
        order = (target, -float(temperature[2:]), kind, int(num[2:]), int(evaluations))
        numbers = [f"{mean[name]:.3f}" if name in mean else "" for name in ("SW", "modes", "TV", "KL", "gap")]
        row = [target, temperature[2:], kind, num[2:], evaluations, str(seeds), *numbers]
        found.append((order, "| " + " | ".join(row) + " |"))
    return "\n".join([*lines, *(line for _, line in sorted(found))]) + "\n"


def table(results: dict[str, dict[str, object]]) -> None:
    """Print means over seeds, one line a cell, then the same as name=value pairs."""
    found = means(results)
    for (cell, steps), (seeds, mean) in found.items():
        print(f"{cell + ' ' + steps:52} seeds {seeds}  " + "  ".join(f"{k} {v:.3f}" for k, v in mean.items()))
    pairs = (f"{f'{cell} {steps}'.replace(' ', '_')}_SW={mean['SW']:.4f}" for (cell, steps), (_, mean) in found.items())
    print(" ".join(pairs))


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["main", "estimators", "samplers", "all"], default="all")
    parser.add_argument("--targets", nargs="+", default=list(all_targets()), choices=list(all_targets()))
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.1, 0.3, 1.0, 0.03])
    parser.add_argument("--samples", nargs="+", type=int, default=[32, 128], help="K")
    parser.add_argument("--estimators", nargs="+", default=[*ESTIMATORS, PUBLISHED], choices=[*ESTIMATORS, PUBLISHED])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--brief", action="store_true", help="one seed, K and T on a target or two, ten updates")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    updates, judged = UPDATES, NUM
    if options.brief:
        if options.out:
            parser.error("--out: must be left out with --brief")
        updates, judged, options.seeds = 10, 500, 1
        options.targets, options.temperatures, options.samples = ["gm2d", "cond2d"], [0.1], [32]
    torch.set_num_threads(1)
    cells: list[tuple[str, str, float, int, int]] = []
    if options.part in ("main", "all"):
        cells += [
            ("MultiStart", name, temperature, num, seed)
            for temperature, num, name, seed in product(
                options.temperatures, options.samples, options.targets, range(options.seeds)
            )
        ]
    if options.part in ("estimators", "all"):
        cells += [
            (estimator, name, 0.1, 32, seed)
            for seed, name, estimator in product(range(options.seeds), options.targets, options.estimators)
        ]
    if options.part in ("samplers", "all"):
        cells += [("samplers", "gm2d", 0.1, 32, seed) for seed in range(options.seeds)]
    results = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"about": about()}
    targets = all_targets()
    for estimator, name, temperature, num, seed in cells:
        key = f"{name} T={temperature} {estimator} K={num} seed={seed}"
        if key in results:
            continue
        started, target = time.process_time(), targets[name]
        sampler = fitted(target, temperature, estimator, num, seed, updates)
        rows: dict[str, object] = {"fit_cpu_s": round(time.process_time() - started, 1)}
        if estimator == "samplers":
            for kind, steps in product(SAMPLERS, (*EVALUATIONS, 50)):
                sampler.diffusion.sampler = SAMPLERS[kind]()
                rows[f"{kind} {steps}"] = measure(sampler, target, temperature, steps, judged)
        else:
            evaluations = (*EVALUATIONS, 50, 500) if estimator == PUBLISHED else EVALUATIONS
            rows |= {str(steps): measure(sampler, target, temperature, steps, judged) for steps in evaluations}
        results[key] = json.loads(json.dumps(rows), parse_float=lambda text: round(float(text), 4))
        print(key, json.dumps(results[key]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out:
        options.out.with_suffix(".md").write_text(markdown(results))
    table(results)


if __name__ == "__main__":
    main()
