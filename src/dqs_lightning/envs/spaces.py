"""Gymnasium spaces as flat arrays: observations as float32 numbers, actions from [-1, 1]."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatdim, flatten
from numpy.typing import NDArray
from torch import Tensor

from dqs_lightning.envs.interface import Part

Bound = float | Sequence[float] | None
"""A bound: one number for all dimensions of an action, one for each, or None for that of the space."""


class FlatObservation:
    """Flattens the observations of a space, in the order of `gymnasium.spaces.utils.flatten`.

    Discrete numbers become one-hot; a Dict's parts follow one another in the order of the
    space (Gymnasium sorts the keys of a mapping that it is given).

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these.

    Attributes:
        size: how many numbers an observation has.

    Raises:
        ValueError: for another space, an image, or a space without numbers; the message names the part.
    """

    def __init__(self, space: Space[Any]) -> None:
        _check_observation(space, "observation")
        self.space, self.size = space, flatdim(space)
        if not self.size:
            raise ValueError("observation has no numbers; must have 1 or more")
        self._is_box = isinstance(space, Box)
        self._shape: tuple[int, ...] = space.shape if isinstance(space, Box) else (self.size,)

    def parts(self) -> tuple[Part, ...]:
        """Returns its parts with their names, such as `observation` for a Box and `arm.position` within a Dict."""
        return tuple(_parts(self.space, ""))

    def __call__(self, observation: Any) -> NDArray[Any]:
        """The numbers of one observation, [size]; a ValueError for another shape than the space's, or no numbers."""
        values = np.asarray(observation if self._is_box else flatten(self.space, observation))
        if values.shape != self._shape or values.dtype.kind not in "fiub":
            raise ValueError(f"observation of shape {values.shape} and {values.dtype}; must be numbers {self._shape}")
        return values if values.ndim == 1 else values.ravel()


def check_finite(**bounds: Bound) -> None:
    """Raises a ValueError that names the first bound with a number that is infinite or NaN."""
    for key, bound in bounds.items():
        if bound is not None and not np.isfinite(bound).all():
            raise ValueError(f"{key}={bound}: must be finite")


class ActionBox:
    """Maps actions in [-1, 1] onto a Box: -1 to its low and 1 to its high, in each dimension.

    The result has the dtype of the space and is clipped to its bounds in that dtype, so that the space contains it.

    Args:
        space: a Box of floats.
        low: lower bounds, one number or one for each dimension; the larger of these and the space's own is used.
        high: upper bounds likewise, of which the smaller is used.

    Attributes:
        size: how many numbers an action has.

    Raises:
        ValueError: for another space, or when a dimension's bounds are infinite or leave no room.
    """

    def __init__(self, space: Space[Any], low: Bound = None, high: Bound = None) -> None:
        if not isinstance(space, Box) or space.dtype.kind != "f":
            kind = f"Box of {space.dtype}" if isinstance(space, Box) else type(space).__name__
            raise ValueError(f"its action space is a {kind}; must be a Box of floats")
        self.shape, self.dtype, self.size = space.shape, space.dtype, flatdim(space)
        if not self.size:
            raise ValueError("its action has no numbers; must have 1 or more")
        own_low, own_high = space.low.ravel(), space.high.ravel()
        self.low = own_low if low is None else np.maximum(own_low, self._given("action_low", low))
        self.high = own_high if high is None else np.minimum(own_high, self._given("action_high", high))
        infinite = np.flatnonzero(~(np.isfinite(self.low) & np.isfinite(self.high)))
        if infinite.size:
            raise ValueError(
                f"its action has infinite bounds in {infinite.size} of {self.size} dimensions (first: {infinite[0]}); "
                "must be finite: set action_low and action_high"
            )
        empty = np.flatnonzero((self.low >= self.high) & (own_low < own_high))
        if empty.size:
            at = empty[0]
            raise ValueError(
                f"action_low and action_high leave {self.low[at]} to {self.high[at]} in dimension {at}; low must be "
                f"below high, within the environment's own {own_low[at]} to {own_high[at]}"
            )
        low64, high64 = self.low.astype(np.float64), self.high.astype(np.float64)
        self._middle, self._half = high64 / 2 + low64 / 2, high64 / 2 - low64 / 2  # no overflow
        self._is_unit = self.dtype == np.float32 and not self._middle.any() and (self._half == 1).all()

    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns low and high of each dimension as plain numbers."""
        return tuple(self.low.tolist()), tuple(self.high.tolist())

    def _given(self, name: str, bound: float | Sequence[float]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # what the dtype cannot hold is infinite, and no bound
            values = np.asarray(bound, dtype=self.dtype)
        if values.ndim and values.shape != (self.size,):
            raise ValueError(f"{name} has length {values.size}; must be one number, or one for each of {self.size}")
        return values

    def __call__(self, action: Tensor) -> NDArray[Any]:
        """Actions [n, size] on the CPU as actions of the space [n, *shape]."""
        # The cut comes last: rounding to the dtype may leave the Box.
        values = action.numpy()
        if not self._is_unit:  # which is faster without, and equal
            values = (self._middle + self._half * values).astype(self.dtype)
        cut: NDArray[Any] = np.minimum(np.maximum(values, self.low), self.high)
        return cut if len(self.shape) == 1 else cut.reshape(len(cut), *self.shape)


def _parts(space: Space[Any], name: str) -> Iterator[Part]:
    members = _members(space)
    if members is None:
        yield Part(name or "observation", flatdim(space))
    for key, member in members or ():
        yield from _parts(member, f"{name}.{key}" if name else str(key))


def _members(space: Space[Any]) -> Iterable[tuple[Any, Space[Any]]] | None:
    """Returns names and spaces of a Dict's or a Tuple's parts; None for another space."""
    if isinstance(space, Dict):
        return space.spaces.items()
    return enumerate(space.spaces) if isinstance(space, Tuple) else None


def _check_observation(space: Space[Any], name: str) -> None:
    if (members := _members(space)) is not None:
        for key, part in members:
            _check_observation(part, f"{name}.{key}")
    elif not isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        allowed = "Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
        raise ValueError(f"{name} is a {type(space).__name__}; must be {allowed}")
    elif isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) >= 3:
        whole_range = not space.low.any() and (space.high == 255).all()
        if whole_range:
            raise ValueError(f"{name} is an image {space.shape} of uint8; must be numbers without images")
