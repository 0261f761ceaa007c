"""A sampler of exp(log_prob) for any energy: fit it once, then draw at will. No reinforcement learning in sight."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dqs_lightning.diffusion.denoiser import EDM, Denoiser, Preconditioning
from dqs_lightning.diffusion.entropy import entropy, log_prob
from dqs_lightning.diffusion.estimators import EnergyEstimator
from dqs_lightning.diffusion.finite_steps import FiniteSteps
from dqs_lightning.diffusion.guided import MultiStart
from dqs_lightning.diffusion.matching import NoisedPoints, OnPath, match
from dqs_lightning.diffusion.samplers import MomentMatched, Path, Sampler
from dqs_lightning.diffusion.schedules import Geometric, NoiseSchedule
from dqs_lightning.diffusion.support import Box, LogProb, Support
from dqs_lightning.nn.backbones import MLP, Backbone
from dqs_lightning.registry import component

CHECKED_EVERY = 100
"""Updates between two looks at whether all values were finite, on devices that have to be waited for."""


class BoltzmannSampler(nn.Module):
    """Diffusion sampler of exp(log_prob(x)) or exp(log_prob(x, condition)) on a support.

    Schedule and components work in standard units: a box of any size is scaled to [-1, 1]^d.

    Args:
        dim: dimension of x; >= 1.
        support: where x lives: Box(low, high), Tanh(low, high) or Unbounded(); an object or a registered name.
        condition_dim: dimension of the condition; 0 for none.
        noise_schedule: sigma(t) in standard units; object or name. Default: Geometric(0.03, 2).
        energy_estimator: object or name. Default: MultiStart with K = 32.
        noised_points: where the network is trained; object or name. Default: OnPath, four points of the sampler's own
            trajectory for each condition. AroundActions adds noise to uniform actions.
        sampler: object or name. Default: MomentMatched, 10 steps.
        backbone: the network's hidden layers; object or name. Default: MLP, (256, 256).
        preconditioning: how the network's output is read; object or name. Default: EDM.

    Raises:
        ValueError: for a dimension below 1 or a name that is not registered.
    """

    def __init__(
        self,
        dim: int,
        support: Support | str | None = None,
        condition_dim: int = 0,
        noise_schedule: NoiseSchedule | str | None = None,
        energy_estimator: EnergyEstimator | str | None = None,
        noised_points: NoisedPoints | str | None = None,
        sampler: Sampler | str | None = None,
        backbone: Backbone | str | None = None,
        preconditioning: Preconditioning | str | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or condition_dim < 0:
            raise ValueError(f"dim={dim} and condition_dim={condition_dim}: allowed is dim >= 1, condition_dim >= 0")
        self.dim, self.condition_dim = dim, condition_dim
        # mypy takes no abstract class for type[C]; the bases are only looked up.
        self.support = component("support", support, Support, Box)
        self.noise_schedule = component("noise_schedule", noise_schedule, NoiseSchedule, Geometric)
        self.energy_estimator = component("energy_estimator", energy_estimator, EnergyEstimator, MultiStart)
        self.noised_points = component("noised_points", noised_points, NoisedPoints, OnPath)
        self.sampler = component("sampler", sampler, Sampler, MomentMatched)
        reading = component("preconditioning", preconditioning, Preconditioning, EDM)
        layers = component("backbone", backbone, Backbone, MLP)
        self.denoiser = Denoiser(dim, condition_dim, layers, preconditioning=reading)
        self._support, self._center, self._scale = self.support.standard()

    def fit(
        self,
        log_prob: Callable[..., Tensor],
        steps: int = 3000,
        batch_size: int = 256,
        conditions: Tensor | None = None,
        lr: float = 6e-3,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> "BoltzmannSampler":
        """Train on the energy; call it again to go on. Returns self.

        Adam, with the step size constant for the first half and falling to 2 % of it in the second. No update is made
        with a value that is not finite; on a GPU this is noticed after up to 100 further updates, which change nothing.

        Args:
            log_prob: unnormalised log density, differentiable where the estimator wants a gradient:
                log_prob(x) with x [..., B, dim] -> [..., B], or log_prob(x, condition) with condition [B, c].
            steps: gradient updates; >= 1.
            batch_size: noised points in an update; >= those of one law, which share condition and candidates.
            conditions: what to condition on, [N, c], drawn from at random; wanted if condition_dim > 0.
            lr: Adam's step size.
            generator: source of randomness, on this module's device; torch's global one when None.
            progress: show a bar.

        Raises:
            ValueError: when conditions do not fit, or log_prob's result has the wrong shape or is not finite; the
                message names the update, and the weights are those before it.
        """
        if steps < 1 or batch_size < 1:
            raise ValueError(f"steps={steps} and batch_size={batch_size}: allowed is 1 or more")
        conditions = self._checked(conditions)
        self._probe(log_prob, conditions, generator)
        points = self.noised_points
        if batch_size < points.points:
            raise ValueError(f"batch_size={batch_size}: allowed is {points.points} or more, the points of one law")
        optimizer = torch.optim.Adam(self.denoiser.parameters(), lr, fused=True)
        finite_steps = FiniteSteps(optimizer)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.02, min(1.0, 2 * (1 - i / steps))))
        like = next(self.parameters()).new_empty(batch_size // points.points, self.dim)
        for step in self._progress(steps, progress):
            condition = None
            if conditions is not None:
                row = torch.randint(len(conditions), like.shape[:1], device=conditions.device, generator=generator)
                condition = conditions[row]
            x, sigma = points(
                self._path(condition, like.expand(points.trajectories, *like.shape), generator),
                lambda: self._support.from_action(self._support.uniform(1, like, generator)[0]),
                self.noise_schedule,
                generator,
            )
            energy = finite_steps.watch(self._standard(log_prob, condition))
            loss, _ = match(self.denoiser, condition, self.energy_estimator, energy, x, sigma, self._support, generator)
            optimizer.zero_grad()
            loss.backward()
            finite_steps.step()
            decay.step()
            if like.device.type == "cpu" or step % CHECKED_EVERY == 0:
                finite_steps.check()
        finite_steps.check()
        return self

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n samples, [n, dim].

        Args:
            n: how many.
            condition: one for all, [c], or one for each, [n, c].
            steps: evaluations of the network a sample; None: the sampler's own, 10 unless told.
            generator: source of randomness.
        """
        sampler = self.sampler
        if steps is not None:
            sampler = copy.copy(sampler)
            Sampler.__init__(sampler, steps)
        like = next(self.parameters()).new_empty(n, self.dim)
        denoise = self.denoiser.given(self._checked(condition))
        return self._center + self._scale * sampler.sample(denoise, self.noise_schedule, self._support, like, generator)

    @torch.no_grad()
    def entropy(
        self, condition: Tensor | None = None, num: int = 4096, generator: torch.Generator | None = None
    ) -> Tensor:
        """Differential entropy of the samples in nats, a scalar: `diffusion.entropy` from `num` of them.

        Args:
            condition: one condition, [c].
            num: samples that are drawn for it.
            generator: source of randomness.
        """
        actions = (self.sample(num, condition, generator=generator) - self._center) / self._scale
        denoise = self.denoiser.given(self._checked(condition))
        value = entropy(denoise, self.noise_schedule, self._support, actions, generator)
        return value + self.dim * math.log(self._scale)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalised log density of the samples' law at x [B, dim], [B]: `diffusion.log_prob`, no noise.

        Args:
            x: points in the support.
            condition: one for all, [c], or one for each, [B, c].
        """
        if x.ndim != 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x of shape {list(x.shape)}: allowed is [B, {self.dim}]")
        denoise = self.denoiser.given(self._checked(condition))
        value = log_prob(denoise, self.noise_schedule, self._support, (x - self._center) / self._scale)
        return value - self.dim * math.log(self._scale)

    def _standard(self, energy: Callable[..., Tensor], condition: Tensor | None) -> LogProb:
        """The energy as a function of standard units, its condition bound."""
        bound = () if condition is None else (condition,)
        return lambda u: energy(self._center + self._scale * u, *bound)

    @torch.no_grad()
    def _path(self, condition: Tensor | None, like: Tensor, generator: torch.Generator | None) -> Path | None:
        """Trajectories of the present network, one for each row of like [num, B, dim]; None for none."""
        if not len(like):
            return None
        denoise = self.denoiser.given(condition)
        return self.sampler.path(denoise, self.noise_schedule, self._support, like, generator)

    def _checked(self, condition: Tensor | None) -> Tensor | None:
        shape = None if condition is None else list(condition.shape)
        if (condition is None) != (self.condition_dim == 0) or (shape and shape[-1] != self.condition_dim):
            wanted = f"of dimension {self.condition_dim}" if self.condition_dim else "none"
            raise ValueError(f"conditions of shape {shape}: this sampler wants {wanted}")
        return condition

    def _probe(
        self, energy: Callable[..., Tensor], conditions: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Call the energy once as `fit` will, before any work.

        Raises:
            ValueError: naming what is wrong with it.
        """
        wanted = 2 if conditions is not None else 1
        try:
            inspect.signature(energy).bind(*range(wanted))
        except TypeError:
            call = "log_prob(x, condition)" if wanted == 2 else "log_prob(x)"
            raise ValueError(f"log_prob cannot be called as {call}") from None
        laws = 5
        condition = None if conditions is None else conditions[torch.arange(laws) % len(conditions)]
        like = next(self.parameters())
        noise = torch.randn(3, laws, self.dim, dtype=like.dtype, device=like.device, generator=generator)
        u = self._support.to_action(noise)
        value = self._standard(energy, condition)(u)
        if not isinstance(value, Tensor) or value.shape != u.shape[:-1]:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"log_prob of x {list(u.shape)} gave {got}: allowed is {list(u.shape[:-1])}, one value a row"
            )
        bad = ~torch.isfinite(value)
        if bad.any():
            x = (self._center + self._scale * u)[bad][0]
            raise ValueError(f"log_prob is {value[bad][0].item()} at x={x.tolist()}: allowed are finite values")

    def _progress(self, steps: int, show: bool) -> Sequence[int]:
        if not show:
            return range(steps)
        from rich.progress import track  # the only import beyond torch, for the bar alone

        return track(range(steps), description="fitting")  # type: ignore[return-value]  # an iterable of the same ints
