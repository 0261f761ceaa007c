"""An energy estimator of one's own."""

from typing import Any

import torch
from torch import Tensor

from dqs_lightning.diffusion import LogProb
from dqs_lightning.diffusion.importance import Component, MixtureImportance


class Broad(MixtureImportance):
    """Half of the candidates around x, as `Importance` has them, half all over the set: for two dimensions at most."""

    def components(self, log_prob: LogProb, x: Tensor, sigma: Tensor, *context: Any) -> list[Component]:
        half = self.num_samples // 2
        anywhere = Component(torch.zeros_like(x), torch.ones_like(sigma), half)
        return [Component(x, sigma, self.num_samples - half), anywhere]
