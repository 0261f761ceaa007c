"""Tables of docs/lightning.md, whose rows are tests: the name of what is tested, and the docstring of its test."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "lightning.md"
Case = Callable[..., None]


class Effects(dict[str, Case]):
    """Tests by the name of the callback or flag whose effect they check."""

    def __call__(self, name: str) -> Callable[[Case], Case]:
        """Returns a decorator that registers a test under this name."""

        def register(case: Case) -> Case:
            self[name] = case
            return case

        return register

    def rows(self) -> dict[str, str]:
        return {name: " ".join((case.__doc__ or "").split()) for name, case in self.items()}


def write_table(marker: str, head: tuple[str, str], rows: Mapping[str, Any]) -> None:
    """Writes a table between the comments of this name in the page; fails where it was another one."""
    lines = ["| {} | {} |".format(*head), "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    before = PAGE.read_text()
    start, end = f"<!-- {marker} -->\n", "<!-- end -->\n"
    after = re.sub(f"(?<={start}).*?(?={end})", lambda _: "\n".join([*lines, ""]), before, count=1, flags=re.DOTALL)
    if after != before:
        PAGE.write_text(after)
        raise AssertionError(f"{PAGE.name} was out of date; its table of {marker} has been written again")
