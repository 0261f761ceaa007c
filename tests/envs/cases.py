"""Small Gymnasium environments, each with one unusual property: registered as Case<Name>-v0 when imported."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Case(gym.Env):
    """Episodes of 20 steps, truncated; reward -|action|^2; asserts that every action is inside its space."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (3,), np.float32)
    action_space: spaces.Space = spaces.Box(-1, 1, (2,), np.float32)
    length = 20

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def observe(self):
        return self.np_random.uniform(-1, 1, 3).astype(self.observation_space.dtype)

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is outside {self.action_space}"
        self.t += 1
        reward = -float(np.square(np.asarray(action, dtype=float)).sum())
        return self.observe(), reward, self.ends(), self.t >= self.length and not self.ends(), {}

    def ends(self):
        return False


class Float64(Case):
    """Supported: observations are converted to float32."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)


class UInt8Vector(Case):
    """Supported: the bytes of an observation are converted to floats."""

    observation_space = spaces.Box(0, 255, (3,), np.uint8)

    def observe(self):
        return np.array([1, 2, 250], np.uint8)


class MatrixObservation(Case):
    """Supported: the observation is flattened to 12 numbers."""

    observation_space = spaces.Box(-1, 1, (3, 4), np.float32)

    def observe(self):
        return self.np_random.uniform(-1, 1, (3, 4)).astype(np.float32)


class DiscreteObservation(Case):
    """Supported: the observation is one-hot with 5 entries."""

    observation_space = spaces.Discrete(5)

    def observe(self):
        return int(self.t % 5)


class DictObservation(Case):
    """Supported: entries are flattened and concatenated in sorted order of their keys, 2 + 3 + 4 numbers."""

    observation_space = spaces.Dict(
        {"z": spaces.Box(-1, 1, (2,), np.float64), "a": spaces.Box(-1, 1, (3,), np.float32), "n": spaces.Discrete(4)}
    )

    def observe(self):
        values = self.np_random.uniform(-1, 1, 5)
        return {"z": values[:2], "a": values[2:].astype(np.float32), "n": int(self.t % 4)}


class NestedDict(Case):
    """Supported: the observation is flattened to 2 + 4 numbers."""

    observation_space = spaces.Dict(
        {"pos": spaces.Dict({"x": spaces.Box(-1, 1, (2,), np.float32)}), "mat": spaces.Box(-1, 1, (2, 2), np.float32)}
    )

    def observe(self):
        return {"pos": {"x": np.zeros(2, np.float32)}, "mat": np.ones((2, 2), np.float32)}


class TupleObservation(Case):
    """Supported: the observation is flattened to 3 numbers."""

    observation_space = spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)))

    def observe(self):
        return np.zeros(2, np.float32), np.ones(1, np.float32)


class PixelsBesideState(Case):
    """Refused; the message names the image, which must not be dropped silently."""

    observation_space = spaces.Dict(
        {"pixels": spaces.Box(0, 255, (3, 8, 8), np.uint8), "state": spaces.Box(-1, 1, (3,), np.float32)}
    )

    def observe(self):
        return {"pixels": np.zeros((3, 8, 8), np.uint8), "state": np.zeros(3, np.float32)}


class MatrixAction(Case):
    """Supported: an action is six independent numbers, so that with PPO its two rows differ."""

    action_space = spaces.Box(-1, 1, (2, 3), np.float32)


class AsymmetricAction(Case):
    """Supported: the lower bound -0.2 must not be rounded to -0.20000002."""

    action_space = spaces.Box(np.array([-0.2, 0.0], np.float32), np.array([1.0, 10.0], np.float32))


class InfiniteAction(Case):
    """Refused, unless bounds are given in the configuration."""

    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class HalfInfiniteAction(Case):
    """Refused, unless bounds are given in the configuration."""

    action_space = spaces.Box(np.array([-np.inf, 0.0], np.float32), np.array([np.inf, 1.0], np.float32))


class DiscreteAction(Case):
    """Refused."""

    action_space = spaces.Discrete(3)


class DictAction(Case):
    """Refused."""

    action_space = spaces.Dict({"a": spaces.Box(-1, 1, (1,)), "b": spaces.Box(-1, 1, (2,))})


class SaysItOnce(Case):
    """Terminates in the fifth step; a further step raises an error, so action repeat must stop at the end."""

    ended = False

    def reset(self, *, seed=None, options=None):
        self.ended = False
        return super().reset(seed=seed)

    def step(self, action):
        if self.ended:
            raise RuntimeError("stepped after the end of the episode")
        self.t += 1
        self.ended = self.t == 5
        return self.observe(), 1.0, self.ended, False, {}


class OwnFrameskip(Case):
    """Has an argument `frameskip`, 5 by default, which `Gym` must leave at 5 as gymnasium.make does."""

    def __init__(self, frameskip=5):
        self.frameskip = frameskip


for case in list(Case.__subclasses__()):
    gym.register(f"Case{case.__name__}-v0", entry_point=case)
