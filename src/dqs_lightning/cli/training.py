"""The training command: a LightningCLI over one agent and `OnlineData`, with a run directory."""

import sys
from functools import partial
from typing import Any

import lightning as L
import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import dqs_callbacks
from dqs_callbacks.periodic import Periodic
from dqs_callbacks.rank_watch import first_to_report, lost_connection
from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.archive import AtomicCheckpointIO, CheckpointError, safe_load
from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.cli.checks import check, check_saving, check_seed
from dqs_lightning.cli.continuation import continued, started_ranks, wait_for_ranks
from dqs_lightning.cli.ending import goal_reached, limit_reached
from dqs_lightning.cli.errors import DONE, RANK_LOST, STOPPED, InputError, refusing
from dqs_lightning.cli.interpolation import as_written, as_yaml, hide_environment
from dqs_lightning.cli.launch import Launch, Ranks, launched
from dqs_lightning.cli.listing import ShowList
from dqs_lightning.cli.loggers import RunCSVLogger, drop_later_metrics
from dqs_lightning.cli.machine import set_threads
from dqs_lightning.cli.parser import DEFAULT_AGENT, SIZES, ConfigFile, Parser, defaults_of
from dqs_lightning.cli.provenance import method_of, write_run
from dqs_lightning.cli.run_dir import RunDir
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.stop_signal import STOP

DEFAULTS = {"max_epochs": 1, "enable_model_summary": False, "num_sanity_val_steps": 0}
"""Flags of the Trainer; those of devices follow from what has started the process."""
SAFETY = (dqs_callbacks.FiniteGuard, dqs_callbacks.Preempt, dqs_callbacks.RankCores, dqs_callbacks.RankWatch)
"""Callbacks of every run, whatever `trainer.callbacks` lists; each is switched off by its own `enabled`."""


class FitCLI(LightningCLI):
    """LightningCLI over one agent and `OnlineData`, with a run directory."""

    parser: Parser

    def __init__(self, args: list[str] | None = None) -> None:
        launch = launched() or Launch("dqs-fit", 1, 1)
        super().__init__(
            Agent,
            OnlineData,
            subclass_mode_model=True,
            run=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=None,
            trainer_defaults={**DEFAULTS, "devices": launch.devices, "num_nodes": launch.nodes},
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> Parser:
        parser = Parser(
            prog="dqs-fit",
            description="Train an agent. Exit codes: 0 done, 2 bad input, 3 diverged, "
            "4 an environment failed, 5 checkpoints cannot be written, 6 another rank was lost, 75 stopped "
            "(continue with --ckpt_path=auto).",
            **kwargs,
        )
        text = "Configuration: a file or a shipped one, such as walker; may be repeated. Without it: default."
        parser.add_argument("-c", "--config", action=ConfigFile, help=text)
        parser.add_argument(
            "--list", action=ShowList, help="Show shipped tasks and methods and all components, and exit."
        )
        parser.add_argument(
            "--extends", type=str | list[str] | None, help="In a file: others, relative to it, read first."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for option, kind, text in (
            ("--run_dir", str | None, "Where the run lives. Default: runs/<task>/<agent>/<time>."),
            ("--ckpt_path", str | None, "Checkpoint to continue, or auto: the newest one there."),
            ("--trust", str | None, "A further package whose classes may be named; command line only."),
            ("--threads", PositiveInt | None, "Of torch. Default: OMP_NUM_THREADS, or what the networks need."),
        ):
            parser.add_argument(option, type=kind, help=text)
        parser.add_lightning_class_args(dqs_callbacks.Evaluate, "evaluate")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(dqs_callbacks.FiniteGuard, "finite_guard")
        parser.add_lightning_class_args(dqs_callbacks.Preempt, "preempt")
        parser.add_lightning_class_args(dqs_callbacks.RankCores, "rank_cores")
        parser.add_lightning_class_args(dqs_callbacks.RankWatch, "rank_watch")
        parser.set_defaults({"model": defaults_of(DEFAULT_AGENT)})
        for key in SIZES:
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # Lightning's own warns about `args` beside those of the process
        check_seed(self.config.seed_everything)

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot run, and choose the run directory, all before an environment starts."""
        config = self.config
        data, trainer = check(config)
        check_saving(self.parser, config)
        self.ranks = Ranks(trainer)
        agent = config.model.class_path.rpartition(".")[2].lower()
        chosen = partial(RunDir, config.run_dir, config.ckpt_path, data.environment.name, agent)
        self.run_dir = self.ranks.from_first(chosen)

    def instantiate_classes(self) -> None:
        """Construct agent, data and trainer. An environment is started to learn its sizes."""
        with refusing("data.environment.", ValueError):
            super().instantiate_classes()
        hide_environment(self.parser.written, self.model, self.datamodule)
        set_threads(self.config.threads, self.model, self.trainer.num_devices)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        given = self.config_init.trainer
        listed: list[Callback] = given.callbacks or []
        bars = [callback for callback in listed if isinstance(callback, ProgressBar)]
        unused = bars if given.enable_progress_bar is False else bars[:-1]  # a later one replaces an earlier one
        # Those of SAFETY are added below.
        given.callbacks = [c for c in listed if type(c) not in SAFETY and c not in unused]
        self.run_dir.path = folder = self.ranks.from_first(self.run_dir.claim)
        self.config.checkpoint.dirpath = str(folder / "checkpoints")
        self.config_init.checkpoint.dirpath = folder / "checkpoints"
        kwargs["default_root_dir"] = str(folder)
        kwargs["plugins"] = [AtomicCheckpointIO(), *(given.plugins or [])]
        if given.logger is None or given.logger is True:
            board = TensorBoardLogger(save_dir=folder, name="", version="tensorboard")
            kwargs["logger"] = [RunCSVLogger(save_dir=folder, name="", version=""), board]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            self.run_dir.discard()
            raise InputError(f"trainer: {error}") from error
        made: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        off = {type(c) for c in (*listed, *made) if isinstance(c, SAFETY) and not c.enabled}
        # A stop acts after all other callbacks, and before the checkpoints, which save their final state.
        last = Checkpoint, dqs_callbacks.Preempt
        kept = (c for c in made if type(c) not in off)
        self.callbacks = sorted(kept, key=lambda c: [isinstance(c, kind) for kind in last])
        trainer.callbacks = self.callbacks  # type: ignore[attr-defined]  # set by a connector
        return trainer

    def fit(self) -> int:
        """Train; returns the exit code."""
        STOP.abandon = self._abandon
        if not any(isinstance(callback, dqs_callbacks.Preempt) for callback in self.callbacks):
            STOP.uninstall()
        try:
            ckpt_path = self.run_dir.ckpt_path
            if ckpt_path is not None and continued(ckpt_path, self.model, self.datamodule, self.trainer) is None:
                print(f"{ckpt_path}: that run was finished already", file=sys.stderr)
                return DONE
            if self.trainer.is_global_zero:
                print(self.run_dir.path, flush=True)
                self._write_configuration()
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
        except (InputError, CheckpointError, MisconfigurationException, EnvironmentFailure):
            if self._nothing_to_keep():
                self.run_dir.discard()
            raise
        except SystemExit:  # by a stop signal, which the other ranks need not have received
            self._abandon()
            raise
        except RuntimeError as error:
            cause = lost_connection(error)
            if cause is None or self.trainer.world_size == 1:
                raise
            if first_to_report():
                again = f"--run_dir={self.run_dir.path} --ckpt_path=auto"
                print(f"dqs-fit: another rank has ended ({cause}); continue with {again}", file=sys.stderr)
            return RANK_LOST
        finally:
            wait_for_ranks(self.trainer)
            if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
                self.run_dir.discard()
            self.run_dir.release()
        evaluated = not any(isinstance(c, Periodic) and c.interrupted_at is not None for c in self.callbacks)
        if self.datamodule.finished and evaluated:
            return DONE
        frames = f"{self.datamodule.env_frames:,} of {self.datamodule.total_frames:,} frames"
        again = f"--run_dir={self.run_dir.path} --ckpt_path=auto"
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            code, text = DONE, f"trainer.fast_dev_run: {self.trainer.global_step} updates; nothing is kept"
        elif limit := limit_reached(self.trainer):
            code, text = STOPPED, f"stopped at {frames} by trainer.{limit}; continue with {again} and a higher limit"
        elif STOP.received is None and (reason := goal_reached(self.trainer)):
            code, text = DONE, f"ended at {frames}: {reason}"
        else:
            code, text = STOPPED, f"stopped at {frames}; continue with {again}"
        if self.trainer.is_global_zero:
            print(f"dqs-fit: {text}", file=sys.stderr)
        return code

    def _write_configuration(self) -> None:
        """Write config.yaml, with interpolations as they were written, and run.json."""
        folder, ckpt_path = self.run_dir.path, self.run_dir.ckpt_path
        text = as_yaml(self.parser.dump(self.config, skip_unset=False), self.parser.written)
        atomic_write(text.encode(), folder / "config.yaml")
        written, environment = yaml.safe_load(text), self.datamodule.environment
        write_run(
            folder,
            task=as_written(environment.name, self.config, self.parser.written),
            method=method_of(folder, type(self.model).__name__.lower()),
            seed=int(self.config.seed_everything or 0),
            action_repeat=environment.action_repeat,
            total_frames=self.datamodule.total_frames,
            settings={section: written.get(section) for section in ("model", "data", "evaluate")},
        )
        # A run that was killed before its first checkpoint starts anew, without the rows that it left.
        updates = -1 if ckpt_path is None else safe_load(ckpt_path)["global_step"]
        drop_later_metrics(folder / "metrics.csv", updates)

    def _nothing_to_keep(self) -> bool:
        """Whether no checkpoint was written or continued."""
        return self.run_dir.ckpt_path is None and not (self.run_dir.path / "checkpoints" / "last.ckpt").exists()

    def _abandon(self) -> None:
        for process in started_ranks(self.trainer):
            process.kill()
        if self._nothing_to_keep():
            self.run_dir.discard()


class Rehearsal(FitCLI):
    """Parses a command line of `dqs-fit`, after the command's name: its files, keys, components and types.

    It starts nothing. Values are not checked further: they may require devices or packages that only the machine of
    the run has.
    """

    def _set_seed(self) -> None:
        """Keeps the random state of this process."""

    def before_instantiate_classes(self) -> None:
        """Does nothing: only the parse is needed."""

    instantiate_classes = before_instantiate_classes
