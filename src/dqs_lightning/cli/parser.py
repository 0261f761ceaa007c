"""The command line's parser: strict configuration files that may extend one another, short errors."""

import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, get_loader, set_loader
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from dqs_lightning import agents, diffusion, envs, temperature
from dqs_lightning.cli.errors import InputError, explain
from dqs_lightning.cli.reading import BoundedLoader, read_text
from dqs_lightning.registry import components

DEFAULT_AGENT = agents.DQS

BASES = (
    agents.Agent,
    agents.Backup,
    agents.CriticLoss,
    diffusion.Backbone,
    diffusion.EnergyEstimator,
    diffusion.NoiseSchedule,
    diffusion.NoisedPoints,
    diffusion.Preconditioning,
    diffusion.Sampler,
    diffusion.Support,
    envs.Environment,
    temperature.Temperature,
    Callback,
)


def _load(text: str) -> Any:
    """A value in a file or on the command line, which may not expand without end (see `BoundedLoader`)."""
    BoundedLoader(text).get_single_node()
    return get_loader("yaml")(text)


set_loader("omegaconf+", _load, (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """Raises `InputError` instead of printing the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser that another one runs inside: the outer one explains
            super().error(message, ex)
        raise InputError(explain(str(message), [action.dest for action in self._actions], BASES)) from ex

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        return super().parse_args([*args, *own_defaults(args)], *rest, **kwargs)


def own_defaults(args: Sequence[str]) -> list[str]:
    """Options that give an agent other than the default one its own defaults, where no file and no option says more.

    When the class changes, jsonargparse keeps what both classes accept: what was said, as it should, and also what is
    only the former class's default.
    """
    name = DEFAULT_AGENT.__name__
    said: set[str] = set()
    for option, value in _options(args):
        if option in ("-c", "--config"):
            for content in reversed(config_chain(Path(value)).values()):
                model = content.get("model")
                if isinstance(model, dict):
                    name = str(model.get("class_path") or name)
                    init_args = model.get("init_args")
                    said.update(init_args if isinstance(init_args, dict) else ())
        elif option in ("--model", "--model.class_path"):
            name = value
        elif option.startswith("--model."):
            said.add(option.removeprefix("--model.").removeprefix("init_args.").split(".")[0])
    known = components(agents.Agent)
    agent = known.get(name.rpartition(".")[2])
    if agent is None or agent is DEFAULT_AGENT:
        return []
    shared = inspect.signature(agent).parameters.keys() & inspect.signature(DEFAULT_AGENT).parameters.keys() - said
    defaults = {key: inspect.signature(agent).parameters[key].default for key in sorted(shared)}
    return [
        f"--model.{key}={json.dumps(value)}" for key, value in defaults.items() if value is not inspect.Parameter.empty
    ]


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and their values, written with = or with a space."""
    for index, arg in enumerate(args):
        if arg.startswith("-"):
            option, equals, value = arg.partition("=")
            yield option, value if equals else next(iter(args[index + 1 :]), "")


class _StrictLoader(BoundedLoader):
    """YAML in which a key may stand once only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise InputError(f"{mark.name}, line {mark.line + 1}: key {key} stands there a second time")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file as a mapping.

    Raises:
        InputError: when it is missing, empty, not YAML, not a mapping, or names a key twice.
    """
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"; {path.parent} has {', '.join(near[:12])}" if near else ""
        raise InputError(f"--config={path}: no such file{there}")
    try:
        content = yaml.load(read_text(path), _StrictLoader)
    except yaml.YAMLError as error:
        raise InputError(f"--config={path}: not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not content:
        raise InputError(f"--config={path}: the file is empty")
    if not isinstance(content, dict):
        raise InputError(f"--config={path}: must hold keys and values, not a {type(content).__name__}")
    return content


def config_chain(path: Path) -> dict[Path, dict[str, Any]]:
    """A configuration file and those that it extends, by path, in the order of their precedence: the file first.

    `extends` names one file or several, relative to the file; of several a later one overrides an earlier one.

    Raises:
        InputError: see `read_config`; and when a file is reached twice, as when it extends itself.
    """
    chain: dict[Path, dict[str, Any]] = {}

    def visit(file: Path) -> None:
        if file.resolve() in {known.resolve() for known in chain}:
            raise InputError(f"--config={path}: {file} is extended twice")
        chain[file] = read_config(file)
        bases = chain[file].get("extends") or []
        for base in reversed([bases] if isinstance(bases, str) else bases):
            visit(file.parent / base)

    visit(path)
    return chain


class ConfigFile(ActionConfigFile):
    """`--config`: a file is read after the one that its `extends` names (relative to itself), so it can be short."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        for file in reversed(config_chain(Path(values))):
            super().__call__(parser, cfg, str(file), option_string)  # type: ignore[no-untyped-call]
        cfg["extends"] = None
