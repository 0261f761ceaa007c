"""Reports: how runs are identified, what the page contains, and which input is refused. Nothing is trained."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.provenance import method_of
from dqs_lightning.cli.report import command as report
from dqs_lightning.cli.report.files import write_study
from dqs_lightning.cli.report.measure import DRAWN, choose_published, read_published, suite_name
from dqs_lightning.cli.report.runs import read_runs
from dqs_lightning.cli.report.statistics import tidy
from dqs_lightning.envs.dm_control import NOT_INSTALLED
from dqs_lightning.sharing.text import without_place

AT = (60_000, 100_000, 120_000)


def make(
    folder: Path,
    returns: Sequence[float] = (10.0, 20.0, 30.0),
    seed: int = 0,
    method: str = "",
    task: str = "walker-walk",
    command: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Writes a run directory as dqs-fit does."""
    folder.mkdir(parents=True)
    rows = [
        {"env_frames": frames, "updates": frames // 2, "wall_s": frames / 100, "episodes": 10, "return_mean": value}
        for frames, value in zip(AT, returns, strict=False)
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {"python": "3.11.7", "torch": "2.13.0", "commit": "0123456789abcdef" * 2 + "01234567"}
    facts = {
        "task": task,
        "method": method_of(folder, method or "dqs"),
        "seed": seed,
        "action_repeat": 2,
        "total_frames": 120_000,
        "settings": {"model": {"init_args": settings}, "data": {"total_frames": seed}},
        "starts": [{**start, "command": ["dqs-fit", *command]}],
    }
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def sweep(out: Path) -> Path:
    """Writes a sweep of two variants, two seeds and two tasks; one run was stopped, and one has no evaluation."""
    states = {}
    for task in ("walk", "run"):
        for variant, base in (("soft", 400.0), ("sac", 200.0)):
            for seed in (0, 1):
                name = f"walker-{task}/{variant}/seed={seed}"
                returns = (base + seed, base + 50 + 10 * seed, base + 100.25 + seed)
                words = ["--config", "/home/one/dqs/configs/walker.yaml", f"--run_dir={out}/{name}", "--ckpt_path=auto"]
                make(out / name, returns, seed, task=f"walker-{task}", command=words)
                states[name] = {"state": "stopped" if name == "walker-run/sac/seed=1" else "done"}
    (out / "walker-walk" / "soft" / "seed=0" / "metrics.csv").write_text("step,time/updates_per_s\n1,\n2,40\n3,44\n4,")
    states["walker-run/sac/seed=2"] = {"state": "failed"}
    (out / "manifest.json").write_text(json.dumps({"runs": states}))
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the sweep above, made from an absolute path."""
    place = tmp_path_factory.mktemp("place")
    runs = sweep(place / "runs" / "sweeps" / "mine")
    assert report.main([str(runs), f"--out={place}/report"]) == 0
    return place / "report"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def identified(paths: Sequence[Path], names: dict[Path, str] | None = None) -> list[tuple[str, str, int]]:
    return [(run.task, run.method, run.seed) for run in read_runs(paths, names)]


def test_the_method_name_of_a_run_is_set_when_it_starts_and_can_be_overridden(here: Path) -> None:
    assert method_of(Path("runs/sweeps/s/walker/T0.1/seed=3"), "dqs") == "T0.1"
    assert method_of(Path("runs/walker-walk/mine/20260101-120000"), "dqs") == "mine"
    assert method_of(Path("runs/walker-walk/mine/20260101-120000-2"), "dqs") == "mine"
    assert method_of(Path("runs/w-0"), "sac") == method_of(Path("seed=0"), "sac") == "sac"
    make(Path("runs/sweeps/s/walker/T0.1/seed=3"), seed=3)
    make(Path("runs/w-0"), seed=5, method="sac", task="ball_in_cup-catch")
    Path("runs/sweeps/s/walker/T0.1/seed=3").rename("runs/moved")
    assert identified([Path("runs")]) == [("ball_in_cup-catch", "sac", 5), ("walker-walk", "T0.1", 3)]
    assert identified([Path("runs/w-0")]) == identified([Path("runs/w-0"), Path("runs/w-0/..", "w-0")])
    assert [run.run for run in read_runs([here / "runs" / "w-0", Path("runs")])] == ["w-0", "runs/moved"]
    named = identified([Path("runs")], {Path("runs"): "x", here / "runs" / "moved": "other/y"})
    assert named == [("ball_in_cup-catch", "x", 5), ("other", "y", 3)]  # the deeper of two paths takes precedence


def study(folder: Path) -> Path:
    """Writes the runs of a sweep in the format of `benchmarks/keep.py`."""
    write_study(read_runs([sweep(folder / "runs")]), folder / "kept")
    return folder / "kept"


def test_the_report_of_a_study_equals_the_report_of_its_runs(here: Path) -> None:
    kept = study(here)
    assert os.listdir(kept) == ["scores.csv"]
    whole, again = read_runs([here / "runs"]), read_runs([kept])
    assert [replace(run, folder=None, settings={}) for run in whole] == again
    assert tidy(whole).equals(tidy(again))
    head, first, *_ = (kept / "scores.csv").read_text().splitlines()
    assert head.startswith("task,method,seed,frames,updates,wall_s,episodes,return,run,") and head.endswith(",command")
    assert first.startswith("walker-run,sac,0,60000,30000,600,10,200,runs/walker-run/sac/seed=0,2,done,")
    for place in ("runs", "kept"):
        assert report.main([place, f"--out={place} out", "--published=none"]) == 0
    first, second = ((here / f"{place} out" / "table.md").read_text().split("Made by")[0] for place in ("runs", "kept"))
    assert first == second
    names = {here / "kept" / "walker-run" / "sac": "x", here / "kept" / "walker-walk" / "sac" / "seed=0": "y/z"}
    assert {run[:2] for run in identified([kept], names)} == {
        ("walker-run", "soft"), ("walker-run", "x"), ("walker-walk", "sac"), ("walker-walk", "soft"), ("y", "z"),
    }  # fmt: skip


DAMAGE: dict[str, tuple[str, str, str]] = {
    "seed": ("walker-run,sac,1", "walker-run,sac,x", "row 4: seed=x: must be a whole number"),
    "column": ("action_repeat", "repeat", "has no column action_repeat"),
    "text": ("sac,1,60000", "sac,1,many", "row 4: env_frames=many: must be a number"),
    "not finite": (",600,", ",nan,", "row 1: wall_s=nan: must be a number"),
    "out of range": (",600,", ",-1,", "row 1: wall_s=-1.0: must be 0 to"),
    "a row back": ("0,100000", "0,50000", "row 2: frames, updates or seconds go back"),
    "a run twice": ("walker-run,sac,1,", "walker-run,sac,0,", "row 4: frames, updates or seconds go back"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_study_is_refused(here: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = study(here)
    old, new, message = DAMAGE[case]
    text = (kept / "scores.csv").read_text()
    assert old in text
    (kept / "scores.csv").write_text(text.replace(old, new))
    assert report.main(["kept", "--out=out"]) == 2
    assert (
        re.search(rf"scores.csv[,:] {message}", err := capsys.readouterr().err)
        and len(err.splitlines()) == 1
        and not (here / "out").exists()
    )


def test_the_page_is_self_contained_and_holds_every_figure(made: Path) -> None:
    page = (made / "report.html").read_text()
    pictures = sorted(file.name for file in made.glob("*.png"))
    assert pictures == ["aggregate.png", "frames.png", "profiles.png", "updates.png", "wall_clock.png"]
    inlined = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert sorted(inlined) == sorted((made / name).read_bytes() for name in pictures)
    assert len(re.findall("src=", page)) == len(pictures)
    for word in ("<script", "http:", "https:", "<link", "@import", "url("):
        assert word not in page
    summary = json.loads((made / "summary.json").read_text())
    assert sorted(summary["files"]) == sorted(os.listdir(made))


def test_the_report_contains_no_path_of_this_machine(made: Path) -> None:
    for name in ("report.html", "table.md", "summary.json"):
        text = (made / name).read_text()
        assert str(made.parent) not in text and made.parent.name not in text and "/home" not in text
        assert "mine/walker-walk/soft/seed=0" in text
        assert (
            "--config configs/walker.yaml --run_dir=runs/sweeps/mine/walker-walk/soft/seed=0 --ckpt_path=auto" in text
        )
    words = ["--config=/home/a b/configs/x.yaml", "s3://x/y", "a/b", "[/u/v,/w]", "--trainer.logger=/z/logs/"]
    assert without_place(words) == "--config=configs/x.yaml s3://x/y a/b [v,w] --trainer.logger=logs"


def test_the_tables_contain_the_scores(made: Path) -> None:
    lines = (made / "table.md").read_text().splitlines()
    assert "| walker-walk | 120,000 | soft | 2 | 500.8 | 0.7 | [494.4, 507.1] | 60,000 | 1,200 |" in lines
    assert "| walker-run | 120,000 | sac | 2 | 300.8 | 0.7 | [294.4, 307.1] | 60,000 | 1,200 |" in lines
    over = next(line for line in lines if line.startswith("| 120,000 | soft | 2 |"))
    assert over.startswith("| 120,000 | soft | 2 | 0.501 [") and over.endswith("| 1.000 [1.000, 1.000] |")
    # Only one seed logged it: the median of its rows without the incomplete one.
    assert "| walker-walk | soft | 20.0 [20.0, 20.0] | 100.0 [100.0, 100.0] | 42.0 |" in lines
    page = (made / "report.html").read_text()
    assert '<td class="right">500.8</td>' in page and "0123456789ab" in page and "torch 2.13.0" in page
    summary = json.loads((made / "summary.json").read_text())
    found = [one for one in summary["returns"] if (one["task"], one["method"]) == ("walker-walk", "soft")]
    assert [(one["seed"], one["return"]) for one in found] == [(0, 500.25), (1, 501.25)]
    assert summary["baseline"] == "sac" and len(summary["runs"]) == 8
    mean = next(one for one in summary["scores"] if (one["task"], one["method"]) == ("walker-walk", "soft"))
    assert (mean["seeds"], mean["mean"], mean["updates"]) == (2, 500.75, 60_000)


def test_missing_evaluations_and_unfinished_runs_are_reported(made: Path) -> None:
    notes = json.loads((made / "summary.json").read_text())["notes"]
    assert any("mine/walker-run/sac/seed=1 (stopped)" in note for note in notes)
    assert any("not evaluated yet" in note and "walker-run/sac/seed=2 (failed)" in note for note in notes)
    assert any(note.startswith("Fewer than 5 seeds") for note in notes)
    page = (made / "report.html").read_text()
    assert all(note.partition(":")[0] in page for note in notes)


def test_a_single_seed_and_runs_of_different_lengths_are_reported_with_a_note(here: Path) -> None:
    make(Path("a/runs/w/dqs/20260101-000000"), (1.0, 2.0), task="x-y")
    make(Path("a/runs/w/dqs/20260102-000000"), seed=1, task="x-y")
    make(Path("a/runs/w/sac/20260101-000000"), (5.0, 5.0, 5.0), task="x-y")
    entries = Path("a/runs/w/dqs/20260102-000000/run.json")
    entries.write_text(entries.read_text().replace("01234567", "89abcdef"))
    assert report.main(["a", "--out=out", "--frames", "110000", "100000", "--max-return=10"]) == 0
    summary = json.loads(Path("out/summary.json").read_text())
    assert [(one["method"], one["frames"], one["seeds"]) for one in summary["scores"]] == [
        ("dqs", 100_000, 2), ("sac", 100_000, 1), ("dqs", 110_000, 1), ("sac", 110_000, 1),
    ]  # fmt: skip
    assert summary["scores"][0]["mean"] == 11 and summary["scores"][2]["mean"] == 25
    notes = "\n".join(summary["notes"])
    assert "One seed only, so no interval over seeds: sac on x-y." in notes
    assert "around 110,000 frames: dqs on x-y (1 of 2 seeds)" in notes
    assert "trained by several commits: dqs on x-y." in notes
    assert "Returns go up to 25, above --max-return=10" in notes


def test_published_rows_have_their_sources_and_budgets(made: Path) -> None:
    rows, source = read_published()
    assert len(rows) == 1615 and "github.com/nicklashansen/tdmpc2" in source
    assert (files("dqs_lightning.cli.report") / "dmc_published.csv").is_file()
    assert set(rows["method"]) >= set(DRAWN)
    td7 = rows[rows["method"] == "TD7"]
    assert td7["updates_per_frame"].isna().all() and td7["label"].str.endswith(", updates not given").all()
    page = (made / "report.html").read_text()
    assert "TD-MPC2, action repeat 2, 0.5 updates/frame" in page and "github.com/nicklashansen/tdmpc2" in page
    head, _, row = next(
        lines.splitlines()[2:5] for lines in (made / "table.md").read_text().split("\n**") if "published: SAC" in lines
    )
    assert head.startswith("| task | frames | sac | soft | published: SAC (TD-MPC2 repo), action repeat 2")
    assert row.startswith("| walker-run | 100,000 | 255.0 ± 7.1 (2) | 455.0 ± 7.1 (2) | 340 ± 32 (3) |")


def test_published_task_names_are_those_of_the_suite() -> None:
    suite = pytest.importorskip("dm_control.suite", reason=NOT_INSTALLED)
    known = {suite_name(f"{domain}-{task}") for domain, task in suite.ALL_TASKS}
    assert set(read_published()[0]["task"]) <= known
    assert suite_name("ball_in_cup-catch") == "cup-catch"


def test_published_rows_are_selected_by_name_and_range_of_frames() -> None:
    last = {"walker-walk": 200_000.0, "maze": 1e6}
    rows = choose_published(None, last)
    assert set(zip(rows["method"], rows["frames"], strict=True)) == {
        (method, frames) for method in DRAWN for frames in (100_000, 200_000)
    }
    assert set(rows["task"]) == {"walker-walk"} and choose_published(["none"], last).empty
    assert set(choose_published(["XQC"], last)["method"]) == {"XQC"}
    assert set(choose_published(None, {"ball_in_cup-catch": 1e5})["task"]) == {"ball_in_cup-catch"}
    with pytest.raises(
        InputError, match=r"--published=TDMPC2: no such method; allowed are none, SAC.*\nDid you mean TD-MPC2"
    ):
        choose_published(["TDMPC2"], last)


def test_the_figure_marks_published_returns_with_their_budgets(tmp_path: Path) -> None:
    from dqs_lightning.cli.report.pictures import draw_curves, style_of

    runs = read_runs([sweep(tmp_path / "s")])
    rows = choose_published(None, {"walker-walk": 120_000.0, "walker-run": 120_000.0})
    figure = draw_curves(tidy(runs), "frames", style_of(["sac", "soft"]), rows)
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert texts == ["sac", "soft", *(f"published: {name}, action repeat 2, 0.5 updates/frame" for name in DRAWN)]
    run, walk = figure.axes
    assert (run.get_title(), walk.get_title()) == ("walker-run", "walker-walk")
    here = rows[rows["task"] == "walker-walk"]
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in walk.lines if len(line.get_xdata()) == 1}
    assert points == set(zip(here["frames"], here["mean"], strict=True)) and (100_000, 708) in points
    means = [line for line in walk.lines if line.get_linewidth() == 1.5 and len(line.get_xdata()) > 1]
    assert [list(line.get_ydata()) for line in means] == [[200.5, 255, 300.75], [400.5, 455, 500.75]]
    assert len(walk.collections) == 2  # bands
    assert walk.get_ylim()[1] > here["mean"].max()


BAD: dict[str, tuple[list[str], str]] = {
    "no such folder": (["nowhere"], "RUNS=nowhere: no such folder"),
    "no runs": (["empty"], "RUNS=empty: no scores.jsonl or scores.csv in it or below"),
    "empty scores": (["blank"], "blank/scores.jsonl: the file is empty"),
    "torn scores": (["torn"], "torn/scores.jsonl, line 2: not a whole row"),
    "not finite": (["nan"], "nan/scores.jsonl, line 1: return_mean=nan: must be a number"),
    "a row twice": (["double"], "double/scores.jsonl, line 2: frames, updates or seconds go back"),
    "updates go back": (["back"], "back/scores.jsonl, line 2: frames, updates or seconds go back"),
    "seconds go back": (["clock"], "clock/scores.jsonl, line 2: frames, updates or seconds go back"),
    "bad run.json": (["bad"], "bad/run.json: not what dqs-fit writes: must be an object"),
    "no task": (["task"], "task/run.json: not what dqs-fit writes: task=None"),
    "negative seed": (["seed"], "seed/run.json: not what dqs-fit writes: seed=-1"),
    "no run.json": (["bare"], "bare: has no run.json; only runs that dqs-fit started with this version can be read"),
    "foreign out": (["good", "--out=full"], "--out=full: holds mine.txt, which is no file of an earlier report"),
    "out a file": (["good", "--out=full/mine.txt"], "--out=full/mine.txt: full/mine.txt is not a folder"),
    "baseline": (["good", "--baseline=ppo"], "--baseline=ppo: no such method; allowed is one of dqs"),
    "frames": (["good", "--frames", "7"], "--frames=7: no run was evaluated there; allowed is 60000 to 120000"),
    "published": (["good", "--published", "SAC"], "--published=SAC: no such method; allowed are none, SAC (TD-MPC2"),
    "name without a path": (["good", "--name", "x"], "--name x: must be PATH=METHOD or PATH=TASK/METHOD"),
    "name of no run": (["good", "--name", "full=x"], "--name full=x: there is no run at or below that path"),
    "seed twice": (["good", "twice"], "good, twice: both are dqs on walker-walk with seed 0"),
    "two methods as one": (["good", "other"], "good, other: both are dqs on walker-walk, but model.init_args.lr is 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(here: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("mine")
    make(here / "good", lr=1)
    make(here / "twice", lr=1)
    make(here / "other", lr=2, seed=1)
    for name in ("blank", "torn", "nan", "double", "back", "clock", "bad", "bare", "task", "seed"):
        make(here / name)
    (here / "blank" / "scores.jsonl").write_text("")
    lines = (here / "good" / "scores.jsonl").read_text().splitlines()
    (here / "torn" / "scores.jsonl").write_text(f"{lines[0]}\n{lines[1][:40]}")
    (here / "nan" / "scores.jsonl").write_text(lines[0].replace("10.0", "NaN"))
    (here / "double" / "scores.jsonl").write_text(f"{lines[0]}\n{lines[0]}\n")
    (here / "back" / "scores.jsonl").write_text(f"{lines[0]}\n{lines[1].replace('50000', '29999')}\n")
    (here / "clock" / "scores.jsonl").write_text(f"{lines[0]}\n{lines[1].replace('1000.0', '599.0')}\n")
    (here / "bare" / "run.json").unlink()
    facts = json.loads((here / "bad" / "run.json").read_text())
    (here / "bad" / "run.json").write_text("[1]")
    (here / "task" / "run.json").write_text(json.dumps({**facts, "task": None}))
    (here / "seed" / "run.json").write_text(json.dumps({**facts, "seed": -1}))
    before = sorted(here.rglob("*"))
    arguments, message = BAD[case]
    given = arguments if any(word.startswith("--out") for word in arguments) else [*arguments, "--out=out"]
    assert report.main(given) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dqs-report: ") and message in err and len(err.splitlines()) <= 3
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("option", [["--frames", "0"], ["--max-return=0"], ["--max-return=nan"]])
def test_options_out_of_range_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["runs", "--out=out", *option])
    assert "must be" in capsys.readouterr().err


def test_runs_with_different_settings_can_be_named_separately_or_as_one_method(here: Path) -> None:
    make(here / "good", lr=1)
    make(here / "other", lr=2, seed=1, only_in_a_later_version=3)
    assert [method for _, method, _ in identified([here], {here / "other": "quick"})] == ["dqs", "quick"]
    assert [method for _, method, _ in identified([here], {here: "dqs"})] == ["dqs", "dqs"]
    make(here / "third", lr=2, seed=2)  # its version did not have the other's new key
    assert identified([here / "other", here / "third"]) == [("walker-walk", "dqs", 1), ("walker-walk", "dqs", 2)]


def test_a_report_replaces_every_file_of_an_earlier_one(here: Path) -> None:
    make(here / "runs" / "a")
    out = here / "out"
    out.mkdir()
    assert report.earlier_files(out) == report.earlier_files(here / "none") == set()
    (out / "report.html").write_text("not ours")
    with pytest.raises(InputError, match=r"holds report.html, which is no file of an earlier report"):
        report.earlier_files(out)
    (out / "report.html").unlink()
    old = {"summary.json": json.dumps({"made_by": "dqs-report", "files": ["summary.json", "old.png"]}).encode()}
    report.write(out, {**old, "old.png": b"1"}, set())
    report.write(out, old, report.earlier_files(out))
    assert os.listdir(out) == ["summary.json"]
    (out / "summary.json").write_text(json.dumps({"files": ["summary.json"]}))  # another program's
    with pytest.raises(InputError, match=r"holds summary.json"):
        report.earlier_files(out)


def test_a_missing_package_is_named_with_the_command_to_install_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    make(here / "good")
    assert report.main(["good", "--out=out"]) == 2
    assert 'run pip install "dqs-lightning[report]"' in capsys.readouterr().err
    assert os.listdir() == ["good"]


def test_bad_input_is_refused_before_large_packages_are_imported(here: Path) -> None:
    code = (
        "import sys; from dqs_lightning.cli import report; report.main(['nowhere', '--out=out']); "
        "print(sorted({'rliable', 'pandas', 'torch', 'lightning'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n" and "RUNS=nowhere: no such folder" in found.stderr
