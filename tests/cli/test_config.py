"""Configurations: all shipped ones parse, and wrong ones are refused in a few lines before an environment starts."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dqs_lightning.agents import Agent
from dqs_lightning.cli import fit
from dqs_lightning.cli.training import FitCLI
from dqs_lightning.envs import DMControl
from dqs_lightning.registry import components, describe

CONFIGS = Path(__file__).parents[2] / "configs"
WALKER = str(CONFIGS / "walker.yaml")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `dqs-fit` in this process and an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DQS_RUN_DIR", "")  # a run sets it; monkeypatch restores it afterwards
    monkeypatch.delenv("DQS_RUN_DIR")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *arguments])
        try:
            code = fit.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def printed(run: Run, *arguments: str) -> dict:
    code, out, err = run(*arguments, "--print_config")
    assert code == 0, err
    return yaml.safe_load(out)


RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("methods", "sweeps"))
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))


@pytest.mark.parametrize("name", ["DQS", "SAC", "TD3", "PPO"])
def test_an_agent_in_a_configuration_has_its_constructors_defaults(run: Run, name: str) -> None:
    """This also holds where a file changes one argument of a component, as walker_fast.yaml changes the widths."""
    config = printed(run, "--config", str(CONFIGS / "walker_fast.yaml"), f"--model={name}")["model"]
    expected = describe(dict(components(Agent)[name](1, 1).hparams))
    for backbone in ("critic_backbone", "actor_backbone"):
        expected[backbone]["init_args"]["hidden"] = [128, 128]
    expected["backup" if name == "DQS" else ""] = {"class_path": "dqs_lightning.agents.backups.ExpectedQ"}
    for key, value in config["init_args"].items():
        assert value == expected.get(key), key


def test_settings_that_the_new_agent_also_has_are_kept_when_the_agent_is_changed(run: Run) -> None:
    arguments = ("--config", WALKER, "--model=SAC", "--model.discount=0.9")
    model = printed(run, *arguments)["model"]["init_args"]
    assert (model["discount"], model["tau"], model["normalise_observations"]) == (0.9, 0.005, False)
    critic = printed(run, "--config", WALKER, "--config", str(CONFIGS / "methods" / "sac_with_dqs_critic.yaml"))[
        "model"
    ]
    assert critic["init_args"]["critic_backbone"]["init_args"]["layer_norm"] is True


def test_a_setting_of_a_component_changes_the_default_component(run: Run) -> None:
    model = printed(run, "--data.environment=Maze", "--model.sampler.steps=9")["model"]["init_args"]
    assert model["sampler"] == {
        "class_path": "dqs_lightning.diffusion.samplers.MomentMatched", "init_args": {"steps": 9, "max_ratio": 2.2},
    }  # fmt: skip


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_configuration_parses_and_constructs(run: Run, path: Path) -> None:
    config = printed(run, "--config", str(path))
    assert config["extends"] is None
    environment = config["data"]["environment"]
    others = {"maze": "Maze", "quickstart": "Maze", "point_maze": "PointMaze", "mixture": "MixtureNavigation"}
    others |= {"playground_walker": "Playground", "objectives_maze": "ObjectivesMaze"}
    others |= dict.fromkeys(("walker_tasks", "three_bodies"), "MultiTask")
    if path.stem in others:
        assert environment["class_path"].endswith(f".{others[path.stem]}")
    else:
        domain = "walker" if path.stem == "default" else path.stem.split("_")[0]
        assert environment["init_args"]["domain"] == domain
    assert run("--config", str(path), "--data.total_frames=0")[0] == 2


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_every_method_configuration_combines_with_a_task(run: Run, path: Path) -> None:
    """A method's file sets nothing of the task or the networks' sizes, and all its settings are in the result."""
    plain, config = (printed(run, "--config", WALKER, *more) for more in ([], ["--config", str(path)]))
    assert config["data"] == plain["data"]
    own = yaml.safe_load(path.read_text())["model"]["init_args"]
    for key, value in own.items():
        found = config["model"]["init_args"][key]
        if isinstance(found, dict):
            assert found["class_path"].endswith("." + (value if isinstance(value, str) else value["class_path"]))
            assert isinstance(value, str) or value["init_args"].keys() <= found["init_args"].keys()
        else:
            assert found == value
    if path.stem != "small_networks":
        critic = own.get("critic_backbone", {}).get("init_args", {})
        assert critic.keys() <= {"layer_norm"} and "actor_backbone" not in own
    assert run("--config", WALKER, "--config", str(path), "--data.total_frames=0")[0] == 2  # after the model is built


def test_a_file_can_extend_several_files_and_the_last_takes_precedence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("data:\n  batch_size: 64\n  num_envs: 4\n")
    (tmp_path / "second.yaml").write_text("data:\n  batch_size: 32\n  total_frames: 9000\n")
    (tmp_path / "mine.yaml").write_text(f"extends: [{WALKER}, first.yaml, second.yaml]\ndata:\n  total_frames: 8000\n")
    data = printed(run, "--config", "mine.yaml")["data"]
    assert (data["batch_size"], data["num_envs"], data["total_frames"]) == (32, 4, 8000)
    assert data["environment"]["init_args"]["domain"] == "walker"


def test_a_run_that_is_refused_when_it_starts_leaves_its_folder_free(run: Run) -> None:
    """Whether a callback fits the task is checked only at the start."""
    arguments = ("--config", str(CONFIGS / "cartpole.yaml"), "--trainer.callbacks+=GoalCoverage", "--run_dir=mine")
    for _ in range(2):
        code, _, err = run(*arguments)
        assert code == 2 and "GoalCoverage" in err and "holds a run" not in err
    assert not Path("mine/config.yaml").exists()


def test_the_output_of_print_config_is_a_valid_configuration(run: Run, tmp_path: Path) -> None:
    first = printed(run, "--config", WALKER, "--model.noise_schedule=Karras", "--model.noise_schedule.rho=3")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(first))
    again = printed(run, "--config", "again.yaml")
    assert again == first
    assert again["model"]["init_args"]["noise_schedule"] == {
        "class_path": "dqs_lightning.diffusion.Karras",
        "init_args": {"sigma_min": 0.03, "sigma_max": 2.0, "rho": 3.0},
    }


def test_later_files_and_options_take_precedence_and_interpolations_use_the_final_values(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"extends: {WALKER}\n"
        "model:\n  init_args:\n    temperature:\n      class_path: LogLinear\n"
        "      init_args:\n        over_updates: ${data.total_frames}\n"
    )
    (tmp_path / "more.yaml").write_text("data:\n  batch_size: 64\n")
    config = printed(run, "--config", "mine.yaml", "--config", "more.yaml", "--data.total_frames=7000")
    assert config["data"]["batch_size"] == 64
    assert config["model"]["init_args"]["temperature"]["init_args"]["over_updates"] == 7000


def test_help_of_a_component_lists_its_arguments(run: Run) -> None:
    code, out, _ = run("--config", WALKER, "--model.noise_schedule.help=Cosine")
    assert code == 0 and "sigma_min" in out and "cosine schedule" in out


BAD = {
    "unknown option": (["--data.totl_frames=5"], "data.totl_frames", "data.total_frames"),
    "unknown key of the agent": (["--model.noise_schedul=Cosine"], "model.noise_schedul", "noise_schedule"),
    "unknown key of a component": (["--model.noise_schedule.sigma_mn=1"], "sigma_mn", "sigma_min"),
    "misspelt class": (["--model.noise_schedule=Cosin"], "model.noise_schedule=Cosin", "Cosine"),
    "class of another kind": (["--model.noise_schedule=Box"], "model.noise_schedule=Box", "Geometric, Karras, Linear"),
    "misspelt agent": (["--model=DQSS"], "model=DQSS", "DQS"),
    "misspelt callback": (["--trainer.callbacks+=Evalute"], "trainer.callbacks=Evalute", "Evaluate"),
    "callback twice": (
        ["--trainer.callbacks+=Diagnostics"],
        "callbacks.3=Diagnostics",
        "given twice",
    ),
    "wrong type": (["--data.batch_size=many"], "data.batch_size=many", "int"),
    "wrong type, nested": (["--model.sampler.steps=many"], "model.sampler.steps=many", "int"),
    "negative learning rate": (["--model.critic_lr=-1"], "model.critic_lr=-1.0", "> 0"),
    "sigma_min not below sigma_max": (["--model.noise_schedule.sigma_min=3"], "sigma_min=3.0", "sigma_max=2.0"),
    "K below 1": (["--model.energy_estimator.num_samples=0"], "model.energy_estimator.num_samples=0", ">= 1"),
    "steps below 1": (["--model.sampler.steps=0"], "model.sampler.steps=0", ">= 1"),
    "unknown domain": (["--data.environment.domain=wlker"], "data.environment.domain=wlker", "walker"),
    "unknown task": (["--data.environment.task=wlk"], "data.environment.task=wlk", "run, stand, walk"),
    "random frames beyond the run": (["--data.init_random_frames=9999999"], "init_random_frames=9999999", "250000"),
    "one evaluation episode": (["--evaluate.episodes=1"], "evaluate.episodes=1", ">= 2"),
    "missing file": (["--config", "nowhere.yaml"], "nowhere.yaml", "no such file"),
    "missing checkpoint": (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt", "auto"),
    "devices that do not exist": (["--trainer.devices=x"], "trainer", "devices"),
    "a callback that cannot be saved": (["--trainer.callbacks+=Timer"], "config.yaml", "Interval.step"),
    "a callback that cannot be configured": (
        ["--trainer.callbacks+=SaveConfigCallback"],
        "SaveConfigCallback",
        "--trust",
    ),
    "more devices than a machine has": (["--trainer.devices=1000000000"], "trainer.devices=1000000000", "<= 1024"),
    "nothing for a number": (["--data.num_envs=null"], "data.num_envs=null", "must be int"),
    "nothing for a component's number": (["--model.sampler.steps=null"], "model.sampler.steps=null", "must be int"),
    "no devices": (["--trainer.devices=0"], "trainer", "devices"),
    "negative seed": (["--seed_everything=-1"], "seed_everything=-1", "0 to 4294967295"),
    "seed beyond NumPy's": (["--seed_everything=1099511627776"], "seed_everything=1099511627776", "0 to 4294967295"),
    "logging at no step": (["--trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0", ">= 1"),
    **{
        f"precision {name}": ([f"--trainer.precision={name}"], f"trainer.precision={name}", "32-true or bf16-mixed")
        for name in ("bf16-true", "64-true", "16-true", "16-mixed", "16")
    },
    **{
        f"strategy {name}": ([f"--trainer.strategy={name}"], f"trainer.strategy={name}", "one of auto, ddp")
        for name in ("ddp_spawn", "ddp_fork", "ddp_notebook", "fsdp", "deepspeed", "nosuch")
    },
    "strategy as a class": (["--trainer.strategy=FSDPStrategy"], "trainer.strategy=", "one of auto, ddp"),
    "not a number": (["--model.max_grad_norm=nan"], "model.max_grad_norm=nan", "float or null"),
    "infinite": (["--model.critic_lr=.inf"], "model.critic_lr=inf", "finite number > 0"),
    "integer beyond 64 bits": ([f"--data.total_frames=1{'0' * 400}"], "data.total_frames=1000", "64 bits"),
    "a fraction for an integer": (["--data.num_envs=2.5"], "data.num_envs=2.5", "must be int"),
    "a whole float": (["--data.total_frames=250_000.0"], "data.total_frames=250000.0", "write 250000"),
    "abbreviation": (["--checkpoint.every_n_update=5"], "checkpoint.every_n_update:", "--checkpoint.every_n_updates?"),
    "abbreviation of two": (["--data.n=5"], "--data.n: no such option", ""),
    "abbreviation of a component's": (["--model.temperature.ta=1"], "temperature.ta:", "--model.temperature.tau?"),
    "abbreviated configuration": (["--conf=x.yaml"], "--conf: no such option", "--config?"),
    "no value": (["--data.num_envs"], "--data.num_envs", "needs a value"),
    "no dashes": (["total_frames=5"], "total_frames=5", "start with --"),
    "a group as a number": (["--data=3"], "data=3", "must hold keys and values"),
    "no environment": (["--data.environment=null"], "data.environment=null", "must be"),
    "key of another class": (["--model.temperature.value=1"], "model.temperature.value", "no such option of Relative"),
    "key of one callback": (["--trainer.callbacks.refresh=1"], "trainer.callbacks.refresh", "callbacks.refresh_s?"),
    "what the environment sets": (["--model.observation_dim=3"], "model.observation_dim", "environment"),
    "trust in nothing": (["--trust"], "--trust=", "name of a package"),
}
FILES = {
    "empty file": ("", "bad.yaml", "empty"),
    "not YAML": ("data: [", "bad.yaml", "not valid YAML"),
    "not a mapping": ("- 1\n- 2\n", "bad.yaml", "list"),
    "duplicate key": ("data:\n  batch_size: 3\n  batch_size: 4\n", "batch_size", "line 3"),
    "unknown key": ("data:\n  batch_siz: 3\n", "data.batch_siz", "data.batch_size"),
    "unknown group": ("dta:\n  batch_size: 3\n", "dta: no such key", "mean data?"),
    "misspelt class": ("model:\n  class_path: DQS\n  init_args:\n    sampler: Ancestrl\n", "Ancestrl", "Ancestral"),
    "wrong type": ("model:\n  class_path: DQS\n  init_args:\n    critic_lr: fast\n", "model.critic_lr=fast", "float"),
    "extends nothing": ("extends: nothing.yaml\n", "nothing.yaml", "no such file"),
    "extends itself": ("extends: bad.yaml\n", "bad.yaml", "is extended twice"),
    "deeper unknown key": (
        "model:\n  init_args:\n    temperature:\n      init_args:\n        tao: 0.1\n",
        "model.temperature.tao",
        "mean model.temperature.tau?",
    ),
    "unknown argument of the environment": (
        "data:\n  environment:\n    init_args:\n      domian: walker\n",
        "data.environment.domian",
        "mean data.environment.domain?",
    ),
    "unknown key of a class": (
        "data:\n  environment:\n    init_arg:\n      domain: walker\n",
        "data.environment.init_arg",
        "mean data.environment.init_args?",
    ),
    "unknown class key": ("model:\n  clas_path: SAC\n", "model.clas_path", "mean model.class_path?"),
    "key at a wrong level": ("noise_schedule: Karras\n", "noise_schedule:", "mean model.noise_schedule?"),
    "argument beside class_path": (
        "model:\n  class_path: DQS\n  tau: 0.1\n",
        "model.tau",
        "given in model.init_args",
    ),
    "keywords that no argument takes": (
        "model:\n  class_path: SAC\n  dict_kwargs:\n    foo: 1\n",
        "model.foo",
        "no such key of SAC",
    ),
    "file within a file": ("config: other.yaml\n", "config", "extends"),
    "extends a number": ("extends: 5\n", "extends=5", "path"),
    "extends numbers": ("extends: [5]\n", "extends=[5]", "path"),
    "extends an impossible name": (f"extends: {'x' * 5000}\n", "cannot be read", "File name too long"),
    **{
        f"{group} as {name}": (f"{group}: {value}\n", f"{group}={value}", "must hold keys and values")
        for group in ("trainer", "data", "evaluate", "checkpoint")
        for name, value in (("nothing", "null"), ("a number", "5"), ("a list", "[1, 2]"))
    },
    "model as a number": ("model: 5\n", "model=5", "one of DQS, MultiObjectiveDQS, PPO, SAC, TD3"),
    "model as a list": ("model: [1, 2]\n", "model=[1, 2]", "one of DQS, MultiObjectiveDQS, PPO, SAC, TD3"),
    "model as nothing": ("model: null\n", "model=null", "one of DQS, MultiObjectiveDQS, PPO, SAC, TD3"),
    "arguments as nothing": ("model:\n  init_args: null\n", "model.init_args=null", "must hold keys and values"),
    "arguments as a list": ("model:\n  init_args: [1]\n", "model.init_args=[1]", "must hold keys and values"),
    "class as nothing": (
        "model:\n  init_args:\n    sampler:\n      class_path: null\n",
        "model.sampler=null",
        "one of Ancestral",
    ),
    "callbacks as a number": ("trainer:\n  callbacks: 5\n", "trainer.callbacks=5", "a Callback"),
    "callback as a number": ("trainer:\n  callbacks: [Preempt, 5]\n", "trainer.callbacks.1=5", "a Callback"),
    "key as a number": ("1: 2\n", "line 1: key 1", "must be text"),
    "key as a list": ("? [1, 2]\n: 3\n", "line 1", "must be text"),
    "nested deeply": (f"data:\n  total_frames: {'[' * 400}{']' * 400}\n", "bad.yaml", "40 levels"),
    "within itself": ("data: &data\n  num_envs: *data\n", "bad.yaml", "40 levels"),
    "aliases of aliases": (
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "bad.yaml",
        "100,000 values",
    ),
    "merges of merges": (
        "a: &a {x: 1}\n"
        + "".join(
            f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "bad.yaml",
        "100,000 values",
    ),
    "too large": ("# " + "x" * 2**20, "bad.yaml", "1,048,576"),
    "interpolation of nothing": ("data:\n  num_envs: ${data.nim_envs}\n", "data.num_envs:", "mean data.num_envs?"),
    "open interpolation": ("data:\n  num_envs: ${data\n", "data.num_envs:", "'${data'"),
    "unknown resolver": ("data:\n  num_envs: ${foo:bar}\n", "data.num_envs:", "foo"),
    "missing variable": ("data:\n  num_envs: ${oc.env:DQS_NO_SUCH}\n", "data.num_envs:", "'DQS_NO_SUCH' not found"),
    "interpolation of itself": ("data:\n  num_envs: ${data.num_envs}\n", "data.num_envs:", "Recursive"),
    "interpolation in a circle": (
        "data:\n  num_envs: ${data.workers}\n  workers: ${data.num_envs}\n",
        "data.",
        "Recursive",
    ),
    "interpolation of another type": ("run_dir: ${data.num_envs}\n", "run_dir=1", "str or null"),
    "interpolation of a group": ("data: ${model}\n", "data=${model}", "must hold keys and values"),
    "UTF-16": ("data:\n  num_envs: 2\n".encode("utf-16"), "bad.yaml", "UTF-8"),
    "Latin-1": ("data:\n  num_envs: 2  # für\n".encode("latin-1"), "bad.yaml", "UTF-8"),
    "binary": (bytes(range(256)), "bad.yaml", "UTF-8"),
    "a NUL": (b"data:\n  num_envs: 2\x00\n", "bad.yaml", "not valid YAML"),
    "untrusted code": ("data:\n  environment:\n    class_path: payload.X\n", "payload.X", "trust"),
}


def refused(code: int, out: str, err: str, named: str, allowed: str) -> None:
    assert code == 2
    assert named in err and allowed in err, err
    assert err.startswith("dqs-fit: ") and len(err.strip().splitlines()) <= 5, err


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_: object) -> None:
        raise AssertionError("an environment was started")

    monkeypatch.setattr(DMControl, "make", make)


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_before_an_environment_starts(run: Run, case: str, no_environment: None) -> None:
    arguments, named, allowed = BAD[case]
    refused(*run("--config", WALKER, *arguments), named, allowed)
    assert os.listdir() == []


def test_an_existing_run_is_not_overwritten(run: Run, no_environment: None) -> None:
    Path("mine").mkdir()
    Path("mine/config.yaml").touch()
    refused(*run("--config", WALKER, "--run_dir=mine"), "--run_dir=mine", "--ckpt_path=auto")


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_refused_before_an_environment_starts(run: Run, case: str, no_environment: None) -> None:
    content, named, allowed = FILES[case]
    Path("bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    Path("payload.py").write_text("import pathlib; pathlib.Path('ran').touch()\nclass X: ...\n")
    refused(*run("--config", WALKER, "--config", "bad.yaml"), named, allowed)
    assert sorted(os.listdir()) == ["bad.yaml", "payload.py"]


@pytest.mark.parametrize("written", ["1e6", "1.0e6", "+1_000e3", "1000000"])
def test_an_integer_may_be_written_with_an_exponent(run: Run, written: str) -> None:
    """Tests files and options, for arguments of type int and float; other floats stay floats."""
    Path("mine.yaml").write_text(f"extends: {WALKER}\ndata:\n  total_frames: {written}\n  updates_per_step: 1.5e-1\n")
    from_file = printed(run, "--config", "mine.yaml")
    from_option = printed(run, "--config", "mine.yaml", f"--data.replay_size={written}", "--model.critic_lr", written)
    assert from_file["data"]["total_frames"] == from_option["data"]["replay_size"] == 1_000_000
    assert from_file["data"]["updates_per_step"] == 0.15
    assert from_option["model"]["init_args"]["critic_lr"] == 1e6
    assert printed(run, "--config", WALKER, "--run_dir=1e6")["run_dir"] == "1e6"


def test_a_single_callback_need_not_be_a_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[str]] = []
    monkeypatch.setattr(FitCLI, "instantiate_classes", lambda cli: found.append(cli.config.trainer.callbacks))
    monkeypatch.setattr(FitCLI, "fit", lambda cli: 0)
    Path("mine.yaml").write_text("trainer:\n  callbacks: Preempt\n")
    assert run("--config", str(CONFIGS / "maze.yaml"), "--config", "mine.yaml")[0] == 0
    assert [callback.class_path for callback in found[0]] == ["dqs_callbacks.Preempt"]


def test_a_configuration_with_huge_networks_is_checked_without_allocating_them(run: Run, no_environment: None) -> None:
    """A width of 10^9 with 10^9 inputs is a valid configuration; the options after it are still checked."""
    sizes = [f"--model.{part}_backbone.hidden=[1e9, 1e9]" for part in ("critic", "actor")]
    refused(*run("--config", WALKER, *sizes, "--evaluate.episodes=1"), "evaluate.episodes=1", ">= 2")


def test_the_number_of_objectives_is_set_by_the_environment(run: Run) -> None:
    arguments = ("--config", str(CONFIGS / "objectives_maze.yaml"))
    code, _, err = run(*arguments, "--model.objectives=3")
    assert (code, err) == (2, "dqs-fit: model.objectives: is set by the environment; leave it out\n")
    code, _, err = run(*arguments, "--data.environment=Maze")
    assert code == 2 and "data.environment=Maze: must be one of MOGym, ObjectivesMaze for MultiObjectiveDQS" in err
