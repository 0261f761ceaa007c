"""Returns of a policy, measured over whole episodes."""

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import t as student_t
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import step_mdp

from dqs_lightning.envs.watched import Watched

if TYPE_CHECKING:
    from dqs_lightning.agents import Agent

Policy = Callable[[Tensor], Tensor]
"""observation [n, o] -> action [n, d]."""
STEP_LIMIT = 100_000
"""Steps after which an evaluation ends although episodes have not."""


def policy_of(agent: "Agent", deterministic: bool = False, best_of: int | None = None, **choices: Any) -> Policy:
    """Returns the agent's policy for observations on any device (see `Agent.act`)."""
    return lambda seen: agent.act(seen.to(agent.device), deterministic, best_of, **choices).to(seen.device)


@torch.no_grad()
def episode_returns(
    env: EnvBase,
    policy: Policy | None,
    on_step: Callable[[TensorDictBase], None] | None = None,
    max_steps: int | None = None,
    step_limit: int = STEP_LIMIT,
) -> Tensor:
    """Undiscounted return of the first episode of each member of a batched environment, [num_envs].

    Args:
        env: batch size [num_envs]; it is reset first.
        policy: None acts uniformly at random.
        on_step: called with the TensorDict of each step, for pictures and counts, before members that are done are
            reset; those whose first episode is over go on with further ones.
        max_steps: stop after so many steps; None: when all first episodes are over.
        step_limit: stop after so many steps at the latest, with a warning; the returns are then those so far.
    """
    tensordict = env.reset()
    returns = torch.zeros(env.batch_size, device=env.device)
    running = torch.ones(env.batch_size, dtype=torch.bool, device=env.device)
    steps = 0
    while running.any() and steps != max_steps:
        if steps == step_limit:
            name = env.label if isinstance(env, Watched) else type(env).__name__
            warnings.warn(
                f"{name}: {int(running.sum())} of {running.numel()} episodes did not end within {steps} steps; "
                "they are evaluated by their rewards so far",
                stacklevel=3,  # past torch.no_grad
            )
            break
        if policy is None:
            env.rand_action(tensordict)
        else:
            tensordict["action"] = policy(tensordict["observation"])
        stepped = env.step(tensordict)
        steps += 1
        if on_step is not None:
            on_step(stepped)
        returns += running * stepped["next", "reward"].squeeze(-1)
        running &= ~stepped["next", "done"].squeeze(-1)
        tensordict = env.maybe_reset(step_mdp(stepped))
    return returns


def mean_with_interval(returns: Tensor) -> tuple[float, tuple[float, float]]:
    """Mean and its 95 % Student interval (low, high); one episode has no interval: (nan, nan)."""
    mean, count = float(returns.mean()), returns.numel()
    if count < 2:
        return mean, (math.nan, math.nan)
    half = float(student_t.ppf(0.975, count - 1)) * float(returns.std()) / math.sqrt(count)
    return mean, (mean - half, mean + half)
