"""What another program has started."""

import os

import pytest

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.launch import Launch, launched
from dqs_lightning.cli.sweep_process import OTHERS
from dqs_lightning.cli.training import Rehearsal

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "walker"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(OTHERS):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launch("torchrun", 3, 2)),
        (SLURM, Launch("SLURM", 4, 2)),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, None),
        ({**SLURM, **TORCHRUN}, Launch("torchrun", 3, 2)),
    ],
)
def test_devices_and_nodes_are_those_that_were_started(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Launch | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected
    trainer = Rehearsal([]).config.trainer
    assert (trainer.devices, trainer.num_nodes) == ((expected.devices, expected.nodes) if expected else (1, 1))


def test_an_uneven_number_of_tasks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_NTASKS": "7"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="SLURM_NTASKS=7: must be a multiple of SLURM_NNODES=2"):
        launched()
