"""Tests of the documentation: navigation, names, figures, commands and examples are up to date.

The site itself is built by `nox -s docs`, which fails on a broken link.
"""

import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

import dqs_callbacks  # noqa: F401  (registers its callbacks)
from dqs_lightning.cli import evaluate, fit, sweep
from dqs_lightning.cli.export import command as export
from dqs_lightning.cli.parser import BASES
from dqs_lightning.cli.report import command as report
from dqs_lightning.registry import GROUP, components

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
MOST_LINES = 15
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


def fenced(kind: str) -> list[Any]:
    """Returns the fenced code blocks of a language on all pages and in README.md, as test parameters."""
    found = []
    for page in [README, *PAGES]:
        blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        texts = [text for language, text in blocks if language == kind]
        found += [pytest.param(text, id=f"{page.stem}-{index}") for index, text in enumerate(texts)]
    return found


def described(text: str) -> set[str]:
    """Returns the component names in a page's headings."""
    return {name for line in text.splitlines() if line.startswith("#") for name in re.findall(r"`(\w+)`", line)}


# Pages


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


def test_links_of_the_readme_are_valid() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", README.read_text())
    assert links
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE) if path.endswith(".md") else []
        slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{path}#{anchor}"


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


# Figures


def rows_of(page: Path, heading: str, table: int = 0) -> dict[str, dict[str, str]]:
    """Parses a table below a heading into a dict from first cell to the other cells by column name."""
    section = page.read_text().partition(f"# {heading}\n")[2]
    lines = re.findall(r"(?:^\|.*\n)+", re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0], re.MULTILINE)
    header, _, *rows = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines[table].splitlines())
    return {cells[0]: dict(zip(header[1:], cells[1:], strict=False)) for cells in rows}


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


AGENTS = {"`DQS`": "`DQS`", "`SAC`": "`SAC`", "`SAC`, step size of DQS": "`SAC` at 1e-3"}


def test_the_readmes_table_agrees_with_the_results_page() -> None:
    results = rows_of(DOCS / "results.md", "Control Suite")
    shown = rows_of(README, "Results")
    assert len(shown) == 5
    for label, cells in shown.items():
        task, frames = re.fullmatch(r"(.+), ([\d,]+) frames", label).groups()  # type: ignore[union-attr]  # else it fails
        task = task.replace("mean of the three", "mean of the three tasks")
        column = f"{frames} frames" if frames == "20,000" else frames
        assert len(cells) == 4
        for agent, figure in cells.items():
            starts = f"{task}, {AGENTS.get(agent, agent)}"
            (row,) = (row for name, row in results.items() if re.fullmatch(re.escape(starts) + r"(, \w+ seeds)?", name))
            assert figure == row[column].partition(" ±")[0], f"{label}, {agent}"


def report_of(study: str) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Returns mean and standard deviation over seeds, by task, frames and method, from a study's stored report."""
    text = (ROOT / "benchmarks" / "results" / study / "report" / "table.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| ([\d,]+) \| ([\w.-]+) \| \d+ \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    return {(task, frames, method): (float(mean), float(std)) for task, frames, method, mean, std in rows}


def assert_rounded(cell: str, mean: float, std: float) -> None:
    """Asserts that a cell such as `960 ± 3 (958, 959, 964)` or `376` is the rounded mean and standard deviation."""
    shown = re.fullmatch(r"(\d+)(?: ± (\d+))?(?: \(.*\))?", cell)
    assert shown, cell
    assert abs(int(shown[1]) - mean) < 0.56, f"{cell}: {mean}"  # the mean is already rounded to a tenth
    assert shown[2] is None or abs(int(shown[2]) - std) < 0.56, f"{cell}: {std}"


SUITE = {"`DQS`": "dqs", "`SAC`": "sac", "`SAC` at 1e-3": "sac-1e-3", "`DQS` as published": "dqs-published"}
BASELINES = {
    "`DQS`": "dqs",
    "`DQS`, T a tenth of the standard deviation of Q throughout": "dqs-relative",
    "`SAC`, the same critic": "sac-same-critic",
    "`DQS`, plain critic, T annealed": "dqs-plain",
    "`SAC`, plain critic": "sac",
    "DQS as published, K = 100, 20 steps": "dqs-published",
    "`TD3`, plain critic": "td3",
    "`PPO`, plain critic": "ppo",
}
"""Names in the stored reports for the methods in the tables."""


def test_returns_on_the_suite_equal_the_measured_ones() -> None:
    report = report_of("dmc")
    rows = rows_of(DOCS / "results.md", "Control Suite")
    compared = set()
    for label, cells in rows.items():
        task, agent = label.split(", ")[:2]
        for column, frames in (("20,000 frames", "20,000"), ("40,000", "40,000"), ("100,000", "100,000")):
            if agent not in SUITE:  # a variant from another study
                continue
            key = (task, frames, SUITE[agent])
            if key in report:
                assert_rounded(cells[column], *report[key])
                compared.add(key)
            else:
                means = [mean for (_, *rest), (mean, _) in report.items() if tuple(rest) == key[1:]]
                assert task == "mean of the three tasks" and len(means) == 3
                assert_rounded(cells[column], sum(means) / 3, 0)
    assert compared == report.keys()


def test_returns_of_the_baselines_equal_the_measured_ones() -> None:
    report = report_of("baselines")
    rows = rows_of(DOCS / "results.md", "Baselines and methods on cartpole-swingup")
    assert rows.keys() == BASELINES.keys()
    for label, cells in rows.items():
        for column in ("10,000 frames", "25,000", "50,000"):
            assert_rounded(cells[column], *report["cartpole-swingup", column.split()[0], BASELINES[label]])


GOALS = {
    ("maze_temperature", "Four goals"): [
        "fixed", "snis", "plain", "fixed-high", "fixed-low", "annealed", "relative", "automatic", "sac",
    ],
    ("point_maze", "Two goals that are not observed"): ["soft", "soft-0.5", "plain-0.5", "sac-0.5"],
}  # fmt: skip
"""Variants of each sweep in the order of the table's rows."""


@pytest.mark.parametrize("study, heading", GOALS)
def test_counts_of_goals_equal_the_measured_ones(study: str, heading: str) -> None:
    lines = (ROOT / "benchmarks" / "results" / study / "table.md").read_text().splitlines()[2:]
    measured = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    rows = rows_of(DOCS / "results.md", heading)
    assert [list(cells.values()) for cells in rows.values()] == [measured[name] for name in GOALS[study, heading]]


TOGETHER = {
    "walker-tasks": {
        "walker-stand": "walker-stand",
        "walker-walk": "walker-walk",
        "walker-run": "walker-run",
        "mean of walker-tasks": None,
    },
    "three-bodies": {
        "cheetah-run": "cheetah-run",
        "walker-run, three-bodies": "walker-run",
        "hopper-stand": "hopper-stand",
        "mean of three-bodies": None,
    },
}
"""Rows of the table of several tasks for each agent, and their tasks."""


def test_returns_of_several_tasks_equal_the_measured_ones() -> None:
    rows, measured = rows_of(DOCS / "several.md", "Beside agents of one task"), result("several_tasks.json")
    assert sorted(rows) == sorted(name for names in TOGETHER.values() for name in names)
    for label, names in TOGETHER.items():
        for name, task in names.items():
            ours, pooled = (measured[label][method] for method in ("dqs", "dqs-pooled"))
            ours, pooled = (row["tasks"][task] if task else row["mean"] for row in (ours, pooled))
            means = ours["apart"]["mean"], ours["together"]["mean"], pooled["together"]["mean"]
            assert [int(cell) for cell in rows[name].values()] == [round(mean) for mean in means]
    text = (DOCS / "several.md").read_text() + README.read_text()
    ratios = [f"{measured[label]['dqs']['ratio']:.2f}" for label in TOGETHER]
    assert text.count(f"{' and '.join(ratios)} times the mean") == 2


def test_values_of_the_sum_of_two_tasks_equal_the_measured_ones() -> None:
    pairs = result("composition.json")["pairs"]
    rows = rows_of(DOCS / "several.md", "The sum of two tasks, without training")
    assert len(rows) == len(pairs)
    for pair, found in pairs.items():
        optimum, composed, bound, share = rows[pair.replace("+", " + ")].values()
        assert (optimum, composed) == (f"{found['optimum']:.3f}", f"{found['composed']:.3f}")
        assert bound == f"{found['bound']:.2f}" and share == (f"{found['shares'][1]:.2f}" if "shares" in found else "")


def test_goals_of_the_exact_soft_sum_equal_the_measured_ones() -> None:
    pairs = result("composition.json")["pairs"]
    upper, diagonal = (
        f"{pairs[f'left-side+{other}']['sampled_shares'][1]:.2f}" for other in ("upper-side", "diagonal")
    )
    text = " ".join((DOCS / "several.md").read_text().split())
    assert f"in {upper} of the episodes of left-side + upper-side and in {diagonal} of left-side + diagonal" in text


LEARNED = ("sampled", "distilled", "distilled, best of 16")


def test_returns_of_the_learned_sum_equal_the_measured_ones() -> None:
    pairs = result("composition.json")["pairs"]
    rows = rows_of(DOCS / "several.md", "The sum of two tasks, without training", table=1)
    assert len(rows) == len(pairs) * len(LEARNED)
    for pair, found in pairs.items():
        for name in LEARNED:
            seeds, common, optimum, value, ms = rows[f"{pair.replace('+', ' + ')}, {name}"].values()
            measured = [run[name] for run in found["learned"]]
            shares = [run["goal_shares"][1] for run in measured] if "shares" in found else []
            assert seeds == str(len(measured)) and common == shown(shares, 2)
            assert (optimum, value) == (
                f"{found['optimum_of_episode']:.3f}",
                shown([run["return"] for run in measured], 3),
            )
            assert ms == f"{fmean(run['decision_ms'] for run in measured):.0f}"


def shown(values: list[float], digits: int) -> str:
    """Returns the mean of several seeds and their range, one value alone, or nothing of none."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    return f"{fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


STARTS = {
    "nothing": "",
    "everything": "-from",
    "the policy": "-from-policy",
    "the critics": "-from-critics",
    "everything, a high temperature at first": "-from-high-temperature",
}
"""Rows of the tables of transfer, and the ends of the variants' names."""


def test_returns_of_transfer_equal_the_measured_ones() -> None:
    for table, (task, found) in enumerate(result("transfer/transfer.json").items()):
        rows = rows_of(DOCS / "several.md", "From one task to the next", table=table)
        assert rows.keys() == STARTS.keys(), task
        for label, cells in rows.items():
            expected = []
            for agent in ("dqs", "sac"):
                measured = found[agent + STARTS[label]]
                expected += [spread(measured[name]) for name in ("start", "area", "last")]
                reached = measured["frames_to_last_of_scratch"]
                expected += ["no" if reached is None else f"{reached:,}"]
            assert list(cells.values()) == expected, f"{task}, {label}"


def spread(values: dict[str, float | None]) -> str:
    """Returns a mean and its standard deviation over seeds; one seed has none."""
    return f"{values['mean']:.0f}" + (f" ± {values['std']:.0f}" if values["std"] is not None else "")


UPDATES = {
    "SAC of Stable-Baselines3": "sb3_sac",
    "TorchRL's SACLoss, SoftUpdate, fused Adam": "torchrl_sac",
    "the default with squared errors: `MultiStart`, K = 8, 64 states of 4 points, 6 steps": "default",
    "the same, `--model.compile_losses=true`": "compiled",
    "plain: with SAC's critic and a fixed temperature": "plain",
    "plain, `--model.compile_losses=true`": "plain_compiled",
    "the same, 32 states": "compiled_32_states",
    "plain in float32 throughout": "float32",
    "plain, 10 sampler steps": "10_steps",
    "plain, K = 16": "k16",
    "plain, K = 64": "k64",
    "plain, 8 points a state": "8_points",
    "plain, 32 states": "32_states",
    "plain, `GuidedDefensive`": "guided_defensive",
    "plain, `Importance`": "importance",
    "plain, `PosteriorMode`": "posterior_mode",
    "plain, `Soft` backup, 64 candidates": "soft_backup",
    "plain, `SoftPolicyValue` backup": "entropic_backup",
    "plain, the published estimator, K = 100, 20 steps": "published_k100",
    "plain, the published estimator, K = 1000, 20 steps": "published_k1000",
}
"""Names in benchmarks/results/update.json for the rows of the table."""


def test_update_rates_equal_the_measured_ones() -> None:
    measured = result("update.json")
    seconds, floors = measured["median_s"], measured["floor"]
    rows = rows_of(DOCS / "results.md", "One update")
    assert rows.keys() == UPDATES.keys()
    for label, cells in rows.items():
        taken = seconds[UPDATES[label]]
        assert cells["updates per CPU-second"] == f"{1 / taken:.1f}", label
        assert cells["rate against Stable-Baselines3's SAC"] == f"{seconds['sb3_sac'] / taken:.2f}", label
        if floor := floors.get(UPDATES[label]):
            assert cells["GFLOP"] == f"{floor['operations'] / 1e9:.2f}", label
            assert cells["floor / time"] == f"{floor['share']:.2f}", label


def test_gains_of_threads_equal_the_measured_ones() -> None:
    rows = rows_of(DOCS / "results.md", "Threads")
    measured = {str(row["width"]): row for row in result("threads.json")["rows"]}
    assert rows.keys() == measured.keys()
    for width, cells in rows.items():
        one, two = (measured[width]["median_s"][threads] for threads in ("1", "2"))
        assert cells["ms with one thread"] == f"{one * 1e3:.1f}"
        assert cells["rate of two threads against one"] == f"{one / two:.2f}"
        assert cells["chosen"] == str(measured[width]["chosen"])


def test_rates_of_simulators_are_those_measured() -> None:
    rows = rows_of(DOCS / "results.md", "Simulators")
    measured = {(r["task"], r["num_envs"], r["environment"]): r for r in result("simulators.json")["rows"]}
    assert len(rows) == 6
    for label, cells in rows.items():
        ((task, number, environment),) = re.findall(r"(\S+), (\d+) environments, `(\w+)`", label)
        row, beside = measured[task, int(number), environment], measured[task, int(number), "DMControl"]
        assert cells["frames per CPU-second"] == f"{row['frames_per_cpu_s']:.0f}"
        assert cells["of `DMControl`"] == f"{beside['frames_per_cpu_s']:.0f}"
        assert (
            cells["ratio"] == f"{row['of_dm_control']:.2f}" and cells["s of compiling"] == f"{row['compiling_s']:.0f}"
        )


ACTIONS = {
    "eager": "eager",
    "torch.compile of the exported graph": "compile",
    "ONNX Runtime": "onnx",
    "the torch.export package, run by Python": "export",
    "eager, 5 steps": "eager_5_steps",
    "ONNX Runtime, 5 steps": "onnx_5_steps",
    "`predict` of Stable-Baselines3's SAC, eager": "sb3_sac",
}


def test_times_of_an_action_equal_the_measured_ones() -> None:
    measured = result("acting.json")["median"]
    rows = rows_of(DOCS / "results.md", "One action")
    assert rows.keys() == ACTIONS.keys()
    for label, cells in rows.items():
        for batch in (1, 64):
            assert cells[f"batch {batch}"] == f"{measured[ACTIONS[label]][f'batch_{batch}_ms']:.2f}", label


def test_rates_of_seeds_in_one_process_equal_the_measured_ones() -> None:
    measured = result("seeds.json")["updates_per_s"]
    rows = rows_of(DOCS / "results.md", "Several seeds in one process")
    assert rows.keys() == measured.keys()
    for seeds, cells in rows.items():
        batched, turns, ratio = (measured[seeds][name] for name in ("batched", "turns", "ratio"))
        assert cells == {"batched": f"{batched:.1f}", "in turns": f"{turns:.1f}", "ratio": f"{ratio:.2f}"}


# Commands on the pages


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


PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "dqs-eval": evaluate.parse,
    "dqs-export": export.parse,
    "dqs-report": report.parse,
    "dqs-sweep": sweep.parse,
}


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], None]:
    """Asserts that `dqs-fit` accepts the given arguments, without starting a run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DQS_RUN_DIR", "")  # a run sets it; monkeypatch restores it afterwards
    monkeypatch.delenv("DQS_RUN_DIR")

    def call(arguments: list[str]) -> None:
        extra = [] if any(".help" in argument or argument == "--help" for argument in arguments) else ["--print_config"]
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *arguments, *extra])
        try:
            code = fit.main()
        except SystemExit as stop:
            code = stop.code
        assert code == 0, capsys.readouterr().err

    return call


@pytest.mark.parametrize("words", [c for c in commands() if not needs_example(c)], ids=lambda words: shlex.join(words))
def test_command_lines_are_accepted(words: tuple[str, ...], accepted: Callable[[list[str]], None]) -> None:
    command, *arguments = words
    if command == "dqs-fit":
        accepted(arguments)
    else:
        PARSERS[command](arguments)


@pytest.mark.parametrize("text", fenced("yaml"))
def test_configurations_are_accepted(text: str, accepted: Callable[[list[str]], None], tmp_path: Path) -> None:
    """Each is a file to be added to a task's configuration, a file that extends one in configs/, or a sweep."""
    content = yaml.safe_load(text)
    file = tmp_path / "mine.yaml"
    if "seeds" in content:
        file.write_text(yaml.safe_dump({**content, "config": str(ROOT / "configs" / content["config"])}))
        assert sweep.main([str(file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    elif "extends" in content:
        file.write_text(yaml.safe_dump({**content, "extends": str(ROOT / "configs" / content["extends"])}))
        accepted(["--config", str(file)])
    else:
        file.write_text(text)
        accepted(["--config", str(ROOT / "configs" / "walker.yaml"), "--config", str(file)])


@pytest.mark.parametrize("text", fenced("python"))
def test_python_blocks_compile(text: str) -> None:
    compile(text, "page", "exec")


# The examples as an installed package provides them: by entry points, in new processes


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
