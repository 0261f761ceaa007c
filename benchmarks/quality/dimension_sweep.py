"""Error and effective sample size of each estimator as the action's dimension grows.

    python benchmarks/quality/dimension_sweep.py --out benchmarks/results/dimension_sweep

Laws: a product of two-mode densities and the corner optimum Q = sum of a, at T = 0.1; the exact E[a | x] is one
quadrature a dimension. Noised points x = a + sigma eps of exact samples a, eight of each law, which pool. Every
estimator gets K = 32 and, as guide, the exact mean disturbed by a tenth of the posterior's deviation, as by a network.
Error: root mean square of (estimate - E[a | x]) / sigma_q, sigma_q = 0.5 sigma / sqrt(sigma^2 + 0.25): 1 is useless.
Writes OUT.json and OUT.png; the last line holds name=value pairs.
"""

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from dqs_lightning import diffusion as d
from dqs_lightning.cli.provenance import about

DIMENSIONS = (2, 6, 12, 21, 38)
SIGMAS = (0.1, 0.3, 1.0)
TEMPERATURE, K, POINTS, LAWS = 0.1, 32, 8, 64
ESTIMATORS: dict[str, d.EnergyEstimator] = {
    "MultiStart": d.MultiStart(K),
    "GuidedDefensive": d.GuidedDefensive(K),
    "Defensive": d.Defensive(K),
    "Importance": d.Importance(K),
    "ControlVariate": d.ControlVariate(K),
    "TargetScore": d.TargetScore(K),
    "PosteriorMode": d.PosteriorMode(),
    "Resampling": d.Resampling(K),
}
AXIS = 2 * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 1


def two_modes(a: Tensor) -> Tensor:
    """Q of one dimension: modes at -0.5 and 0.5 of deviation 0.25 sqrt(T) and unequal height."""
    return torch.maximum(-((a + 0.5) ** 2), 0.08 - (a - 0.5) ** 2) / (2 * 0.25**2)


LAWS_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {"two modes": two_modes, "corner": lambda a: a}


def posterior(energy: Callable[[Tensor], Tensor], x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Exact mean and deviation of a given x, elementwise."""
    log_weight = energy(AXIS) / TEMPERATURE - (x.double().unsqueeze(-1) - AXIS).square() / (2 * sigma**2)
    weight = torch.softmax(log_weight, -1)
    mean = weight @ AXIS
    return mean, (weight @ AXIS.square() - mean.square()).clamp_min(0).sqrt()


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="name of the files without their ending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for (law, energy), dim, sigma in product(LAWS_BY_NAME.items(), DIMENSIONS, SIGMAS):
        prior = torch.softmax(energy(AXIS) / TEMPERATURE, 0)
        clean = AXIS[torch.multinomial(prior, POINTS * LAWS * dim, replacement=True)].view(POINTS, LAWS, dim)
        x = (clean + sigma * torch.randn_like(clean)).float()
        mean, deviation = (
            torch.cat(part) for part in zip(*(posterior(energy, p, sigma) for p in x.split(1)), strict=True)
        )
        guide = (mean + 0.1 * deviation * torch.randn_like(mean)).float().clamp(-1, 1)
        width = 0.5 * sigma / (sigma**2 + 0.25) ** 0.5
        for name, estimator in ESTIMATORS.items():
            log_prob = lambda a: energy(a).sum(-1) / TEMPERATURE  # noqa: B023, E731
            with torch.no_grad():
                found = estimator.estimate(d.Posterior(log_prob, x, torch.tensor(sigma), d.Box(), guide=guide))
            error = ((found.denoised - mean) / width).square().mean().sqrt().item()
            ess = found.ess.median().item()
            rows.append({"law": law, "dim": dim, "sigma": sigma, "estimator": name, "error": error, "ess": ess})
    for row in rows:
        print(f"{row['law']:10} d={row['dim']:2} sigma={row['sigma']:.1f} {row['estimator']:16} "
              f"error {row['error']:8.3f}  ess {row['ess']:7.1f}")  # fmt: skip
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"about": about(), "rows": rows}, indent=0) + "\n")
        draw(rows, options.out.with_suffix(".png"))
    print(
        " ".join(
            f"{r['estimator']}_{r['law'].replace(' ', '_')}_{r['dim']}d_sigma{r['sigma']}={r['error']:.3f}"
            for r in rows
        )
    )


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Error above, effective sample size below; a column for each law and noise level."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = ["#0072B2", "#7F7F7F", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#000000", "#E69F00"]  # Okabe and Ito's
    markers = "ophD^vXP"
    columns = list(product(LAWS_BY_NAME, SIGMAS))
    figure, axes = plt.subplots(2, len(columns), figsize=(15, 5.6), sharex=True, sharey="row", layout="constrained")
    for column, (law, sigma) in enumerate(columns):
        for name, color, marker in zip(ESTIMATORS, colors, markers, strict=True):
            chosen = [r for r in rows if r["law"] == law and r["sigma"] == sigma and r["estimator"] == name]
            for axis, metric in zip(axes[:, column], ("error", "ess"), strict=True):
                if metric == "ess" and name == "PosteriorMode":
                    continue
                axis.plot(
                    [str(r["dim"]) for r in chosen],
                    [r[metric] for r in chosen],
                    color=color,
                    marker=marker,
                    markersize=5,
                    linewidth=1.6,
                    label=name,
                )
        axes[0, column].set_title(f"{law}, $\\sigma$ = {sigma}", fontsize=12)
        axes[1, column].set_xlabel("action dimension", fontsize=11)
        for axis in axes[:, column]:
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylim(3e-3, 30)
    axes[0, 0].set_ylabel("error of E[a | x], units of $\\sigma_q$", fontsize=11)
    axes[1, 0].set_ylabel("effective sample size", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=11)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
