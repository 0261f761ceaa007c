"""An example of a noise schedule."""

import math

from torch import Tensor

from dqs_lightning.diffusion import NoiseSchedule


class Bent(NoiseSchedule):
    """log sigma is linear in t^power. A power of 1 is `Geometric`; above 1, more steps are at low noise."""

    def __init__(self, sigma_min: float = 0.03, sigma_max: float = 2.0, power: float = 1.5) -> None:
        super().__init__(sigma_min, sigma_max)
        self.power, self._span = power, math.log(sigma_max / sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self._span * t**self.power).exp()

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        return ((sigma / self.sigma_min).clamp_min(1).log() / self._span) ** (1 / self.power)

    def dvar_dt(self, t: Tensor) -> Tensor:
        return 2 * self.sigma(t) ** 2 * self._span * self.power * t ** (self.power - 1)
