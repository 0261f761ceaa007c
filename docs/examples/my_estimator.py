"""An example of an energy estimator."""

import torch

from dqs_lightning.diffusion import Posterior
from dqs_lightning.diffusion.importance import MixtureImportance
from dqs_lightning.diffusion.proposals import Component


class Broad(MixtureImportance):
    """Draws half of the candidates around x, as `Importance` does, and half on the whole set; for two dimensions."""

    def components(self, posterior: Posterior) -> list[Component]:
        x, sigma = posterior.x, posterior.sigma
        half = self.num_samples // 2
        anywhere = Component(torch.zeros_like(x), torch.ones_like(sigma), half)
        return [Component(x, sigma, self.num_samples - half), anywhere]
