"""Which goals a policy reaches, and by which paths."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from dqs_lightning.envs.navigation import Points
from dqs_lightning.evaluation.returns import Policy, episode_returns

Word = tuple[int, ...]
"""A path up to bending: see `path_words`."""


@dataclass(frozen=True)
class Rollouts:
    """One episode of each of n members.

    Attributes:
        position: [T + 1, n, 2], standing still after the episode's end.
        goal: index of the goal at which it ended, -1 for none, [n].
        returns: undiscounted, [n].
    """

    position: Tensor
    goal: Tensor
    returns: Tensor


def roll_out(env: EnvBase, policy: Policy | None) -> Rollouts:
    """The first episode of each member of a `Navigation`'s environment; policy None acts uniformly at random."""
    positions: list[Tensor] = []
    goal = torch.full(env.batch_size, -1)
    running = torch.ones(env.batch_size, dtype=torch.bool)

    def follow(step: TensorDictBase) -> None:
        nonlocal goal, running
        if not positions:
            positions.append(step["position"])
        positions.append(torch.where(running.unsqueeze(-1), step["next", "position"], positions[-1]))
        goal = torch.where(running, step["next", "goal"].squeeze(-1), goal)
        running = running & ~step["next", "done"].squeeze(-1)

    returns = episode_returns(env, policy, follow)
    return Rollouts(torch.stack(positions), goal, returns)


def goal_shares(goal: Tensor, num_goals: int) -> Tensor:
    """Share of all episodes that end at each goal, [num_goals]; the rest end nowhere."""
    return torch.bincount(goal[goal >= 0], minlength=num_goals) / goal.numel()


def entropy_of(shares: Tensor) -> float:
    """Entropy in nats of shares, normalised to add up to one; 0 where all are 0."""
    total = shares.sum()
    return float(torch.special.entr(shares / total).sum()) if total > 0 else 0.0


def path_words(position: Tensor, obstacles: Points) -> list[Word]:
    """Returns the homotopy class of each path [T + 1, n, 2] around the obstacles, as a reduced word.

    From each obstacle a ray goes upward; a path's word lists the rays that it crosses, i + 1 to the right and
    -(i + 1) to the left, without crossings that are undone at once. Paths with the same ends are homotopic if and only
    if their words are equal.
    """
    if not len(obstacles):
        return [()] * position.shape[1]
    x, y = position.new_tensor(obstacles).double().unbind(-1)
    start, end = position[:-1].double().unsqueeze(-2), position[1:].double().unsqueeze(-2)
    rightward = (start[..., 0] < x) & (end[..., 0] >= x)
    leftward = (start[..., 0] >= x) & (end[..., 0] < x)
    share = (x - start[..., 0]) / (end[..., 0] - start[..., 0])
    above = start[..., 1] + share * (end[..., 1] - start[..., 1]) > y
    sign = (rightward.int() - leftward.int()) * above
    words: list[list[int]] = [[] for _ in range(position.shape[1])]
    # Within a step in the order of crossing; rays at one x in the order of their numbers, backwards when going back.
    crossings = map(tuple, sign.nonzero().tolist())
    for step, path, ray in sorted(crossings, key=lambda at: (at[0], float(share[at]), int(sign[at]) * at[2])):
        letter = int(sign[step, path, ray]) * (ray + 1)
        if words[path] and words[path][-1] == -letter:
            words[path].pop()
        else:
            words[path].append(letter)
    return [tuple(word) for word in words]


def count_paths(words: Sequence[Word], goal: Tensor) -> int:
    """Different ways of reaching some goal: distinct pairs of goal and word among episodes that reached one."""
    return len({(reached, word) for reached, word in zip(goal.tolist(), words, strict=True) if reached >= 0})
