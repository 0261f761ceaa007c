"""An energy estimator of one's own."""

import torch

from dqs_lightning.diffusion import Posterior
from dqs_lightning.diffusion.importance import Component, MixtureImportance


class Broad(MixtureImportance):
    """Half of the candidates around x, as `Importance` has them, half all over the set: for two dimensions at most."""

    def components(self, posterior: Posterior) -> list[Component]:
        x, sigma = posterior.x, posterior.sigma
        half = self.num_samples // 2
        anywhere = Component(torch.zeros_like(x), torch.ones_like(sigma), half)
        return [Component(x, sigma, self.num_samples - half), anywhere]
