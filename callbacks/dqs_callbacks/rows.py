"""Files of measurements in the run directory: one JSON object a line."""

import json
from pathlib import Path
from typing import Any


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Add a row, which must have the key `updates`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def drop_later_rows(file: Path, updates: int) -> None:
    """Drop what was written after the checkpoint from which a run continues."""
    if file.exists():
        kept = [row for row in file.read_text().splitlines() if json.loads(row)["updates"] <= updates]
        file.write_text("".join(f"{row}\n" for row in kept))
