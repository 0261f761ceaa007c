"""The documentation: every page is in the navigation, names what there is, and shows commands that are accepted.

The site itself is built by `nox -s docs`, which fails on a broken link.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import dqs_callbacks  # noqa: F401  (registers its callbacks)
from dqs_lightning.cli import evaluate, export, fit, sweep
from dqs_lightning.cli.parser import BASES
from dqs_lightning.cli.report import command as report
from dqs_lightning.registry import GROUP, components

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
MOST_LINES = 15
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
FAMILIES = {
    "Agent": "agents",
    "Backup": "backups",
    "Backbone": "backbones",
    "CriticLoss": "critic_losses",
    "EnergyEstimator": "energy_estimators",
    "NoiseSchedule": "noise_schedules",
    "TrainingPoints": "training_points",
    "Preconditioning": "preconditioning",
    "Sampler": "samplers",
    "Support": "supports",
    "Environment": "environments",
    "Temperature": "temperatures",
    "Callback": "callbacks",
}
"""The page of `components/` that a base class has."""
OURS = ("dqs_lightning", "dqs_callbacks")


def named(nav: Any) -> Iterator[str]:
    """All pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from named(entry)


def fenced(kind: str) -> list[Any]:
    """The fenced blocks of a kind on all pages, as test parameters."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        texts = [text for language, text in blocks if language == kind]
        found += [pytest.param(text, id=f"{page.stem}-{index}") for index, text in enumerate(texts)]
    return found


def described(text: str) -> set[str]:
    """Names that a page sets as the heading of a component."""
    return {name for line in text.splitlines() if line.startswith("#") for name in re.findall(r"`(\w+)`", line)}


# Pages


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(named(SITE["nav"])) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_base_has_a_page() -> None:
    assert {base.__name__ for base in BASES} == FAMILIES.keys()


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_every_component_is_described_on_its_familys_page(base: type) -> None:
    page = DOCS / "components" / f"{FAMILIES[base.__name__]}.md"
    own = {name for name, cls in components(base).items() if cls.__module__.partition(".")[0] in OURS}
    assert own
    assert own <= described(page.read_text()), f"{page.name} leaves out {sorted(own - described(page.read_text()))}"


def test_every_method_is_described() -> None:
    methods = {path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml")}
    assert methods <= described((DOCS / "components" / "methods.md").read_text())


def test_every_module_is_in_the_reference() -> None:
    """Those of the packages that the reference covers; private ones and the command line aside."""
    pages = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    shown = {name for text in pages for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    parts = [file.relative_to(ROOT / file.relative_to(ROOT).parts[0]).with_suffix("").parts for file in files]
    modules = {".".join(names) for names in parts if "cli" not in names and not names[-1].startswith("_")}
    assert shown == modules


def test_promises_name_tests_that_are_there() -> None:
    named_tests = re.findall(r"`(tests/[\w/.]+)`", (DOCS / "guarantees.md").read_text())
    assert named_tests
    assert [path for path in named_tests if not (ROOT / path).exists()] == []


def test_figures_stand_where_they_were_measured() -> None:
    """Every figure in a table of the components' pages is one of the README, of the results, or of their files."""
    sources = [ROOT / "README.md", DOCS / "results.md", *(ROOT / "benchmarks" / "results").rglob("*.md")]
    known = "\n".join(source.read_text() for source in sources)
    rows = [line for page in (DOCS / "components").glob("*.md") for line in page.read_text().splitlines()]
    cells = {cell.strip() for row in rows if row.startswith("|") for cell in row.split("|")}
    figures = {cell for cell in cells if re.fullmatch(r"[-.\d][-.\d/± ,()\[\]]*", cell) and re.search(r"\d\.?\d", cell)}
    assert figures
    assert {figure for figure in figures if figure not in known} == set()


# What the pages tell one to type


def commands() -> list[tuple[str, ...]]:
    """Command lines of this project on the pages, each once, without comments and variables before them."""
    found: dict[tuple[str, ...], None] = {}
    for block in fenced("bash"):
        for line in block.values[0].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words and words[0].startswith("dqs-"):
                found[tuple(words)] = None
    return list(found)


def wants_example(words: tuple[str, ...]) -> bool:
    """Whether a command line names a component that only an installed example has."""
    return any(name in word for word in words for name in ("Bent", "Broad", "ScaledGym"))


PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "dqs-eval": evaluate.parse,
    "dqs-export": export.parse,
    "dqs-report": report.parse,
    "dqs-sweep": sweep.parse,
}


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], None]:
    """Asserts that `dqs-fit` takes these arguments; nothing is started."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DQS_RUN_DIR", "")  # a run sets it: so it is as it was afterwards
    monkeypatch.delenv("DQS_RUN_DIR")

    def call(arguments: list[str]) -> None:
        asks = [] if any(".help" in argument or argument == "--help" for argument in arguments) else ["--print_config"]
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *arguments, *asks])
        try:
            code = fit.main()
        except SystemExit as stop:
            code = stop.code
        assert code == 0, capsys.readouterr().err

    return call


@pytest.mark.parametrize("words", [c for c in commands() if not wants_example(c)], ids=lambda words: shlex.join(words))
def test_command_lines_are_accepted(words: tuple[str, ...], accepted: Callable[[list[str]], None]) -> None:
    command, *arguments = words
    if command == "dqs-fit":
        accepted(arguments)
    else:
        PARSERS[command](arguments)


@pytest.mark.parametrize("text", fenced("yaml"))
def test_configurations_are_accepted(text: str, accepted: Callable[[list[str]], None], tmp_path: Path) -> None:
    """Each is a file that may follow a task's, or extends one that is in configs/, or is a sweep."""
    content = yaml.safe_load(text)
    file = tmp_path / "mine.yaml"
    if "variants" in content:
        file.write_text(yaml.safe_dump({**content, "config": str(ROOT / "configs" / content["config"])}))
        assert sweep.main([str(file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    elif "extends" in content:
        file.write_text(yaml.safe_dump({**content, "extends": str(ROOT / "configs" / content["extends"])}))
        accepted(["--config", str(file)])
    else:
        file.write_text(text)
        accepted(["--config", str(ROOT / "configs" / "walker.yaml"), "--config", str(file)])


@pytest.mark.parametrize("text", fenced("python"))
def test_python_compiles(text: str) -> None:
    compile(text, "page", "exec")


# The examples, as an installed package brings them: by an entry point, in processes of their own


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which docs/examples is installed, without pip."""
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
    """By name, in the registry and on the command lines of the pages."""
    lines = [command[1:] for command in commands() if wants_example(command)]
    assert lines
    code = f"""
import json, sys
from dqs_lightning.cli import fit
from dqs_lightning.cli.parser import BASES
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
    """All three in one short run, by name, and what is written of them is what was asked for."""
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
