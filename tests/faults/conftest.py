"""One process that forks the training commands of all tests here."""

from collections.abc import Iterator

import pytest
from faults.runs import Launcher
from faults.study import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    launcher = Launcher()
    yield Lab(launcher, tmp_path_factory.mktemp("faults"))
    launcher.close()
