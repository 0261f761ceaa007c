import pytest
import torch
from helpers import small
from tensordict import TensorDict
from torch import nn

from dqs_lightning.agents import DQS
from dqs_lightning.temperature import Constant, TargetESS


def transitions(rows: int) -> TensorDict:
    torch.manual_seed(3)
    flags = torch.zeros(rows, 1, dtype=torch.bool)
    following = {"observation": torch.randn(rows, 3), "reward": torch.rand(rows, 1), "terminated": flags}
    return TensorDict({"observation": torch.randn(rows, 3), "action": torch.rand(rows, 2), "next": following}, [rows])


def policy(temperature: float = 0.1, **changes: object) -> DQS:
    """An agent with random weights, whose samples depend on the temperature."""
    torch.manual_seed(0)
    agent = DQS(3, 2, **{**small(), "temperature": Constant(temperature), **changes})
    if agent.amortised:
        nn.init.normal_(agent.diffusion.denoiser.last.weight, std=0.3)
    return agent


def sampled(agent: DQS, **choices: float) -> torch.Tensor:
    torch.manual_seed(1)
    return agent.act(torch.ones(4, 3), **choices)


def test_a_chosen_temperature_is_that_of_an_agent_whose_temperature_it_is() -> None:
    agent, colder = policy(temperature_range=(0.25, 4)), policy(0.05)
    colder.load_state_dict(agent.state_dict(), strict=False)
    colder.temperature = Constant(0.05)
    assert torch.equal(sampled(agent, temperature=0.05), sampled(colder))
    assert not torch.equal(sampled(agent, temperature=0.05), sampled(agent))
    assert torch.equal(sampled(agent, temperature=0.1), sampled(agent))
    assert torch.equal(sampled(agent, temperature=0.05, best_of=3), sampled(colder, best_of=3))


def test_temperatures_that_are_not_learned_are_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature=0.5: must be 0.025 to 0.4"):
        policy(temperature_range=(0.25, 4)).sample(torch.ones(1, 3), temperature=0.5)
    with pytest.raises(ValueError, match=r"temperature=0.05: must be 0.1 to 0.1"):
        policy().sample(torch.ones(1, 3), temperature=0.05)
    energies = policy(amortised=False)
    assert energies.sample(torch.ones(1, 3), temperature=7.0).isfinite().all()
    with pytest.raises(ValueError, match="temperature=0: must be > 0 and finite"):
        energies.sample(torch.ones(1, 3), temperature=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amortised": False}, "must be None with amortised=False"),
        ({"temperature": TargetESS(0.5)}, "must be None with TargetESS"),
        ({"temperature_range": (2.0, 4.0)}, "must be low <= 1 <= high"),
    ],
)
def test_ranges_that_cannot_be_learned_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DQS(3, 2, **{**small(), "temperature_range": (0.5, 2.0), **changes})


def test_a_range_of_one_temperature_changes_no_update() -> None:
    found = []
    for changes in ({}, {"temperature_range": (1.0, 1.0)}):
        agent, batch = policy(**changes), transitions(16)
        torch.manual_seed(2)
        loss, _ = agent.losses(batch)
        found.append(loss)
    assert torch.equal(*found)


def test_the_denoiser_learns_at_each_temperature_and_backups_use_the_present_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, batch = policy(temperature_range=(0.01, 1.0)), transitions(64)
    conditions, energies = [], []
    trajectories, log_prob = agent.trajectories, agent.log_prob
    monkeypatch.setattr(agent, "trajectories", lambda *given: conditions.extend(given) or trajectories(*given))
    monkeypatch.setattr(agent, "log_prob", lambda *given: energies.append(given[1]) or log_prob(*given))
    agent.losses(batch)
    following, here = (condition[:, -1].exp() for condition in conditions)
    torch.testing.assert_close(following, torch.full((64,), 0.1))
    assert len(energies) == 1
    torch.testing.assert_close(energies[0], here)
    assert 0.0009 < float(here.min()) < 0.01 and 0.05 < float(here.max()) < 0.1001
