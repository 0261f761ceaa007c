"""Tests that the figures of several tasks and objectives on the pages are the measured ones."""

from statistics import fmean

from pages import DOCS, README, result, rows_of

TOGETHER = {
    "walker-tasks": {
        "walker-stand": "walker-stand",
        "walker-walk": "walker-walk",
        "walker-run": "walker-run",
        "mean of walker-tasks": None,
    },
    "three-bodies": {
        "cheetah-run": "cheetah-run",
        "walker-run, three-bodies": "walker-run",
        "hopper-stand": "hopper-stand",
        "mean of three-bodies": None,
    },
}
"""Rows of the table of several tasks for each agent, and their tasks."""


def test_returns_of_several_tasks_equal_the_measured_ones() -> None:
    rows, measured = rows_of(DOCS / "several.md", "Beside agents of one task"), result("several_tasks.json")
    assert sorted(rows) == sorted(name for names in TOGETHER.values() for name in names)
    for label, names in TOGETHER.items():
        for name, task in names.items():
            ours, pooled = (measured[label][method] for method in ("dqs", "dqs-pooled"))
            ours, pooled = (row["tasks"][task] if task else row["mean"] for row in (ours, pooled))
            expected = spread(ours["apart"]), spread(ours["together"]), spread(pooled["together"])
            assert tuple(rows[name].values()) == expected, name
    text = " ".join(((DOCS / "several.md").read_text() + README.read_text()).split())
    ratios = [f"{measured[label]['dqs']['ratio']:.2f}" for label in TOGETHER]
    assert text.count(f"{' and '.join(ratios)} times the mean") == 2


def test_modes_of_a_range_of_temperatures_equal_the_measured_ones() -> None:
    measured = result("temperature_range.json")["rows"]
    rows = rows_of(DOCS / "several.md", "Every temperature in one network")
    assert len(rows) == len({row["temperature"] for row in measured})
    pairs = ("run_to_quadrature", "range_to_quadrature", "alone_to_quadrature", "range_to_alone")
    for label, cells in rows.items():
        own = [[row[pair] for pair in pairs] for row in measured if f"{row['temperature']:.3f}" == label]
        assert list(cells.values()) == [f"{fmean(found):.2f}, {max(found):.2f}" for found in zip(*own, strict=True)]


def test_values_of_the_sum_of_two_tasks_equal_the_measured_ones() -> None:
    pairs = result("composition.json")["pairs"]
    rows = rows_of(DOCS / "several.md", "The sum of two tasks, without training")
    assert len(rows) == len(pairs)
    for pair, found in pairs.items():
        optimum, composed, bound, share = rows[pair.replace("+", " + ")].values()
        assert (optimum, composed) == (f"{found['optimum']:.3f}", f"{found['composed']:.3f}")
        assert bound == f"{found['bound']:.2f}" and share == (f"{found['shares'][1]:.2f}" if "shares" in found else "")


def test_goals_of_the_exact_soft_sum_equal_the_measured_ones() -> None:
    pairs = result("composition.json")["pairs"]
    upper, diagonal = (
        f"{pairs[f'left-side+{other}']['sampled_shares'][1]:.2f}" for other in ("upper-side", "diagonal")
    )
    text = " ".join((DOCS / "several.md").read_text().split())
    assert f"in {upper} of the episodes of left-side + upper-side and in {diagonal} of left-side + diagonal" in text


LEARNED = ("sampled", "distilled", "distilled, best of 16")


def test_returns_of_the_learned_sum_equal_the_measured_ones() -> None:
    pairs = result("composition.json")["pairs"]
    rows = rows_of(DOCS / "several.md", "The sum of two tasks, without training", table=1)
    assert len(rows) == len(pairs) * len(LEARNED)
    for pair, found in pairs.items():
        for name in LEARNED:
            seeds, common, optimum, value, ms = rows[f"{pair.replace('+', ' + ')}, {name}"].values()
            measured = [run[name] for run in found["learned"]]
            shares = [run["goal_shares"][1] for run in measured] if "shares" in found else []
            assert seeds == str(len(measured)) and common == shown(shares, 2)
            assert (optimum, value) == (
                f"{found['optimum_of_episode']:.3f}",
                shown([run["return"] for run in measured], 3),
            )
            assert ms == f"{fmean(run['decision_ms'] for run in measured):.0f}"


def shown(values: list[float], digits: int) -> str:
    """Returns the mean of several seeds and their range, one value alone, or nothing of none."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    return f"{fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


STARTS = {
    "nothing": "",
    "everything": "-from",
    "the policy": "-from-policy",
    "the critics": "-from-critics",
    "everything, a high temperature at first": "-from-high-temperature",
}
"""Rows of the tables of transfer, and the ends of the variants' names."""


def test_returns_of_transfer_equal_the_measured_ones() -> None:
    for table, (task, found) in enumerate(result("transfer/transfer.json").items()):
        rows = rows_of(DOCS / "several.md", "From one task to the next", table=table)
        assert rows.keys() == STARTS.keys(), task
        for label, cells in rows.items():
            expected = []
            for agent in ("dqs", "sac"):
                measured = found[agent + STARTS[label]]
                expected += [spread(measured[name]) for name in ("start", "area", "last")]
                reached = measured["frames_to_last_of_scratch"]
                expected += ["no" if reached is None else f"{reached:,}"]
            assert list(cells.values()) == expected, f"{task}, {label}"


def spread(values: dict[str, float | None]) -> str:
    """Returns a mean and its standard deviation over seeds; one seed has none."""
    return f"{values['mean']:.0f}" + (f" ± {values['std']:.0f}" if values["std"] is not None else "")
