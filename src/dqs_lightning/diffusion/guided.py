"""Importance estimators whose proposals follow the energy's gradient, from the guide and from uniform starts."""

import math

import torch
from torch import Tensor

from dqs_lightning.diffusion.estimators import GRADIENT_COST, Posterior, gradient_of
from dqs_lightning.diffusion.importance import Defensive
from dqs_lightning.diffusion.proposals import Component
from dqs_lightning.diffusion.support import LogProb, Support
from dqs_lightning.ranges import Count, OpenShare, Positive, checked


def ascend(log_prob: LogProb, points: Tensor, width: Tensor, reach: Tensor, support: Support) -> Tensor:
    """A step width^2 grad log_prob from points [C, B, d], at most `reach` in each dimension, within the support.

    From a point of a normal distribution of standard deviation `width` it leads to its mean.
    """
    _, gradient = gradient_of(log_prob, points, support)
    return support.project(points + torch.maximum(torch.minimum(width**2 * gradient, reach), -reach))


class GuidedDefensive(Defensive):
    """`Defensive` whose second part is shifted from the guide along the energy's gradient.

    Its center is m = guide + clipped steps along sigma_q^2 grad log_prob, its width sigma_q that of a posterior. With
    several `widths` the candidates around m are divided among that many components, sharp ones for narrow optima.

    Args:
        num_samples: K; >= 1. With K = 1 the candidate is around x.
        sigma_data: standard deviation of clean actions; > 0.
        clip: largest distance from the guide in each dimension, in units of sigma_q; > 0.
        widths: widths of the components around m, in units of sigma_q; each > 0. Each gets an equal share of the
            candidates, as does the part around x when there are two or more.
        gradient_steps: steps from the guide to m; >= 1.
    """

    @checked
    def __init__(
        self,
        num_samples: int = 32,
        sigma_data: float = 0.5,
        clip: Positive = 1.5,
        widths: tuple[Positive, ...] = (1.0,),
        gradient_steps: Count = 1,
    ) -> None:
        super().__init__(num_samples, sigma_data)
        self.clip, self.widths, self.gradient_steps = clip, widths, gradient_steps

    def cost(self, points: int = 1) -> int:
        return points * (self.num_samples + GRADIENT_COST * self.gradient_steps)

    def components(self, posterior: Posterior) -> list[Component]:
        around_x, around_guide = super().components(posterior)
        log_prob, support = posterior.log_prob, posterior.support
        center, width = around_guide.center, around_guide.width
        for _ in range(self.gradient_steps):
            center = ascend(log_prob, center, width, self.clip * width / self.gradient_steps, support)
        share = self.num_samples // (len(self.widths) + 1)
        first = self.num_samples - share * len(self.widths)
        return [around_x._replace(num=first), *(Component(center, width * w, share) for w in self.widths)]


class MultiStart(GuidedDefensive):
    """`GuidedDefensive` with some candidates at the ends of gradient ascents from uniform starts: the default.

    Guided candidates are near the present policy, and those around x find no narrow mode in six dimensions, so that the
    smaller of two modes soon receives no candidates and is never recovered. So some of the points also start a gradient
    ascent at a uniform action, in clipped steps that shrink from sigma_data to the smallest sigma_q of the
    distribution, and candidates of all points are drawn around the ends, each with its own width.

    Args:
        num_samples: K; >= 1.
        sigma_data: standard deviation of clean actions; > 0.
        clip: largest distance from the guide in each dimension, in units of sigma_q; > 0.
        share: of the candidates, drawn around the ends of ascents; 0 < share < 1.
        climb: gradient steps of an ascent; >= 1. Two are too few for two modes in six dimensions, four are enough.
        every: one of so many points of a distribution starts an ascent, at least one; >= 1.
    """

    @checked
    def __init__(
        self,
        num_samples: int = 32,
        sigma_data: float = 0.5,
        clip: float = 1.5,
        share: OpenShare = 0.25,
        climb: Count = 4,
        every: Count = 4,
    ) -> None:
        super().__init__(num_samples, sigma_data, clip)
        self.share, self.climb, self.every = share, climb, every

    def cost(self, points: int = 1) -> int:
        return super().cost(points) + GRADIENT_COST * self.climb * max(1, points // self.every)

    def components(self, posterior: Posterior) -> list[Component]:
        log_prob, x, sigma, support, generator, _ = posterior
        around_x, around_guide = Defensive.components(self, posterior)
        width = around_guide.width
        narrow = width.amin(0, keepdim=True)
        starts = slice(0, max(1, len(x) // self.every))
        end = support.start(x[starts], sigma[starts], generator)
        # The guide's one step and the first of the ascents share a gradient evaluation.
        scale = torch.cat([width, narrow.new_full(end[..., :1].shape, self.sigma_data)])
        reach = torch.cat([self.clip * width, scale[len(x) :]])
        moved = ascend(log_prob, torch.cat([around_guide.center, end]), scale, reach, support)
        center, end = moved.split([len(x), len(end)])
        for step in range(1, self.climb):
            reach = self.sigma_data * (narrow / self.sigma_data) ** (step / (self.climb - 1))
            end = ascend(log_prob, end, reach, reach, support)
        climbers = int(self.num_samples * self.share)
        others = self.num_samples - climbers
        return [
            around_x._replace(num=others - others // 2),
            Component(center, width, others // 2),
            Component(end.repeat(math.ceil(len(x) / len(end)), 1, 1)[: len(x)], width, climbers),
        ]
