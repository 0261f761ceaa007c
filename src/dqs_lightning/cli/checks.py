"""Checks a parsed configuration before anything starts: each class's own, and what the Trainer finds too late."""

import inspect
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dqs_callbacks import Evaluate
from dqs_lightning.cli.errors import InputError, refusing, shown
from dqs_lightning.cli.launch import launched
from dqs_lightning.cli.parser import SIZES
from dqs_lightning.cli.schema import Setting, arguments_of, takes_any_keyword
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.flags import check_callbacks as check_kinds
from dqs_lightning.collection.flags import check_flags, check_interval
from dqs_lightning.envs.transformed import TransformError
from dqs_lightning.run.checkpoint import RunCheckpoint

MAX_SEED = 2**32 - 1
MAX_INTEGER = 2**63 - 1
MAX_DEVICES = 1024
"""Largest number of devices of one machine; the Trainer makes a list of them."""
PRECISIONS = ("32-true", "bf16-mixed")
"""Precisions that train: data are float32, and clipping and `FiniteGuard` would see the scaled gradients of float16."""
REPLACED = {
    "barebones": (True, "a run writes metrics and checkpoints"),
    "default_root_dir": (None, "run_dir is where the run lives"),
    "enable_checkpointing": (False, "checkpoint.every_n_updates decides how often a run is saved"),
}
"""Flags of the Trainer that dqs-fit replaces: the refused value, None for any, and what replaces them."""
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


def check_seed(seed: Any) -> None:
    """Refuses a seed that is neither a boolean nor in NumPy's range, 0 to MAX_SEED."""
    if not isinstance(seed, bool | None) and not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed_everything={shown(seed)}: must be 0 to {MAX_SEED}, true or false")


def check(config: Namespace) -> tuple[OnlineData, L.Trainer]:
    """Constructs every part of a run, so that each checks its own arguments; returns the data and the trainer.

    The trainer has no callbacks and no loggers. A single callback in the configuration becomes a list of one.
    """
    trainer = config.trainer
    if trainer.callbacks is not None and not isinstance(trainer.callbacks, list):
        trainer.callbacks = [trainer.callbacks]
    model = config.model.clone()
    for name in SIZES:
        if name in model.init_args:
            if model.init_args[name] not in (None, 1 if name == "objectives" else None):
                raise InputError(f"model.{name}: is set by the environment; leave it out")
            model.init_args[name] = None if name == "action_dims" else 1
    try:
        with torch.device("meta"):  # only the sizes of networks matter here
            agent = build("model", model)
    except RuntimeError:  # a component whose constructor reads values of tensors
        agent = build("model", model)
    data: OnlineData = build("data", config.data.clone(), OnlineData)
    build("evaluate", config.evaluate.clone(), Evaluate)
    build("checkpoint", config.checkpoint.clone(), RunCheckpoint)
    check_callbacks(trainer.callbacks or [])
    checked = check_trainer(trainer.clone())
    with refusing("data.", ValueError):
        data.source(agent, checked.world_size)
    if data.transforms:  # an environment is started, to apply them to its observations
        with refusing("data.environment.", ValueError), refusing("data.", TransformError):
            _ = data.observation_dim
    return data, checked


def check_saving(parser: ArgumentParser, config: Namespace) -> None:
    """Refuses what cannot be written to config.yaml, such as a class with a default that YAML cannot hold."""
    try:
        parser.dump(config)
    except (ValueError, yaml.YAMLError) as error:
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        raise InputError(f"config.yaml cannot be written: {cause}") from error


def check_callbacks(nodes: list[Any]) -> None:
    """Constructs the callbacks; refuses two with the same settings whose states a checkpoint could not distinguish."""
    keys: set[str] = set()
    for index, node in enumerate(nodes):
        callback = build(f"trainer.callbacks.{index}", node.clone())
        with refusing("trainer.", MisconfigurationException):
            check_kinds([callback])
        if callback.state_key in keys:
            name = type(callback).__name__
            raise InputError(f"trainer.callbacks.{index}={name}: is given twice with the same settings")
        if type(callback).state_dict is not Callback.state_dict:
            keys.add(callback.state_key)


def check_trainer(node: Namespace) -> L.Trainer:
    """Returns a Trainer without callbacks and loggers; refuses what it accepts but cannot train with."""
    for name, (value, hint) in REPLACED.items():
        if (given := node.get(name)) is not None and value in (None, given):
            raise InputError(f"trainer.{name}={shown(given)}: must be left out; {hint}")
    if node.log_every_n_steps is not None and node.log_every_n_steps < 1:
        raise InputError(f"trainer.log_every_n_steps={node.log_every_n_steps}: must be >= 1")
    if str(node.devices).isdigit() and int(node.devices) > MAX_DEVICES:
        raise InputError(f"trainer.devices={shown(node.devices)}: must be <= {MAX_DEVICES}")
    precision = f"trainer.precision={node.precision}: must be {' or '.join(PRECISIONS)}"
    strategy = f"trainer.strategy={shown(node.strategy)}: must be one of {', '.join(STRATEGIES)}"
    if str(node.precision) in ("16", "16-mixed"):  # which becomes bf16-mixed on a CPU
        raise InputError(precision)
    if isinstance(node.strategy, str) and node.strategy not in STRATEGIES:
        raise InputError(strategy)
    node.callbacks, node.logger, node.enable_checkpointing = None, False, False
    arguments = _arguments("trainer", node, L.Trainer)
    with refusing("trainer: ", TypeError, ValueError, ImportError, RuntimeError, MisconfigurationException):
        trainer = L.Trainer(**arguments)
    with refusing("trainer.", MisconfigurationException):
        check_flags(trainer)
        check_interval(trainer)
    if trainer.num_nodes > 1 and launched() is None:
        raise InputError(
            f"trainer.num_nodes={trainer.num_nodes}: must be left out; start the nodes by torchrun or SLURM"
        )
    if trainer.precision not in PRECISIONS:
        raise InputError(precision)
    spawned = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    if spawned or type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        raise InputError(strategy)
    return trainer


def build(key: str, node: Any, cls: type | None = None) -> Any:
    """Constructs a parsed component; raises `InputError` with the whole key when a class refuses its arguments."""
    if isinstance(node, list):
        return [build(f"{key}.{index}", item) for index, item in enumerate(node)]
    if not isinstance(node, Namespace):
        if isinstance(node, int) and abs(node) > MAX_INTEGER:
            raise InputError(f"{key}={shown(node)}: must be an integer of 64 bits")
        return node
    further: dict[str, Any] = {}
    if cls is None:
        if "class_path" not in node:
            return node.as_dict()
        module, _, name = node.class_path.rpartition(".")
        cls = getattr(__import__(module, fromlist=[name]), name)
        further = node.get("dict_kwargs") or {}
        if further and not takes_any_keyword(cls):
            raise InputError(f"{key}.{next(iter(further))}: no such key of {name}")
        node = node.get("init_args") or Namespace()
    arguments = _arguments(key, node, cls)
    with refusing(f"{key}.", ValueError):
        return cls(**arguments, **further)


def _arguments(key: str, node: Namespace, cls: type) -> dict[str, Any]:
    """Constructs the arguments of a class; refuses null where its type excludes it, which the parser does not."""
    parameters = inspect.signature(cls).parameters
    for name, value in vars(node).items():
        if value is None and name in parameters and parameters[name].default is not None:
            setting = arguments_of(cls).get(name)
            if isinstance(setting, Setting) and not setting.admits(None):
                raise InputError(f"{key}.{name}=null: must be {setting.allowed()}")
    return {name: build(f"{key}.{name}", value) for name, value in vars(node).items()}
