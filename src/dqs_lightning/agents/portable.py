"""Agents outside of training: the policy as a graph."""

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dqs_lightning.agents.graph import PolicyGraph


class Portable(L.LightningModule):
    """Base class of agents, for what leaves the training process."""

    def policy_graph(self, deterministic: bool = False) -> PolicyGraph:
        """Returns the policy of `act` with `best_of=1` as a module whose noise is an input; `dqs-export` writes it.

        Raises:
            MisconfigurationException: when the agent has none; one line.
        """
        raise MisconfigurationException(f"{type(self).__name__} cannot be exported: it has no method policy_graph")
