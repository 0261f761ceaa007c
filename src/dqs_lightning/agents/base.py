"""Base class of agents: a LightningModule with manual optimization that owns no environment and no buffer."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, NamedTuple, Self

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dqs_lightning.agents.metrics import Metrics
from dqs_lightning.agents.portable import Portable
from dqs_lightning.nn.observation_norm import ObservationNorm
from dqs_lightning.ranges import Count, Positive, checked
from dqs_lightning.registry import describe

STEPS = "steps_to_next_obs"
"""Key of the steps of a transition, [..., 1], under which TorchRL's losses look for them to discount V(s')."""


class Rollout(NamedTuple):
    """Sizes of the rollouts from which an on-policy agent learns.

    Attributes:
        steps: transitions that each rank collects between two visits, over all of its environments; >= 1.
        epochs: passes through them; >= 1.
        batch_size: transitions in one update, on each rank; 1 to `steps`.
    """

    steps: int
    epochs: int
    batch_size: int


class Agent(Metrics, Portable, ABC):
    """An agent. `training_step` takes one batch of transitions and makes one gradient update.

    A batch is a TensorDict [B] of `observation`, `action` and `("next", ...)` with `observation`, `reward` [B, 1],
    `terminated` [B, 1]. With `OnlineData.n_steps` above 1, `next` is that many steps on, fewer at the end of an
    episode, and `steps_to_next_obs` [B, 1] is their number. Metrics go through `accumulate`, which keeps tensors on the
    device; every `Trainer.log_every_n_steps` updates their means are written to all loggers, beside `env_frames`.

    Args:
        observation_dim: dimension of the flat observation.
        action_dim: dimension of the action; actions are in [-1, 1].
        max_grad_norm: maximum norm of each parameter group's gradient, which is clipped to it; None: no clipping.
        best_of: actions drawn for each decision, of which the one of highest Q is taken; 1 samples the policy.
        normalise_observations: whether networks receive normalised observations (see `ObservationNorm`).
    """

    discount: float
    """gamma of the return that it maximises, in [0, 1]."""
    observation_norm: nn.Module
    actor_every: int = 1
    """Updates of the critics for each one of the actor; >= 1."""
    rollout: Rollout | None = None
    """None: the agent learns from a replay buffer."""
    watched: dict[str, Tensor]
    """Detached scalars of the present update, in the order of the data flow; `FiniteGuard` checks them."""

    @checked
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        max_grad_norm: Positive | None = None,
        best_of: Count = 1,
        normalise_observations: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.max_grad_norm, self.best_of = max_grad_norm, best_of
        self.observation_norm = ObservationNorm(observation_dim) if normalise_observations else nn.Identity()
        self.watched = {}

    def save_hyperparameters(self, *args: Any, frame: FrameType | None = None, **kwargs: Any) -> None:
        """Lightning's, without its warning about components: `describe` writes them as plain values."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().save_hyperparameters(*args, frame=frame or sys._getframe(1), **kwargs)

    @abstractmethod
    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        """Draw num actions in [-1, 1] a state from the policy: [..., o] -> [num, ..., d]."""

    @property
    def has_q(self) -> bool:
        """Whether it has Q(s, a), by which it can choose among several actions."""
        return type(self).q_value is not Agent.q_value

    def q_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Q of observations [B, o] and actions [..., B, d]: [..., B].

        Raises:
            MisconfigurationException: when the agent has no Q.
        """
        raise MisconfigurationException(f"{type(self).__name__} has no Q(s, a)")

    def prepare(self, block: TensorDictBase) -> TensorDictBase:
        """Prepares a block [..., T] of transitions, in the order of time, for the updates of an on-policy agent."""
        return block

    @torch.no_grad()
    def act(self, observation: Tensor, deterministic: bool = False, best_of: int | None = None) -> Tensor:
        """Actions [..., d] in [-1, 1] for observations [..., o].

        Args:
            observation: flat observations.
            deterministic: no randomness.
            best_of: draw this many actions and keep the one of the highest Q; None: the agent's own choice.
        """
        num = 1 if deterministic else best_of or self.best_of
        actions = self.sample(observation, num, deterministic)
        if num == 1:
            return actions[0]
        best = self.q_value(observation, actions).argmax(0)
        return actions.gather(0, best[None, ..., None].expand(1, *actions.shape[1:]))[0]

    def forward(self, observation: Tensor) -> Tensor:
        """The behaviour policy: one stochastic action for each observation."""
        return self.act(observation)

    def update_observation_norm(self, observation: Tensor) -> None:
        """Updates the observation statistics with observations [B, o] over all ranks.

        It is called after the step, so that non-finite data has already been rejected.
        """
        if isinstance(self.observation_norm, ObservationNorm):
            self.observation_norm.update(observation, self.mean_over_ranks)

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """Returns the mean over ranks of a tensor of any shape; the tensor itself without a Trainer."""
        mean: Tensor = value if self._trainer is None else self.trainer.strategy.reduce(value, reduce_op="mean")
        return mean

    def actor_learns(self) -> bool:
        """Returns whether the actor learns at the present update: at the first, and at each `actor_every`-th then."""
        return self.global_step % self.actor_every == 0

    def update(
        self, loss: Tensor, watched: Mapping[str, Tensor] | None = None, unchanged: Iterable[nn.Parameter] = ()
    ) -> None:
        """Computes the gradients, clips them, and takes one optimizer step. `global_step` counts these.

        Args:
            loss: a scalar.
            watched: scalars on which it depends, in the order of the data flow, by the names that an error message
                uses: the step is not taken when one of them, the loss or a gradient is not finite.
            unchanged: parameters on which the loss does not depend; the optimizer does not change them.
        """
        unchanged = list(unchanged)
        if unchanged and self._trainer is not None and self.trainer.world_size > 1:
            # DDP waits for the gradients of all parameters.
            loss = loss + 0 * torch.stack([parameter.sum() for parameter in unchanged]).sum()
        self.zero_grad()
        self.manual_backward(loss)
        for parameter in unchanged:
            parameter.grad = None  # with a gradient of zero, Adam's momentum would still change them
        self.clip_and_step({**(watched or {}), "loss": loss})

    def clip_and_step(self, watched: Mapping[str, Tensor]) -> None:
        """Clips the present gradients and takes one optimizer step; `watched` as in `update`."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        self.watched = {name: value.detach() for name, value in watched.items()}
        if self.max_grad_norm is not None:
            for index, group in enumerate(optimizer.param_groups):  # afterwards an infinite norm has become 0
                norm = nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
                self.watched[f"norm of the gradient of parameter group {index}"] = norm
        optimizer.step()
        for scheduler in self._schedulers():
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()

    def _schedulers(self) -> list[LRScheduler | ReduceLROnPlateau]:
        """Learning-rate schedulers that `configure_optimizers` of a subclass returns."""
        found = self.lr_schedulers()
        return [] if found is None else found if isinstance(found, list) else [found]

    def on_validation_epoch_end(self) -> None:
        """Steps schedulers of the kind `ReduceLROnPlateau`, by `eval/return`, after an evaluation during training."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            for scheduler in self._schedulers():
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(self.trainer.callback_metrics["eval/return"])

    def on_train_epoch_end(self) -> None:
        # All updates of the run are in one epoch, whatever `Trainer.max_epochs` is.
        self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["agent"] = type(self).__name__
        checkpoint["agent_class"] = f"{type(self).__module__}.{type(self).__qualname__}"
        # Components as class path and arguments: plain values, which load without running code from the file.
        for key in (self.CHECKPOINT_HYPER_PARAMS_KEY, L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY):
            if key in checkpoint:
                checkpoint[key] = describe(checkpoint[key])

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the agent of a run's `last.ckpt`, on `map_location` or the CPU; no code that the file names is run.

        `kwargs` replace saved arguments. `weights_only` has no effect; `hparams_file` and `strict=False` are refused.

        Raises:
            CheckpointError: see `load_agent`.
            ValueError: for a `hparams_file`, or `strict=False`.
        """
        from dqs_lightning.agents.loading import restore  # which needs this module

        if hparams_file is not None or strict is False:
            raise ValueError(f"hparams_file={hparams_file}, strict={strict}: must be left out")
        return restore(cls, checkpoint_path, "cpu" if map_location is None else map_location, **kwargs)
