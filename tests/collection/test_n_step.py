"""Tests of n-step transitions: they equal their definition, for any division of the steps into blocks."""

from pathlib import Path

import pytest
import torch
from helpers import small_agent, small_data, trainer
from tensordict import TensorDict

from dqs_lightning.agents import DQS, PPO, SAC
from dqs_lightning.agents.base import STEPS
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.replay import MultiStep
from dqs_lightning.collection.source import Rollouts


def stream(length: int) -> TensorDict:
    """Makes steps [2, length] with random ends of episodes, terminated or truncated."""
    time = torch.arange(length, dtype=torch.float32).expand(2, -1).unsqueeze(-1)
    terminated, truncated = torch.rand(2, 2, length, 1) < 0.15
    following = {
        "observation": time + 0.5,
        "reward": torch.randn(2, length, 1),
        "terminated": terminated,
        "truncated": truncated & ~terminated,
        "done": terminated | truncated,
    }
    return TensorDict(
        {"observation": time, "action": torch.rand(2, length, 3), "next": TensorDict(following, [2, length])},
        [2, length],
    )


@pytest.mark.parametrize("n_steps", [2, 3, 5])
@pytest.mark.parametrize("blocks", [[40], [1] * 40, [3, 7, 2, 20, 8]])
def test_n_step_rewards_are_summed_up_to_the_end_of_the_episode(n_steps: int, blocks: list[int]) -> None:
    torch.manual_seed(0)
    steps, multi_step = stream(40), MultiStep(n_steps, 0.9)
    made = torch.cat([some for block in steps.split(blocks, -1) if (some := multi_step(block)) is not None], -1)
    assert made.shape == (2, 40 - n_steps)
    following = steps["next"]
    for row in range(2):
        for t in range(40 - n_steps):
            last, reward = t, following["reward"][row, t]
            while last < t + n_steps - 1 and not following["done"][row, last]:
                last += 1
                reward = reward + 0.9 ** (last - t) * following["reward"][row, last]
            found = made[row, t]
            torch.testing.assert_close(found["next", "reward"], reward)
            assert found[STEPS] == last - t + 1
            assert torch.equal(found["action"], steps["action"][row, t])
            for key in ("observation", "terminated", "truncated"):
                assert torch.equal(found["next", key], following[key][row, last]), key


def test_a_run_stores_n_step_transitions(tmp_path: Path) -> None:
    stored = {}
    for n_steps in (1, 4):
        torch.manual_seed(0)
        data = small_data(n_steps=n_steps, total_frames=832, init_random_frames=768)
        trainer(tmp_path).fit(small_agent(data), data)
        stored[n_steps] = data.rank_state()["replay"]
    at_once, summed = stored[1], stored[4]
    assert STEPS not in at_once
    # Blocks are rows of (environment, time). The first block of 8 steps gives 4 transitions, each later one 8.
    single = at_once["next"]["reward"][: 26 * 16].reshape(26, 2, 8).transpose(0, 1).reshape(2, -1)
    first = summed["next"]["reward"][:8].reshape(2, 4)
    discounts = 0.99 ** torch.arange(4)
    torch.testing.assert_close(first, (single[:, :7].unfold(1, 4, 1) * discounts).sum(-1))
    assert len(summed["action"]) == len(at_once["action"]) - 2 * 4


def batch_of(steps: int | None) -> TensorDict:
    torch.manual_seed(1)
    observation = torch.randn(8, 3)
    alive = torch.zeros(8, 1, dtype=torch.bool)
    following = TensorDict(
        {"observation": observation + 1, "reward": torch.randn(8, 1), "terminated": alive, "done": alive}, [8]
    )
    batch = TensorDict({"observation": observation, "action": torch.rand(8, 2), "next": following}, [8])
    if steps is not None:
        batch[STEPS] = torch.full((8, 1), steps)
    return batch


def test_each_agent_discounts_the_next_state_by_the_number_of_steps() -> None:
    for n_steps in (1, 3):
        agents = [DQS(3, 2, discount=0.9, normalise_observations=False) for _ in range(2)]
        agents[1].discount = 0.9**n_steps
        agents[1].load_state_dict(agents[0].state_dict())
        targets = []
        for agent, steps in zip(agents, (n_steps, None), strict=True):
            batch = batch_of(steps)
            temperature, following = torch.tensor(0.1), batch["next", "observation"]
            conditions = [agent.condition(seen, temperature) for seen in (batch["observation"], following)]
            at_next, _ = agent.trajectories(*conditions)
            targets.append(agent.critic_target(batch, following, temperature, at_next))
        torch.testing.assert_close(*targets)
        losses = []
        for discount, steps in ((0.9, n_steps), (0.9**n_steps, None)):
            torch.manual_seed(0)
            losses.append(SAC(3, 2, discount=discount).loss(batch_of(steps))["loss_qvalue"])
        torch.testing.assert_close(*losses)


def test_too_many_steps_for_the_first_update_are_refused(tmp_path: Path) -> None:
    data = small_data(init_random_frames=0, n_steps=8)
    with pytest.raises(ValueError, match="n_steps=8: must be < 8"):
        trainer(tmp_path).fit(small_agent(data), data)


def test_rollouts_are_not_changed() -> None:
    data: OnlineData = small_data(n_steps=3)
    assert isinstance(data.source(PPO(5, 1)), Rollouts)
