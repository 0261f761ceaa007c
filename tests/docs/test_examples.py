"""Tests of docs/examples as an installed package provides them: by entry points, in new processes."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from pages import DOCS, ROOT, commands, needs_example

from dqs_lightning.registry import GROUP

EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
MOST_LINES = 15


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a process in which docs/examples is installed, without pip."""
    project = tomllib.loads((DOCS / "examples" / "pyproject.toml").read_text())["project"]
    points = project["entry-points"][GROUP]
    info = tmp_path / "my_components-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    assert sorted(points.values()) == [example.stem for example in EXAMPLES]
    path = [str(tmp_path), str(DOCS / "examples"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_shown(example: Path) -> None:
    assert len([line for line in example.read_text().splitlines() if line.strip()]) <= MOST_LINES
    assert f'--8<-- "examples/{example.name}"' in (DOCS / "extend.md").read_text()


def test_the_examples_are_found(installed: dict[str, str]) -> None:
    """Tests that the examples are registered and that the pages' command lines can name them."""
    lines = [command[1:] for command in commands() if needs_example(command)]
    assert lines
    code = f"""
import json, sys
from dqs_lightning.cli import fit
from dqs_lightning.cli.parser import BASES
from dqs_lightning.cli.export import command as export
from dqs_lightning.cli.report import command as report
from dqs_lightning.registry import components, load_entry_points
load_entry_points()
found = {{base.__name__: {{n: c.__module__ for n, c in components(base).items()}} for base in BASES}}
for line in {lines!r}:
    sys.argv = ["dqs-fit", *line, *([] if any(".help" in word for word in line) else ["--print_config"])]
    try:
        fit.main()
    except SystemExit as stop:
        assert stop.code == 0, line
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=installed, capture_output=True, text=True, timeout=200, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["NoiseSchedule"]["Bent"] == "my_schedule"
    assert found["EnergyEstimator"]["Broad"] == "my_estimator"
    assert found["Environment"]["ScaledGym"] == "my_environment"


@pytest.mark.slow
def test_the_examples_train(installed: dict[str, str], tmp_path: Path) -> None:
    """One short run uses all three, and its saved configuration has the given arguments."""
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "dqs_lightning.cli.fit", "--config", str(ROOT / "configs" / "cartpole_fast.yaml"),
        "--model.noise_schedule=Bent", "--model.noise_schedule.power=2", "--model.energy_estimator=Broad",
        "--model.energy_estimator.num_samples=4", "--data.environment=ScaledGym", "--data.environment.scale=0.05",
        "--data.total_frames=640", "--data.init_random_frames=320", "--evaluate.every_frames=640",
        "--evaluate.episodes=2", f"--run_dir={run}",
    ]  # fmt: skip
    done = subprocess.run(command, env=installed, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["noise_schedule"] == {
        "class_path": "my_schedule.Bent",
        "init_args": {"sigma_min": 0.03, "sigma_max": 2.0, "power": 2.0},
    }
    assert config["data"]["environment"]["class_path"] == "my_environment.ScaledGym"
    row = json.loads((run / "scores.jsonl").read_text().splitlines()[-1])
    assert row["env_frames"] >= 640 and -100 < row["return_mean"] < 0
