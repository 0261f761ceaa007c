"""Tests of the pages: navigation, links, and names of what exists. `nox -s docs` builds the site."""

import importlib.util
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import DOCS, NOTEBOOKS, PAGES, README, RESULTS, ROOT

import dqs_callbacks  # noqa: F401  (registers its callbacks)
from dqs_lightning.cli.parser import BASES
from dqs_lightning.registry import components

MOST_README_LINES = 130
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
OURS = ("dqs_lightning", "dqs_callbacks")


def tables() -> Any:
    """Imports the module that fills in the pages' tables when the site is built."""
    spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = tables()


def named(nav: Any) -> Iterator[str]:
    """Yields all pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from named(entry)


def described(text: str) -> set[str]:
    """Returns the component names in a page's headings."""
    return {name for line in text.splitlines() if line.startswith("#") for name in re.findall(r"`(\w+)`", line)}


def test_every_page_is_in_the_navigation_once() -> None:
    """The site has a page for each notebook, too."""
    pages = (page.relative_to(DOCS).with_suffix(".md") for page in [*PAGES, *NOTEBOOKS])
    assert sorted(named(SITE["nav"])) == sorted(map(str, pages))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs_and_their_cells_compile(notebook: Path) -> None:
    """`nox -s notebook` executes them."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        compile("".join(cell["source"]), notebook.name, "exec")


def test_the_image_is_built_from_existing_files_that_the_build_context_contains() -> None:
    """`nox -s docker` builds it where a Docker daemon runs."""
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = [name for names in copied for name in names.split()]
    assert {"src", "callbacks", "configs", "constraints.txt"} <= set(sources)
    assert all((ROOT / name).exists() for name in sources)
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules and {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(sources)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_every_component_is_listed_on_its_familys_page(base: type) -> None:
    """The table that the build fills in has a row for each component with the start of its docstring."""
    page = DOCS / "components" / TABLES.page(base)
    marker = f"<!-- components: {base.__name__} -->"
    assert page.read_text().count(marker) == 1
    rows = TABLES.filled(marker).splitlines()[2:]
    own = {name: cls for name, cls in components(base).items() if cls.__module__.partition(".")[0] in OURS}
    assert own
    assert [re.findall(r"`(\w+)`", row)[0] for row in rows] == list(own)
    for row, cls in zip(rows, own.values(), strict=True):
        assert (cls.__doc__ or "").split()[0].strip("`") in row


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_headings_name_existing_components(base: type) -> None:
    found = described((DOCS / "components" / TABLES.page(base)).read_text())
    assert found
    assert found <= components(base).keys() | {"RunCheckpoint"}


def test_the_table_of_families_names_settings_and_defaults() -> None:
    table = TABLES.filled((DOCS / "components" / "index.md").read_text())
    assert "| `model.noise_schedule` |" in table and table.count("| `Geometric` |") == 1
    assert "`model.critic_backbone`, `model.actor_backbone` | `MLP`, `SimBa` | `MLP` |" in table
    assert len([line for line in table.splitlines() if line.startswith("| [")]) == len(BASES)


def test_the_table_of_base_classes_names_their_abstract_methods() -> None:
    table = TABLES.filled((DOCS / "extend.md").read_text())
    for base in BASES:
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {TABLES.title(base)} |"))
        assert all(f"`{method}`" in row for method in getattr(base, "__abstractmethods__", ()))


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_README_LINES


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_are_valid(page: Path) -> None:
    """The site consists of the pages and the pictures of the results; README.md links to any file of the project."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", text):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), name
        on_site = target.is_relative_to(DOCS) or (target.suffix == ".png" and target.is_relative_to(RESULTS))
        assert page == README or on_site, f"{name} is not on the site"
        assert not anchor or (target.suffix == ".md" and anchor in anchors(target)), f"{name}#{anchor}"


def test_every_method_is_described() -> None:
    methods = {path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml")}
    assert methods <= described((DOCS / "components" / "methods.md").read_text())


def test_every_module_is_in_the_reference() -> None:
    """Private modules and the command line are excluded."""
    pages = [TABLES.filled(page.read_text()) for page in (DOCS / "reference").glob("*.md")]
    shown = [name for text in pages for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)]
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    parts = [file.relative_to(ROOT / file.relative_to(ROOT).parts[0]).with_suffix("").parts for file in files]
    modules = {".".join(names) for names in parts if "cli" not in names and not names[-1].startswith("_")}
    assert sorted(shown) == sorted(modules)


REFERENCES = {name for page in PAGES for name in re.findall(r"\]\[([\w.]+)\]", page.read_text())}


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_a_reference_is_in_the_class_that_it_names(name: str) -> None:
    """The site documents a member with the class that defines it, so a link must not name a subclass."""
    parent, _, member = name.rpartition(".")
    owner = pkgutil.resolve_name(parent)
    assert member in vars(owner) if isinstance(owner, type) else hasattr(owner, member)


def test_the_guarantees_name_existing_tests() -> None:
    named_tests = re.findall(r"`(tests/[\w/.]+)`", (DOCS / "guarantees.md").read_text())
    assert named_tests
    assert [path for path in named_tests if not (ROOT / path).exists()] == []
