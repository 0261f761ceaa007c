"""The run directory: one place that holds everything of a run, and belongs to one process at a time."""

import contextlib
import fcntl
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import IO

from lightning.pytorch.utilities import rank_zero_only

from dqs_lightning.checkpoint.atomic import remove_temporaries
from dqs_lightning.cli.errors import InputError

VARIABLE = "DQS_RUN_DIR"
"""Ranks that Lightning starts take the first one's choice from this environment variable."""
LOCK = ".lock"


class RunDir:
    """The directory of a run and the checkpoint that it continues from, chosen but not yet claimed.

    Without `run_dir` it is runs/<task>/<agent>/<time>, with a number added where that is taken.

    Args:
        run_dir: the directory; None: a new one.
        ckpt_path: a checkpoint file, or `auto`: the newest checkpoint of `run_dir`, or of runs/<task>/<agent>/; where
            there is none, a new run. None: a new run.
        task: name of the environment.
        agent: name of the agent.

    Raises:
        InputError: when ckpt_path names no file, or run_dir holds a run that this command would write over.
    """

    def __init__(self, run_dir: str | None, ckpt_path: str | None, task: str, agent: str) -> None:
        above = inherited()
        self.owned = above is None and getattr(rank_zero_only, "rank", 0) == 0
        run_dir = str(above) if above else run_dir
        if run_dir is None and not self.owned:
            raise InputError("--run_dir: must be given where another program starts the ranks")
        self.named = run_dir is not None
        self.path = Path(run_dir) if run_dir else Path("runs") / task / agent / datetime.now().strftime("%Y%m%d-%H%M%S")
        self.ckpt_path: Path | None = None
        self._lock: IO[str] | None = None
        self._created: list[Path] = []
        if run_dir is None and ckpt_path == "auto":
            found = sorted(self.path.parent.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
            if found:
                self.path, self.named = found[-1].parents[1], True
        last = self.path / "checkpoints" / "last.ckpt"
        try:
            if ckpt_path == "auto":
                self.ckpt_path = last if last.is_file() else None
            elif ckpt_path is not None:
                self.ckpt_path = Path(ckpt_path)
                if not self.ckpt_path.is_file():
                    raise InputError(f"--ckpt_path={ckpt_path}: no such file; must be a checkpoint's path or auto")
            own = self.ckpt_path is not None and last.exists() and last.samefile(self.ckpt_path)
            held = (self.path / "config.yaml").exists() or last.exists()
        except OSError as error:  # such as a name that is too long
            raise self._unusable(error) from error
        if held and not own and self.owned:
            if ckpt_path == "auto":  # it was stopped before its first checkpoint: there is nothing to lose
                return
            raise InputError(
                f"--run_dir={self.path}: holds a run; continue it with --ckpt_path=auto, or choose another directory"
            )

    def claim(self) -> None:
        """Create the directory and lock it until this process ends.

        Raises:
            InputError: when it cannot be created or written to, or another process uses it.
        """
        if not self.owned:
            return
        base, number = self.path, 1
        while True:
            try:
                self._create()
                self._take_lock()
                break
            except OSError as error:
                raise self._unusable(error) from error
            except InputError:
                if self.named:
                    raise
                number += 1
                self.path = base.with_name(f"{base.name}-{number}")
        remove_temporaries(self.path)
        remove_temporaries(self.path / "checkpoints")
        os.environ[VARIABLE] = str(self.path)

    def _create(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self._created.append(folder)
        if not self.named and self.path not in self._created:
            raise InputError(f"{self.path}: another run has just taken it")

    def _take_lock(self) -> None:
        lock = (self.path / LOCK).open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise InputError(f"--run_dir={self.path}: is in use by process {holder}; wait, or choose another") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _unusable(self, error: OSError) -> InputError:
        return InputError(f"--run_dir={self.path}: cannot be used: {error.strerror or error}")

    def discard(self) -> None:
        """Remove what `claim` created: nothing of the run is to be kept."""
        if not self.owned:
            return
        if self.path in self._created:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._lock is not None and self.ckpt_path is None:
            for name in ("config.yaml", "run.json"):
                (self.path / name).unlink(missing_ok=True)
        for folder in reversed(self._created):
            with contextlib.suppress(OSError):  # others may have come to use it
                folder.rmdir()
        self.release()

    def release(self) -> None:
        """Let other processes use the directory."""
        if not self.owned:
            return
        os.environ.pop(VARIABLE, None)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def inherited() -> Path | None:
    """The run directory of the first rank, in a rank that Lightning started; None in the first one."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value and os.environ.get("LOCAL_RANK", "0") != "0" else None
