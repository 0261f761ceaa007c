"""Energies with a known law, to judge samplers by: Q on a box, exact samples of exp(Q / T), modes and their masses."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Target:
    """One energy.

    Attributes:
        name: of the row.
        dim: of an action.
        q: Q(a) or Q(a, condition), actions [..., B, d] -> [..., B].
        half: the box is [-half, half]^d.
        modes: centers [m, d], to which samples are assigned; given a condition [c], if there is one.
        exact: draws n samples of exp(Q / T); None: by quadrature (two dimensions).
        conditions: [N, c] to train on, or None.
        judged: conditions to judge on, [n, c].
        sigma_min: smallest noise, in units of half.
        cells: a side, of the quadrature in two dimensions.
    """

    name: str
    dim: int
    q: Callable[..., Tensor]
    modes: Callable[[Tensor | None], Tensor] | None = None
    exact: Callable[[float, int], Tensor] | None = None
    half: float = 1.0
    conditions: Tensor | None = None
    judged: Tensor | None = None
    sigma_min: float = 0.03
    cells: int = 300

    def grid(self, temperature: float, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Points [cells^2, 2] and their probabilities."""
        axis = self.half * (2 * (torch.arange(self.cells, dtype=torch.float64) + 0.5) / self.cells - 1)
        points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        bound = () if condition is None else (condition.double().expand(len(points), -1),)
        return points.float(), torch.softmax(self.q(points, *bound) / temperature, 0)

    def samples(self, temperature: float, num: int, condition: Tensor | None = None) -> Tensor:
        """Exact samples, [num, d]."""
        if self.exact is not None:
            return self.exact(temperature, num)
        points, mass = self.grid(temperature, condition)
        drawn = points[torch.multinomial(mass, num, replacement=True)]
        return drawn + (torch.rand(num, 2) - 0.5) * 2 * self.half / self.cells


def bumps(a: Tensor, centers: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Sum of Gaussian bumps."""
    square = (a.unsqueeze(-2) - centers.to(a.dtype)).square().sum(-1)
    return (heights.to(a.dtype) * torch.exp(-square / (2 * widths.to(a.dtype) ** 2))).sum(-1)


def gm2d() -> Target:
    """Five bumps of heights 0.85 to 1 and widths 0.1 to 0.2."""
    centers = torch.tensor([[-0.6, -0.6], [0.6, -0.5], [-0.5, 0.6], [0.55, 0.55], [0.0, 0.05]])
    heights, widths = torch.tensor([1.0, 0.95, 0.9, 1.0, 0.85]), torch.tensor([0.15, 0.2, 0.1, 0.12, 0.2])
    return Target("gm2d", 2, lambda a: bumps(a, centers, heights, widths), lambda _: centers)


def edge2d() -> Target:
    """Two optima, in two corners."""
    corners = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])
    return Target("edge2d", 2, lambda a: 0.5 * a[..., 0] ** 2 + 0.5 * a[..., 1], lambda _: corners)


def cond2d() -> Target:
    """Two modes on opposite sides of a circle; the condition turns them and shifts their heights."""

    def centers(condition: Tensor | None) -> Tensor:
        assert condition is not None
        angle = math.pi * condition[..., 0]
        there = 0.6 * torch.stack([torch.cos(angle), torch.sin(angle)], -1)
        return torch.stack([there, -there], -2)

    def q(a: Tensor, condition: Tensor) -> Tensor:
        heights = torch.stack([1 + 0.1 * condition[..., 1], 1 - 0.1 * condition[..., 1]], -1)
        square = (a.unsqueeze(-2) - centers(condition)).square().sum(-1)
        return (heights * torch.exp(-square / (2 * 0.2**2))).sum(-1)

    generator = torch.Generator().manual_seed(0)
    conditions = torch.rand(4096, 2, generator=generator) * 2 - 1
    judged = torch.rand(16, 2, generator=generator) * 2 - 1
    return Target("cond2d", 2, q, centers, conditions=conditions, judged=judged)


def corner(dim: int) -> Target:
    """Q = sum of a: an optimum in a corner, a product of exponential laws."""

    def exact(temperature: float, num: int) -> Tensor:
        u, slope = torch.rand(num, dim), 1 / temperature
        return 1 + torch.log(u + (1 - u) * math.exp(-2 * slope)) / slope

    return Target(f"lin{dim}d", dim, lambda a: a.sum(-1), exact=exact)


def two_modes(dim: int) -> Target:
    """Two normal modes of deviation 0.3 around +-0.4 in each dimension; the masses differ, and more so at low T."""
    center, width = 0.4, 0.3

    def q(a: Tensor) -> Tensor:
        low, high = ((a - sign * center).square().sum(-1) / (2 * width**2) for sign in (-1, 1))
        return torch.logaddexp(-low, 0.1 - high)

    def exact(temperature: float, num: int) -> Tensor:
        # Importance resampling from the two tempered modes, which overlap little; 50 candidates for each sample.
        deviation = width * math.sqrt(temperature)
        sign = torch.where(torch.rand(50 * num, 1) < 0.5, -1.0, 1.0)
        a = sign * center + deviation * torch.randn(50 * num, dim)
        a = a[(a.abs() <= 1).all(-1)]
        low, high = ((a - sign * center).square().sum(-1) / (2 * deviation**2) for sign in (-1, 1))
        weight = torch.softmax(q(a) / temperature - torch.logaddexp(-low, -high), 0)
        return a[torch.multinomial(weight, num, replacement=True)]

    modes = center * torch.stack([-torch.ones(dim), torch.ones(dim)])
    return Target(f"two{dim}d", dim, q, lambda _: modes, exact)


def gmm40() -> Target:
    """Forty equal normal modes of deviation softplus(1) = 1.31 with means uniform on [-40, 40]^2 (arXiv 2402.06121)."""
    centers = (torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 0.5) * 80
    width = math.log(1 + math.e)

    def q(a: Tensor) -> Tensor:
        square = (a.unsqueeze(-2) - centers.to(a.dtype)).square().sum(-1)
        return torch.logsumexp(-square / (2 * width**2), -1)

    return Target("gmm40", 2, q, lambda _: centers, half=50.0, sigma_min=0.01, cells=800)


def all_targets() -> dict[str, Target]:
    """By name."""
    found = (gm2d(), edge2d(), cond2d(), corner(6), two_modes(6), gmm40())
    return {target.name: target for target in found}


# Distances


def sliced_wasserstein(first: Tensor, second: Tensor, directions: int = 200) -> float:
    """Mean over directions of the distance between projections of equally many samples [n, d]."""
    direction = torch.randn(first.shape[1], directions, generator=torch.Generator().manual_seed(0))
    direction = direction / direction.norm(dim=0)
    one, two = (torch.sort(samples @ direction, 0).values for samples in (first, second))
    return (one - two).abs().mean().item()


def cell_masses(points: Tensor, mass: Tensor, half: float, cells: int) -> Tensor:
    """Mass in each cell of a square grid."""
    place = ((points / half + 1) / 2 * cells).long().clamp(0, cells - 1)
    return torch.zeros(cells * cells, dtype=torch.float64).scatter_add_(0, place[:, 0] * cells + place[:, 1], mass)


def mode_masses(points: Tensor, mass: Tensor, centers: Tensor) -> Tensor:
    """Mass nearest to each center."""
    nearest = torch.cdist(points, centers).argmin(-1)
    return torch.zeros(len(centers), dtype=torch.float64).scatter_add_(0, nearest, mass)
