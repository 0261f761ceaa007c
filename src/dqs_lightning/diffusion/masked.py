"""A support of which some dimensions do not exist in some rows, such as for tasks with different actions."""

import torch
from torch import Generator, Tensor

from dqs_lightning.diffusion.support import LogProb, Support, log_normal
from dqs_lightning.diffusion.truncated_normal import Proposals


class _Masked(Support):
    """Another support, in each row restricted to the dimensions that exist there: the others are 0.

    All points have 0 in the other dimensions, and no density, mass or Jacobian includes these. The support must be a
    product over dimensions.

    Args:
        support: the action set of all dimensions.
        mask: which dimensions exist, [..., d], boolean.
    """

    def __init__(self, support: Support, mask: Tensor) -> None:
        self.support, self.mask = support, mask

    def present(self, values: Tensor, absent: float = 0.0) -> Tensor:
        return torch.where(self.mask, values, absent)

    def dims(self, dim: int) -> Tensor:
        return self.mask.sum(-1)

    def mean(self, values: Tensor) -> Tensor:
        return (self.present(values).sum(-1) / self.mask.sum(-1)).mean()

    def to_action(self, x: Tensor) -> Tensor:
        return self.present(self.support.to_action(x))

    def from_action(self, action: Tensor) -> Tensor:
        return self.present(self.support.from_action(action))

    def project(self, x: Tensor) -> Tensor:
        return self.present(self.support.project(x))

    def log_prob(self, log_prob: LogProb, x: Tensor) -> Tensor:
        x = self.present(x)
        others = (x.shape[-1] - self.dims(x.shape[-1])) * self.support.log_jacobian(x.new_zeros(1))
        return self.support.log_prob(lambda action: log_prob(self.present(action)), x) - others

    def log_volume(self, dim: int) -> Tensor:
        return self.dims(dim) * self.support.log_volume(1)

    def draw(self, x: Tensor, sigma: Tensor, num: int, generator: Generator | None = None) -> Tensor:
        return self.present(self.support.draw(x, sigma, num, generator))

    def propose(self, x: Tensor, sigma: Tensor, num: int, generator: Generator | None = None) -> Proposals:
        found = self.support.propose(x, sigma, num, generator)
        return found._replace(points=self.present(found.points), dlog_mass_dx=self.present(found.dlog_mass_dx))

    def log_mass(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = self.present(x)
        others = x.shape[-1] - self.dims(x.shape[-1])
        return self.support.log_mass(x, sigma) - others * self.support.log_mass(torch.zeros_like(x[..., :1]), sigma)

    def proposal_log_prob(self, points: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        near = log_normal(self.present(points), self.present(x), sigma)
        return near - self.log_mass(x, sigma) - self.dims(x.shape[-1]) * torch.log(sigma).squeeze(-1)

    def start(self, x: Tensor, sigma: Tensor, generator: Generator | None = None) -> Tensor:
        return self.present(self.support.start(x, sigma, generator))

    def uniform(self, num: int, like: Tensor, generator: Generator | None = None) -> Tensor:
        return self.present(self.support.uniform(num, like, generator))

    def cover(self, num: int, like: Tensor, generator: Generator | None = None) -> Tensor:
        return self.present(self.support.cover(num, like, generator))
