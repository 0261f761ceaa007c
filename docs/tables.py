"""Fills in what the pages say of the code, so that no list of components is written by hand.

- `<!-- components: Sampler -->` becomes a table of the components of a base class, from the registry and docstrings.
- `<!-- families -->` and `<!-- bases -->` become tables of all base classes.
- `<!-- modules: dqs_lightning.diffusion -->` becomes the reference of the modules of a package.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dqs_callbacks  # noqa: F401  (registers its callbacks)
from dqs_lightning.cli.listing import defaults_of, keys_of, plural, summary
from dqs_lightning.cli.parser import BASES
from dqs_lightning.registry import components

ROOT = Path(__file__).parents[1]
OURS = ("dqs_lightning", "dqs_callbacks")
MOST_SETTINGS = 11
"""Arguments that a cell of a table has room for."""
LONGEST_DEFAULT = 40
"""Characters of a default that a cell of a table has room for."""


def filled(markdown: str) -> str:
    """The text of a page with its markers replaced."""
    known = {base.__name__: base for base in BASES}
    markdown = re.sub(r"<!-- components: (\w+) -->", lambda found: component_table(known[found[1]]), markdown)
    markdown = re.sub(r"<!-- modules: ([\w.]+) -->", lambda found: reference(found[1]), markdown)
    markdown = re.sub("<!-- families -->", lambda _: family_table(), markdown)
    return re.sub("<!-- bases -->", lambda _: base_table(), markdown)


def component_table(base: type) -> str:
    """A table of the components of a base class that this project brings."""
    rows = [f"| {link(cls)} | {cell(cls)} | {settings_of(cls)} |" for cls in own_components(base).values()]
    return "\n".join(["| component | what it is | settings |", "|---|---|---|", *rows])


def family_table() -> str:
    """A table of all base classes: their page, their settings, their components and the default of `DQS`."""
    rows = ["| family | setting | components | default |", "|---|---|---|---|"]
    for base in BASES:
        settings = ", ".join(f"`{key}`" for key in keys_of(base))
        names = ", ".join(f"`{name}`" for name in own_components(base))
        defaults = dict.fromkeys(type(value).__name__ for value in defaults_of(base))
        rows.append(
            f"| [{title(base)}]({page(base)}) | {settings} | {names} | {', '.join(f'`{d}`' for d in defaults)} |"
        )
    return "\n".join(rows)


def base_table() -> str:
    """A table of all base classes and of the methods that a subclass must implement."""
    rows = ["| family | base class | methods to implement | page |", "|---|---|---|---|"]
    for base in BASES:
        methods = ", ".join(f"`{name}`" for name in sorted(getattr(base, "__abstractmethods__", ())))
        shown = link(base) if base.__module__.partition(".")[0] in OURS else f"Lightning's `{base.__name__}`"
        rows.append(
            f"| {title(base)} | {shown} | {methods or 'those that it needs'} | [page](components/{page(base)}) |"
        )
    return "\n".join(rows)


def reference(package: str) -> str:
    """The reference of a package's modules, or of the one module of that name."""
    return "\n\n".join(f"::: {module}" for module in modules_of(package))


def modules_of(package: str) -> Iterator[str]:
    """Names of the modules of a package, without private ones and packages in it."""
    top = ROOT / ("callbacks" if package.startswith("dqs_callbacks") else "src")
    place = top.joinpath(*package.split("."))
    if place.with_suffix(".py").is_file():
        yield package
    yield from (f"{package}.{file.stem}" for file in sorted(place.glob("*.py")) if not file.stem.startswith("_"))


def own_components(base: type) -> dict[str, type]:
    """The components of a base class that this project brings, by name."""
    return {name: cls for name, cls in components(base).items() if cls.__module__.partition(".")[0] in OURS}


def page(base: type) -> str:
    """The page of a base class, in docs/components/."""
    return f"{plural(base).replace(' ', '_')}.md"


def title(base: type) -> str:
    """The name of a base class in words, in the plural."""
    return plural(base).capitalize()


def settings_of(cls: type) -> str:
    """The arguments of a component with their defaults; those of an agent are too many for a cell."""
    given = [p for p in inspect.signature(cls).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(given) > MOST_SETTINGS:
        return "see its reference"
    return ", ".join(f"`{p.name}`" if p.default is p.empty else f"`{p.name}={default(p.default)}`" for p in given)


def default(value: Any) -> str:
    """A default as it is written in Python, if it is short."""
    return repr(value) if len(repr(value)) <= LONGEST_DEFAULT else "..."


def link(cls: type) -> str:
    """The name of a class, linked to its reference."""
    return f"[`{cls.__name__}`][{cls.__module__}.{cls.__qualname__}]"


def cell(cls: type) -> str:
    """The first paragraph of a class's docstring, for a cell of a table."""
    return summary(cls).replace("|", "\\|").replace("<", "&lt;")
