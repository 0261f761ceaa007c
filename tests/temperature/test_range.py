import math

import pytest
import torch

from dqs_lightning.temperature.range import TemperatureRange


def test_temperatures_are_log_uniform_between_the_factors_of_the_present_one() -> None:
    torch.manual_seed(0)
    drawn = TemperatureRange(0.1, 10).draw(torch.tensor(0.05), torch.empty(20_000, 3))
    assert drawn.shape == (20_000,) and drawn.min() >= 0.005 and drawn.max() <= 0.5
    quantiles = torch.quantile(drawn.log10(), torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, math.log10(0.05) + torch.tensor([-0.5, 0.0, 0.5]), atol=0.03, rtol=0)


def test_without_a_range_the_present_one_is_returned_and_no_random_number_is_used() -> None:
    temperature, state = torch.tensor(0.05), torch.get_rng_state()
    assert TemperatureRange().draw(temperature, torch.empty(5, 3)) is temperature
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("low", "high"), [(2.0, 4.0), (0.1, 0.5), (4.0, 0.25)])
def test_a_range_without_the_present_temperature_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be low <= 1 <= high"):
        TemperatureRange(low, high)
    with pytest.raises(ValueError, match=r"low=0\.0: must be a finite number > 0"):
        TemperatureRange(0.0, high)


def test_a_temperature_outside_of_the_range_is_refused() -> None:
    learned = TemperatureRange(0.5, 4)
    for value in (0.05, 0.1, 0.4):
        learned.check(value, 0.1)
    for value in (0.049, 0.41, math.nan):
        with pytest.raises(ValueError, match=r"must be 0\.05 to 0\.4, which the policy has learned"):
            learned.check(value, 0.1)
