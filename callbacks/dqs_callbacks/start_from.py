"""Starts a run from a trained agent, such as one of another task."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from dqs_lightning.checkpoint.archive import CheckpointError, checkpoint_of, load_run

AS_CONFIGURED = "temperature", "temperature_factors"
"""Parts that are not copied unless they are named: annealing, and measures of the former Q."""


def _within(name: str, part: str) -> bool:
    """Whether the tensor is the module `part`, or in it."""
    return f"{name}.".startswith(f"{part}.")


class StartFrom(Callback):
    """Gives a new run the weights of a finished one, whose observations, actions and networks are of the same sizes.

    Optimizer, replay buffer and clock start anew. A run that is continued from its own checkpoint has its own weights,
    and `run` is not read again. With `data.init_random_frames=0` and `data.learning_starts` the trained policy
    collects the first transitions instead of random actions.

    Args:
        run: a run directory, or a checkpoint file.
        parts: the agent's modules whose weights are copied, such as [diffusion, observation_norm] of DQS, or modules of
            these, such as loss.actor_network_params of SAC. None: all but the modules `temperature` and
            `temperature_factors`.

    Raises:
        MisconfigurationException: at the start of the run, when there is no such checkpoint, the agent has no such
            part, or the sizes differ.
    """

    def __init__(self, run: str, parts: Sequence[str] | None = None) -> None:
        self.run = Path(run)
        self.parts = None if parts is None else list(parts)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:
            self.give(pl_module)

    def give(self, agent: nn.Module) -> None:
        """Copy the parts of `run` into the agent."""
        try:
            trained = load_run(checkpoint_of(self.run))["state_dict"]
        except CheckpointError as error:
            raise self._refused(f"run={self.run}", str(error)) from error
        own = agent.state_dict()
        names = own.keys() | trained.keys()
        modules = sorted({name.partition(".")[0] for name in names})
        parts = [part for part in modules if part not in AS_CONFIGURED] if self.parts is None else self.parts
        for part in parts:
            if not any(_within(name, part) for name in names):
                inner = sorted({".".join(name.split(".")[: part.count(".") + 1]) for name in names})
                raise self._refused(f"parts={part}", f"must be one of {', '.join(inner)}")
        own, trained = (
            {name: value for name, value in state.items() if any(_within(name, part) for part in parts)}
            for state in (own, trained)
        )
        for name in sorted(own.keys() | trained.keys()):
            here, there = (list(state[name].shape) if name in state else "missing" for state in (own, trained))
            if here != there:
                raise self._refused(
                    f"run={self.run}",
                    f"{name} is {there} there and {here} here; must be a run with observations, actions and "
                    "networks of the same sizes",
                )
        agent.load_state_dict(trained, strict=False)

    def _refused(self, argument: str, why: str) -> MisconfigurationException:
        return MisconfigurationException(f"{type(self).__name__}.{argument}: {why}")
