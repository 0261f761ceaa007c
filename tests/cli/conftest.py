"""Fixtures of the tests of sweeps."""

from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path for a sweep file next to a task's configuration, outside of the working directory."""
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "pole.yaml").write_text(f"extends: {CONFIGS / 'cartpole.yaml'}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "sweeps" / "mine.yaml"
