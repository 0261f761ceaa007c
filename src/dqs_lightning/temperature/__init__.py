"""Temperature schedules and controllers: T in pi(a|s) = exp(Q(s, a) / T), in units of Q."""

from dqs_lightning.temperature.base import Measurements, Temperature
from dqs_lightning.temperature.controlled import TargetEntropy, TargetESS
from dqs_lightning.temperature.scheduled import Constant, LogLinear, Relative

__all__ = ["Constant", "LogLinear", "Measurements", "Relative", "TargetESS", "TargetEntropy", "Temperature"]
