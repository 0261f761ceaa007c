"""The pages of the documentation, their tables and their commands."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
RESULTS = ROOT / "benchmarks" / "results"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


def fenced(kind: str) -> list[Any]:
    """Returns the fenced code blocks of a language on all pages and in README.md, as test parameters."""
    found = []
    for page in [README, *PAGES]:
        blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        texts = [text for language, text in blocks if language == kind]
        found += [pytest.param(text, id=f"{page.stem}-{index}") for index, text in enumerate(texts)]
    return found


def rows_of(page: Path, heading: str, table: int = 0) -> dict[str, dict[str, str]]:
    """Parses a table below a heading into a dict from first cell to the other cells by column name."""
    section = page.read_text().partition(f"# {heading}\n")[2]
    lines = re.findall(r"(?:^\|.*\n)+", re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0], re.MULTILINE)
    header, _, *rows = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines[table].splitlines())
    return {cells[0]: dict(zip(header[1:], cells[1:], strict=False)) for cells in rows}


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def commands() -> list[tuple[str, ...]]:
    """Returns the command lines of this project on the pages, each once, without comments and leading variables.

    Those of your_environment.md are run in tests/test_your_environment.py.
    """
    found: dict[tuple[str, ...], None] = {}
    for block in fenced("bash"):
        if str(block.id).startswith("your_environment"):
            continue
        for line in block.values[0].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words and words[0].startswith("dqs-"):
                found[tuple(words)] = None
    return list(found)


def needs_example(words: tuple[str, ...]) -> bool:
    """Whether a command line names a component that only the installed examples define."""
    return any(name in word for word in words for name in ("Bent", "Broad", "ScaledGym"))
