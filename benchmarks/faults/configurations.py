"""A wrong configuration is refused with exit code 2 in a few lines, before anything starts or is written.

PYTHONPATH=benchmarks python -m faults.configurations

Mutates the shipped configurations, and misspells their keys and component names by one edit at every nesting level.
`dqs-fit` runs in this process up to the moment at which it would start an environment, which counts as accepted.
"""

import argparse
import contextlib
import copy
import functools
import io
import json
import os
import string
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from provenance import about

from dqs_lightning.cli import fit
from dqs_lightning.cli.parser import BASES
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.registry import components

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "faults" / "configurations.json"
CONFIGS = ROOT / "configs"
EXAMPLES, SEED = 1000, 0
MAX_LINES = 5
LEAST_RATE = 0.95
"""Share of misspellings for which the right name must be suggested."""

NAMES = sorted({name for base in BASES for name in components(base)})
JUNK: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 10**12, 10**400, 0.5, -0.5, 1e300, float("nan"), float("inf"), float("-inf"),
    "", " ", "null", "nan", "1e6", "x" * 5000, "ä€😀", "\x1b[31m", "a\nb", "\u202e", "%s{}", "-", "--help", "~",
    "${data.num_envs}", "${nope}", "${", "${oc.env:DQS_NO_SUCH}", "${model}", "../../x", "os.system", "builtins.exec",
    [], [None], [[[[1]]]], ["a", 1], {}, {"a": 1}, {"class_path": None}, {"class_path": "os.system"},
    {"class_path": "DQS", "init_args": None}, {"init_args": {"x": 1}}, {"dict_kwargs": {"x": 1}},
]  # fmt: skip


class Accepted(BaseException):
    """Raised when a run would start its first environment."""


class Seen(NamedTuple):
    """The result of a command.

    Attributes:
        code: the exit code; "accepted" where an environment would have started; "traceback".
        text: standard error, or the traceback.
        left: files that it wrote.
    """

    code: int | str
    text: str
    left: list[str]

    @property
    def problem(self) -> str:
        """A short description of the problem; empty if there is none."""
        if self.code not in (0, 2, "accepted"):
            return str(self.code)
        if self.left:
            return "files written"
        lines = self.text.strip().splitlines()
        if self.code == 2 and not (lines and lines[0].startswith("dqs-fit: ") and len(lines) <= MAX_LINES):
            return "message too long, or none"
        return ""


def attempt(*arguments: str) -> Seen:
    """Run `dqs-fit` in this process and in the working folder until it would start an environment."""

    def start(data: OnlineData) -> None:
        raise Accepted

    before, err = set(os.listdir()), io.StringIO()
    environment = {name: value for name, value in os.environ.items() if name != "DQS_RUN_DIR"}
    with (
        mock.patch.object(OnlineData, "_dimensions", property(start)),
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["dqs-fit", *arguments]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(err),
    ):
        try:
            code: int | str = fit.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else str(stop.code)
        except Accepted:
            code = "accepted"
        except Exception:  # counted as a traceback, which is always a problem
            code = "traceback"
            err.write(traceback.format_exc())
    return Seen(code, err.getvalue(), sorted(set(os.listdir()) - before))


TASKS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("methods", "sweeps"))
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
SHIPPED = [(task,) for task in TASKS] + [(CONFIGS / "walker.yaml", method) for method in METHODS]


@functools.cache
def whole(files: tuple[Path, ...]) -> dict[str, Any]:
    """Merge configuration files into one mapping of all settings that are not null, with short class names."""
    out = io.StringIO()
    arguments = [word for file in files for word in ("--config", str(file))]
    argv = ["dqs-fit", *arguments, "--print_config"]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        fit.main()

    def short(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: short(item, name) for name, item in value.items() if item is not None}
        if isinstance(value, list):
            return [short(item) for item in value]
        return value.rpartition(".")[2] if key == "class_path" else value

    found: dict[str, Any] = short(yaml.safe_load(out.getvalue()))
    return found


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every node but the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


class Mutation(NamedTuple):
    """A configuration with changes.

    Attributes:
        content: the file.
        options: command line options after the file.
        made: descriptions of the changes.
    """

    content: bytes
    options: list[str]
    made: list[str]


def mutation(rng: Random) -> Mutation:
    """Make a shipped configuration with one to three changes in the file, or in options after it."""
    tree = copy.deepcopy(whole(rng.choice(SHIPPED)))
    made, options = [], []
    if rng.randint(0, 3) == 0:
        for _ in range(rng.randint(1, 3)):
            options.append(odd_option(rng, tree))
        return Mutation(yaml.safe_dump(tree, sort_keys=False).encode(), options, options)
    for _ in range(rng.randint(1, 3)):
        made.append(change(rng, tree))
    content = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode()
    lines = content.splitlines()
    kind = rng.choice(["whole"] * 7 + ["duplicate", "cut", "byte"])
    index = rng.randint(0, max(len(content if kind in ("cut", "byte") else lines) - 1, 0))
    if kind == "duplicate" and lines:
        content = b"\n".join([*lines[: index + 1], lines[index], *lines[index + 1 :]])
    if kind == "cut":
        content = content[:index]
    if kind == "byte" and content:
        content = content[:index] + bytes([rng.randint(0, 255)]) + content[index + 1 :]
    return Mutation(content, [], made if kind == "whole" else [*made, f"{kind} at {index}"])


def change(rng: Random, tree: dict[str, Any]) -> str:
    """Change a tree at one place; returns a description of the change."""
    nodes = list(places(tree))
    if not nodes:
        return "nothing is left"
    kind = rng.choice(["delete", "replace", "replace", "insert", "swap", "class"])
    named = [node for node in nodes if node[-1] == "class_path"]
    path = rng.choice(named if kind == "class" and named else nodes)
    holder, key = at(tree, path[:-1]), path[-1]
    junk = copy.deepcopy(rng.choice(JUNK))
    where = ".".join(map(str, path))
    if kind == "delete":
        del holder[key]
        return f"{where} deleted"
    if kind == "insert" and isinstance(holder, dict):
        name = rng.choice(["x", "", "a.b", "tau", "seed", "model", "init_args", "extends", "callbacks+"])
        holder[name] = junk
        return f"{name}={junk!r:.200} beside {where}"
    if kind == "swap":
        other = rng.choice(nodes)
        if other[: len(path)] != path and path[: len(other)] != other:
            there = at(tree, other[:-1])
            holder[key], there[other[-1]] = there[other[-1]], holder[key]
            return f"{where} exchanged with {'.'.join(map(str, other))}"
    if kind == "class":
        junk = rng.choice([*NAMES, "payload.X", "torch.nn.Linear", "."])
    holder[key] = junk
    return f"{where}={junk!r:.200}"


def odd_option(rng: Random, tree: dict[str, Any]) -> str:
    """Make an option for a setting of a tree, with an unusual value."""
    path = rng.choice([path for path in places(tree) if isinstance(path[-1], str)])
    name = ".".join(str(key) for key in path)
    name = rng.choice([name, name.replace(".init_args", ""), name + "+", name + ".help", name[:-2], "-x"])
    junk = rng.choice([*JUNK, *NAMES])
    return f"--{name}={junk if isinstance(junk, str) else json.dumps(junk)}"


class Misspelling(NamedTuple):
    """A configuration with one misspelt name.

    Attributes:
        content: the file.
        options: command line options after the file.
        meant: the name that must be suggested.
    """

    content: str
    options: list[str]
    meant: str


def misspelling(rng: Random) -> Misspelling:
    """Make a shipped configuration with a misspelt key or component name, in the file or in an option."""
    tree = copy.deepcopy(whole(rng.choice(SHIPPED)))
    nodes = [path for path in places(tree) if isinstance(path[-1], str)]
    path = rng.choice(nodes)
    short = [str(key) for key in path if key not in ("init_args", "class_path")]
    value = at(tree, path)
    content = yaml.safe_dump(tree, sort_keys=False)
    component = isinstance(value, str) and value in NAMES
    if component and rng.random() < 0.5:
        wrong = edited(rng, value)
        if rng.random() < 0.5 and "callbacks" not in path:
            return Misspelling(content, [f"--{'.'.join(short)}={wrong}"], value)
        at(tree, path[:-1])[path[-1]] = wrong
        return Misspelling(yaml.safe_dump(tree, sort_keys=False), [], value)
    wrong = edited(rng, path[-1])
    plain = path[-1] not in ("init_args", "class_path")
    if plain and "callbacks" not in path and not isinstance(value, dict | list) and rng.random() < 0.5:
        return Misspelling(content, [f"--{'.'.join([*short[:-1], wrong])}={value}"], f"--{'.'.join(short)}")
    holder = at(tree, path[:-1])
    items = [(wrong if key == path[-1] else key, item) for key, item in holder.items()]
    holder.clear()
    holder.update(items)
    return Misspelling(yaml.safe_dump(tree, sort_keys=False), [], ".".join(short if plain else [*short, path[-1]]))


def edited(rng: Random, name: str) -> str:
    """Edit a name: insert, delete or replace one character, or swap it with its neighbour."""
    kind, index = (
        rng.choice(["insert", "delete", "replace", "exchange"]),
        rng.randint(0, len(name) - 1),
    )
    letter = rng.choice(string.ascii_lowercase + string.digits + "_")
    if kind == "insert":
        wrong = name[:index] + letter + name[index:]
    elif kind == "delete" and len(name) > 1:
        wrong = name[:index] + name[index + 1 :]
    elif kind == "exchange" and index + 1 < len(name):
        wrong = name[:index] + name[index + 1] + name[index] + name[index + 2 :]
    else:
        wrong = name[:index] + letter + name[index + 1 :]
    return wrong if wrong.lower() != name.lower() else f"{name}_"


def each(make: Callable[[Random], Any], examples: int, see: Callable[[Any], None], start: int = SEED) -> None:
    """Call `see` with reproducible examples, each made with its own random generator."""
    examined = given(st.integers(0, 2**64 - 1))(lambda number: see(make(Random(number))))
    settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(seed(start)(examined))()


def count_mutations(examples: int) -> tuple[Counter[str], list[dict[str, str]]]:
    """Count mutations by exit code; returns the counts and the cases with a problem."""
    counts, problems = Counter[str](), list[dict[str, str]]()

    def see(case: Mutation) -> None:
        Path("mine.yaml").write_bytes(case.content)
        seen = attempt("--config", "mine.yaml", *case.options)
        counts[str(seen.code)] += 1
        if seen.problem:
            problems.append({"problem": seen.problem, "made": "; ".join(case.made), "said": seen.text[-1500:]})

    each(mutation, examples, see)
    return counts, problems


def count_misspellings(examples: int) -> tuple[Counter[str], list[dict[str, str]], list[dict[str, str]]]:
    """Count misspellings by outcome; returns counts, cases with a problem, and cases without the right suggestion."""
    counts, problems, missed = Counter[str](), list[dict[str, str]](), list[dict[str, str]]()

    def see(case: Misspelling) -> None:
        Path("mine.yaml").write_text(case.content)
        seen = attempt("--config", "mine.yaml", *case.options)
        right = f"Did you mean {case.meant}?" in seen.text.splitlines()
        counts["right suggestion" if right else "other"] += 1
        counts[str(seen.code)] += 1
        row = {"meant": case.meant, "options": " ".join(case.options), "said": seen.text[-1500:]}
        if seen.problem:
            problems.append({"problem": seen.problem, **row})
        if not right:
            missed.append(row)

    each(misspelling, examples, see)
    return counts, problems, missed


def main() -> int:
    """Count, write the results, and return 1 if a command had a problem or too few suggestions were right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--jobs", help="not used: the commands run in this process")
    options = parser.parse_args()
    out = options.out.absolute()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        mutated, problems = count_mutations(options.examples)
        misspelt, further, missed = count_misspellings(options.examples)
    rate = misspelt["right suggestion"] / sum(misspelt[key] for key in ("right suggestion", "other"))
    wrong = [*problems, *further]
    result = {
        "study": "configurations",
        "guarantee": __doc__.strip().splitlines()[0],
        "cells": 2 * options.examples,
        "passed": 2 * options.examples - len(wrong),
        "processes": 0,
        "seed": SEED,
        "mutations": dict(sorted(mutated.items())),
        "misspellings": dict(sorted(misspelt.items())),
        "right_suggestions": round(rate, 4),
        "tracebacks": mutated["traceback"] + misspelt["traceback"],
        "problems": wrong,
        "missed": missed,
        **about(),
        "command": f"PYTHONPATH=benchmarks python -m faults.configurations --examples {options.examples}",
        **{name: version(name) for name in ("jsonargparse", "omegaconf", "lightning", "hypothesis")},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"mutations {dict(mutated)}  misspellings {dict(misspelt)}  right suggestions {rate:.1%}  {len(wrong)} problems"
    )
    return int(bool(wrong) or rate < LEAST_RATE)


if __name__ == "__main__":
    sys.exit(main())
