"""Reports of runs with arbitrary file contents: either refused in a few lines or complete; no code is run."""

import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report import command as report
from dqs_lightning.cli.report import measure as measured_report
from dqs_lightning.cli.report.files import RANGES, read_scores, write_study
from dqs_lightning.cli.report.measure import measure
from dqs_lightning.cli.report.page import notes_on
from dqs_lightning.cli.report.runs import read_runs
from dqs_lightning.cli.report.tables import tables_of

FILES = ("scores.jsonl", "run.json", "metrics.csv", "manifest.json")
ROWS = [
    {"env_frames": 1000 * n, "updates": 500 * n, "wall_s": 10.0 * n, "episodes": 10, "return_mean": 100.0 * n}
    for n in (1, 2)
]
START = {"python": "3.11", "torch": "2.13", "commit": "01" * 20, "command": ["dqs-fit", "--config=a.yaml"]}
FACTS = {
    "task": "walker-walk",
    "method": "dqs",
    "seed": 3,
    "action_repeat": 2,
    "total_frames": 2000,
    "settings": {"model": {"init_args": {"lr": 0.1}}, "data": {"total_frames": 2000}, "evaluate": {"episodes": 10}},
    "starts": [START, {"commit": "23" * 20}],
}
SCRIPT = "<script>alert(1)</script>"
HOSTILE = [
    SCRIPT, '"><img src=x onerror=alert(1)>', "[link](javascript:alert(1))", "![](http://x/y.png)", "`code`", "a|b",
    "$\\frac{", "$x$", "_hidden", "\\write18{touch ran}", "\x1b[2Jgone\x07", "two\nlines", "\u202eright to left",
    "\ud800", "=cmd|' /C calc'!A0", "${oc.env:HOME}", "{{7*7}}", "%s%n", "../../etc/passwd", "x" * 5000, "语言", "😀",
    " ", "**bold**", "~~gone~~", "# head", "<!--", "&lt;", "[bold red]rich[/]", "\\", "$", "'", "--out=x",
]  # fmt: skip


def make(folder: Path, rows: Any = ROWS, facts: Any = FACTS) -> Path:
    """Writes a run directory with the given scores and metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "metrics.csv").write_text("step,time/updates_per_s\n1,40\n")
    return folder


def measured(folder: Path) -> bool:
    """Whether a report without its figures can be computed; errors other than InputError are passed on."""
    try:
        found = measure(read_runs([folder]), report.parse([str(folder), "--out=out", "--published=none"]))
    except InputError as error:
        assert len(str(error).splitlines()) <= 3 and len(str(error)) < 2000
        return False
    assert all(note.encode() for note in notes_on(found))
    assert all(table.markdown().encode() for table in tables_of(found))
    return True


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_the_unchanged_files_of_a_run_are_read(here: Path) -> None:
    assert measured(make(here / "run"))


def repeated(value: str, first: str) -> bytes:
    """Returns a few lines of YAML in which each value holds ten of the one before, 10^12 in all."""
    lines = [f"a0: &a0 {first}"]
    for n in range(1, 13):
        lines.append(f"a{n}: &a{n} " + value % ", ".join([f"*a{n - 1}"] * 10))
    return "\n".join(lines).encode()


CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "blank": b" \n\n",
    "binary": bytes(range(256)),
    "UTF-16": "a: 1".encode("utf-16"),
    "Latin-1": "name: caf\xe9".encode("latin-1"),
    "NUL": b"\0" * 100,
    "deep JSON": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep YAML": b"a: " + b"[" * 5000,
    "huge number": b"9" * 10_000,
    "huge hexadecimal number": b"data: {environment: {init_args: {domain: 0x" + b"f" * 10_000 + b", task: 1}}}",
    "huge seed": b"seed_everything: 0x" + b"f" * 10_000,
    "bad date": b"a: 2001-99-99",
    "list as a key": b"? [1, 2]\n: 3",
    "cycle": b"a: &a [*a]",
    "many aliases": repeated("[%s]", "x"),
    "many merges": repeated("{<<: [%s]}", "{x: 1}"),
    "Python object": b'a: !!python/object/apply:os.system ["touch ran"]',
    "BOM": "\ufeff[]".encode(),
    "long field": b"step,time/updates_per_s\n1," + b"x" * 200_000,
    "text": b"hello",
    "null": b"null",
    "number": b"1e999",
    "quote": b'"',
    "list": b"[]",
    "object": b"{}",
    "lists": b"[[]]",
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", FILES)
def test_a_run_file_with_arbitrary_content_is_refused_or_read(here: Path, name: str, content: bytes) -> None:
    run = make(here / "sweep" / "task" / "method" / "seed=0")
    (here / "sweep" / name if name == "manifest.json" else run / name).write_bytes(content)
    found = measured(here / "sweep")
    if name == "scores.jsonl":
        assert not found
    assert found or name != "manifest.json"  # the manifest holds only states
    assert not (here / "ran").exists()


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_study_with_arbitrary_content_is_refused(here: Path, content: bytes) -> None:
    write_study(read_runs([make(here / "run")]), here / "study")
    assert measured(here / "study")
    (here / "study" / "scores.csv").write_bytes(content)
    assert not measured(here / "study")


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "missing target", "device"])
@pytest.mark.parametrize("name", FILES[:3])
def test_anything_but_a_regular_file_is_refused(here: Path, name: str, kind: str) -> None:
    file = make(here / "run") / name
    file.unlink()
    match kind:
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "loop":
            file.symlink_to(file)
        case "missing target":
            file.symlink_to("nowhere")
        case "device":
            file.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"{name}: (must be a regular file|cannot be read: )"):
        read_runs([here / "run"])


def test_a_folder_without_read_permission_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(here / "run")
    (here / "run" / "locked").mkdir()
    walk = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root can read it whatever its mode
    with pytest.raises(InputError, match=r"run/locked: cannot be read: Permission denied"):
        read_runs([here / "run"])


@pytest.mark.parametrize("given", ["x" * 5000, "loop", "loop/below"])
def test_an_invalid_path_is_refused(here: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "loop").symlink_to(here / "loop")
    make(here / "run")
    assert report.main([given, "--out=out"]) == 2
    assert report.main(["run", f"--out={given}"]) == 2
    assert report.main(["run", "--out=out", "--name", f"{given}=x"]) == 2
    assert "Traceback" not in capsys.readouterr().err and os.listdir() == ["loop", "run"]


def test_cyclic_links_between_folders_are_not_followed_forever(here: Path) -> None:
    make(here / "runs" / "one")
    (here / "runs" / "one" / "up").symlink_to(here / "runs")
    assert [run.run for run in read_runs([here / "runs"])] == ["runs/one"]


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("value", [1e308, -1e308, 10**400, -1, True, "12", None, [1], {}, 1e101, float("inf")], ids=str)
def test_a_number_out_of_range_is_refused(here: Path, key: str, value: Any) -> None:
    folder = make(here / "run", rows=[{**ROWS[0], key: value}])
    if key == "return_mean" and value == -1:
        assert read_scores(folder / "scores.jsonl") == [[1000, 500, 10, 10, -1]]
        return
    with pytest.raises(InputError, match=rf"scores.jsonl, line 1: {key}=.*: must be (a |0 to |1 to |-1e\+100 to )"):
        read_scores(folder / "scores.jsonl")


numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 1, 10**15, 10**30, 10**400, 1e308, -1e308, 5e-324, 1e100]),
)  # fmt: skip
plain = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20), st.sampled_from(HOSTILE))
keys = st.text(max_size=8) | st.sampled_from(HOSTILE)
arbitrary = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Draws a copy of a value in which one part, at any depth, is replaced by an arbitrary value."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(arbitrary)
    if isinstance(value, list):
        index = draw(st.integers(0, len(value) - 1))
        return [draw(changed(item)) if at == index else item for at, item in enumerate(value)]
    key = draw(st.sampled_from(sorted(value)))
    return {name: draw(changed(part)) if name == key else part for name, part in value.items()}


QUICK = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(value=changed(ROWS))
def test_scores_with_arbitrary_values_are_refused_or_read(here: Path, value: Any) -> None:
    rows = value if isinstance(value, list) else [value]
    folder = make(here / "run", rows=rows)
    whole = all(isinstance(row, dict) and all(_allowed(row.get(key), key) for key in RANGES) for row in rows)
    assert not measured(folder) or (whole and rows)


def _allowed(value: Any, key: str) -> bool:
    low, high = RANGES[key]
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


@QUICK
@given(facts=changed(FACTS))
def test_metadata_with_arbitrary_values_is_refused_or_read(here: Path, facts: Any) -> None:
    assert measured(make(here / "run", facts=facts)) or facts != FACTS


@QUICK
@given(starts=changed([START, START]))
def test_entries_of_starts_are_read_if_they_are_objects(here: Path, starts: Any) -> None:
    records = isinstance(starts, list) and all(isinstance(start, dict) for start in starts)
    assert measured(make(here / "run", facts={**FACTS, "starts": starts})) == records


@settings(QUICK, max_examples=4)
@given(
    rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3), names=st.lists(plain, min_size=4, max_size=4)
)
def test_a_report_is_written_completely_or_not_at_all(
    here: Path, rows: list[tuple[Any, Any]], names: list[Any]
) -> None:
    """Tests two methods with arbitrary names and returns."""
    for method in (0, 1):
        scores = [{**ROWS[0], "env_frames": 1000 * n, "return_mean": row[method]} for n, row in enumerate(rows, 1)]
        facts = {"task": f"{names[0]}-{names[1]}", "method": f"{method}{names[2 + method]}"}
        make(here / "runs" / str(method), rows=scores, facts={**FACTS, **facts})
    code = report.main(["runs", "--out=out"])
    written = sorted(os.listdir("out")) if Path("out").exists() else []
    if code == 0:
        assert written == sorted(json.loads(Path("out/summary.json").read_text())["files"]) and len(written) in (6, 8)
        for name in written:
            (here / "out" / name).unlink()
    else:
        assert code == 2 and written == []


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def tags(page: str) -> list[str]:
    parser = Tags()
    parser.feed(page)
    return parser.tags


def test_names_are_escaped_in_html_markdown_and_terminal_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compares hostile and harmless values of task, method, folder, commit, versions, command and state."""
    mixed = [" ".join(name for name in HOSTILE[start::3] if len(name) < 100) for start in range(3)]
    for place, names in (("tame", ["name"] * 3), ("hostile", mixed)):
        for index, name in enumerate(names):
            start = {"commit": name, "python": name, "torch": name, "command": ["dqs-fit", name]}
            facts = {"task": f"{index}{name}", "method": f"{index % 2}{name}", "seed": index, "starts": [start]}
            make(here / place / str(index), facts={**FACTS, **facts})
        make(here / place / "<b>\x1b[31m", facts={**FACTS, "seed": 99})
        assert report.main([place, f"--out={place} out", "--published=none"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed and "[bold red]rich[/]" in printed
    pages = {name: (here / f"{name} out" / "report.html").read_text() for name in ("tame", "hostile")}
    assert set(tags(pages["hostile"])) == set(tags(pages["tame"]))
    text = (here / "hostile out" / "table.md").read_text()
    assert not re.search(r"<(?!/?b>$)\w", text.replace("\\<", "")) and "<script" not in text and "<img" not in text
    assert "javascript:" in text and not re.search(r"(?<!\\)\[[^\]\\]*\]\(", text)
    assert (
        re.search(r"\\`code\\`", text) and "a\\|b" in text and "\\*\\*bold\\*\\*" in text and "&lt;script&gt;" in text
    )
    for content in (text, pages["hostile"]):
        assert "\x1b" not in content and "\u202e" not in content


@pytest.mark.parametrize("option", [["--frame", "1000"], ["--base=dqs"], ["--time"], ["--max=1"]])
def test_abbreviated_options_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["runs", "--out=out", *option])
    assert f"unrecognized arguments: {option[0]}" in capsys.readouterr().err


def test_a_full_disk_keeps_the_earlier_report(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"summary.json": json.dumps({"made_by": "dqs-report", "files": ["summary.json", "old.png"]}).encode()}
    report.write(here / "out", {**old, "old.png": b"old"}, set())
    (here / "out" / f"{report.UNFINISHED}killed").mkdir()
    written: list[Path] = []

    def full(self: Path, content: bytes) -> None:
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        with self.open("wb") as stream:
            stream.write(content)

    make(here / "run")
    monkeypatch.setattr(Path, "write_bytes", full)
    assert report.main(["run", "--out=out"]) == 2
    assert "dqs-report: --out=out: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert sorted(os.listdir(here / "out")) == ["old.png", "summary.json"] and len(written) == 3
    assert (here / "out" / "old.png").read_bytes() == b"old"


def test_more_tasks_than_fit_in_a_figure_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measured_report, "MOST", 2)
    for index in range(3):
        make(here / "runs" / str(index), facts={**FACTS, "task": str(index)})
    assert report.main(["runs", "--out=out"]) == 2
    assert "RUNS: 3 tasks; a report has room for 2" in capsys.readouterr().err
