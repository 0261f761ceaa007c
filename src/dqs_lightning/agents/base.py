"""Base class of agents: a LightningModule with manual optimization that owns no environment and no buffer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dqs_lightning.agents.metrics import Metrics
from dqs_lightning.agents.portable import Portable
from dqs_lightning.finite import refused
from dqs_lightning.nn.action_mask import action_mask
from dqs_lightning.nn.observation_norm import ObservationNorm, TaskObservationNorm
from dqs_lightning.ranges import Count, Positive, checked
from dqs_lightning.ranks import mean_over_ranks, several, start_mean_over_ranks

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
        normalise_observations: whether networks receive normalised observations (see `ObservationNorm`),
            those of several tasks each by its own statistics.
        action_dims: of several tasks (`MultiTask`), the dimension of each one's action; None: there is one task.

    Attributes:
        action_mask: returns which dimensions exist, where some tasks have fewer than `action_dim`; otherwise None.
    """

    discount: float
    """gamma of the return that it maximises, in [0, 1]."""
    observation_norm: nn.Module
    actor_every: int = 1
    """Updates of the critics for each one of the actor; >= 1."""
    objectives: int = 0
    """Objectives of the reward vector from which it learns, `("next", "objectives")` [B, m]; 0: it uses the reward."""
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
        action_dims: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.observation_dim, self.action_dim, self.action_dims = observation_dim, action_dim, action_dims
        self.action_mask = action_mask(action_dims, action_dim)
        self.max_grad_norm, self.best_of = max_grad_norm, best_of
        self.observation_norm = self._norm(len(action_dims or ())) if normalise_observations else nn.Identity()
        self.watched = {}
        self._started_moments: tuple[Tensor, Callable[[], Tensor]] | None = None

    def _norm(self, tasks: int) -> ObservationNorm:
        return TaskObservationNorm(self.observation_dim, tasks) if tasks > 1 else ObservationNorm(self.observation_dim)

    def setup(self, stage: str) -> None:
        if isinstance(strategy := self.trainer.strategy, DDPStrategy):
            # Gradients stay in the buffer that DDP sends, without a copy there and back.
            strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)

    def on_fit_start(self) -> None:
        if isinstance(model := self.trainer.strategy.model, DistributedDataParallel):
            # DDP has sent the first rank's buffers to all. They stay equal by what they are computed from.
            model.broadcast_buffers = False

    @abstractmethod
    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        """Draw num actions in [-1, 1] a state from the policy: [..., o] -> [num, ..., d]."""

    def existing(self, observation: Tensor, action: Tensor) -> Tensor:
        """Actions [..., d] for observations [..., o], with 0 in the dimensions that the task does not have."""
        return action if self.action_mask is None else torch.where(self.action_mask(observation), action, 0.0)

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
    def act(
        self, observation: Tensor, deterministic: bool = False, best_of: int | None = None, **choices: Any
    ) -> Tensor:
        """Actions [..., d] in [-1, 1] for observations [..., o].

        Args:
            observation: flat observations.
            deterministic: no randomness.
            best_of: draw this many actions and keep the one of the highest Q; None: the agent's own choice.
            choices: further arguments of the agent's `sample`, such as `temperature` of DQS.
        """
        num = 1 if deterministic else best_of or self.best_of
        actions = self.sample(observation, num, deterministic, **choices)
        if num == 1:
            return actions[0]
        best = self.q_value(observation, actions).argmax(0)
        return actions.gather(0, best[None, ..., None].expand(1, *actions.shape[1:]))[0]

    def acting_state(self) -> dict[str, Tensor]:
        """Returns the part of the state, on the CPU, that `forward` needs; it is sent to actors."""
        state = self.state_dict()
        return {name: value.detach().cpu() for name, value in state.items() if "target_" not in name}

    def forward(self, observation: Tensor) -> Tensor:
        """The behaviour policy: one stochastic action for each observation."""
        return self.act(observation)

    def update_observation_norm(self, observation: Tensor) -> None:
        """Updates the observation statistics with observations [B, o] over all ranks.

        It is called after the step, so that non-finite data has already been rejected. For the observations of a batch,
        the reduction over ranks has run since `on_train_batch_start`, beside the update.
        """
        if not isinstance(self.observation_norm, ObservationNorm):
            return
        started, self._started_moments = self._started_moments, None
        if started is not None and started[0] is observation:
            moments = started[1]()
        else:
            moments = self.mean_over_ranks(self.observation_norm.moments(observation))
        self.observation_norm.update(moments)

    def on_train_batch_start(self, batch: TensorDictBase, batch_idx: int) -> None:
        if isinstance(self.observation_norm, ObservationNorm) and self.rollout is None and several():
            observation = batch["observation"]
            self._started_moments = observation, start_mean_over_ranks(self.observation_norm.moments(observation))

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """Returns the mean over ranks of a tensor of any shape; the tensor itself without a Trainer."""
        return value if self._trainer is None else mean_over_ranks(value)

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
        if unchanged and several():
            # DDP waits for the gradients of all parameters.
            loss = loss + 0 * torch.stack([parameter.sum() for parameter in unchanged]).sum()
        watched = {**(watched or {}), "loss": loss}
        self.zero_grad()
        self.manual_backward(self._refused_by_all_ranks(loss, watched))
        for parameter in unchanged:
            parameter.grad = None  # with a gradient of zero, Adam's momentum would still change them
        self.clip_and_step(watched)

    def _refused_by_all_ranks(self, loss: Tensor, watched: Mapping[str, Tensor]) -> Tensor:
        """Multiplies the loss by NaN where one of this rank's scalars is refused: so are then all ranks' gradients."""
        if not several():
            return loss
        bad = refused(torch.stack(list(watched.values()))).any()
        return loss * torch.ones_like(loss).masked_fill(bad, math.nan)

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
