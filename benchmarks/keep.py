"""Keep of runs what a result must carry: scores, counts, environment, configuration; not where they lay.

    python benchmarks/keep.py runs/sweeps/baselines --out benchmarks/results/baselines

Each argument is a run directory or a folder of them, such as a sweep's; what lies below it keeps its place.
`dqs-report` draws such results as it does the runs themselves.
"""

import argparse
import re
from pathlib import Path

KEPT = ("scores.jsonl", "goals.jsonl", "env.json", "config.yaml")


def keep(run: Path, target: Path, names: tuple[str, ...] = KEPT) -> None:
    """Copy what a run has of the named files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (run / name).exists():
            (target / name).write_text(without_place((run / name).read_text()))


def without_place(text: str) -> str:
    """Where runs and configurations lay on the machine that made them is no part of a result."""
    return re.sub(r"(?<![\w.])/[^\s\"']*?/((?:runs|configs)/[^\s\"']*)", r"\1", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for given in options.runs:
        for file in sorted(given.rglob("scores.jsonl")):
            keep(file.parent, options.out / file.parent.relative_to(given))
            print(options.out / file.parent.relative_to(given))


if __name__ == "__main__":
    main()
