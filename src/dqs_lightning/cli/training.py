"""The training command: a LightningCLI over one agent and `OnlineData`, with a run directory."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import dqs_callbacks
from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint import AtomicCheckpointIO, RunCheckpoint, safe_load
from dqs_lightning.cli import run_dir
from dqs_lightning.cli.checks import check, check_saving, check_seed
from dqs_lightning.cli.errors import DONE, STOPPED, InputError
from dqs_lightning.cli.parser import ConfigFile, Parser
from dqs_lightning.data import OnlineData


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
        parser.set_defaults({"model": {"class_path": "dqs_lightning.agents.DQS"}})
        for key in ("observation_dim", "action_dim"):
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        check_seed(self.config.seed_everything)

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot run, then choose the run directory: all before an environment starts."""
        config = self.config
        data = check(config)
        check_saving(self.parser, config)
        agent = config.model.class_path.rpartition(".")[2].lower()
        self.run_dir, self.ckpt_path = run_dir.choose(config.run_dir, data.environment.name, agent, config.ckpt_path)
        config.checkpoint.dirpath = str(self.run_dir / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        given = self.config_init.trainer
        self.callbacks: list[Callback] = given.callbacks or []
        kwargs["default_root_dir"] = str(self.run_dir)
        kwargs["plugins"] = [AtomicCheckpointIO(), *(given.plugins or [])]
        if given.logger is None or given.logger is True:
            kwargs["logger"] = run_dir.default_loggers(self.run_dir)
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise InputError(f"trainer: {error}") from error

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
