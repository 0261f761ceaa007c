"""Tests that speeds on the pages are the measured ones."""

import re

from pages import DOCS, result, rows_of

UPDATES = {
    "SAC of Stable-Baselines3": "sb3_sac",
    "TorchRL's SACLoss, SoftUpdate, fused Adam": "torchrl_sac",
    "the default with squared errors: `MultiStart`, K = 8, 64 states of 4 points, 6 steps": "default",
    "the same, `--model.compile_losses=true`": "compiled",
    "plain: with SAC's critic and a fixed temperature": "plain",
    "plain, `--model.compile_losses=true`": "plain_compiled",
    "the same, 32 states": "compiled_32_states",
    "plain in float32 throughout": "float32",
    "plain, 10 sampler steps": "10_steps",
    "plain, K = 16": "k16",
    "plain, K = 64": "k64",
    "plain, 8 points a state": "8_points",
    "plain, 32 states": "32_states",
    "plain, `GuidedDefensive`": "guided_defensive",
    "plain, `Importance`": "importance",
    "plain, `PosteriorMode`": "posterior_mode",
    "plain, `Soft` backup, 64 candidates": "soft_backup",
    "plain, `SoftPolicyValue` backup": "entropic_backup",
    "plain, the published estimator, K = 100, 20 steps": "published_k100",
    "plain, the published estimator, K = 1000, 20 steps": "published_k1000",
}
"""Names in benchmarks/results/update.json for the rows of the table."""


def test_update_rates_equal_the_measured_ones() -> None:
    measured = result("update.json")
    seconds, floors = measured["median_s"], measured["floor"]
    rows = rows_of(DOCS / "results.md", "One update")
    assert rows.keys() == UPDATES.keys()
    for label, cells in rows.items():
        taken = seconds[UPDATES[label]]
        assert cells["updates per CPU-second"] == f"{1 / taken:.1f}", label
        assert cells["rate against Stable-Baselines3's SAC"] == f"{seconds['sb3_sac'] / taken:.2f}", label
        if floor := floors.get(UPDATES[label]):
            assert cells["GFLOP"] == f"{floor['operations'] / 1e9:.2f}", label
            assert cells["floor / time"] == f"{floor['share']:.2f}", label


def test_gains_of_threads_equal_the_measured_ones() -> None:
    rows = rows_of(DOCS / "results.md", "Threads")
    measured = {str(row["width"]): row for row in result("threads.json")["rows"]}
    assert rows.keys() == measured.keys()
    for width, cells in rows.items():
        one, two = (measured[width]["median_s"][threads] for threads in ("1", "2"))
        assert cells["ms with one thread"] == f"{one * 1e3:.1f}"
        assert cells["rate of two threads against one"] == f"{one / two:.2f}"
        assert cells["chosen"] == str(measured[width]["chosen"])


def test_rates_of_simulators_are_those_measured() -> None:
    rows = rows_of(DOCS / "results.md", "Simulators")
    measured = {(r["task"], r["num_envs"], r["environment"]): r for r in result("simulators.json")["rows"]}
    assert len(rows) == 6
    for label, cells in rows.items():
        ((task, number, environment),) = re.findall(r"(\S+), (\d+) environments, `(\w+)`", label)
        row, beside = measured[task, int(number), environment], measured[task, int(number), "DMControl"]
        assert cells["frames per CPU-second"] == f"{row['frames_per_cpu_s']:.0f}"
        assert cells["of `DMControl`"] == f"{beside['frames_per_cpu_s']:.0f}"
        assert (
            cells["ratio"] == f"{row['of_dm_control']:.2f}" and cells["s of compiling"] == f"{row['compiling_s']:.0f}"
        )


ACTIONS = {
    "eager": "eager",
    "torch.compile of the exported graph": "compile",
    "ONNX Runtime": "onnx",
    "the torch.export package, run by Python": "export",
    "eager, 5 steps": "eager_5_steps",
    "ONNX Runtime, 5 steps": "onnx_5_steps",
    "`predict` of Stable-Baselines3's SAC, eager": "sb3_sac",
}


def test_times_of_an_action_equal_the_measured_ones() -> None:
    measured = result("acting.json")["median"]
    rows = rows_of(DOCS / "results.md", "One action")
    assert rows.keys() == ACTIONS.keys()
    for label, cells in rows.items():
        for batch in (1, 64):
            assert cells[f"batch {batch}"] == f"{measured[ACTIONS[label]][f'batch_{batch}_ms']:.2f}", label


def test_rates_of_seeds_in_one_process_equal_the_measured_ones() -> None:
    measured = result("seeds.json")["updates_per_s"]
    rows = rows_of(DOCS / "results.md", "Several seeds in one process")
    assert rows.keys() == measured.keys()
    for seeds, cells in rows.items():
        batched, turns, ratio = (measured[seeds][name] for name in ("batched", "turns", "ratio"))
        assert cells == {"batched": f"{batched:.1f}", "in turns": f"{turns:.1f}", "ratio": f"{ratio:.2f}"}
