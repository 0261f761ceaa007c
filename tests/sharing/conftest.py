"""A run whose agent is shared."""

from pathlib import Path

import pytest
from helpers import saved_run
from records import add_records

from dqs_lightning.envs import DMControl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved_run(tmp_path_factory.mktemp("place") / "run", environment=DMControl("cartpole", "swingup", 2))
    add_records(folder)
    return folder
