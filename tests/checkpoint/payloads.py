"""Files that try to run code: the forms of a payload, and functions that place one in the commands' files.

A payload that ran leaves the file `ran` in its folder, or the module `my_payload` imported.
"""

import builtins
import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
import yaml

MODULE = "my_payload"
POPEN = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"
SOURCE = """
import pathlib
RAN = pathlib.Path(__file__).with_name("ran")
RAN.touch()
class X:
    def __init__(self, *args, **kwargs): RAN.touch()
def function(*args, **kwargs): RAN.touch()
"""
MARKUP = "<script>alert(1)</script> [x](javascript:alert(1)) $\\write18{touch ran}$ \x1b]0;x\x07 =cmd|' /C calc'!A0"


@dataclass(frozen=True)
class Form:
    """A form of payload.

    Attributes:
        name: short description.
        make: given a folder, returns the content of a file as bytes, or a value to be placed inside of a file.
        live: reads the payload unsafely, to show that it works; None for payloads that are only markup or large.
    """

    name: str
    make: Callable[[Path], Any]
    live: Callable[[Any, Path], object] | None

    @property
    def is_file(self) -> bool:
        return isinstance(self.make(Path("/nowhere")), bytes)


class Reduced:
    """Pickles as a function call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": value}, stream, **options)
    return stream.getvalue()


def touch(place: Path) -> str:
    return f"touch {place / 'ran'}"


def python(place: Path) -> str:
    return f"open({str(place / 'ran')!r}, 'w').close()"


def handler(place: Path) -> dict[str, Any]:
    """Returns arguments of a class of torch whose constructor starts a process."""
    command = {"entrypoint": "/bin/sh", "args": ["-c", touch(place)], "env": {}, "stdout": None, "stderr": None}
    return {**command, "local_rank_id": 0, "numa_options": None}


class Scripted(torch.nn.Module):
    """A TorchScript module that writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return (self.path, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.path, self.weight, self.training = state[0], state[1], state[2]
        torch.save(self.weight, self.path)


def torch_script(place: Path) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(Scripted(str(place / "ran"))), stream)
    return stream.getvalue()


def archive(place: Path) -> bytes:
    """Makes a checkpoint archive with members that unpacking would write outside of the target folder."""
    stream = io.BytesIO(saved(torch.zeros(1)))
    with zipfile.ZipFile(stream, "a") as file:
        link = zipfile.ZipInfo("archive/link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, str(place))
        for name in (str(place / "ran"), "../ran", "archive/link/ran"):
            file.writestr(name, "ran")
    return stream.getvalue()


def unpacked(content: bytes, place: Path) -> None:
    for member in zipfile.ZipFile(io.BytesIO(content)).infolist():
        if member.filename == str(place / "ran"):
            (place / "ran").touch()


def tar(place: Path) -> bytes:
    """Makes a checkpoint in the format of torch before 0.4."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Reduced(os.system, touch(place)))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def repeated(value: str, first: str) -> bytes:
    """Returns a few lines of YAML in which each value holds ten of the one before, 10^12 in all."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} " + value % ", ".join([f"*a{n - 1}"] * 10) for n in range(1, 13)]
    return "\n".join(lines).encode()


def named(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


def unpickled(content: bytes, place: Path) -> None:
    torch.load(io.BytesIO(content), weights_only=False)


def unsafe_yaml(content: bytes, place: Path) -> None:
    yaml.unsafe_load(content)


def unsafe_names(value: Any, place: Path) -> None:
    """Import and call everything that a value names, at any depth."""
    if isinstance(value, list):
        for item in value:
            unsafe_names(item, place)
    elif isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        arguments = value.get("init_args", {})
        if module == "dqs_lightning.envs":
            gymnasium.make(arguments["id"])
        elif module.partition(".")[0] in ("lightning", "dqs_lightning"):
            unsafe_names(list(arguments.values()), place)
        else:
            function = getattr(importlib.import_module(module), name)
            found = function(*arguments.values()) if module in ("os", "builtins") else function(**arguments)
            if process := getattr(found, "proc", None):
                process.wait()
    elif isinstance(value, dict):
        for item in value.values():
            unsafe_names(item, place)
    elif isinstance(value, str) and value.startswith(MODULE):
        importlib.import_module(MODULE)


FORMS = [
    Form("pickle: os.system", lambda place: saved(Reduced(os.system, touch(place))), unpickled),
    Form("pickle: builtins.exec", lambda place: saved(Reduced(exec, python(place))), unpickled),
    Form("pickle: builtins.eval", lambda place: saved(Reduced(builtins.eval, python(place))), unpickled),
    Form("pickle: subprocess", lambda place: saved(Reduced(subprocess.call, ["touch", str(place / "ran")])), unpickled),
    Form(
        "pickle: a class of torch that starts a process",
        lambda place: b"\x80\x02c" + POPEN.replace(".SubprocessHandler", "").encode() + b"\nSubprocessHandler\n("
        + b"X\x07\x00\x00\x00/bin/sh(X\x02\x00\x00\x00-cX" + len(touch(place)).to_bytes(4, "little")
        + touch(place).encode() + b"t}NNK\x00NtR.",
        lambda content, place: pickle.loads(content).proc.wait(),
    ),
    Form("pickle: protocol 0, as it is", lambda place: f"cos\nsystem\n(S'{touch(place)}'\ntR.".encode(),
         lambda content, place: pickle.loads(content)),
    Form("pickle: import of a module", lambda place: f"c{MODULE}\nX\n.".encode(),
         lambda content, place: pickle.loads(content)),
    Form("pickle: instance by INST", lambda place: f"(S'{touch(place)}'\nios\nsystem\n.".encode(),
         lambda content, place: pickle.loads(content)),
    Form("pickle: torch's format before 1.6",
         lambda place: saved(Reduced(os.system, touch(place)), _use_new_zipfile_serialization=False), unpickled),
    Form("pickle: torch's tar format", tar, lambda content, place: pickle.loads(content[content.index(b"\x80"):])),
    Form("TorchScript", torch_script, lambda content, place: torch.jit.load(io.BytesIO(content))),
    Form("zip: links, absolute and parent paths", archive, unpacked),
    Form("YAML: object/apply",
         lambda place: f"a: !!python/object/apply:os.system ['{touch(place)}']".encode(), unsafe_yaml),
    Form("YAML: object/new", lambda place: (
        "a: !!python/object/new:tuple [!!python/object/new:map [!!python/name:eval , "
        f"[{json.dumps(python(place))}]]]").encode(), unsafe_yaml),
    Form("YAML: object", lambda place: f"a: !!python/object:{MODULE}.X {{}}".encode(), unsafe_yaml),
    Form("YAML: name", lambda place: f"a: !!python/name:{MODULE}.X ''".encode(), unsafe_yaml),
    Form("YAML: module", lambda place: f"a: !!python/module:{MODULE} ''".encode(), unsafe_yaml),
    Form("YAML: aliases of aliases", lambda place: repeated("[%s]", "x"), None),
    Form("YAML: merges of merges", lambda place: repeated("{<<: [%s]}", "{x: 1}"), None),
    Form("JSON: 100,000 levels", lambda place: b"[" * 100_000, None),
    Form("class: os.system", lambda place: named("os.system", command=touch(place)), unsafe_names),
    Form("class: builtins.eval", lambda place: named("builtins.eval", source=python(place)), unsafe_names),
    Form("class: subprocess.call",
         lambda place: named("subprocess.call", args=["touch", str(place / "ran")]), unsafe_names),
    Form("class: of torch, starts a process", lambda place: named(POPEN, **handler(place)), unsafe_names),
    Form("class: of an untrusted module", lambda place: named(f"{MODULE}.X"), unsafe_names),
    Form("function of an untrusted module", lambda place: named(f"{MODULE}.function"), unsafe_names),
    Form("class path as a text", lambda place: f"{MODULE}.X", unsafe_names),
    Form("class: callback that calls a function",
         lambda place: named("lightning.pytorch.callbacks.LambdaCallback", on_fit_start=f"{MODULE}.function"),
         unsafe_names),
    Form("class: hidden in an argument of any type",
         lambda place: {**named("lightning.pytorch.loggers.TensorBoardLogger", save_dir=str(place)),
                        "dict_kwargs": {"comment": named(POPEN, **handler(place))}},
         lambda value, place: unsafe_names(value["dict_kwargs"], place)),
    Form("Gymnasium id that imports a module", lambda place: named("dqs_lightning.envs.Gym", id=f"{MODULE}:X-v0"),
         lambda value, place: unsafe_names(f"{MODULE}.X", place)),
    Form("path through dunder names",
         lambda place: named("dqs_lightning.diffusion.Geometric.__init__.__globals__", command=touch(place)), None),
    Form("interpolations", lambda place: ["${oc.env:HOME}", "${oc.decode:'" + python(place) + "'}", "${eval:'1+1'}",
         "${os.system:" + touch(place) + "}", "${oc.create:{class_path: " + MODULE + ".X}}"], None),
    Form("trust in the file", lambda place: {"trust": MODULE, "value": named(f"{MODULE}.X")}, unsafe_names),
    Form("the parser's own keys",
         lambda place: {"__path__": f"{MODULE}.X", "__orig__": named(f"{MODULE}.X"), "__class__": MODULE},
         unsafe_names),
    Form("markup, escapes and formulas", lambda place: MARKUP, None),
]  # fmt: skip


def hyperparameters(content: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """Returns checkpoints with a value in place of a component, agent, one of Lightning's keys or a plain argument."""
    found = []
    for key, names in (
        ("hyper_parameters", ("sampler", "tau", "_class_path", "_instantiator", "my_argument")),
        ("datamodule_hyper_parameters", ("environment", "_class_path", "_instantiator")),
    ):
        for name in names:
            changed = deepcopy(content)
            path = (
                value["class_path"]
                if name.startswith("_") and isinstance(value, dict) and "class_path" in value
                else value
            )
            changed[key] = {**changed[key], "_instantiator": "lightning.pytorch.cli.instantiate_module", name: path}
            found.append(changed)
    for key in ("agent", "agent_class", "hparams_name", "hparams_type", "state_dict"):
        path = value["class_path"] if isinstance(value, dict) and "class_path" in value else value
        found.append({**content, key: path})
    return found


def checkpoints(content: dict[str, Any], value: Any) -> list[bytes]:
    files = []
    for changed in hyperparameters(content, value):
        stream = io.BytesIO()
        torch.save(changed, stream)
        files.append(stream.getvalue())
    return files


def replaced(content: Any, value: Any, *paths: str) -> list[Any]:
    """Returns one copy of nested dicts and lists for each dotted path, with the entry at that path replaced."""
    found = []
    for path in paths:
        copy = deepcopy(content)
        part, (*above, last) = copy, path.split(".")
        for name in above:
            part = part[int(name)] if isinstance(part, list) else part.setdefault(name, {})
        part[int(last) if isinstance(part, list) else last] = value
        found.append(copy)
    return found


def configurations(value: Any) -> list[bytes]:
    """Returns configuration files with a value in place of a component, a part of the Trainer or a text."""
    places = (
        "model", "model.class_path", "model.init_args.sampler", "data.environment", "data.environment.init_args.id",
        "trainer.callbacks", "trainer.logger", "trainer.plugins", "trainer.profiler", "trainer.strategy",
        "evaluate.path", "run_dir", "extends", "my_key",
    )  # fmt: skip
    listed = replaced({}, [value], "trainer.callbacks", "trainer.plugins")
    whole = [value] if isinstance(value, dict) and "trust" in value else []
    return [yaml.safe_dump(content).encode() for content in (*replaced({}, value, *places), *listed, *whole)]


def run_facts(facts: dict[str, Any], value: Any) -> list[bytes]:
    """Returns versions of a run's run.json with a value in an entry that the report reads, or in another one."""
    places = (
        *facts, "settings.model", "settings.model.class_path", "settings.model.init_args.sampler", "starts.0",
        "starts.0.command", "starts.0.command.0", "starts.0.commit", "starts.0.torch", "starts.0.python", "my_key",
    )  # fmt: skip
    return [json.dumps(content).encode() for content in replaced(facts, value, *places)]


def score_rows(row: dict[str, Any], value: Any) -> list[bytes]:
    return [json.dumps(content).encode() for content in (value, *replaced(row, value, *row))]


def ran(place: Path) -> bool:
    """Whether a payload ran in a folder; removes its traces."""
    found = (place / "ran").exists() or MODULE in sys.modules
    (place / "ran").unlink(missing_ok=True)
    sys.modules.pop(MODULE, None)
    return found
