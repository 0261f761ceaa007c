"""Configurations are found by name, default.yaml is read where none is given, and `--list` shows all names."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dqs_lightning.agents import Agent
from dqs_lightning.cli import fit, sweep
from dqs_lightning.cli.listing import comment, sentence, table
from dqs_lightning.cli.parser import BASES
from dqs_lightning.cli.shipped import SHIPPED, find, shipped
from dqs_lightning.diffusion import Geometric
from dqs_lightning.registry import components

Fit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fit:
    """Runs `dqs-fit` in this process and an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *arguments])
        try:
            code = fit.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def printed(run: Fit, *arguments: str) -> dict:
    code, out, err = run(*arguments, "--print_config")
    assert code == 0, err
    return yaml.safe_load(out)


def test_the_shipped_configurations_are_those_of_the_repository() -> None:
    folder = Path(__file__).parents[2] / "configs"
    assert shipped()["walker"].samefile(folder / "walker.yaml")
    assert {path.relative_to(SHIPPED) for path in shipped().values()} == {
        path.relative_to(folder) for path in folder.rglob("*.yaml")
    }


@pytest.mark.parametrize("name", ["walker", "walker.yaml", "methods/qsm", "published/walker.yaml"])
def test_a_name_without_a_file_is_that_of_a_shipped_configuration(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(Path(name)) == SHIPPED / Path(name).with_suffix(".yaml")
    assert find(Path(name), tmp_path) == SHIPPED / Path(name).with_suffix(".yaml")


@pytest.mark.parametrize("written", ["walker", "walker.yaml"])
@pytest.mark.parametrize("name", ["walker", "walker.yaml"])
def test_a_file_in_the_folder_takes_precedence(
    name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / written).touch()
    shipped_one = name == "walker.yaml" and written == "walker"  # another name
    assert find(Path(name)) == (SHIPPED / "walker.yaml" if shipped_one else Path(written))


@pytest.mark.parametrize("name", ["../walker.yaml", "/walker.yaml", "configs/walker.yaml", "x" * 5000, "a\0b", ""])
def test_other_paths_are_not_those_of_shipped_configurations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(Path(name), tmp_path) == tmp_path / name


def test_dqs_fit_finds_shipped_configurations_and_those_of_the_folder(run: Fit) -> None:
    both = printed(run, "--config", "cheetah", "--config", "methods/qsm")
    assert both["data"]["environment"]["init_args"]["domain"] == "cheetah"
    assert both["model"]["init_args"]["energy_estimator"]["class_path"].endswith(".QScore")
    Path("cheetah.yaml").write_text("data:\n  num_envs: 3\n")
    assert printed(run, "--config", "cheetah")["data"]["num_envs"] == 3


def test_a_file_may_extend_a_shipped_configuration(run: Fit) -> None:
    Path("own").mkdir()
    Path("own/mine.yaml").write_text("extends: [cheetah.yaml, methods/qsm, base.yaml]\ndata:\n  num_envs: 2\n")
    Path("own/base.yaml").write_text("data:\n  num_envs: 4\n  batch_size: 64\n")
    Path("cheetah.yaml").write_text("data:\n  batch_size: 7\n")  # not beside the file
    config = printed(run, "--config", "own/mine.yaml")
    assert config["data"]["environment"]["init_args"]["domain"] == "cheetah"
    assert (config["data"]["num_envs"], config["data"]["batch_size"]) == (2, 64)


@pytest.mark.parametrize("name, nearest", [("wlker", "walker, "), ("qsm", "methods/qsm"), ("default.yml", "default")])
def test_an_unknown_name_is_refused_with_similar_ones(run: Fit, name: str, nearest: str) -> None:
    code, out, err = run("--config", name)
    assert code == 2 and out == "" and os.listdir() == []
    assert err.startswith(f"dqs-fit: --config={name}: no such file\n")
    assert f"similar name: {nearest}" in err and "dqs-fit --list" in err


def test_without_a_configuration_the_default_one_is_read(run: Fit) -> None:
    options = ("--data.environment.task=run", "--model.sampler.steps=9")
    default = printed(run, *options)
    assert default == printed(run, "--config", "default", *options)
    assert default == printed(run, "--config", str(SHIPPED / "default.yaml"), *options)
    callbacks = [callback["class_path"] for callback in default["trainer"]["callbacks"]]
    assert "dqs_callbacks.FramesProgress" in callbacks and default["evaluate"]["best_of"] == 16
    assert default["model"]["init_args"]["sampler"]["init_args"]["steps"] == 9
    Path("default.yaml").write_text("data:\n  num_envs: 3\n")  # of another program, perhaps
    assert printed(run, *options) == default
    added = printed(run, "--trainer.callbacks+=GoalCoverage")["trainer"]["callbacks"]
    assert [callback["class_path"] for callback in added] == [*callbacks, "dqs_callbacks.GoalCoverage"]


def test_help_needs_no_configuration(run: Fit) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "--config" in out and "--list" in out
    code, out, _ = run("--model.noise_schedule.help=Cosine")
    assert code == 0 and "sigma_min" in out


@pytest.mark.parametrize("arguments", [["--list"], ["--config", "walker", "--list"]])
def test_the_list_has_every_configuration_and_component(run: Fit, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert code == 0 and err == "" and os.listdir() == []
    rows = {line[2:].partition("  ")[0].removesuffix(" *"): line for line in out.splitlines() if line.startswith("  ")}
    assert shipped().keys() <= rows.keys()
    known = [cls for base in BASES for cls in components(base).values()]
    ours = [cls for cls in known if cls.__module__.partition(".")[0] in ("dqs_lightning", "dqs_callbacks")]
    assert {cls.__name__ for cls in ours} <= rows.keys()
    for cls in ours:
        assert (cls.__doc__ or "").split()[0] in rows[cls.__name__]
    assert rows["walker"].endswith("DMControl walker-walk, 250,000 frames")
    assert "--model.critic_backbone=NAME, --model.actor_backbone=NAME" in out and "--trainer.callbacks+=NAME" in out
    marked = {name for name, line in rows.items() if line[2:].startswith(f"{name} *")}
    assert "DQS" in marked and marked & components(Agent).keys() == {"DQS"} and "Geometric" in marked


def test_the_list_contains_components_of_other_packages(run: Fit) -> None:
    class Bent(Geometric):
        """A schedule of mine. It is an example."""

    try:
        assert "  Bent         A schedule of mine.\n" in run("--list")[1]
    finally:
        del Bent
        gc.collect()  # the registry has it as long as it exists


def test_a_row_is_wrapped_at_the_width_of_the_terminal() -> None:
    rows = [("a", "word " * 20), ("long", "")]
    lines = table("Heading", rows, 50).splitlines()
    assert lines[0] == "Heading" and lines[-1] == "  long"
    assert all(len(line) <= 50 for line in lines) and all(line.startswith("        word") for line in lines[2:-1])
    assert len(table("Heading", rows, sys.maxsize).splitlines()) == 3


def test_a_first_sentence_ends_at_a_full_stop_before_a_capital(tmp_path: Path) -> None:
    assert sentence("For T = 0.02, as in fig. 2 of it. The rest.") == "For T = 0.02, as in fig. 2 of it."
    (tmp_path / "a.yaml").write_text("# One\n# sentence. Another one.\nkey: 1\n# Later.\n")
    (tmp_path / "b.yaml").write_text("key: 1\n# Later.\n")
    assert (comment(tmp_path / "a.yaml"), comment(tmp_path / "b.yaml")) == ("One sentence.", "")


def test_dqs_sweep_finds_shipped_sweeps_and_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["sweeps/mixture", "--dry-run"]) == 0
    assert f"--config {SHIPPED / 'mixture.yaml'}" in (out := capsys.readouterr().out) and "runs/sweeps/mixture" in out
    Path("mine.yaml").write_text("config: cartpole_fast\nseeds: [0]\nvariants: {qsm: [config=methods/qsm]}\n")
    assert sweep.main(["mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"--config {SHIPPED / 'cartpole_fast.yaml'} --config={SHIPPED / 'methods' / 'qsm.yaml'}" in out
    assert "runs/sweeps/mine/cartpole_fast/qsm/seed=0" in out


@pytest.mark.slow
def test_python_m_is_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dqs_lightning", "--config", "walker", "--no_such_option=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr == "dqs-fit: --no_such_option: no such option\n"


@pytest.mark.slow
def test_the_reader_of_the_list_may_end_early(tmp_path: Path) -> None:
    listing = subprocess.Popen([sys.executable, "-m", "dqs_lightning", "--list"], stdout=-1, stderr=-1, cwd=tmp_path)
    listing.stdout.close()
    assert listing.stderr.read() == b"" and listing.wait(100) == 0
