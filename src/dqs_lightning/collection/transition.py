"""Keys of the transitions that are collected."""

from tensordict import NestedKey

TRANSITION: tuple[NestedKey, ...] = (
    "observation",
    "action",
    *(("next", key) for key in ("observation", "reward", "terminated", "truncated")),
)
