"""Statistics of a report: intervals over seeds, interpolation between evaluations, and comparison over tasks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy.stats import trim_mean

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.files import Run
from dqs_lightning.cli.report.measure import choose_baseline, choose_frames
from dqs_lightning.cli.report.statistics import Aggregate, aggregate, at, costs, curve, half_width, summary, tidy


def run(
    returns: list[float],
    frames: list[float] | None = None,
    seed: int = 0,
    updates: list[float] | None = None,
    wall_s: list[float] | None = None,
    task: str = "t",
) -> Run:
    at = frames or [1000.0 * (index + 1) for index in range(len(returns))]
    columns = at, updates or [x / 2 for x in at], wall_s or [x / 100 for x in at], [10.0] * len(at), returns
    return Run("r", task, "m", seed, [list(row) for row in zip(*columns, strict=True)])


def test_an_interval_is_students_t_interval_around_the_mean() -> None:
    half = half_width(pd.Series([2.5**0.5, 0.0]), 5)  # the standard deviation of 1 to 5
    by_hand = 2.7764451 * 2.5**0.5 / 5**0.5  # the 0.975 quantile of four degrees of freedom, from a table
    np.testing.assert_allclose(half, [by_hand, 0], rtol=1e-6)
    assert half_width(pd.Series([1.0]), 1).isna().all()


def test_a_curve_is_the_mean_over_seeds_where_all_seeds_have_data() -> None:
    same = curve(tidy([run([1, 2, 3]), run([3, 4, 8], seed=1)]), "frames")
    assert list(same.index) == [1000, 2000, 3000] and list(same["mean"]) == [2, 3, 5.5]
    half = 12.7062047 * np.array([1, 1, 2.5])  # one degree of freedom; std / sqrt(2) is half the difference
    np.testing.assert_allclose(same["low"], same["mean"] - half, rtol=1e-6)
    np.testing.assert_allclose(same["high"], same["mean"] + half, rtol=1e-6)
    later = run([50, 150, 150], [500, 1500, 2000], seed=1)
    other = curve(tidy([run([0, 100], [0, 1000]), later]), "frames")
    assert list(other.index) == [500, 1000]  # nothing before the second one's start or after the first one's end
    assert list(other["mean"]) == [50, 100]
    single = curve(tidy([run([1, 2])]), "updates")
    assert list(single.index) == [500, 1000] and single[["low", "high"]].isna().all(axis=None)


def test_of_several_evaluations_at_the_same_frame_the_last_is_used() -> None:
    line = curve(tidy([run([5, 7, 9], updates=[0, 0, 100])]), "updates")
    assert list(line.index) == [0, 100] and list(line["mean"]) == [7, 9]


def points(runs: Sequence[Run], *frames: int) -> pd.DataFrame:
    return at(tidy(runs), frames)


def test_a_score_is_an_evaluation_or_is_interpolated_between_two() -> None:
    runs = [run([100, 200, 400]), run([300, 400, 0], seed=1)]
    there = points(runs, 2000, 2500)
    assert list(there["return"]) == [200, 300, 400, 200] and list(there["seed"]) == [0, 0, 1, 1]
    found, between = summary(there).itertuples()
    assert (found.frames, found.seeds, found.mean, found.updates, found.wall_s) == (2000, 2, 300, 1000, 20)
    half = 12.7062047 * 100  # one degree of freedom; std / sqrt(2) is 100
    assert (found.std, found.low, found.high) == pytest.approx((20_000**0.5, 300 - half, 300 + half), rel=1e-6)
    assert (between.mean, between.updates) == (250, 1250)
    assert points(runs, 999).empty and points(runs, 3001).empty
    (short,) = summary(points([*runs, run([1, 2, 3, 4], seed=2)], 4000)).itertuples()
    assert (short.seeds, short.mean) == (1, 4) and np.isnan([short.std, short.low, short.high]).all()


def test_cost_is_measured_between_the_first_and_the_last_evaluation() -> None:
    runs = [
        run([0, 0], [4000, 8000], updates=[1, 1001], wall_s=[100, 120]),
        run([0], [4000], seed=1),
        run([0, 0], [4000, 8000], seed=2, updates=[5, 5], wall_s=[100, 120]),
    ]
    found = costs(tidy(runs))
    np.testing.assert_array_equal(found["seconds_per_1000"], [20, np.nan, np.nan])
    np.testing.assert_array_equal(found["frames_per_s"], [200, np.nan, 200])


def test_frames_and_baseline_have_defaults_and_can_be_chosen() -> None:
    scores = tidy([run([1, 2, 3]), run([1, 2], task="b")])
    assert choose_frames(None, scores) == [2000]
    assert choose_frames([3000, 1500, 3000], scores) == [1500, 3000]
    with pytest.raises(InputError, match="--frames=3001: no run was evaluated there; allowed is 1000 to 3000"):
        choose_frames([1000, 3001], scores)
    assert choose_baseline(None, ["dqs", "SAC"]) == "SAC" and choose_baseline(None, ["a", "b"]) == "a"
    assert choose_baseline("b", ["sac", "b"]) == "b"
    with pytest.raises(InputError, match="--baseline=c: no such method; allowed is one of sac, b"):
        choose_baseline("c", ["sac", "b"])


RETURNS = {
    "better": {"t": [600.0, 700.0, 950.0, 1000.0], "u": [500.0, 650.0, 800.0, 1100.0]},
    "sac": {"t": [100.0, 200.0, 300.0, 400.0], "u": [50.0, 60.0, 70.0, 80.0]},
}


def compared(returns: dict[str, dict[str, list[float]]], baseline: str, reps: int = 50) -> Aggregate | None:
    rows = [
        (task, method, seed, 5, value)
        for method, tasks in returns.items()
        for task, values in tasks.items()
        for seed, value in enumerate(values)
    ]
    table = pd.DataFrame(rows, columns=["task", "method", "seed", "frames", "return"])
    return aggregate(table, baseline, 1000, reps=reps)


def test_iqm_and_optimality_gap_follow_their_definitions() -> None:
    found = compared(RETURNS, "sac", reps=200)
    assert found is not None and found.tasks == ["t", "u"] and found.frames == 5
    assert dict(found.table["seeds"]) == {"better": 4, "sac": 4}
    better = found.table.loc["better"]
    flat = [value / 1000 for values in RETURNS["better"].values() for value in values]
    assert better["iqm"] == pytest.approx(trim_mean(flat, 0.25))
    assert better["gap"] == pytest.approx(np.mean([0.4, 0.3, 0.05, 0, 0.5, 0.35, 0.2, 0]))
    for name in ("iqm", "gap"):
        assert better[f"{name}_low"] < better[name] < better[f"{name}_high"]
    profile = found.profiles["better"]
    assert profile.index[0] == 0 and profile.index[-1] == 1.1
    level = profile.index[int(np.searchsorted(profile.index, 0.66))]
    assert profile.loc[level, "share"] == np.mean(np.array(flat) > level) == 5 / 8


def test_probability_of_improvement_is_one_for_a_method_that_is_better_on_every_seed() -> None:
    ends = ["better", "better_low", "better_high"]
    found = compared(RETURNS, "sac")
    assert found is not None and list(found.table.loc["better", ends]) == [1, 1, 1]
    assert found.table.loc["sac", ends].isna().all()
    reverse = compared(RETURNS, "better")
    assert reverse is not None and reverse.table.loc["sac", "better"] == 0
    equal = compared({"a": RETURNS["sac"], "b": RETURNS["sac"]}, "a")
    assert equal is not None and equal.table.loc["b", "better"] == 0.5


def test_methods_are_compared_on_shared_tasks_with_any_number_of_seeds_each() -> None:
    more = {**RETURNS, "third": {"t": [1000.0, 0.0, 0.0], "v": [3.0]}}
    found = compared(more, "sac")
    assert found is not None and found.tasks == ["t"]
    assert dict(found.table["seeds"]) == {"better": 4, "sac": 4, "third": 3}
    uneven = compared({"a": {"t": [1000.0, 0.0], "u": [500.0]}}, "a")
    assert uneven is not None and dict(uneven.table["seeds"]) == {"a": 1} and uneven.table.loc["a", "iqm"] == 0.75
    assert uneven.table.drop(columns=["seeds", "iqm", "gap"]).isna().all(axis=None)
    assert uneven.profiles["a"][["low", "high"]].isna().all(axis=None)
    assert compared({"a": {"t": [1.0]}, "b": {"u": [1.0]}}, "a") is None
    assert compared({"a": {"t": [1.0]}}, "b") is None


def test_intervals_are_reproducible_and_do_not_change_numpys_random_state() -> None:
    found = []
    for seed in (7, 8):
        np.random.seed(seed)
        expected = np.random.rand()
        np.random.seed(seed)
        found.append(compared(RETURNS, "sac"))
        assert np.random.rand() == expected
    first, second = found
    assert first is not None and second is not None and first.table.equals(second.table)
