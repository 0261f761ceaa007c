"""A run's directory and its loggers."""

from pathlib import Path

from dqs_lightning.cli.loggers import ROWS_HELD, RunCSVLogger


def test_metrics_reach_the_disk_before_the_run_ends(tmp_path: Path) -> None:
    logger = RunCSVLogger(save_dir=tmp_path, name="", version="")
    for update in range(50, 50 * (3 * ROWS_HELD), 50):  # as the Trainer logs: every fifty updates
        logger.log_metrics({"train/q": float(update)}, step=update)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 * ROWS_HELD


def test_a_run_that_continues_keeps_the_rows_it_had(tmp_path: Path) -> None:
    for update, name in ((50, "train/q"), (100, "train/return")):
        logger = RunCSVLogger(save_dir=tmp_path, name="", version="")
        logger.log_metrics({name: 1.0}, step=update)
        logger.finalize("success")
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "step,train/q,train/return"
    assert rows == ["50,1.0,", "100,,1.0"]
