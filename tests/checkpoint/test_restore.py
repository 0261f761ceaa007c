"""Tests of restoring objects from a checkpoint: registered components are rebuilt, no other name is imported."""

import inspect
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import saved_run
from lightning.pytorch.callbacks import Callback

from dqs_lightning.agents import DQS, SAC, Agent, load_agent
from dqs_lightning.checkpoint import restore
from dqs_lightning.checkpoint.archive import CheckpointError, atomic_save, safe_load
from dqs_lightning.checkpoint.restore import UntrustedNameError, construct, named_class, trust
from dqs_lightning.cli.parser import BASES
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import Geometric, Importance, NoiseSplit
from dqs_lightning.envs import DMControl
from dqs_lightning.registry import components, describe

FAMILIES = [base for base in BASES if base not in (Agent, Callback)]
PACKAGE = """
import pathlib
from dqs_lightning.envs import DMControl
pathlib.Path(__file__).with_name("imported").touch()
class Pole(DMControl):
    def __init__(self, length: float = 1.0) -> None:
        super().__init__("cartpole", "swingup")
        self.length = length
class Outer:
    class Inner: ...
def function() -> Pole: ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that has not been imported, with a module `poles`."""
    folder = tmp_path / "my_poles"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "poles.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(restore, "_trusted", set())
    yield "my_poles"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_poles"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("run")) / "checkpoints" / "last.ckpt"


def changed(run: Path, file: Path, key: str, **values: Any) -> Path:
    content = safe_load(run)
    content[key].update(values)
    torch.save(content, file)
    return file


def ours(base: type) -> dict[str, type]:
    """Returns the components of this package, without those that tests define."""
    return {name: cls for name, cls in components(base).items() if cls.__module__.startswith("dqs_lightning.")}


PACKAGES = {"Brax": "brax", "MOGym": "mo_gymnasium", "Playground": "mujoco_playground"}
"""Components that can only be constructed if an optional package is installed."""


def test_every_component_can_be_rebuilt_from_its_description() -> None:
    built = 0
    for base in FAMILIES:
        for name, cls in ours(base).items():
            parameters = inspect.signature(cls).parameters.values()
            if not all(parameter.default is not parameter.empty for parameter in parameters):
                continue
            if find_spec(PACKAGES.get(name, "torch")) is None:
                continue
            description = describe(cls())
            again = construct(description)
            assert type(again) is cls and describe(again) == description, name
            built += 1
    assert built > 40
    split = NoiseSplit(below=Importance(3), above=Importance(5))
    assert describe(construct([describe(split), 1])) == [describe(split), 1]


@pytest.mark.parametrize("base", [*FAMILIES, Agent], ids=lambda base: base.__name__)
def test_the_components_of_every_family_may_be_named(base: type) -> None:
    assert named_class(f"{Geometric.__module__}.Geometric") is Geometric
    for cls in ours(base).values():
        assert named_class(f"{cls.__module__}.{cls.__qualname__}") is cls


@pytest.mark.parametrize(
    "path",
    [
        "my_poles.poles.Pole",
        "my_poles.poles.function",
        "my_poles.poles",
        "my_poles",
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.object",
        "torch.nn.Linear",
        "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
        "dqs_lightning.agents.loading.load_agent",
        "dqs_lightning.cli.sweep_process.subprocess.Popen",
        "dqs_lightning.checkpoint.archive.RunCheckpoint",
        "dqs_lightning.diffusion.NoSuch",
        "dqs_lightning.envs.base.Environment",
        "dqs_lightning.diffusion.Geometric.__init__.__globals__",
        "dqs_lightning.diffusion.Geometric.__class__",
        "",
        ".",
        "a b.c",
        "..Geometric",
        "x" * 10_000,
        5,
        None,
        ["os.system"],
        {"os": "system"},
    ],
    ids=lambda path: str(path)[:40],
)
def test_any_other_name_is_refused_and_nothing_is_imported(path: Any, package: str, tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(UntrustedNameError, match=r"^names ") as refused:
        construct({"class_path": path, "init_args": {}})
    assert set(sys.modules) == before and not (tmp_path / package / "imported").exists()
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_the_getattr_function_of_a_module_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []
    module = type(sys)("my_lazy")
    module.__dict__["__getattr__"] = requested.append
    monkeypatch.setitem(sys.modules, "my_lazy", module)
    with pytest.raises(UntrustedNameError):
        named_class("my_lazy.payload")
    assert requested == []


def test_a_trusted_package_is_imported_when_it_is_named(package: str, tmp_path: Path) -> None:
    trust([package])
    assert not (tmp_path / package / "imported").exists()
    pole = construct({"class_path": f"{package}.poles.Pole", "init_args": {"length": 2.0}})
    assert pole.length == 2.0 and (tmp_path / package / "imported").exists()
    assert named_class(f"{package}.poles.Outer.Inner").__name__ == "Inner"
    for path, message in {
        f"{package}.poles.function": "no class of the package my_poles",
        f"{package}.poles.pathlib.Path": "no class of the package my_poles",
        f"{package}.none.X": "no class of the package my_poles",
        f"{package}2.poles.Pole": "nor of a trusted package; if you trust my_poles2, add --trust my_poles2",
    }.items():
        with pytest.raises(UntrustedNameError, match=message):
            named_class(path)


def test_a_checkpoint_may_name_only_registered_components(run: Path, package: str, tmp_path: Path) -> None:
    pole = {"class_path": f"{package}.poles.Pole", "init_args": {"length": 3.0}}
    file = changed(run, tmp_path / "a.ckpt", "datamodule_hyper_parameters", environment=pole)
    for load in (
        OnlineData.load_from_checkpoint,
        lambda file: OnlineData.load_from_checkpoint(file, weights_only=True),
    ):
        with pytest.raises(CheckpointError, match=r"a.ckpt: names my_poles.poles.Pole, .* add --trust my_poles "):
            load(file)
    assert (
        load_agent(file).observation_dim == load_agent(run).observation_dim
    )  # the agent's own arguments are unchanged
    trust([package])
    assert OnlineData.load_from_checkpoint(file).environment.length == 3.0
    file = changed(run, tmp_path / "b.ckpt", "hyper_parameters", sampler={"class_path": f"{package}2.X"})
    for load in (load_agent, Agent.load_from_checkpoint, DQS.load_from_checkpoint):
        with pytest.raises(CheckpointError, match=r"b.ckpt: names my_poles2.X, .* add --trust my_poles2 "):
            load(file)


def test_an_agent_of_a_trusted_package_is_found_by_its_class(
    run: Path, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = safe_load(run)
    assert content["agent"] == "DQS" and content["agent_class"] == "dqs_lightning.agents.dqs.DQS"
    assert "_instantiator" not in content["hyper_parameters"]
    (tmp_path / package / "agents.py").write_text("from dqs_lightning.agents import DQS\nclass _Mine(DQS): ...\n")
    atomic_save({**content, "agent": "_Mine", "agent_class": f"{package}.agents._Mine"}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a.ckpt: names my_poles.agents._Mine, .* --trust my_poles "):
        load_agent(tmp_path / "a.ckpt")
    trust([package])
    assert type(load_agent(tmp_path / "a.ckpt")).__name__ == "_Mine"
    with pytest.raises(CheckpointError, match="holds an agent of class _Mine; known are SAC"):
        SAC.load_from_checkpoint(tmp_path / "a.ckpt")
    for agent in ("Nobody", ["DQS"], None, {"DQS": 1}):
        atomic_save({**content, "agent": agent}, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match=r"a.ckpt: holds an agent of class .*; known are DQS"):
            load_agent(tmp_path / "a.ckpt")


def test_the_loaded_agent_equals_that_of_the_checkpoint(run: Path) -> None:
    saved = safe_load(run)["state_dict"]
    agent = DQS.load_from_checkpoint(run, discount=0.5)
    assert agent.discount == 0.5 and agent.training and not load_agent(run).training
    assert all(torch.equal(value, saved[name]) for name, value in agent.state_dict().items())
    for wrong in ({"hparams_file": "a.yaml"}, {"strict": False}):
        with pytest.raises(ValueError, match="must be left out"):
            DQS.load_from_checkpoint(run, **wrong)
    with pytest.raises(ValueError, match="must be left out"):
        OnlineData.load_from_checkpoint(run, hparams_file="a.yaml")


MLP = "dqs_lightning.diffusion.MLP"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tau", "0.1"), ("tau", [0.1]), ("best_of", True), ("best_of", 2.0), ("amortised", 1), ("discount", None),
        ("inner_precision", 3), ("critic_backbone", {"class_path": MLP, "init_args": {"hidden": "64"}}),
        ("critic_backbone", {"class_path": MLP, "init_args": {"hidden": [6.5]}}),
    ],
)  # fmt: skip
def test_arguments_of_other_types_are_refused(run: Path, tmp_path: Path, key: str, value: Any) -> None:
    file = changed(run, tmp_path / "a.ckpt", "hyper_parameters", **{key: value})
    shown = "hidden=" if isinstance(value, dict) else f"{key}="
    with pytest.raises(CheckpointError, match=f"does not fit the DQS of this version: .*{shown}.*: must be "):
        load_agent(file)


def bomb() -> list[Any]:
    value: list[Any] = [0]
    for _ in range(60):
        value = [value, value]
    return value


HOSTILE = {
    "bomb": bomb(), "text": "payload.X", "number": 5, "list": [], "flag": True,
    "component of another kind": {"class_path": "dqs_lightning.diffusion.Box"},
    "unknown argument": {"class_path": "dqs_lightning.diffusion.Geometric", "init_args": {"x": 1}},
}  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_arguments_that_do_not_fit_are_refused(run: Path, tmp_path: Path, value: Any) -> None:
    file = changed(run, tmp_path / "a.ckpt", "hyper_parameters", noise_schedule=value)
    with pytest.raises(CheckpointError, match=r"a.ckpt: does not fit the DQS of this version: ") as refused:
        load_agent(file)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        torch.save({**safe_load(run), key: value}, tmp_path / "b.ckpt")
        with pytest.raises(CheckpointError, match=r"b.ckpt: "):
            (load_agent if key == "hyper_parameters" else OnlineData.load_from_checkpoint)(tmp_path / "b.ckpt")


def test_classes_are_found_by_the_packages_public_names() -> None:
    assert restore.named_class("dqs_lightning.DMControl") is DMControl
    for name in ("dqs_lightning.load_agent", "dqs_lightning.import_module", "dqs_lightning.Nothing"):
        with pytest.raises(restore.UntrustedNameError, match="no class of the package"):
            restore.named_class(name)
