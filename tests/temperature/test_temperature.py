import copy
import inspect
import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dqs_lightning.registry import components, describe
from dqs_lightning.temperature import Constant, LogLinear, Relative, TargetEntropy, TargetESS, Temperature

TEMPERATURES = list(components(Temperature).values())


@pytest.fixture(params=TEMPERATURES, ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> type[Temperature]:
    return request.param


def after(temperature: Temperature, updates: int) -> float:
    for _ in range(updates):
        temperature.step()
    return temperature().item()


def test_all_temperatures_are_found() -> None:
    assert {"Constant", "LogLinear", "Relative", "TargetESS", "TargetEntropy"} <= {cls.__name__ for cls in TEMPERATURES}


def test_is_a_positive_scalar(cls: type[Temperature]) -> None:
    temperature = cls()
    for _ in range(3):
        assert temperature().shape == ()
        assert 0 < temperature().item() < math.inf
        temperature.step()


def test_a_state_dict_restores_the_temperature(cls: type[Temperature]) -> None:
    old, new = cls(), cls()
    after(old, 1000)
    new.load_state_dict(old.state_dict())
    for _ in range(3):
        assert torch.equal(new(), old())
        old.step()
        new.step()
    assert new.updates == 1003
    assert old.updates == 1003


def test_constant_does_not_change() -> None:
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


def test_log_linear_resumes_from_a_state_dict() -> None:
    uninterrupted, first, second = (LogLinear(0.5, 0.05, over_updates=10) for _ in range(3))
    after(first, 4)
    second.load_state_dict(first.state_dict())
    assert second().item() < 0.5
    assert after(second, 3) == after(uninterrupted, 7)


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_bad_temperatures_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"value={value}")):
        Constant(value)
    with pytest.raises(ValueError, match=re.escape(f"start={value}")):
        LogLinear(start=value)
    with pytest.raises(ValueError, match=re.escape(f"end={value}")):
        LogLinear(end=value)


def test_annealing_over_zero_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="over_updates=0"):
        LogLinear(over_updates=0)


class Measured:
    """Measurements of the given values; any other measurement fails."""

    def __init__(self, **values: float) -> None:
        self.values = values

    def _of(self, name: str) -> Tensor:
        assert name in self.values, f"{name} was measured"
        return torch.tensor(self.values[name])

    def q_std(self) -> Tensor:
        return self._of("q_std")

    def entropy(self) -> Tensor:
        return self._of("entropy")

    def ess(self) -> Tensor:
        return self._of("ess")


MEASUREMENTS = {"Relative": "q_std", "TargetEntropy": "entropy", "TargetESS": "ess"}
CONTROLLED = {TargetEntropy: "entropy", TargetESS: "ess"}
QUICK: dict[str, Any] = {"rate": 0.02, "warmup": 0, "decay": 0.9}


def boltzmann_entropy(temperature: float) -> float:
    """Returns the entropy of exp(Q/T) = N(0, T s^2) for Q = -a^2 / 2 s^2 with s = 0.5."""
    return math.log(2 * math.pi * math.e * temperature * 0.25) / 2


def ess_share(temperature: float) -> float:
    """ESS share that increases with T and saturates at 1, like that of importance weights in six dimensions."""
    return (1 + 0.1 / temperature) ** -3


@pytest.mark.parametrize("cls", TEMPERATURES, ids=lambda cls: cls.__name__)
def test_measures_only_what_it_needs(cls: type[Temperature]) -> None:
    needed = MEASUREMENTS.get(cls.__name__)
    temperature = cls()
    for _ in range(3):
        temperature.step(Measured(**({needed: 0.5} if needed else {})))
    assert temperature.updates == 3
    if needed:
        with pytest.raises(AssertionError, match=needed):
            temperature.step(Measured())


@pytest.mark.parametrize("cls", TEMPERATURES, ids=lambda cls: cls.__name__)
def test_metrics_are_finite_scalars_from_the_start(cls: type[Temperature]) -> None:
    temperature = cls()
    for value in (0.5, math.nan, math.inf, 0.2):
        metrics = temperature.metrics()
        assert torch.equal(metrics["temperature"], temperature())
        assert all(metric.shape == () and torch.isfinite(metric) for metric in metrics.values())
        temperature.step(Measured(q_std=value, entropy=value, ess=value))
    assert torch.isfinite(temperature())


@pytest.mark.parametrize("cls, name", [(Relative, "q_std"), (TargetEntropy, "entropy"), (TargetESS, "ess")])
def test_a_checkpoint_restores_the_measurements(cls: type[Temperature], name: str) -> None:
    arguments = {} if cls is Relative else QUICK
    uninterrupted, second = cls(**arguments), cls(**arguments)
    values = torch.rand(20).tolist()
    for i, value in enumerate(values):
        uninterrupted.step(Measured(**{name: value}))
        if i == 9:
            state = copy.deepcopy(uninterrupted.state_dict())
    second.load_state_dict(state)
    for value in values[10:]:
        second.step(Measured(**{name: value}))
    assert torch.equal(second(), uninterrupted())
    assert second().item() != cls(**arguments)().item()
    for key, value in uninterrupted.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)
    for key, metric in uninterrupted.metrics().items():
        assert torch.equal(second.metrics()[key], metric)


@pytest.mark.parametrize("cls, name", [(Relative, "q_std"), (TargetEntropy, "entropy"), (TargetESS, "ess")])
def test_gradients_into_measurements_are_stopped(cls: type[Temperature], name: str) -> None:
    measured = Measured()
    value = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    setattr(measured, name, lambda: 2 * value)
    temperature = cls()
    temperature.step(measured)
    assert all(not metric.requires_grad for metric in temperature.metrics().values())


@pytest.mark.parametrize("cls", TEMPERATURES, ids=lambda cls: cls.__name__)
def test_every_argument_is_an_attribute(cls: type[Temperature]) -> None:
    described = describe(cls())
    assert set(described["init_args"]) == set(inspect.signature(cls).parameters)
    assert describe(cls(**described["init_args"])) == described


def test_relative_is_tau_times_the_standard_deviation_of_q() -> None:
    temperature = Relative(tau=0.1, decay=0.99, initial=0.3)
    assert temperature().item() == pytest.approx(0.3)
    temperature.step()
    assert temperature().item() == pytest.approx(0.3)  # nothing measured
    temperature.step(Measured(q_std=8.0))
    assert temperature().item() == pytest.approx(0.8)  # bias-corrected: the first measurement counts in full
    temperature.step(Measured(q_std=4.0))
    assert temperature().item() == pytest.approx(0.1 * (0.99 * 8 + 4) / 1.99, rel=1e-5)
    for _ in range(2000):
        temperature.step(Measured(q_std=4.0))
    assert temperature().item() == pytest.approx(0.4, rel=1e-4)
    assert temperature.metrics()["q_std"].item() == pytest.approx(4.0, rel=1e-4)


def test_relative_averages_with_its_decay() -> None:
    temperature = Relative(tau=1.0, decay=0.9)
    for _ in range(200):
        temperature.step(Measured(q_std=1.0))
    for _ in range(10):
        temperature.step(Measured(q_std=2.0))
    assert temperature().item() == pytest.approx(2 - 0.9**10, rel=1e-4)


def test_relative_anneals_tau_and_follows_the_standard_deviation_of_q() -> None:
    temperature = Relative(tau=0.4, end=0.1, over_updates=100, decay=0.0)
    temperature.step(Measured(q_std=2.0))
    for _ in range(49):
        temperature.step()
    assert temperature().item() == pytest.approx(0.2 * 2, rel=1e-5)  # the geometric mean of tau and end
    for _ in range(150):
        temperature.step()
    assert temperature().item() == pytest.approx(0.1 * 2, rel=1e-5)
    temperature.step(Measured(q_std=5.0))
    assert temperature().item() == pytest.approx(0.1 * 5, rel=1e-5)


def test_relative_is_at_its_floor_where_q_is_flat() -> None:
    temperature = Relative(floor=0.01)
    temperature.step(Measured(q_std=0.0))
    assert temperature().item() == pytest.approx(0.01)


@pytest.mark.parametrize("start", [0.1, 10.0])
@pytest.mark.parametrize("cls", CONTROLLED, ids=lambda cls: cls.__name__)
def test_control_converges_to_the_fixed_point(cls: type[TargetEntropy | TargetESS], start: float) -> None:
    """T converges to its fixed point from a tenth and from ten times its value, with noisy measurements."""
    fixed = 0.06
    curve, noise = (boltzmann_entropy, 0.1) if cls is TargetEntropy else (ess_share, 0.03)
    temperature = cls(target=curve(fixed), initial=start * fixed, **QUICK)
    late = []
    for i in range(2000):
        error = noise * torch.randn(()).item()
        temperature.step(Measured(**{CONTROLLED[cls]: curve(temperature().item()) + error}))
        if i >= 1000:
            late.append(math.log(temperature().item() / fixed))
    assert abs(sum(late) / len(late)) < 0.05
    assert max(map(abs, late)) < 0.3


def controlled_temperatures(lag: int, start: float, updates: int, **arguments: float) -> list[float]:
    """Returns T over its fixed point every 20 updates, where the policy's entropy follows T with a first-order lag."""
    stride, fixed = 20, 0.05
    rate = arguments.pop("rate", TargetEntropy().rate) * stride
    temperature = TargetEntropy(
        target=boltzmann_entropy(fixed), rate=rate, initial=start * fixed, warmup=0, decay=0.0, **arguments
    )
    entropy = boltzmann_entropy(start * fixed)
    ratios = []
    for _ in range(updates // stride):
        entropy += (boltzmann_entropy(temperature().item()) - entropy) * stride / lag
        temperature.step(Measured(entropy=entropy))
        ratios.append(temperature().item() / fixed)
    return ratios


@pytest.mark.parametrize("start", [0.1, 10.0])
def test_entropy_control_does_not_oscillate_with_a_lagging_policy(start: float) -> None:
    """T converges without oscillation at the lag that the docstring of `TargetEntropy` allows.

    Integral control alone, slow enough not to oscillate, has not converged in that time.
    """
    ratios = controlled_temperatures(1000, start, 30_000)
    assert ratios[-1] == pytest.approx(1, rel=0.02)
    assert max(abs(math.log(ratio)) for ratio in ratios[5_000 // 20 :]) < math.log(1.2)
    sign = math.copysign(1, math.log(start))
    assert min(sign * math.log(ratio) for ratio in ratios) > -math.log(1.25)  # little overshoot
    slow = controlled_temperatures(1000, start, 5_000, gain=0.0, rate=1 / (4 * 0.5 * 1000))
    assert abs(math.log(slow[-1])) > math.log(1.5)


def test_entropy_control_oscillates_without_its_gain() -> None:
    assert min(controlled_temperatures(1000, 10.0, 30_000, gain=0.0)) < 0.6
    assert min(controlled_temperatures(1000, 10.0, 30_000)) > 0.8


def test_the_target_entropy_falls_in_even_steps() -> None:
    """The target falls linearly to its end, and T converges to the value whose Boltzmann distribution has it."""
    first, last = boltzmann_entropy(0.5), boltzmann_entropy(0.05)
    temperature = TargetEntropy(target=first, end=last, over_updates=1000, initial=0.5, warmup=0, decay=0.9)
    targets = []
    for _ in range(12_000):
        temperature.step(Measured(entropy=boltzmann_entropy(temperature().item())))
        targets.append(temperature.metrics()["target_entropy"].item())
    assert targets[499] == pytest.approx((first + last) / 2, abs=1e-5)
    assert targets[999:] == pytest.approx([last] * 11_001, abs=1e-6)
    assert temperature().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("cls", CONTROLLED, ids=lambda cls: cls.__name__)
def test_integral_control_changes_at_most_at_its_rate(cls: type[TargetEntropy | TargetESS]) -> None:
    far_below, far_above = (-9.0, 9.0) if cls is TargetEntropy else (1e-9, 9.0)
    no_gain = {"gain": 0.0} if cls is TargetEntropy else {}
    for value, expected in ((far_below, 1.0), (far_above, -1.0)):
        temperature = cls(target=0.5, rate=0.01, initial=0.05, warmup=0, **no_gain)
        temperature.step(Measured(**{CONTROLLED[cls]: value}))
        assert math.log(temperature().item() / 0.05) / 0.01 == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("warmup", [0, 5])
def test_proportional_control_is_immediate_and_not_accumulated(warmup: int) -> None:
    """The proportional part of log T is gain times the current error, from the first update after the warm-up on."""
    temperature = TargetEntropy(target=-1.0, rate=1e-9, gain=2.0, initial=1.0, warmup=warmup, decay=0.0)
    for _ in range(warmup):
        temperature.step(Measured(entropy=-0.5))
    assert temperature().item() == pytest.approx(1.0)
    for entropy, error in ((-0.5, -0.5), (-0.5, -0.5), (-0.8, -0.2), (5.0, -1.0), (-1.0, 0.0), (-1.3, 0.3)):
        temperature.step(Measured(entropy=entropy))
        assert math.log(temperature().item()) == pytest.approx(2 * error, abs=1e-5)


@pytest.mark.parametrize("cls", CONTROLLED, ids=lambda cls: cls.__name__)
def test_control_stays_between_floor_and_ceiling_without_windup(cls: type[TargetEntropy | TargetESS]) -> None:
    name = CONTROLLED[cls]
    low, high = (-3.0, 0.6) if name == "entropy" else (1e-3, 1.0)
    temperature = cls(target=0.3, rate=0.1, initial=0.05, floor=0.02, ceiling=0.2, warmup=0, decay=0.0)
    for value, bound in ((low, 0.2), (high, 0.02), (low, 0.2)):
        for _ in range(100):  # far longer than needed to reach it: the integral must not wind up
            temperature.step(Measured(**{name: value}))
            assert 0.02 * (1 - 1e-6) <= temperature().item() <= 0.2 * (1 + 1e-6)
        assert temperature().item() == pytest.approx(bound)
    temperature.step(Measured(**{name: high}))
    assert temperature().item() < 0.2


@pytest.mark.parametrize("side", [-1, 1], ids=["below", "above"])
@pytest.mark.parametrize("cls", CONTROLLED, ids=lambda cls: cls.__name__)
def test_control_starts_after_its_warmup(cls: type[TargetEntropy | TargetESS], side: int) -> None:
    """T is constant during the warm-up, then rises if the measurement is below its target and falls if it is above."""
    temperature = cls(initial=0.05, warmup=10)
    measured = Measured(**{CONTROLLED[cls]: temperature.target + side * 0.2})
    for _ in range(10):
        temperature.step(measured)
        assert temperature().item() == pytest.approx(0.05, rel=1e-6)
    before = temperature()
    temperature.step()  # nothing measured: no change
    assert torch.equal(temperature(), before)
    temperature.step(measured)
    assert (temperature() < before) if side > 0 else (temperature() > before)


@pytest.mark.parametrize(
    "cls, arguments, message",
    [
        (Relative, {"tau": 0.0}, "tau=0.0: must be a finite number > 0"),
        (Relative, {"end": 0.0}, "end=0.0: must be a finite number > 0"),
        (Relative, {"over_updates": 0}, "over_updates=0: must be >= 1"),
        (Relative, {"decay": 1.0}, "decay=1.0: must be in [0, 1)"),
        (Relative, {"floor": -1.0}, "floor=-1.0: must be a finite number > 0"),
        (Relative, {"initial": 1e-3, "floor": 1e-2}, "initial=0.001: must be >= floor=0.01"),
        (TargetEntropy, {"gain": -1.0}, "gain=-1.0: must be a finite number >= 0"),
        (TargetEntropy, {"gain": math.inf}, "gain=inf"),
        (TargetEntropy, {"end": 0.7}, "end=0.7: must be < log 2"),
        (TargetEntropy, {"over_updates": 0}, "over_updates=0: must be >= 1"),
        (TargetEntropy, {"target": 0.7}, "target=0.7: must be < log 2"),
        (TargetEntropy, {"target": math.nan}, "target=nan"),
        (TargetEntropy, {"target": -math.inf}, "target=-inf"),
        (TargetESS, {"target": 0.0}, "target=0.0: must be in (0, 1)"),
        (TargetESS, {"target": 1.0}, "target=1.0: must be in (0, 1)"),
    ],
)
def test_bad_arguments_are_refused(cls: type[Temperature], arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cls(**arguments)


@pytest.mark.parametrize("cls", CONTROLLED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rate": 0.0}, "rate=0.0: must be a finite number > 0"),
        ({"decay": -0.1}, "decay=-0.1: must be in [0, 1)"),
        ({"warmup": -1}, "warmup=-1: must be >= 0"),
        ({"ceiling": math.inf}, "ceiling=inf: must be a finite number > 0"),
        ({"initial": 0.5, "ceiling": 0.4}, "initial=0.5: must be between floor=0.0001 and ceiling=0.4"),
        ({"initial": 0.1, "floor": 0.2}, "initial=0.1: must be between floor=0.2 and ceiling=10.0"),
    ],
)
def test_bad_controllers_are_refused(cls: type[Temperature], arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cls(**arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Relative(decay=0.9),
        lambda: LogLinear(over_updates=20),
        lambda: TargetEntropy(gain=0.0, decay=0.0, warmup=0, rate=0.01),
        lambda: TargetESS(decay=0.0, warmup=0, rate=0.01),
    ],
    ids=["relative", "log-linear", "entropy", "ess"],
)
def test_a_step_of_several_updates_equals_as_many_steps_with_the_same_measurement(
    make: Callable[[], Temperature],
) -> None:
    """Rates, decays and annealing are those of single updates, however rarely an agent measures."""
    each, at_once, measured = make(), make(), Measured(q_std=3.0, entropy=0.4, ess=0.1)
    before = each().item()
    for _ in range(3):
        for _ in range(5):
            each.step(measured)
        at_once.step(measured, updates=5)
        torch.testing.assert_close(at_once(), each())
        assert at_once.updates == each.updates
    assert each().item() != pytest.approx(before, rel=1e-3)
