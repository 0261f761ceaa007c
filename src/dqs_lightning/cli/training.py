"""The training command: a LightningCLI over one agent and `OnlineData`, with a run directory."""

import sys
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import dqs_callbacks
from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint import AtomicCheckpointIO, RunCheckpoint, safe_load
from dqs_lightning.cli import run_dir
from dqs_lightning.cli.errors import DONE, STOPPED, InputError
from dqs_lightning.cli.parser import ConfigFile, Parser
from dqs_lightning.data import OnlineData

SAFETY = (dqs_callbacks.FiniteGuard, dqs_callbacks.Preempt)
"""Callbacks of every run, whatever `trainer.callbacks` lists; each is switched off by its own `enabled`."""


class FitCLI(LightningCLI):
    """LightningCLI over one agent and `OnlineData`, with a run directory."""

    def __init__(self) -> None:
        super().__init__(
            Agent,
            OnlineData,
            subclass_mode_model=True,
            run=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=None,
            trainer_defaults={"max_epochs": 1, "devices": 1, "enable_model_summary": False},
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
        )

    def init_parser(self, **kwargs: Any) -> Parser:
        parser = Parser(
            prog="dqs-fit",
            description="Train an agent. Exit codes: 0 done, 2 bad input, 3 diverged, "
            "75 stopped (run again with --ckpt_path=auto).",
            **kwargs,
        )
        parser.add_argument("-c", "--config", action=ConfigFile, help="Configuration file; may be repeated.")
        parser.add_argument(
            "--extends", type=str | list[str] | None, help="In a file: others, relative to it, read first."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir", type=str | None, help="Where the run lives. Default: runs/<task>/<agent>/<time>."
        )
        parser.add_argument(
            "--ckpt_path", type=str | None, help="Checkpoint to continue, or auto: the newest one there."
        )
        parser.add_argument(
            "--trust", type=str | None, help="A further package whose classes may be named; command line only."
        )
        parser.add_lightning_class_args(dqs_callbacks.Evaluate, "evaluate")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(dqs_callbacks.FiniteGuard, "finite_guard")
        parser.add_lightning_class_args(dqs_callbacks.Preempt, "preempt")
        parser.set_defaults({"model": {"class_path": "dqs_lightning.agents.DQS"}})
        for key in ("observation_dim", "action_dim"):
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Refuse values out of range, choose the run directory: all before an environment starts."""
        config = self.config
        dims: dict[str, Any] = {"observation_dim": 1, "action_dim": 1}
        build("model", config.model.clone(), **dims)
        data = build("data", config.data.clone(), OnlineData)
        build("evaluate", config.evaluate.clone(), dqs_callbacks.Evaluate)
        build("checkpoint", config.checkpoint.clone(), RunCheckpoint)
        keys: set[str] = set()
        for index, node in enumerate(config.trainer.callbacks or []):
            callback = build(f"trainer.callbacks.{index}", node.clone())
            if callback.state_key in keys:
                name = type(callback).__name__
                raise InputError(f"trainer.callbacks.{index}={name}: stands there a second time with the same settings")
            if type(callback).state_dict is not Callback.state_dict:  # a checkpoint tells them apart by this key
                keys.add(callback.state_key)
        agent = config.model.class_path.rpartition(".")[2].lower()
        self.run_dir, self.ckpt_path = run_dir.choose(config.run_dir, data.environment.name, agent, config.ckpt_path)
        config.checkpoint.dirpath = str(self.run_dir / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        given = self.config_init.trainer
        listed: list[Callback] = given.callbacks or []
        given.callbacks = [callback for callback in listed if type(callback) not in SAFETY]  # which come by themselves
        kwargs["default_root_dir"] = str(self.run_dir)
        kwargs["plugins"] = [AtomicCheckpointIO(), *(given.plugins or [])]
        if given.logger is None or given.logger is True:
            kwargs["logger"] = run_dir.default_loggers(self.run_dir)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise InputError(f"trainer: {error}") from error
        made: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        off = {type(c) for c in (*listed, *made) if isinstance(c, SAFETY) and not c.enabled}
        self.callbacks = sorted((c for c in made if type(c) not in off), key=_turn)
        trainer.callbacks = self.callbacks  # type: ignore[attr-defined]
        return trainer

    def fit(self) -> int:
        """Train; returns the exit code."""
        if self.trainer.is_global_zero:
            print(self.run_dir, flush=True)
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, self.run_dir / "config.yaml", skip_unset=False, overwrite=True)
            run_dir.write_environment(self.run_dir)
        done = None if self.ckpt_path is None else safe_load(self.ckpt_path)["global_step"]
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.ckpt_path, weights_only=True)
        except MisconfigurationException:
            if self.ckpt_path is None and self.trainer.is_global_zero and self.trainer.global_step == 0:  # no run yet
                for name in ("config.yaml", "env.json"):
                    (self.run_dir / name).unlink(missing_ok=True)
            raise
        if self.trainer.global_step == done:
            print(f"{self.ckpt_path}: that run was finished already; a longer one starts anew", file=sys.stderr)
        stopped = any(isinstance(c, dqs_callbacks.Preempt) and c.stopped for c in self.callbacks)
        return STOPPED if stopped else DONE


def _turn(callback: Callback) -> int:
    """Sorts a stop after all other callbacks, and before the checkpoints, which save what all have come to."""
    return 2 if isinstance(callback, Checkpoint) else int(isinstance(callback, dqs_callbacks.Preempt))


def build(key: str, node: Any, cls: type | None = None, **extra: Any) -> Any:
    """Construct a parsed component, so that its own checks of its arguments run; errors name the whole key.

    Raises:
        InputError: when a class refuses its arguments.
    """
    if isinstance(node, list):
        return [build(f"{key}.{index}", item) for index, item in enumerate(node)]
    if not isinstance(node, Namespace):
        return node
    if cls is None:
        if "class_path" not in node:
            return node.as_dict()
        module, _, name = node.class_path.rpartition(".")
        cls = getattr(__import__(module, fromlist=[name]), name)
        node = node.get("init_args") or Namespace()
    arguments = {name: build(f"{key}.{name}", value) for name, value in vars(node).items()}
    try:
        return cls(**{**arguments, **extra})
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{key}.{error}") from error
