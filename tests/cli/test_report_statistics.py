"""What a report computes: intervals over seeds, what is read off between evaluations, and the comparison over tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import trim_mean

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.aggregates import aggregate
from dqs_lightning.cli.report.choices import choose_baseline, choose_frames
from dqs_lightning.cli.report.runs import Run
from dqs_lightning.cli.report.scores import Scores
from dqs_lightning.cli.report.statistics import cost, curve, interval, score


def run(returns: list[float], frames: list[float] | None = None, seed: int = 0, **changes: Any) -> Run:
    at = np.array(frames or [1000.0 * (index + 1) for index in range(len(returns))])
    arrays = {"updates": at / 2, "wall_s": at / 100, "episodes": np.full(len(at), 10.0), **changes}
    scores = Scores(frames=at, returns=np.array(returns), **arrays)
    return Run(Path("r"), "r", "task", "method", seed, scores, {}, [])


def test_an_interval_is_students_by_hand_and_holds_the_mean() -> None:
    low, high = interval(np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [4.0, 10.0], [5.0, 10.0]]))
    half = 2.7764451 * 2.5**0.5 / 5**0.5  # the 0.975 quantile of four degrees of freedom, from a table
    np.testing.assert_allclose(low, [3 - half, 10], rtol=1e-6)
    np.testing.assert_allclose(high, [3 + half, 10], rtol=1e-6)
    with pytest.raises(ValueError, match="seeds=1: an interval needs 2 or more"):
        interval(np.array([[1.0]]))


def test_a_curve_is_the_mean_of_its_seeds_where_all_of_them_are() -> None:
    same = curve([run([1, 2, 3]), run([3, 4, 8])], "frames")
    assert same.x.tolist() == [1000, 2000, 3000] and same.mean.tolist() == [2, 3, 5.5] and same.seeds == 2
    assert same.low is not None and same.high is not None
    assert (same.low < same.mean).all() and (same.mean < same.high).all()
    other = curve([run([0, 100], [0, 1000]), run([50, 150, 150], [500, 1500, 2000])], "frames")
    assert other.x.tolist() == [500, 1000]  # nothing before the second one's start or after the first one's end
    assert other.mean.tolist() == [50, 100]
    single = curve([run([1, 2])], "updates")
    assert single.x.tolist() == [500, 1000] and single.low is None and single.high is None


def test_of_several_evaluations_at_one_place_the_last_counts() -> None:
    random_first = run([5, 7, 9], updates=np.array([0.0, 0.0, 100.0]))
    line = curve([random_first], "updates")
    assert line.x.tolist() == [0, 100] and line.mean.tolist() == [7, 9]


def test_a_score_is_the_evaluation_or_lies_between_two() -> None:
    runs = [run([100, 200, 400]), run([300, 400, 0], seed=1)]
    there = score("t", "m", runs, 2000)
    assert there is not None and there.returns == (200, 400) and there.mean == 300
    assert there.std == pytest.approx(20_000**0.5) and there.updates == 1000 and there.wall_s == 20
    half = 12.7062047 * 100  # one degree of freedom; std / sqrt(2) is 100
    assert there.interval == pytest.approx((300 - half, 300 + half), rel=1e-6)
    between = score("t", "m", runs, 2500)
    assert between is not None and between.returns == (300, 200) and between.updates == 1250
    assert score("t", "m", runs, 999) is None and score("t", "m", runs, 3001) is None
    short = score("t", "m", [*runs, run([1, 2, 3, 4], seed=2)], 4000)
    assert short is not None and short.returns == (4,) and short.std is None and short.interval is None


def test_cost_is_between_the_first_and_the_last_evaluation() -> None:
    frames, updates, wall_s = [4000.0, 8000.0], np.array([1.0, 1001.0]), np.array([100.0, 120.0])
    found = cost("t", "m", [run([0, 0], frames, updates=updates, wall_s=wall_s), run([0], [4000.0])])
    assert found.seconds_per_1000 == (20,) and found.frames_per_s == (200,)


def test_frames_and_baseline_by_default_and_by_name() -> None:
    groups = {"a": {"x": [run([1, 2, 3])]}, "b": {"x": [run([1, 2])]}}
    assert choose_frames(None, groups) == [2000]
    assert choose_frames([3000, 1500, 3000], groups) == [1500, 3000]
    with pytest.raises(InputError, match="--frames=3001: no run was evaluated there; allowed is 1000 to 3000"):
        choose_frames([1000, 3001], groups)
    assert choose_baseline(None, ["dqs", "SAC"]) == "SAC" and choose_baseline(None, ["a", "b"]) == "a"
    assert choose_baseline("b", ["sac", "b"]) == "b"
    with pytest.raises(InputError, match="--baseline=c: no such method; allowed is one of sac, b"):
        choose_baseline("c", ["sac", "b"])


RETURNS = {
    "better": {"t": [600.0, 700.0, 950.0, 1000.0], "u": [500.0, 650.0, 800.0, 1100.0]},
    "sac": {"t": [100.0, 200.0, 300.0, 400.0], "u": [50.0, 60.0, 70.0, 80.0]},
}


def test_iqm_and_gap_are_those_of_the_definition() -> None:
    found = aggregate(5, RETURNS, "sac", 1000, reps=200)
    assert found is not None and found.tasks == ("t", "u") and found.seeds == {"better": 4, "sac": 4}
    flat = [value / 1000 for values in RETURNS["better"].values() for value in values]
    assert found.iqm["better"].value == pytest.approx(trim_mean(flat, 0.25))
    assert found.gap["better"].value == pytest.approx(np.mean([0.4, 0.3, 0.05, 0, 0.5, 0.35, 0.2, 0]))
    for name in ("iqm", "gap"):
        estimate = getattr(found, name)["better"]
        assert estimate.interval[0] < estimate.value < estimate.interval[1]
    assert found.levels[0] == 0 and found.levels[-1] == 1.1
    level = int(np.searchsorted(found.levels, 0.66))
    assert found.profiles["better"][level] == np.mean(np.array(flat) > found.levels[level]) == 5 / 8


def test_who_is_better_on_every_seed_improves_with_probability_one() -> None:
    found = aggregate(5, RETURNS, "sac", 1000, reps=50)
    assert found is not None and list(found.improvement) == ["better"]
    assert found.improvement["better"].value == 1 and found.improvement["better"].interval == (1, 1)
    reverse = aggregate(5, RETURNS, "better", 1000, reps=50)
    assert reverse is not None and reverse.improvement["sac"].value == 0
    equal = aggregate(5, {"a": RETURNS["sac"], "b": RETURNS["sac"]}, "a", 1000, reps=50)
    assert equal is not None and equal.improvement["b"].value == 0.5


def test_only_shared_tasks_and_as_many_seeds_as_each_has_are_compared() -> None:
    more = {**RETURNS, "third": {"t": [1000.0, 0.0, 0.0], "v": [3.0]}}
    found = aggregate(5, more, "sac", 1000, reps=50)
    assert found is not None and found.tasks == ("t",) and found.seeds == {"better": 4, "sac": 4, "third": 3}
    uneven = aggregate(5, {"a": {"t": [1000.0, 0.0], "u": [500.0]}}, "a", 1000, reps=50)
    assert uneven is not None and uneven.seeds == {"a": 1} and uneven.iqm["a"].value == 0.75
    assert uneven.iqm["a"].interval is None and uneven.bands == {} and uneven.improvement == {}
    assert aggregate(5, {"a": {"t": [1.0]}, "b": {"u": [1.0]}}, "a", 1000) is None


def test_the_same_returns_give_the_same_intervals_and_leave_numpys_state() -> None:
    found = []
    for seed in (7, 8):
        np.random.seed(seed)
        expected = np.random.rand()
        np.random.seed(seed)
        found.append(aggregate(5, RETURNS, "sac", 1000, reps=50))
        assert np.random.rand() == expected
    first, second = found
    assert first is not None and second is not None and first.iqm == second.iqm
