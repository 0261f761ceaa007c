"""The fixture in which the tests run cells of the fault studies."""

import pytest
from faults.runs import Launcher
from faults.study import Lab


@pytest.fixture(scope="session")
def lab(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(launcher, tmp_path_factory.mktemp("faults"))
