import math

import pytest
import torch
from helpers import small
from torch import Tensor, nn

from dqs_lightning.agents import DQS, PPO, Composed
from dqs_lightning.temperature import Constant

STATES = torch.tensor([[-1.0], [0.0], [1.0]])


class Quadratic(nn.Module):
    """Q(s, a) = -scale |a - center - slope s|^2, as the critic of an agent of one action dimension."""

    def __init__(self, scale: float, center: float, slope: float) -> None:
        super().__init__()
        self.scale, self.center, self.slope = scale, center, slope

    def value(self, observation: Tensor, action: Tensor) -> Tensor:
        return -self.scale * (action - self.center - self.slope * observation).square().sum(-1)


def agent_of(scale: float, center: float, slope: float = 0.0, temperature: float = 0.01) -> DQS:
    agent = DQS(1, 1, temperature=Constant(temperature), normalise_observations=False, **small())
    agent.critic = Quadratic(scale, center, slope)
    return agent


def product(weights: tuple[float, float]) -> tuple[Tensor, float]:
    """Mean [3, 1] and standard deviation of the composed policy of the two agents below, without bounds."""
    precision = weights[0] + 2 * weights[1]
    mean = (weights[0] * 0.4 + 2 * weights[1] * (-0.2 + 0.3 * STATES)) / precision
    return mean, math.sqrt(0.02 / (2 * precision))


def agents() -> list[DQS]:
    return [agent_of(1.0, 0.4), agent_of(2.0, -0.2, 0.3)]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 0.5), (1.0, 0.0)])
def test_two_quadratic_energies_have_the_normal_distribution_of_their_sum(weights: tuple[float, float]) -> None:
    torch.manual_seed(0)
    actions = Composed(agents(), weights, temperature=0.02).sample(STATES, 2000)
    mean, deviation = product(weights)
    torch.testing.assert_close(actions.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.full((3, 1), deviation), atol=0.015, rtol=0)


def test_a_distilled_network_has_the_same_distribution() -> None:
    torch.manual_seed(0)
    composed = Composed(agents(), temperature=0.02)
    assert not composed.amortised
    composed.distil(20 + 10 * (2 * torch.rand(500, 1) - 1), updates=1)  # observations far from the standard normal
    torch.testing.assert_close(
        composed.observation_norm.inverse(composed.observation_norm(STATES)), STATES, atol=1e-5, rtol=0
    )
    composed.distil(2 * torch.rand(500, 1) - 1, updates=250, batch_size=128)
    assert composed.amortised
    actions, (mean, deviation) = composed.sample(STATES, 2000), product((1.0, 1.0))
    torch.testing.assert_close(actions.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.full((3, 1), deviation), atol=0.03, rtol=0)


def test_the_temperature_is_the_weighted_sum_and_agents_of_one_energy_stay_as_they_are() -> None:
    assert Composed(agents()).temperature == pytest.approx(0.02)
    assert Composed(agents(), (3.0, -1.0)).temperature == pytest.approx(0.04)
    found = []
    for number in (1, 2):
        composed = Composed([agent_of(1.0, 0.4) for _ in range(number)])
        torch.manual_seed(1)
        found.append(composed.sample(STATES, 200))
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_acts_by_the_best_of_several_samples_and_without_noise() -> None:
    torch.manual_seed(0)
    composed, (mean, _) = Composed(agents(), temperature=0.02), product((1.0, 1.0))
    best = torch.stack([composed.act(STATES, best_of=64) for _ in range(20)])
    assert (best - mean).abs().mean() < (torch.stack([composed.act(STATES) for _ in range(20)]) - mean).abs().mean() / 3
    value = composed.q_value(STATES, torch.zeros(5, 3, 1))
    torch.testing.assert_close(value[0], -(0.4**2) - 2 * (-0.2 + 0.3 * STATES[:, 0]).square())


def test_the_disagreement_is_what_the_sum_promises_too_much() -> None:
    """The best sum of -(a - x)^2 and -2 (a - y)^2 is -2 / 3 (x - y)^2, where each alone promises 0."""
    found = Composed(agents()).disagreement(STATES, 4096)
    torch.testing.assert_close(found, 2 / 3 * (0.4 + 0.2 - 0.3 * STATES[:, 0]).square(), atol=1e-4, rtol=0)
    assert torch.equal(Composed(agents()[:1]).disagreement(STATES), torch.zeros(3))


def test_agents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights=\[1.0\]: must be one number for each of 2 agents"):
        Composed(agents(), [1.0])
    with pytest.raises(ValueError, match=r"dimensions \[\(1, 1\), \(2, 1\)\]: must be the same"):
        Composed([agents()[0], DQS(2, 1, **small())])
    with pytest.raises(ValueError, match=r"PPO has no Q\(s, a\)"):
        Composed([agents()[0], PPO(1, 1, **small())])
    with pytest.raises(ValueError, match=r"temperature=0\.0: must be a finite number > 0"):
        Composed(agents(), temperature=0.0)
