"""The fast version of each study of the guarantees: `nox -s faults` and `nox -s soak` run all cells."""

from types import ModuleType

import pytest
from faults import environments, kills, nonfinite, resume, signals, soak
from faults.study import Cell, Lab

STUDIES = (kills, signals, resume, nonfinite, environments, soak)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "cell"),
    [pytest.param(study, cell, id=f"{study.__name__}: {cell.name}") for study in STUDIES for cell in study.cells(True)],
)
def test_cell(study: ModuleType, cell: Cell, lab: Lab) -> None:
    outcome = study.check(lab, lab.place(f"{study.__name__}/{cell.name}"), cell.settings)
    assert not outcome.problems, outcome
