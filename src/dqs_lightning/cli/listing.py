"""`dqs-fit --list`: shows the shipped configurations, and all components with the settings that name them."""

import inspect
import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dqs_lightning.cli.config_file import config_chain
from dqs_lightning.cli.errors import print_all
from dqs_lightning.cli.parser import BASES, DEFAULT_AGENT, combined
from dqs_lightning.cli.shipped import shipped
from dqs_lightning.registry import components

PLURALS = {"CriticLoss": "critic losses", "Preconditioning": "preconditioning"}
"""Plurals of base classes that are not formed by an s."""
KEYS = {
    "Agent": "model",
    "Environment": "data.environment",
    "Transform": "data.transforms",
    "Callback": "trainer.callbacks",
}
"""Settings of base classes that are not arguments of `DQS`."""
KINDS = {
    "methods": "Methods, read after a task: dqs-fit --config TASK --config NAME",
    "sweeps": "Sweeps: dqs-sweep NAME",
}
"""Headings of the folders of shipped configurations that are no tasks."""

Rows = Iterable[tuple[str, str]]


class ShowList(Action):
    """The option `--list`: prints the list and exits."""

    def __init__(self, option_strings: list[str], dest: str = SUPPRESS, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, nargs=0, help=help)

    def __call__(self, *_: Any) -> NoReturn:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
        print_all("\n\n".join(table(heading, rows, width) for heading, rows in sections()))
        sys.exit(0)


def table(heading: str, rows: Rows, width: int) -> str:
    """Returns a heading and aligned rows of a name and a text, which is wrapped at `width` characters."""
    rows = list(rows)
    indent = max(len(name) for name, _ in rows) + 4
    wrapped = (
        textwrap.wrap(text, max(width - indent, 40), break_on_hyphens=False, break_long_words=False) or [""]
        for _, text in rows
    )
    lines = (
        f"  {name}".ljust(indent) + f"\n{' ' * indent}".join(lines)
        for (name, _), lines in zip(rows, wrapped, strict=True)
    )
    return "\n".join([heading, *(line.rstrip() for line in lines)])


def sections() -> Iterator[tuple[str, Rows]]:
    """Yields headings and rows: tasks, methods and sweeps, then the components of each base class."""
    files = shipped()
    kind = {name: name.partition("/")[0] if "/" in name else "" for name in files}
    tasks = {name: file for name, file in files.items() if kind[name] not in KINDS}
    yield "Tasks: dqs-fit --config NAME", ((name, task_text(file)) for name, file in tasks.items())
    for folder, heading in KINDS.items():
        yield heading, ((name, comment(file)) for name, file in files.items() if kind[name] == folder)
    for base in BASES:
        known = {name: cls for name, cls in components(base).items() if cls.__module__.partition(".")[0] != "lightning"}
        default = {type(value).__name__ for value in defaults_of(base)}
        settings = ", ".join(f"--{key}=NAME" for key in keys_of(base))
        heading = f"{plural(base).capitalize()}: {settings.replace('callbacks=', 'callbacks+=')}"
        yield heading, ((name + " *" * (name in default), sentence(summary(cls))) for name, cls in known.items())
    help_of = "dqs-fit --model.sampler.help=Ancestral shows a component's settings"
    yield "Marks", [("*", f"a component that DQS has by default; {help_of}")]


def task_text(file: Path) -> str:
    """Returns a line on a task: its environment, its length, and the first sentence of its file's comment."""
    contents = [content.get("data", {}) for content in reversed(config_chain(file).values())]
    environment, arguments = combined((data.get("environment") for data in contents), "")
    task = "-".join(value for value in arguments.values() if isinstance(value, str))
    (*_, frames) = (data["total_frames"] for data in contents if "total_frames" in data)
    text = comment(file)
    return f"{f'{environment} {task}'.strip()}, {frames:,} frames{'. ' if text else ''}{text}"


def comment(file: Path) -> str:
    """Returns the first sentence of the comment at the beginning of a file; empty where there is none."""
    found = re.match(r"(?:#.*\n)+", file.read_text(encoding="utf-8"))
    return sentence(" ".join(re.sub("^# *", "", found[0], flags=re.MULTILINE).split())) if found else ""


def sentence(text: str) -> str:
    """Returns the first sentence of a text."""
    return re.split(r"(?<=[.?]) (?=[A-Z`(])", text, maxsplit=1)[0]


def summary(cls: type) -> str:
    """Returns the first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def plural(base: type) -> str:
    """Returns the name of a base class in words, in the plural."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", base.__name__).lower()
    return PLURALS.get(base.__name__) or f"{words.removesuffix('s')}s"


def keys_of(base: type) -> list[str]:
    """Returns the settings that hold a component of a base class."""
    if base.__name__ in KEYS:
        return [KEYS[base.__name__]]
    parameters = inspect.signature(DEFAULT_AGENT).parameters.items()
    return [f"model.{name}" for name, parameter in parameters if base in getattr(parameter.annotation, "__args__", ())]


def defaults_of(base: type) -> list[Any]:
    """Returns the components of a base class that `DQS` has when none is given."""
    agent = DEFAULT_AGENT(1, 1)
    if base.__name__ == "Agent":
        return [agent]
    hparams: Mapping[str, Any] = agent.hparams
    names = [key.removeprefix("model.") for key in keys_of(base)]
    return [hparams[name] for name in names if name in hparams]
