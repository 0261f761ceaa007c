"""Sweeps: which runs a file defines, what is refused, and which state an exit code gives. Nothing is trained."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dqs_lightning.cli import fit, sweep
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.sweep_manifest import Manifest
from dqs_lightning.cli.sweep_plan import Run, expand
from dqs_lightning.cli.sweep_process import last_words

CONFIGS = Path(__file__).parents[2] / "configs"
CARTPOLE = str(CONFIGS / "cartpole.yaml")
GOOD: dict[str, Any] = {
    "tasks": {"pole": "pole.yaml", "walker": str(CONFIGS / "walker.yaml")},
    "seeds": [0, 7],
    "variants": {"as-is": [], "T0.05": ["model.temperature.tau=0.05"], "karras": ["model.noise_schedule=Karras"]},
    "overrides": ["data.total_frames=3000", "model.temperature.tau=0.02"],
}


def written(file: Path, **changes: Any) -> Path:
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def ray_is(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """Simulates whether Ray is installed."""
    find = sweep.importlib.util.find_spec
    ray = find("json") if there else None
    monkeypatch.setattr(
        sweep.importlib.util, "find_spec", lambda name, *rest: ray if name == "ray" else find(name, *rest)
    )


def test_a_sweep_file_expands_to_tasks_x_variants_x_seeds(file: Path) -> None:
    runs = expand(written(file), Path("out"))
    assert len(runs) == len({run.name for run in runs}) == len({run.folder for run in runs}) == 2 * 3 * 2
    assert [run.name.rpartition("=")[2] for run in runs] == ["0"] * 6 + ["7"] * 6  # seeds vary slowest
    run = next(run for run in runs if run.name == "pole/T0.05/seed=7")
    assert run.command == [
        "dqs-fit", "--config", str(file.parent / "pole.yaml"), "--data.total_frames=3000",
        "--model.temperature.tau=0.02", "--model.temperature.tau=0.05",  # the later one takes precedence
        "--seed_everything=7", f"--run_dir={Path.cwd()}/out/pole/T0.05/seed=7", "--ckpt_path=auto",
    ]  # fmt: skip
    single = expand(written(file, tasks=..., overrides=..., config="pole.yaml"), Path("out"))
    assert [run.name for run in single] == [run.name for run in runs if run.name.startswith("pole/")]
    assert single[0].settings == ("--seed_everything=0",)


def test_a_variant_may_add_configuration_files(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read after the task's, relative to the sweep file's folder, and are part of the run's identity."""
    (file.parent / "method.yaml").write_text("model:\n  init_args:\n    actor_lr: 0.5\n")
    written(file, variants={"plain": [], "mine": ["config=method.yaml", "model.tau=0.1"]}, overrides=...)
    plain, mine = expand(file, Path("out"))[:2]
    assert mine.settings == (f"--config={file.parent / 'method.yaml'}", "--model.tau=0.1", "--seed_everything=0")
    assert mine.command[1:4] == ["--config", str(file.parent / "pole.yaml"), mine.settings[0]]
    (file.parent / "method.yaml").write_text("model:\n  init_args:\n    actor_lr: 0.4\n")
    later = expand(file, Path("out"))
    assert later[0].digest == plain.digest and later[1].digest != mine.digest
    (file.parent / "method.yaml").unlink()
    assert sweep.main([str(file), "--dry-run"]) == 2
    assert "variants.mine: config=method.yaml: " in (err := capsys.readouterr().err) and "no such file" in err


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"seed": [1]}, r"seed: no such key; allowed are config, tasks, seeds, .*\nDid you mean seeds\?"),
    "no task": ({"tasks": ...}, "config, tasks: one of the two"),
    "both": ({"config": "pole.yaml"}, "config, tasks: one of the two"),
    "no seeds": ({"seeds": ...}, "seeds: must be there"),
    "no variants": ({"variants": ...}, "variants, search: one of the two must be there, and one only"),
    "variants and a search": ({"search": {}}, "variants, search: one of the two must be there, and one only"),
    "empty tasks": ({"tasks": {}}, "tasks={}: must be one or more"),
    "empty seeds": ({"seeds": []}, r"seeds=\[\]: must be a list of one or more"),
    "empty variants": ({"variants": {}}, "variants={}: must be one or more"),
    "empty overrides": ({"overrides": []}, r"overrides=\[\]: must be a list of one or more, or be left out"),
    "one seed": ({"seeds": 3}, "seeds=3: must be a list"),
    "negative seed": ({"seeds": [-1]}, "seeds=-1: allowed are whole numbers from 0"),
    "a truth as seed": ({"seeds": [True]}, "seeds=True: allowed are whole numbers"),
    "seed twice": ({"seeds": [1, 2, 1]}, "seeds: 1 is given twice"),
    "variant twice": ({"variants": {"a": [], "A": []}}, "variants: a is given twice"),
    "variant called as a path": ({"variants": {"../a": []}}, r"variants.\.\./a: a name has up to 100 letters"),
    "variant called as a number": (
        {"variants": {0.5: []}},
        r'line \d+: key 0.5: must be text; put it in quotes: "0.5"',
    ),
    "variant without a list": (
        {"variants": {"a": "model.backup=ExpectedQ"}},
        "variants.a=model.backup=ExpectedQ: must be a list",
    ),
    "override as a mapping": ({"variants": {"a": [{"model.backup": "ExpectedQ"}]}}, "variants.a={.*must be an option"),
    "override with dashes": (
        {"overrides": ["--model.backup=ExpectedQ"]},
        "overrides=--model.backup=ExpectedQ: must be an option",
    ),
    "override twice": ({"overrides": ["data.num_envs=1", "data.num_envs=2"]}, "data.num_envs is given twice"),
    "the seed as override": ({"overrides": ["seed_everything=1"]}, "overrides=seed_everything=1: a sweep may not set"),
    "trust": ({"overrides": ["trust=stranger"]}, "overrides=trust=stranger: a sweep may not set"),
    "missing config": (
        {"tasks": ..., "config": "pol.yaml"},
        r"config: .*pol.yaml: no such file; .* has mine.yaml, pole",
    ),
    "missing task": ({"tasks": {"a": "pole.yaml", "b": "b.yaml"}}, "tasks.b: .*b.yaml: no such file"),
    "task without a path": ({"tasks": {"a": None}}, "tasks.a=None: must be the path"),
    "binary name in a path": ({"tasks": {"a": "x\0y.yaml"}}, "tasks.a: .*no such file"),
    "long name": ({"variants": {"a" * 101: []}}, "a name has up to 100 letters"),
    "several under config": ({"tasks": ..., "config": ["pole.yaml"]}, "several go under tasks"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_sweep_file_is_refused_and_nothing_is_written(
    file: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message):
        expand(written(file, **changes), Path("out"))
    assert sweep.main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dqs-sweep: {file}: ") and len(err.splitlines()) <= 5
    assert os.listdir() == []


MISSPELT = {
    "key": ("model.temperature.tao=0.1", "no such option of Relative", "--model.temperature.tau"),
    "group": ("dta.num_envs=2", "--dta: no such option", "--data"),
    "component": ("model.backup=ExpectedP", "model.backup=ExpectedP: no such component", "ExpectedQ"),
    "abbreviation": ("checkpoint.every_n_update=5", "no such option", "--checkpoint.every_n_updates"),
    "abbreviated reserved option": ("seed_every=5", "--seed_every: no such option", "--seed_everything"),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_options_that_dqs_fit_would_refuse_are_refused_before_any_run(
    file: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    override, message, meant = MISSPELT[case]
    written(file, variants={"as-is": [], "mine": [override]})
    assert sweep.main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dqs-sweep: {file}: pole/mine: ") and message in err
    assert err.endswith(f"Did you mean {meant}?\n") and os.listdir() == []


def test_a_configuration_that_dqs_fit_would_refuse_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "pole.yaml").write_text(f"extends: {CARTPOLE}\nmodel:\n  init_args:\n    samplr: Ancestral\n")
    assert sweep.main([str(written(file)), "--dry-run"]) == 2
    assert "pole/as-is: model.samplr: no such key of DQS\nDid you mean model.sampler?" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--dry", "--job=1", "--cpus=1"])
def test_options_cannot_be_abbreviated(file: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep.main([str(written(file)), option])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([str(file)]) == 2
    assert f"dqs-sweep: {file}: no such file" in capsys.readouterr().err
    file.write_text("seeds: [0]\nseeds: [1]\n")
    assert sweep.main([str(file)]) == 2
    assert "line 2: key seeds is given twice" in capsys.readouterr().err
    (file.parent / "pole.yaml").write_text("extends: pole.yaml\n")
    assert sweep.main([str(written(file))]) == 2
    assert "tasks.pole: " in (err := capsys.readouterr().err) and "is extended twice" in err


@pytest.mark.parametrize("option", ["--jobs=0", "--cpus-per-run=0", "--gpus-per-run=-1", "--gpus-per-run=nan"])
def test_options_out_of_range_are_refused(file: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep.main([str(written(file)), option])
    assert f"{option}: must be >=".replace("=-1", "=-1.0") in capsys.readouterr().err


def test_a_dry_run_prints_commands_that_dqs_fit_accepts(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_is(monkeypatch, False)
    written(file, overrides=["model.critic_backbone.hidden=[16, 16]"])
    assert sweep.main([str(file), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    commands = [shlex.split(line) for line in out.splitlines()]
    assert err == "" and os.listdir() == []
    assert commands == [run.command for run in expand(file, Path("runs/sweeps/mine"))]
    monkeypatch.setattr(
        sys, "argv", [*next(c for c in commands if "seed=7" in c[-2] and "karras" in c[-2]), "--print_config"]
    )
    with pytest.raises(SystemExit) as stop:
        fit.main()
    config = yaml.safe_load(capsys.readouterr().out)
    assert (
        stop.value.code == 0
        and config["seed_everything"] == 7
        and config["run_dir"] == str(Path("runs/sweeps/mine/pole/karras/seed=7").absolute())
    )
    assert config["model"]["init_args"]["noise_schedule"]["class_path"].endswith("Karras")
    assert config["model"]["init_args"]["critic_backbone"]["init_args"]["hidden"] == [16, 16]


def test_a_missing_package_is_named_with_the_command_to_install_it(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_is(monkeypatch, False)
    assert sweep.main([str(written(file))]) == 2
    assert 'pip install "dqs-lightning[sweep]"' in capsys.readouterr().err and os.listdir() == []


SHIPPED = [path for path in sorted((CONFIGS / "sweeps").glob("*.yaml")) if "\nsearch:" not in path.read_text()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_dqs_fit_accepts_every_variant_of_every_shipped_sweep(
    path: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, str]] = set()
    for run in expand(path, Path("out")):  # each variant with one task, and each task with one variant
        task, variant, _ = run.name.split("/")
        if {("task", task), ("variant", variant)} <= seen:
            continue
        seen |= {("task", task), ("variant", variant)}
        monkeypatch.setattr(sys, "argv", [*run.command, "--print_config"])
        with pytest.raises(SystemExit) as stop:
            fit.main()
        assert stop.value.code == 0, capsys.readouterr().err


def recorded(file: Path, came_far: bool = True) -> list[Run]:
    """Returns the runs of a sweep whose first run is recorded as successful in the manifest in out/."""
    runs = expand(file, Path("out"))
    manifest = Manifest(Path("out"), runs)
    manifest.started(runs[0])
    if came_far:
        (runs[0].folder / "checkpoints").mkdir(parents=True)
        (runs[0].folder / "checkpoints" / "last.ckpt").touch()
    manifest.ended(runs[0], 0, 1.5, asked=False)
    return runs


def state(runs: list[Run]) -> str:
    return Manifest(Path("out"), runs).records[runs[0].name].state


def test_a_run_is_done_if_it_exited_with_0_and_has_its_checkpoint(file: Path) -> None:
    runs = recorded(written(file), came_far=False)  # such as after an option that prints and exits
    assert json.loads(Path("out/manifest.json").read_text())["runs"][runs[0].name]["state"] == "failed"
    runs = recorded(written(file))
    assert state(runs) == "done"
    for code, asked, expected in ((75, False, "stopped"), (-15, True, "stopped"), (-9, False, "failed")):
        manifest = Manifest(Path("out"), runs)
        manifest.ended(runs[0], code, 1.0, asked)
        assert state(runs) == expected
    manifest.started(runs[0])  # then the sweep is killed
    assert state(runs) == "stopped"
    (runs[0].folder / "checkpoints" / "last.ckpt").unlink()
    assert state(runs) == "pending"


def test_another_run_of_the_same_name_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_is(monkeypatch, True)  # checked before Ray starts
    runs = recorded(written(file))
    before = Path("out/manifest.json").read_text()
    written(file, overrides=["data.total_frames=4000"])
    for option in ("--dry-run", "--out=out"):
        assert sweep.main([str(file), "--out=out", option]) == 2
        out, err = capsys.readouterr()
        assert out == "" and f"{runs[0].folder}: holds a run of another sweep" in err
        assert "was --data.total_frames=3000" in err and "is --data.total_frames=4000" in err
    written(file)
    pole = file.parent / "pole.yaml"
    pole.write_text(f"# A comment is no change.\n{pole.read_text()}")
    assert state(expand(file, Path("out"))) == "done"
    pole.write_text(f"{pole.read_text()}data:\n  batch_size: 17\n")
    with pytest.raises(InputError, match=r"pole.yaml, or a file that it extends, has changed"):
        Manifest(Path("out"), expand(file, Path("out")))
    assert Path("out/manifest.json").read_text() == before
    Path("out/manifest.json").write_text("[]")
    with pytest.raises(InputError, match="not a manifest of dqs-sweep"):
        Manifest(Path("out"), runs)


def test_two_sweeps_never_share_a_folder(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_is(monkeypatch, True)  # checked before Ray starts
    with sweep.alone(Path("out").absolute()):
        assert sweep.main([str(written(file)), "--out=out"]) == 2
    assert "out: another dqs-sweep is at work there" in capsys.readouterr().err
    assert os.listdir("out") == [".lock"]


def test_the_reason_of_a_failure_is_the_message_of_the_last_attempt(tmp_path: Path) -> None:
    assert last_words(tmp_path) == ""
    (tmp_path / "log.txt").write_text(
        "$ dqs-fit\ndqs-fit: model: wrong\nDid you mean x?\n$ dqs-fit\nTrace\nE: late\n\n"
    )
    assert last_words(tmp_path) == "E: late"
    (tmp_path / "log.txt").write_text("$ dqs-fit\nwarning\ndqs-fit: model: wrong\nDid you mean x?\n")
    assert last_words(tmp_path) == "dqs-fit: model: wrong"
