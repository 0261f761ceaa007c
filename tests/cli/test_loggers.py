"""The metrics file of a run directory."""

from pathlib import Path

import pytest
from helpers import files_up_to

from dqs_lightning.cli.loggers import ROWS_HELD, RunCSVLogger, drop_later_metrics


def test_metrics_reach_the_disk_before_the_run_ends(tmp_path: Path) -> None:
    logger = RunCSVLogger(save_dir=tmp_path, name="", version="")
    for update in range(50, 50 * (3 * ROWS_HELD), 50):  # the Trainer logs every fifty updates
        logger.log_metrics({"train/q": float(update)}, step=update)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 * ROWS_HELD


def test_a_run_that_continues_keeps_the_rows_up_to_its_checkpoint(tmp_path: Path) -> None:
    for update, name in ((50, "train/q"), (100, "train/return"), (150, "train/q")):
        logger = RunCSVLogger(save_dir=tmp_path, name="", version="")
        logger.log_metrics({name: 1.0}, step=update)
        logger.finalize("success")
    drop_later_metrics(tmp_path / "metrics.csv", 100)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "step,train/q,train/return"
    assert rows == ["50,1.0,", "100,,1.0"]


def test_rows_that_could_not_be_written_to_a_full_disk_are_written_later(tmp_path: Path) -> None:
    logger = RunCSVLogger(save_dir=tmp_path, name="", version="")
    logger.log_metrics({"q": 1.0}, step=1)
    logger.save()
    for step, name in ((2, "q"), (3, "p")):  # a new column rewrites the file
        logger.log_metrics({name: 2.0}, step=step)
        with files_up_to(8), pytest.warns(UserWarning, match=r"metrics.csv: cannot be written \(.*too large"):
            logger.experiment.save()
    logger.save()
    rows = ["p,q,step", ",1.0,1", ",2.0,2", "2.0,,3"]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == rows
