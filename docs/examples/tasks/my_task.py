"""An example of a task: a point in a square, which is to move to one of two targets."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

TARGETS = np.array([[-0.5, 0.0], [0.5, 0.0]])


class Push(gymnasium.Env):
    """The action is the point's velocity; the reward is minus its distance to the nearest target."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = Dict({"position": Box(-1, 1, (2,))})
    action_space = Box(-0.2, 0.2, (2,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.position = np.zeros(2)

    def _observation(self) -> dict[str, np.ndarray]:
        return {"position": self.position.astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.position = (self.position + action).clip(-1, 1)
        distance = np.linalg.norm(self.position - TARGETS, axis=-1).min()
        return self._observation(), -float(distance), False, False, {}

    def render(self) -> np.ndarray:
        picture = np.full((120, 120, 3), 255, np.uint8)
        for (x, y), colour in (*((target, (0, 160, 0)) for target in TARGETS), (self.position, (200, 0, 0))):
            row, column = int(60 - 55 * y), int(60 + 55 * x)
            picture[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5] = colour
        return picture


gymnasium.register("Push-v0", Push, max_episode_steps=25)
