"""Composes the files of a report: a page that includes its pictures, tables in Markdown, pictures, and a summary."""

import base64
import json
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment

from dqs_lightning.cli.escape import markdown
from dqs_lightning.cli.report.command import MADE_BY, SUMMARY
from dqs_lightning.cli.report.files import KEYS, TEXTS
from dqs_lightning.cli.report.measure import Report
from dqs_lightning.cli.report.notes import notes_on
from dqs_lightning.cli.report.pictures import pictures_of
from dqs_lightning.cli.report.statistics import costs, summary
from dqs_lightning.cli.report.tables import tables_of


def compose(report: Report) -> dict[str, bytes]:
    """Returns the files of a report by name, the summary first."""
    made = f"Made by {report.command} (dqs-lightning {version('dqs-lightning')})."
    tables, pictures, notes = tables_of(report), pictures_of(report), notes_on(report)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (files("dqs_lightning.cli.report") / "report.html.j2").read_text(),
        {"base64": lambda content: base64.b64encode(content).decode()},
    )
    names = {f"{key}s": list(report.scores[key].unique()) for key in ("task", "method")}
    page = template.render(**names, runs=report.runs, notes=notes, made=made, pictures=pictures, tables=tables)
    content = {
        "report.html": page.encode(),
        "table.md": "\n\n".join([*(table.markdown() for table in tables), markdown(made), ""]).encode(),
        **{picture.name: picture.content for picture in pictures},
    }
    return {SUMMARY: (json.dumps(_summary(report, notes, [SUMMARY, *content]), indent=1) + "\n").encode(), **content}


def _summary(report: Report, notes: list[str], names: list[str]) -> dict[str, Any]:
    """Returns everything in a report as plain values; a number that there is not is None."""
    return {
        "made_by": MADE_BY,
        "files": names,
        "command": report.command,
        "baseline": report.baseline,
        "max_return": report.options.max_return,
        "notes": notes,
        "scores": _rows(summary(report.points)),
        "returns": _rows(report.points),
        "cost": _rows(costs(report.scores)),
        "published": _rows(report.published),
        "decision_ms": [[*key, *times] for key, times in report.decisions.items()],
        "runs": [{name: getattr(run, name) for name in (*KEYS, *TEXTS)} for run in report.runs],
        "aggregates": [
            {"frames": one.frames, "tasks": one.tasks, "methods": _rows(one.table.reset_index(names="method"))}
            | {"profiles": {name: _rows(share.reset_index(names="level")) for name, share in one.profiles.items()}}
            for one in report.aggregates
        ],
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows
