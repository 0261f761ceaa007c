import math
import re
from itertools import pairwise

import pytest
import torch

from dqs_lightning.registry import components
from dqs_lightning.temperature import Constant, LogLinear, Temperature

TEMPERATURES = list(components(Temperature).values())


@pytest.fixture(params=TEMPERATURES, ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> type[Temperature]:
    return request.param


def after(temperature: Temperature, updates: int) -> float:
    for _ in range(updates):
        temperature.step()
    return temperature().item()


def test_all_temperatures_are_found() -> None:
    assert {"Constant", "LogLinear"} <= {cls.__name__ for cls in TEMPERATURES}


def test_is_a_positive_scalar(cls: type[Temperature]) -> None:
    temperature = cls()
    for _ in range(3):
        assert temperature().shape == ()
        assert 0 < temperature().item() < math.inf
        temperature.step()


def test_a_state_dict_continues(cls: type[Temperature]) -> None:
    old, new = cls(), cls()
    after(old, 1000)
    new.load_state_dict(old.state_dict())
    for _ in range(3):
        assert torch.equal(new(), old())
        old.step()
        new.step()
    assert new.updates == 1003
    assert old.updates == 1003


def test_constant_stays() -> None:
    temperature = Constant(0.2)
    assert temperature().item() == pytest.approx(0.2)
    assert after(temperature, 100) == pytest.approx(0.2)


@pytest.mark.parametrize("start, end", [(0.5, 0.05), (0.01, 2.0)])
def test_log_linear_goes_from_start_to_end_in_even_steps(start: float, end: float) -> None:
    temperature = LogLinear(start, end, over_updates=20)
    logs = [math.log(temperature().item())]
    for _ in range(20):
        logs.append(math.log(after(temperature, 1)))
    assert logs[0] == pytest.approx(math.log(start), abs=1e-6)
    assert logs[-1] == pytest.approx(math.log(end), abs=1e-6)
    step = math.log(end / start) / 20
    assert [b - a for a, b in pairwise(logs)] == pytest.approx([step] * 20, abs=1e-5)


def test_log_linear_stays_at_its_end() -> None:
    temperature = LogLinear(0.5, 0.05, over_updates=3)
    assert after(temperature, 3) == pytest.approx(0.05)
    assert after(temperature, 50) == pytest.approx(0.05)


def test_log_linear_continues_where_a_checkpoint_left_it() -> None:
    through, first, second = (LogLinear(0.5, 0.05, over_updates=10) for _ in range(3))
    after(first, 4)
    second.load_state_dict(first.state_dict())
    assert second().item() < 0.5
    assert after(second, 3) == after(through, 7)


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_bad_temperatures_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"value={value}")):
        Constant(value)
    with pytest.raises(ValueError, match=re.escape(f"start={value}")):
        LogLinear(start=value)
    with pytest.raises(ValueError, match=re.escape(f"end={value}")):
        LogLinear(end=value)


def test_annealing_over_no_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="over_updates=0"):
        LogLinear(over_updates=0)
