"""Tests of the page docs/your_environment.md: its commands are run in order in a copy of its files."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest
from faults.runs import Launcher

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_environment.md").read_text()
FILES = ROOT / "docs" / "examples" / "tasks"


MODULES = {"dqs-fit": "fit", "dqs-eval": "evaluate", "dqs-export": "export"}


@pytest.fixture(scope="module")
def done(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder after all commands, and their output. Commands are forked (see `faults.forked`)."""
    root = tmp_path_factory.mktemp("page")
    folder = root / "docs" / "examples" / "tasks"
    shutil.copytree(FILES, folder)
    shutil.copytree(ROOT / "configs", root / "configs")
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)).splitlines()
    assert next(line for line in script if line) == "export PYTHONPATH=$PWD"
    printed = ""
    for program, *arguments in (shlex.split(line) for line in script if line and not line.startswith("export")):
        if program in MODULES:
            ended, err = launcher.run(arguments, folder, 280, module=f"dqs_lightning.cli.{MODULES[program]}")
            printed += (folder / "out").read_text()
            assert ended.code == 0, err
        else:
            assert program == "python"
            command = [sys.executable, *arguments]
            printed += subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return folder, printed


def test_the_page_shows_every_file_of_its_folder() -> None:
    for file in FILES.iterdir():
        if file.is_file():
            assert f'--8<-- "examples/tasks/{file.name}"' in PAGE


def test_the_trained_policy_is_better_than_a_random_one(done: tuple[Path, str]) -> None:
    folder, printed = done
    trained, random = (float(value) for value in re.findall(r"Push-v0 .*return (-[\d.]+)", printed))
    rows = [json.loads(line) for line in (folder / "runs" / "push" / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [512, 1000, 1504]
    assert random < -10 and trained > random / 2 and rows[-1]["return_mean"] > random / 2


def test_the_video_shows_an_episode(done: tuple[Path, str]) -> None:
    pictures = iio.imread(done[0] / "runs" / "push" / "videos" / "eval.mp4").astype(int)
    assert pictures.shape == (25, 240, 320, 3)
    assert pictures[:, 120, 2].max() < 30 and pictures[:, 5, 160].min() > 200  # black next to a white square
    assert abs(pictures[0] - pictures[-1]).max() > 100


def test_the_exported_policy_controls_the_task(done: tuple[Path, str]) -> None:
    (driven,) = re.findall(r"^return (-[\d.]+)$", done[1], re.MULTILINE)
    (random,) = re.findall(r"random policy.*return (-[\d.]+)", done[1])
    assert float(driven) > float(random) / 2
