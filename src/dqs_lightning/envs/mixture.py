"""Navigation to the modes of a Gaussian mixture: episodes should end at a distribution that can be sampled exactly."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dqs_lightning.envs.navigation import Navigation, PlaneBatch
from dqs_lightning.ranges import Count, Positive, checked, within

HALF_SIDE = 50.0
"""Of the box."""
MEANS_WITHIN = 40.0
"""Means are drawn uniformly from [-MEANS_WITHIN, MEANS_WITHIN]^2."""
MAX_MODES = 10_000
MODE_SCALE = math.log1p(math.e)
"""Standard deviation of each mode in each dimension: softplus(1) = 1.31, as in iDEM's mixture of 40."""
BANDWIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""From a mode's width to the box's."""


class MixtureNavigation(Navigation):
    """A point in the box [-50, 50]^2 that chooses a direction. Its reward is a mixture's log-density at its position.

    The action is divided by its length, so each move is `step` long; the zero action stays. Moves end at the box. The
    observation is the position over 50. Episodes never terminate; they are truncated after `horizon` steps. The mixture
    has equally weighted modes of standard deviation 1.31; its means, drawn once from `means_seed`, are the goals, and a
    goal's radius is three standard deviations, which holds 99 % of its samples.

    Args:
        num_modes: 1 to 10,000.
        means_seed: of the draw of the means.
        start: uniform in the box, or center, (0, 0). The log-density is paid all along the way, so that from the
            center even the optimal policy ends at a quarter of the modes, or fewer.
        reward_scale: factor of the log-density, which is about -5 at a mean, -30 at most places and below -250 in the
            emptiest corner; > 0.
        step: length of a move; > 0.
        horizon: steps until an episode is truncated; >= 1.
    """

    extent = (-HALF_SIDE, HALF_SIDE, -HALF_SIDE, HALF_SIDE)
    goal_radius = 3 * MODE_SCALE

    @checked
    def __init__(
        self,
        num_modes: Annotated[int, within(1, MAX_MODES)] = 40,
        means_seed: int = 0,
        start: Literal["uniform", "center"] = "uniform",
        reward_scale: Positive = 1.0,
        step: Positive = 1.0,
        horizon: Count = 100,
    ) -> None:
        super().__init__(action_repeat=1)
        self.num_modes, self.means_seed, self.start = num_modes, means_seed, start
        self.reward_scale, self.step, self.horizon, self.label = reward_scale, step, horizon, f"mixture-{num_modes}"
        draws = torch.rand(num_modes, 2, generator=torch.Generator().manual_seed(means_seed))
        self.goals = (MEANS_WITHIN * (2 * draws - 1)).tolist()

    def make(self, num_envs: int, seed: int) -> "MixtureBatch":
        return MixtureBatch(self, num_envs, seed)

    def log_density(self, position: Tensor) -> Tensor:
        """Log density of the mixture at positions [..., 2]: [...]."""
        squares = (position.unsqueeze(-2) - position.new_tensor(self.goals)).square().sum(-1)
        constant = math.log(2 * math.pi * MODE_SCALE**2 * self.num_modes)
        return torch.logsumexp(-squares / (2 * MODE_SCALE**2), -1) - constant

    def samples(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent samples of the mixture, [num, 2]."""
        mode = torch.randint(self.num_modes, (num,), generator=generator)
        return torch.tensor(self.goals)[mode] + MODE_SCALE * torch.randn(num, 2, generator=generator)


class MixtureBatch(PlaneBatch):
    """See `MixtureNavigation`."""

    def __init__(self, mixture: MixtureNavigation, num_envs: int, seed: int) -> None:
        super().__init__(mixture, num_envs, seed, mixture.horizon, HALF_SIDE)
        self._mixture = mixture

    def begin(self, uniform: Tensor) -> Tensor:
        return HALF_SIDE * (2 * uniform - 1) * (self._mixture.start == "uniform")

    def move(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position = (position + self._mixture.step * normalize(action, dim=-1)).clamp(-HALF_SIDE, HALF_SIDE)
        reward = self._mixture.reward_scale * self._mixture.log_density(position).unsqueeze(-1)
        return position, reward, torch.zeros_like(reward, dtype=torch.bool)


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two distributions, from samples [n, d] and [m, d].

        1/(n(n-1)) sum_{i != j} k(x_i, x_j) + 1/(m(m-1)) sum_{i != j} k(y_i, y_j) - 2/(nm) sum_{i, j} k(x_i, y_j)

    with k(a, b) = sum over bandwidths h of exp(-|a - b|^2 / (2 h^2)). An estimate may be slightly negative.

    Raises:
        ValueError: for fewer than two samples of either, or bandwidths that are not > 0.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x has {len(x)} samples and y has {len(y)}: both must have 2 or more")
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths={list(bandwidths)}: must be one or more numbers > 0")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.stack([torch.exp(-squares / (2 * width**2)) for width in bandwidths]).sum(0)

    def within(a: Tensor) -> Tensor:
        return (kernel(a, a).sum() - len(a) * len(bandwidths)) / (len(a) * (len(a) - 1))

    x, y = x.double(), y.double()
    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
