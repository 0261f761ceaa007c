"""The command line's parser: short errors that name the key at fault."""

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ActionConfigFile, Namespace, set_loader
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from dqs_lightning import agents, diffusion, envs, temperature
from dqs_lightning.cli.config_file import config_chain, integral, load_yaml
from dqs_lightning.cli.errors import InputError, shown
from dqs_lightning.cli.faults import Source, explain, parsers_own, raise_fault
from dqs_lightning.cli.interpolation import Place, as_yaml, interpolations, reads_environment
from dqs_lightning.cli.schema import Setting, default_classes, tree_of
from dqs_lightning.cli.shipped import DEFAULT
from dqs_lightning.registry import components, describe, nearest

DEFAULT_AGENT = agents.DQS
SIZES = ("observation_dim", "action_dim", "action_dims", "objectives")
"""Arguments of agents that are set from the data, whose attributes have the same names."""

BASES = (
    agents.Agent,
    agents.Backup,
    agents.CriticLoss,
    diffusion.Backbone,
    diffusion.EnergyEstimator,
    diffusion.NoiseSchedule,
    diffusion.TrainingPoints,
    diffusion.Preconditioning,
    diffusion.Sampler,
    diffusion.Support,
    envs.Environment,
    envs.Transform,
    temperature.Temperature,
    Callback,
)
"""Base classes of all components that a configuration can name."""

TEXT_OPTIONS = ("-c", "--config", "--run_dir", "--ckpt_path", "--trust")
"""Options whose values are text even where they look like numbers."""

set_loader("omegaconf+", load_yaml, (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """Raises `InputError` instead of printing the usage. Options cannot be abbreviated.

    Attributes:
        written: interpolations as they were written, by their place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._given: list[str] = []
        self.written: dict[Place, str] = {}

    def dump(self, *args: Any, **kwargs: Any) -> str:
        if "skip_none" in kwargs:  # Lightning uses the name that jsonargparse has deprecated
            kwargs["skip_unset"] = kwargs.pop("skip_none")
        text: str = super().dump(*args, **kwargs)
        if "${" in text:  # jsonargparse dumps the unresolved configuration in order to resolve it
            self.written.update(interpolations(yaml.safe_load(text)))
            return text
        return as_yaml(text, {place: value for place, value in self.written.items() if reads_environment(value)})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser that another one runs inside: the outer one explains
            super().error(message, ex)
        if (text := explain(str(message))) is None:
            self._raise_fault()
            text = parsers_own(str(message))
        raise InputError(text) from ex

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        if not self.exit_on_error:
            return super().parse_args(args, *rest, **kwargs)
        self._given = with_configuration(with_integers(sys.argv[1:] if args is None else args))
        further = own_defaults(self._given)
        try:
            config = super().parse_args([*self._given, *further], *rest, **kwargs)
        except InputError:
            raise
        except OmegaConfBaseException as error:
            raise InputError(self._interpolation(error)) from error
        except Exception:  # such as of a class that jsonargparse cannot read: refused where the input is at fault
            self._raise_fault()
            raise
        for key, entry in tree_of(self).items():
            if not isinstance(entry, Setting) and not isinstance(config.get(key), Namespace):
                raise InputError(f"{key}={shown(config.get(key))}: must hold keys and values")
        return config

    def _raise_fault(self) -> None:
        """Raises `InputError` for the first fault of the input, if one is found."""
        defaults = default_classes("model", defaults_of(DEFAULT_AGENT))
        raise_fault(tree_of(self), sources(self._given), defaults)

    def _interpolation(self, error: OmegaConfBaseException) -> str:
        key = (getattr(error, "full_key", None) or "${...}").replace(".init_args", "")
        reason = (str(error).splitlines() or [""])[0]
        near = None
        if isinstance(error, InterpolationKeyError) and (missing := re.search(r"'(.+)'", reason)):
            near = nearest(missing[1], [action.dest for action in self._actions])
        return f"{key}: {reason}" + (f"\nDid you mean {near}?" if near else "")


@functools.cache
def defaults_of(agent: type[agents.Agent]) -> dict[str, Any]:
    """Returns an agent's defaults as its constructor resolves them, in the form of a configuration.

    Settings of a component, such as --model.sampler.steps, then change the agent's default component.
    """
    make: Any = agent
    try:
        with torch.random.fork_rng(devices=[]):  # only its arguments are used
            made: dict[str, Any] = describe(dict(make(1, 1).hparams))
    except Exception:  # an agent of another package, whose defaults are then those of its signature
        made = {}
    init_args = {key: value for key, value in made.items() if key not in SIZES}
    return {"class_path": f"{agent.__module__}.{agent.__qualname__}", "init_args": init_args}


def own_defaults(args: Sequence[str]) -> list[str]:
    """Returns options that give an agent other than the default one its own defaults, where nothing else is given.

    When the class changes, jsonargparse keeps what both classes accept: what a file or an option gives, as it should,
    and also the defaults of the former class.
    """
    models = (source.content.get("model") for source in sources(args) if isinstance(source.content, dict))
    name, chosen = combined(models, DEFAULT_AGENT.__name__)
    agent = components(agents.Agent).get(name.rpartition(".")[2])
    if agent is None or agent is DEFAULT_AGENT:
        return []
    shared = defaults_of(DEFAULT_AGENT)["init_args"]
    defaults = defaults_of(agent)["init_args"].items()
    own = {key: value for key, value in defaults if key in shared and value != shared[key]}
    return [f"--model.{key}={json.dumps(value)}" for key, value in missing(own, chosen)]


def combined(written: Iterable[Any], name: str) -> tuple[str, dict[str, Any]]:
    """Returns the name and the arguments of a component that several sources describe, a later one over an earlier one.

    `name` is used where no source names a class.
    """
    arguments = dict[str, Any]()
    for value in written:
        if isinstance(value, str):
            name = value
        elif isinstance(value, dict):
            name = str(value.get("class_path") or name)
            given = value.get("init_args", {k: v for k, v in value.items() if k not in ("class_path", "init_args")})
            arguments = merged(arguments, given) if isinstance(given, dict) else arguments
    return name, arguments


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two nested mappings, of which the second overrides the first."""
    both = dict(one)
    for key, value in other.items():
        before = both.get(key)
        both[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both


def missing(own: dict[str, Any], chosen: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The defaults that `chosen` does not override, by key; those of a component only where its class is the same."""
    for key, value in own.items():
        given = chosen.get(key)
        if key not in chosen:
            yield prefix + key, value
        elif isinstance(value, dict) and isinstance(given, dict):
            named = str(given.get("class_path") or value["class_path"]).rpartition(".")[2]
            if named == value["class_path"].rpartition(".")[2]:
                inner = given.get("init_args", {k: v for k, v in given.items() if k != "class_path"})
                yield from missing(value["init_args"], inner, f"{prefix}{key}.")


def sources(args: Sequence[str]) -> Iterator[Source]:
    """Yields the contents of the files and options of a command line, in the order in which they are read."""
    for option, value in _options(args):
        if option in ("-c", "--config"):
            for content in reversed(config_chain(Path(value)).values()):
                yield Source({key: value for key, value in content.items() if key != "extends"})
        elif option.startswith("--") and option not in ("--print_config", "--help", "--list"):
            yield Source.of_option(option.removesuffix(".help"), value)


def with_integers(args: Sequence[str]) -> list[str]:
    """Arguments in which a number such as 1e6 is written as an integer, which settings of both kinds take."""
    written: list[str] = []
    for arg in args:
        option, equals, value = arg.partition("=")
        if arg.startswith("--") and equals and option not in TEXT_OPTIONS:
            arg = f"{option}={integral(value)}"
        elif written and written[-1].startswith("--") and written[-1] not in TEXT_OPTIONS:
            arg = integral(arg)
        written.append(arg)
    return written


def with_configuration(args: Sequence[str]) -> list[str]:
    """Arguments that read the shipped default.yaml first where they name no configuration."""
    named = any(option in ("-c", "--config") for option, _ in _options(args))
    return list(args) if named else ["--config", str(DEFAULT), *args]


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and their values, written with = or with a space."""
    for index, arg in enumerate(args):
        if re.match(r"--?[A-Za-z_]", arg):
            option, equals, value = arg.partition("=")
            yield option, value if equals else next(iter(args[index + 1 :]), "")


class ConfigFile(ActionConfigFile):
    """`--config`: a file is read after the one that its `extends` names (relative to itself), so it can be short."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        for file in reversed(config_chain(Path(values))):
            super().__call__(parser, cfg, str(file), option_string)  # type: ignore[no-untyped-call]
        cfg["extends"] = None
