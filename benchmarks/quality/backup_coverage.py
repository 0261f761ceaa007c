"""How near the backups' values come to the exact ones, by dimension and T: bias and standard deviation in units of T.

    python benchmarks/quality/backup_coverage.py --states 1000 --out benchmarks/results/backup_coverage.json

Energies on [-1, 1]^d whose values are known: a corner (linear), an axis-aligned Gaussian, a correlated one, and a
product of two-mode densities. Policy samples are exact, or those of a law 1.5 times as wide (the energy's Boltzmann
law at 2.25 T; at 1.5 T for the corner, which is exponential). Truth: for SelfNormalised the mean of Q over exp(Q/T),
for all others T log E_U exp(Q/T); SoftPolicyValue receives the exact entropy of the policy that it samples. 64
candidates a state and the components' defaults, save for policy_actions 0 (uniform), 8 (p8) and clip None
(no_gradient).
The last line holds name=value pairs: the greatest |bias| with exact samples.
"""

import argparse
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqs_lightning.agents.backups import Backup, BackupInput, SelfNormalised, Soft, SoftPolicyValue
from dqs_lightning.cli.provenance import about
from dqs_lightning.diffusion import Box

DTYPE = torch.float64
GRID = 2 * (torch.arange(20_000, dtype=DTYPE) + 0.5) / 20_000 - 1
DIMS, TEMPERATURES = (1, 2, 6, 12, 21), (0.3, 0.1, 0.03)
VARIANTS: dict[str, Backup] = {
    "soft_uniform": Soft(policy_actions=0),
    "soft_no_gradient": Soft(clip=None),
    "soft": Soft(),
    "soft_p8": Soft(policy_actions=8),
    "self_normalised": SelfNormalised(),
    "entropic": SoftPolicyValue(),
    "entropic_p8": SoftPolicyValue(policy_actions=8),
}


class Energy(ABC):
    """Q(a) on [-1, 1]^d with known integrals."""

    wide: float = 2.25

    def __init__(self, dim: int) -> None:
        self.dim = dim

    @abstractmethod
    def __call__(self, a: Tensor) -> Tensor: ...

    @abstractmethod
    def sample(self, temperature: float, *shape: int) -> Tensor: ...

    @abstractmethod
    def log_partition(self, temperature: float) -> float:
        """log of the integral of exp(Q/T)."""

    @abstractmethod
    def mean(self, temperature: float) -> float:
        """Mean of Q over exp(Q/T)."""


class Product(Energy):
    """Q(a) = sum_i u(a_i), by quadrature in one dimension."""

    def __init__(self, dim: int, u: Callable[[Tensor], Tensor], wide: float = 2.25) -> None:
        super().__init__(dim)
        self.u, self.wide = u, wide

    def __call__(self, a: Tensor) -> Tensor:
        return self.u(a).sum(-1)

    def sample(self, temperature: float, *shape: int) -> Tensor:
        cumulative = torch.softmax(self.u(GRID) / temperature, 0).cumsum(0)
        cell = torch.searchsorted(cumulative, torch.rand(*shape, self.dim, dtype=DTYPE)).clamp_max(len(GRID) - 1)
        return GRID[cell] + (torch.rand(*shape, self.dim, dtype=DTYPE) - 0.5) * 2 / len(GRID)

    def log_partition(self, temperature: float) -> float:
        per_dimension = torch.logsumexp(self.u(GRID) / temperature, 0) + math.log(2 / len(GRID))
        return self.dim * per_dimension.item()

    def mean(self, temperature: float) -> float:
        return self.dim * (torch.softmax(self.u(GRID) / temperature, 0) * self.u(GRID)).sum().item()


class Correlated(Energy):
    """A Gaussian of curvatures 5 to 80 along random axes; of its mass, less than 1e-3 is outside the box."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        normal = torch.randn(dim, dim, dtype=DTYPE, generator=torch.Generator().manual_seed(5))
        self.axes: Tensor = torch.linalg.qr(normal)[0]
        self.curvature = torch.logspace(math.log10(5), math.log10(80), dim, dtype=DTYPE)

    def __call__(self, a: Tensor) -> Tensor:
        return -((a @ self.axes).square() * self.curvature).sum(-1) / 2

    def sample(self, temperature: float, *shape: int) -> Tensor:
        draws = torch.randn(*shape, self.dim, dtype=DTYPE) * torch.sqrt(temperature / self.curvature)
        return (draws @ self.axes.T).clamp(-1, 1)

    def log_partition(self, temperature: float) -> float:
        return torch.log(2 * math.pi * temperature / self.curvature).sum().item() / 2

    def mean(self, temperature: float) -> float:
        return -temperature * self.dim / 2


ENERGIES: dict[str, Callable[[int], Energy]] = {
    "corner": lambda dim: Product(dim, lambda a: a, wide=1.5),
    "gaussian": lambda dim: Product(dim, lambda a: -3 * (a - 0.2).square()),
    "correlated": Correlated,
    "two_modes": lambda dim: Product(dim, lambda a: -8 * (a.square() - 0.36).square() + 0.1 * a),
}


def errors(backup: Backup, energy: Energy, temperature: float, wide: bool, states: int) -> tuple[float, float]:
    """Bias and standard deviation of V, in units of T."""
    policy = temperature * (energy.wide if wide else 1.0)
    entropy = energy.log_partition(policy) - energy.mean(policy) / policy
    actions = energy.sample(policy, max(backup.policy_actions, 1), states)
    exact_entropy = lambda: torch.full((states,), entropy, dtype=DTYPE)  # noqa: E731
    with torch.no_grad():
        scale = torch.tensor(temperature, dtype=DTYPE)
        value = backup.value(BackupInput(energy, actions, energy(actions), scale, Box(), exact_entropy))
    exact = temperature * (energy.log_partition(temperature) - energy.dim * math.log(2))
    if isinstance(backup, SelfNormalised):
        exact = energy.mean(temperature)
    return (value.mean().item() - exact) / temperature, value.std().item() / temperature


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=1000, help="independent values of each entry")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(f"{'policy':6} {'energy':10} {'d':>3} {'T':>5} " + " ".join(f"{name:>16}" for name in VARIANTS))
    for wide in (False, True):
        for name, make in ENERGIES.items():
            for dim in DIMS:
                for temperature in TEMPERATURES:
                    torch.manual_seed(0)
                    found = {
                        variant: errors(backup, make(dim), temperature, wide, options.states)
                        for variant, backup in VARIANTS.items()
                    }
                    policy = "wide" if wide else "exact"
                    cells = " ".join(f"{bias:8.2f} +-{std:5.2f}" for bias, std in found.values())
                    print(f"{policy:6} {name:10} {dim:3} {temperature:5} {cells}", flush=True)
                    rows.append({"policy": policy, "energy": name, "dim": dim, "temperature": temperature, **found})
    worst = {
        f"{variant}_worst_{dim}d": max(
            abs(row[variant][0]) for row in rows if row["dim"] == dim and row["policy"] == "exact"
        )
        for variant in VARIANTS
        for dim in (6, 21)
    }
    if options.out:
        content = {"bias_and_std_in_T": rows, "states": options.states, "about": about()}
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(" ".join(f"{name}={bias:.2f}" for name, bias in worst.items()))


if __name__ == "__main__":
    main()
