"""A sampler of exp(log_prob) for any energy: fit it once, then sample. It does not need reinforcement learning."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dqs_lightning.diffusion.entropy import entropy
from dqs_lightning.diffusion.process import Diffusion
from dqs_lightning.diffusion.samplers import Noise
from dqs_lightning.diffusion.support import Box, LogProb, Support
from dqs_lightning.registry import component

CHECK_EVERY = 100
"""Updates between two checks that all values were finite, on devices where a check is a device-to-host sync."""


class FiniteSteps:
    """Takes the steps of an optimizer as long as the watched energy and all gradients are finite, and then none.

    There is no device-to-host sync except in `check`.

    Args:
        optimizer: a fused one, which makes no step where its `found_inf` is 1, as `torch.amp.GradScaler` uses it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.taken = torch.zeros((), dtype=torch.int64, device=self.parameters[0].device)
        self.finite = torch.ones(2, dtype=torch.bool, device=self.taken.device)
        self._sums: list[Tensor] = []

    def watch(self, log_prob: LogProb) -> LogProb:
        """Returns the same energy; its values count for the next step."""

        def watched(action: Tensor) -> Tensor:
            value = log_prob(action)
            self._sums.append(value.detach().sum())
            return value

        return watched

    def step(self) -> None:
        """Take a step with the gradients that are there, if none so far was to be left out."""
        norms: Any = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None])
        self.finite &= torch.isfinite(torch.stack([torch.stack(self._sums).sum(), torch.stack(norms).sum()]))
        self._sums = []
        ok = self.finite.all()
        self.taken += ok
        self.optimizer.found_inf = (~ok).float()
        self.optimizer.step()

    def check(self) -> None:
        """Raises a ValueError that names the first step that was left out, and the cause. One device-to-host sync."""
        values, gradients = self.finite.tolist()
        if not (values and gradients):
            cause = "the gradient of the loss" if values else "a value of log_prob"
            raise ValueError(
                f"update {self.taken.item()}: {cause} is not finite; the weights are those of the update before"
            )


class BoltzmannSampler(nn.Module):
    """Diffusion sampler of exp(log_prob(x)) or exp(log_prob(x, condition)) on a support: a `Diffusion` and its fitting.

    Schedule and components work in standard units: a box of any size is scaled to [-1, 1]^d.

    Args:
        dim: dimension of x; >= 1.
        support: of x: Box(low, high), Tanh(low, high) or Unbounded(); an object or a registered name. Default: Box.
        condition_dim: dimension of the condition; 0 for none.
        components: noise_schedule, energy_estimator, training_points, sampler, backbone and preconditioning, as in
            `Diffusion`.

    Raises:
        ValueError: for a dimension below 1 or a name that is not registered.
    """

    def __init__(
        self, dim: int, support: Support | str | None = None, condition_dim: int = 0, **components: Any
    ) -> None:
        super().__init__()
        if dim < 1 or condition_dim < 0:
            raise ValueError(f"dim={dim} and condition_dim={condition_dim}: must be dim >= 1 and condition_dim >= 0")
        self.dim, self.condition_dim = dim, condition_dim
        self.support = component("support", support, Support, Box)
        standard, self._center, self._scale = self.support.standard()
        self.diffusion = Diffusion(dim, condition_dim, support=standard, **components)

    def fit(
        self,
        log_prob: Callable[..., Tensor],
        steps: int = 3000,
        batch_size: int = 256,
        conditions: Tensor | None = None,
        lr: float = 6e-3,
        generator: Generator | None = None,
        progress: bool = True,
    ) -> "BoltzmannSampler":
        """Trains on the energy; a further call continues. Returns self.

        Adam, with the step size constant for the first half and falling to 2 % of it in the second. No update is made
        with a value that is not finite; on a GPU this is noticed after up to 100 further updates, which change nothing.

        Args:
            log_prob: unnormalised log density, differentiable where the estimator uses its gradient:
                log_prob(x) with x [..., B, dim] -> [..., B], or log_prob(x, condition) with condition [B, c].
            steps: gradient updates; >= 1.
            batch_size: noised points in an update; >= those of one distribution, which share condition and candidates.
            conditions: conditions, [N, c], of which batches are drawn at random; required if condition_dim > 0.
            lr: Adam's step size.
            generator: source of randomness, on this module's device; torch's global one when None.
            progress: show a bar.

        Raises:
            ValueError: when conditions do not fit, or log_prob's result has the wrong shape or is not finite; the
                message names the update, and the weights are those before it.
        """
        if steps < 1 or batch_size < 1:
            raise ValueError(f"steps={steps} and batch_size={batch_size}: must be >= 1")
        diffusion, points = self.diffusion, self.diffusion.training_points
        conditions = self._checked(conditions)
        self._probe(log_prob, conditions, generator)
        if batch_size < points.points:
            raise ValueError(f"batch_size={batch_size}: must be >= {points.points}, the points of one distribution")
        optimizer = torch.optim.Adam(diffusion.parameters(), lr, fused=True)
        finite_steps = FiniteSteps(optimizer)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.02, min(1.0, 2 * (1 - i / steps))))
        like = next(self.parameters()).new_empty(batch_size // points.points, self.dim)

        def uniform() -> Tensor:
            """Latents of uniform samples."""
            return diffusion.support.from_action(diffusion.support.uniform(1, like, generator)[0])

        updates: Iterable[int] = range(steps)
        if progress:
            from rich.progress import track  # the only import beyond torch, for the bar alone

            updates = track(updates, description="fitting", total=steps)
        for step in updates:
            condition = like.new_empty(len(like), 0)
            if conditions is not None:
                row = torch.randint(len(conditions), like.shape[:1], device=conditions.device, generator=generator)
                condition = conditions[row]
            trajectory = None
            if points.trajectories:
                trajectory = diffusion.trajectory(condition, points.trajectories, _noise(generator))
            energy = finite_steps.watch(self._standard(log_prob, condition))
            loss, _ = diffusion.loss(energy, condition, trajectory, uniform, generator)
            optimizer.zero_grad()
            loss.backward()
            finite_steps.step()
            decay.step()
            if like.device.type == "cpu" or step % CHECK_EVERY == 0:
                finite_steps.check()
        finite_steps.check()
        return self

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, steps: int | None = None, generator: Generator | None = None
    ) -> Tensor:
        """n samples, [n, dim].

        Args:
            n: how many.
            condition: one for all, [c], or one for each, [n, c].
            steps: evaluations of the network a sample; None: the sampler's own number.
            generator: source of randomness.
        """
        diffusion = self.diffusion if steps is None else self.diffusion.with_steps(steps)
        condition = self._rows(condition, n)
        return self._center + self._scale * diffusion.sample(condition, noise=_noise(generator))

    @torch.no_grad()
    def entropy(self, condition: Tensor | None = None, num: int = 4096, generator: Generator | None = None) -> Tensor:
        """Differential entropy of the samples at one condition [c] in nats, a scalar, from `num` of them."""
        actions = (self.sample(num, condition, generator=generator) - self._center) / self._scale
        denoise, diffusion = self.diffusion.bind(self._rows(condition, num)), self.diffusion
        value = entropy(denoise, diffusion.noise_schedule, diffusion.support, actions, generator)
        return value + self.dim * math.log(self._scale)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalised log density of the samples' distribution, [B], at points x [B, dim] in the support.

        The condition is one for all, [c], or one for each, [B, c]. See `entropy.log_prob`.
        """
        if x.ndim != 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x of shape {list(x.shape)}: must be [B, {self.dim}]")
        value = self.diffusion.log_prob((x - self._center) / self._scale, self._rows(condition, len(x)))
        return value - self.dim * math.log(self._scale)

    def _standard(self, energy: Callable[..., Tensor], condition: Tensor) -> LogProb:
        """The energy as a function of standard units at conditions [B, c]."""
        bound = (condition,) if self.condition_dim else ()
        return lambda u: energy(self._center + self._scale * u, *bound)

    def _rows(self, condition: Tensor | None, num: int) -> Tensor:
        """A condition for each of `num` samples, [num, c]."""
        checked = self._checked(condition)
        return next(self.parameters()).new_empty(num, 0) if checked is None else checked.expand(num, -1)

    def _checked(self, condition: Tensor | None) -> Tensor | None:
        shape = None if condition is None else list(condition.shape)
        if (condition is None) != (self.condition_dim == 0) or (shape and shape[-1] != self.condition_dim):
            allowed = f"of dimension {self.condition_dim}" if self.condition_dim else "none"
            raise ValueError(f"conditions of shape {shape}: must be {allowed}")
        return condition

    def _probe(self, energy: Callable[..., Tensor], conditions: Tensor | None, generator: Generator | None) -> None:
        """Calls the energy once as `fit` will; raises a ValueError that names what is wrong with it."""
        arguments = ("x",) if conditions is None else ("x", "condition")
        try:
            inspect.signature(energy).bind(*arguments)
        except TypeError:
            raise ValueError(f"log_prob cannot be called as log_prob({', '.join(arguments)})") from None
        rows = 5
        condition = torch.empty(rows, 0) if conditions is None else conditions[torch.arange(rows) % len(conditions)]
        like = next(self.parameters())
        noise = torch.randn(3, rows, self.dim, dtype=like.dtype, device=like.device, generator=generator)
        u = self.diffusion.support.to_action(noise)
        value = self._standard(energy, condition)(u)
        if not isinstance(value, Tensor) or value.shape != u.shape[:-1]:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"log_prob of x {list(u.shape)} gave {got}: must be {list(u.shape[:-1])}, one value a row")
        bad = ~torch.isfinite(value)
        if bad.any():
            x = (self._center + self._scale * u)[bad][0]
            raise ValueError(f"log_prob is {value[bad][0].item()} at x={x.tolist()}: must be finite")


def _noise(generator: Generator | None) -> Noise:
    return partial(torch.randn_like, generator=generator)
