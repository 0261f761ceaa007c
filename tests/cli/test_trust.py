"""What a configuration may name: components and parts of the Trainer, but no function or class that runs a command."""

import sys
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger

from dqs_lightning.checkpoint import restore
from dqs_lightning.cli import trust
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.trust import restrict_imports, trust_option

POPEN = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_trusted", set(restore._trusted))
    settings = jsonargparse._common.parsing_settings
    monkeypatch.setitem(settings, "import_path_verdicts", dict(settings["import_path_verdicts"]))


def parsed(kind: type, value: Any) -> Any:
    """Parses a value of a configuration as an argument of the given type and constructs it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser.instantiate_classes(parser.parse_object({"value": value})).value


def test_trusted_packages_are_read_from_the_command_line() -> None:
    words = ["--config=a.yaml", "--trust=one", "--trust", "two.three", "--trusted=four", "--data.trust=five", "--trust"]
    assert trust_option(words) == ["one", "two.three", ""]


@pytest.mark.parametrize("name", ["", "a-b", "a b", "../a", "jsonargparse", "jsonargparse.typing", "1a"])
def test_a_trusted_name_that_is_not_a_package_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--trust={name}: must be the import name of a package"):
        restrict_imports([name])


def test_a_package_that_cannot_be_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_broken.py").write_text("raise RuntimeError('broken \\x1b[31m\\nbadly')")
    with pytest.raises(InputError, match=r"--trust=my_missing: cannot be imported: No module named 'my_missing'$"):
        restrict_imports(["my_missing"])
    with pytest.raises(InputError, match=r"--trust=my_broken: cannot be imported: broken \\x1b\[31m badly$"):
        restrict_imports(["my_broken"])

    def fail() -> list[str]:
        raise ImportError("no such module")

    monkeypatch.setattr(trust, "load_entry_points", fail)
    with pytest.raises(InputError, match="a package that registers components cannot be imported: no such module"):
        restrict_imports([])


def test_the_parts_of_the_trainer_may_be_named(tmp_path: Path) -> None:
    restrict_imports([])
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}
    assert isinstance(parsed(Callback, stopping), EarlyStopping)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    assert isinstance(parsed(Logger, logger), Logger)
    assert type(parsed(Callback, {"class_path": "dqs_callbacks.Throughput"})).__name__ == "Throughput"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Callback, "lightning.pytorch.callbacks.LambdaCallback"),
        (Callback, "lightning.pytorch.callbacks.lambda_function.LambdaCallback"),
        (Callback, "LambdaCallback"),
        (Callback, "torch.nn.Linear"),
        (Callback, "lightning.Trainer"),
        (Callback, "lightning.pytorch.cli.LightningCLI"),
        (Callback, POPEN),
        (Callback, "my_callbacks.Mine"),
        (restore.Any, "os.system"),
        (type, "subprocess.Popen"),
    ],
)
def test_functions_and_other_classes_may_not_be_named(kind: Any, value: str) -> None:
    restrict_imports([])
    before = set(sys.modules)
    if kind is restore.Any:
        assert parsed(kind, {"class_path": value}) == {"class_path": value}  # a plain value
    else:
        with pytest.raises(Exception, match=r"not allowed|does not correspond|Not a valid subclass"):
            parsed(kind, {"class_path": value, "init_args": {}} if kind is Callback else value)
    assert set(sys.modules) == before


@pytest.mark.parametrize("trusted", [[], ["torch"]])
def test_a_class_path_in_an_argument_typed_any_is_not_instantiated(tmp_path: Path, trusted: list[str]) -> None:
    """Lightning's loggers and strategies have such arguments; instantiating the named class would run a command."""
    restrict_imports(trusted)
    command = {"entrypoint": "/bin/sh", "args": ["-c", f"touch {tmp_path / 'ran'}"], "env": {}, "local_rank_id": 0}
    hostile = {"class_path": POPEN, "init_args": {**command, "stdout": None, "stderr": None, "numa_options": None}}
    named = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path)},
        "dict_kwargs": {"comment": hostile},
    }
    if trusted:
        assert parsed(Logger, named)._kwargs["comment"].class_path == POPEN  # a plain value
    else:
        with pytest.raises(Exception, match=f"Importing '{POPEN}' is not allowed"):
            parsed(Logger, named)
    assert not (tmp_path / "ran").exists()
