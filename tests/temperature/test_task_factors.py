import torch

from dqs_lightning.temperature.task_factors import TaskFactors


def observations(*tasks: int) -> torch.Tensor:
    return torch.cat([torch.randn(len(tasks), 3), torch.eye(3)[list(tasks)]], -1)


def test_factors_are_1_until_the_first_measurement() -> None:
    assert torch.equal(TaskFactors(3)(), torch.ones(3))


def test_each_factor_is_the_tasks_standard_deviation_over_the_mean_of_all() -> None:
    factors, measured = TaskFactors(3, decay=0.5), torch.tensor([0.1, 2.0, 6.0])
    factors.q_std.add(measured)
    torch.testing.assert_close(factors(), measured / measured.mean())
    torch.testing.assert_close(factors.of(observations(2, 0, 2)), factors()[[2, 0, 2]])
    assert sorted(factors.metrics()) == [f"temperature_factor_{index}" for index in range(3)]


def test_a_task_that_is_not_in_a_batch_keeps_its_measurement() -> None:
    factors = TaskFactors(3)
    factors.q_std.add(torch.tensor([1.0, 2.0, 3.0]))
    seen = factors.mean_of_each(observations(0, 0, 2), torch.tensor([2.0, 4.0, 5.0]))
    assert seen[[0, 2]].tolist() == [3.0, 5.0] and seen[1].isnan()
    before = factors.q_std()[1].clone()
    factors.q_std.add(seen)
    assert torch.equal(factors.q_std()[1], before) and factors.q_std()[0] > 1


def test_factors_of_flat_values_are_finite_and_positive() -> None:
    factors = TaskFactors(3)
    for value in ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0]):
        factors.q_std.add(torch.tensor(value))
        assert factors().isfinite().all() and (factors() > 0).all()
