"""Transforms of observations and rewards: TorchRL's, by the names of its classes, as components."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from tensordict import NestedKey, TensorDictBase
from torchrl.envs import transforms

from dqs_lightning.envs.interface import Part
from dqs_lightning.ranges import Count, Finite, at_least, checked

OBSERVATION: Final = "observation"
REWARD: Final = "reward"
Scale = Annotated[float, at_least(1e-6)]
"""TorchRL silently raises smaller scales to this one."""


class Transform(ABC):
    """Factory of a TorchRL transform. Each environment that is made receives one of its own.

    Subclass it and write `make`; the subclass can then be named in a config. It changes the flat observation of an
    environment, or the reward of the transitions from which an agent learns. What a transform remembers from step to
    step must be in tensors that are its attributes or buffers, for a run to continue exactly.

    Args:
        in_keys: the entries that it changes: observation, reward, or both.
    """

    def __init__(self, in_keys: Sequence[str] = (OBSERVATION,)) -> None:
        if not in_keys or not {*in_keys} <= {OBSERVATION, REWARD}:
            raise ValueError(f"in_keys={list(in_keys)}: must be of {OBSERVATION} and {REWARD}")
        self.in_keys = tuple(in_keys)

    @abstractmethod
    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        """Returns a new TorchRL transform, which reads these keys and writes to the same keys."""

    def parts(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """Returns the parts of the observation after the transform, from those before it: the same, unless overridden.

        Parts whose sizes do not add up to those of the observation are not used.
        """
        return parts


class CatFrames(Transform):
    """Concatenates the latest N observations, the oldest first.

    Args:
        N: observations; >= 1.
        dim: along which they are concatenated: the last one.
        padding: what is before the first observation of an episode: "same" repeats it, "constant" is `padding_value`.
        padding_value: for "constant".
        in_keys: must be observation.
    """

    @checked
    def __init__(
        self,
        N: Count = 4,
        dim: Literal[-1] = -1,
        padding: Literal["same", "constant"] = "same",
        padding_value: Finite = 0.0,
        in_keys: Sequence[Literal["observation"]] = (OBSERVATION,),
    ) -> None:
        super().__init__(in_keys)
        self.N, self.dim, self.padding, self.padding_value = N, dim, padding, padding_value

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.CatFrames(
            self.N, self.dim, in_keys, padding=self.padding, padding_value=self.padding_value, reset_key="_reset"
        )

    def parts(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        ages = range(self.N - 1, -1, -1)
        return tuple(Part(f"{part.name}[t-{age}]" if age else part.name, part.size) for age in ages for part in parts)


class TimeMaxPool(Transform):
    """Takes the maximum of each number over the latest T observations; those before an episode count as 0.

    Args:
        T: observations; >= 1.
        in_keys: must be observation.
    """

    @checked
    def __init__(self, T: Count = 1, in_keys: Sequence[Literal["observation"]] = (OBSERVATION,)) -> None:
        super().__init__(in_keys)
        self.T = T

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.TimeMaxPool(in_keys, T=self.T, reset_key="_reset")


class ObservationNorm(Transform):
    """Computes observation * scale + loc, with constants that are given.

    Constants that follow the data are the agent's `normalise_observations`.

    Args:
        loc: one number, or one for each number of the observation.
        scale: likewise; >= 1e-6.
        standard_normal: compute (observation - loc) / scale instead.
        in_keys: must be observation.
    """

    @checked
    def __init__(
        self,
        loc: Finite | Sequence[Finite] = 0.0,
        scale: Scale | Sequence[Scale] = 1.0,
        standard_normal: bool = False,
        in_keys: Sequence[Literal["observation"]] = (OBSERVATION,),
    ) -> None:
        super().__init__(in_keys)
        self.loc, self.scale, self.standard_normal = loc, scale, standard_normal

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.ObservationNorm(self.loc, self.scale, in_keys, standard_normal=self.standard_normal)


class ClipTransform(Transform):
    """Clips observations or rewards to `low` and `high`.

    Args:
        low: lower bound; null: none.
        high: upper bound, above `low`; null: none. One of them must be given.
        in_keys: observation, reward, or both.
    """

    @checked
    def __init__(
        self,
        low: Finite | None = None,
        high: Finite | None = None,
        in_keys: Sequence[Literal["observation", "reward"]] = (OBSERVATION,),
    ) -> None:
        super().__init__(in_keys)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low={low}: must be < {high=}")
        self.low, self.high = low, high

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.ClipTransform(in_keys, low=self.low, high=self.high)


class SignTransform(Transform):
    """Replaces each number by its sign: -1, 0 or 1.

    Args:
        in_keys: observation, reward, or both.
    """

    @checked
    def __init__(self, in_keys: Sequence[Literal["observation", "reward"]] = (REWARD,)) -> None:
        super().__init__(in_keys)

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.SignTransform(in_keys)


class RewardScaling(Transform):
    """Computes reward * scale + loc.

    Args:
        loc: added number.
        scale: factor; >= 1e-6.
        standard_normal: compute (reward - loc) / scale instead.
        in_keys: must be reward.
    """

    @checked
    def __init__(
        self,
        loc: Finite = 0.0,
        scale: Scale = 1.0,
        standard_normal: bool = False,
        in_keys: Sequence[Literal["reward"]] = (REWARD,),
    ) -> None:
        super().__init__(in_keys)
        self.loc, self.scale, self.standard_normal = loc, scale, standard_normal

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.RewardScaling(self.loc, self.scale, in_keys, standard_normal=self.standard_normal)


class RewardClipping(Transform):
    """Clips the reward to `clamp_min` and `clamp_max`.

    Args:
        clamp_min: lower bound.
        clamp_max: upper bound, above `clamp_min`.
        in_keys: must be reward.
    """

    @checked
    def __init__(
        self,
        clamp_min: Finite = -1.0,
        clamp_max: Finite = 1.0,
        in_keys: Sequence[Literal["reward"]] = (REWARD,),
    ) -> None:
        super().__init__(in_keys)
        if clamp_min >= clamp_max:
            raise ValueError(f"clamp_min={clamp_min}: must be < {clamp_max=}")
        self.clamp_min, self.clamp_max = clamp_min, clamp_max

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.RewardClipping(self.clamp_min, self.clamp_max, in_keys)


class BinarizeReward(Transform):
    """Replaces the reward by 1 where it is above 0, and by 0 elsewhere.

    Args:
        in_keys: must be reward.
    """

    @checked
    def __init__(self, in_keys: Sequence[Literal["reward"]] = (REWARD,)) -> None:
        super().__init__(in_keys)

    def make(self, in_keys: list[NestedKey]) -> transforms.Transform:
        return transforms.BinarizeReward(in_keys)


def transform_rewards(given: Sequence[Transform], block: TensorDictBase) -> TensorDictBase:
    """Returns transitions [...] whose rewards, and nothing else, have passed through the transforms of the reward."""
    key = ("next", REWARD)
    made = [transform.make([key]) for transform in given if REWARD in transform.in_keys]
    if not made:
        return block
    changed = block.copy()
    for transform in made:
        changed = transform(changed)
    return changed.set(key, changed[key].to(block[key].dtype))
