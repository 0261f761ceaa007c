"""Agents outside of training: the policy as a graph, and files for others."""

import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, cast

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dqs_lightning.agents.graph import PolicyGraph
from dqs_lightning.registry import describe
from dqs_lightning.sharing import hub

if TYPE_CHECKING:
    from dqs_lightning.agents.base import Agent


@dataclass(frozen=True)
class Origin:
    """The checkpoint from which an agent was loaded, and the hyperparameters that it has, as they were written."""

    path: Path
    hyperparameters: Mapping[str, Any]


class Portable(L.LightningModule):
    """Base class of agents, for what leaves the training process."""

    origin: Origin | None = None
    """Where it was loaded from; None for a new agent."""

    def policy_graph(self, deterministic: bool = False) -> PolicyGraph:
        """Returns the policy of `act` with `best_of=1` as a module whose noise is an input; `dqs-export` writes it.

        Raises:
            MisconfigurationException: when the agent has none; one line.
        """
        raise MisconfigurationException(f"{type(self).__name__} cannot be exported: it has no method policy_graph")

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the agent as files that `load_agent(folder)` loads: `agent.ckpt` and a model card, `README.md`.

        They are those of its training so far, or of the checkpoint that it was loaded from. Of its run, where it is
        known, they have `config.yaml`, `scores.jsonl` and the newest video.

        Raises:
            ValueError: when README.md and agent.md are files of the user, or a file of the run is damaged.
        """
        from dqs_lightning.agents.pretrained import save  # which imports environments

        save(cast("Agent", self), Path(folder), Path(folder).absolute().name)

    def push_to_hub(
        self,
        repository: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        message: str = "Upload an agent",
        token: str | None = None,
    ) -> str:
        """Uploads the files of `save_pretrained` to the Hugging Face Hub, where `load_agent` finds them.

        Needs the extra `hub`. The card of the repository is replaced.

        Args:
            repository: owner/name; created if it is missing.
            revision: branch, created if it is missing; None: main.
            private: whether a new repository is private; None: as the owner's settings have it.
            message: of the commit.
            token: of the Hub; None: that of `hf auth login`.

        Returns:
            The address of the commit.

        Raises:
            HubError: for a wrong name, a missing package, or when the Hub refuses or cannot be reached; one line.
        """
        from dqs_lightning.agents.pretrained import save  # which imports environments

        hub.check_repository(repository)
        with tempfile.TemporaryDirectory() as folder:
            save(cast("Agent", self), Path(folder), f"hf://{repository}{f'@{revision}' if revision else ''}")
            return hub.upload(Path(folder), repository, revision, private, message, token)

    def save_hyperparameters(self, *args: Any, frame: FrameType | None = None, **kwargs: Any) -> None:
        """Lightning's, without its warning about components: `describe` writes them as plain values."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().save_hyperparameters(*args, frame=frame or sys._getframe(1), **kwargs)

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
        where = "cpu" if map_location is None else map_location
        return cast("Self", restore(cast("type[Agent]", cls), checkpoint_path, where, **kwargs))
