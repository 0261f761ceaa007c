"""Chooses, locks and releases the run directory, which belongs to one run and to one process at a time."""

import contextlib
import fcntl
import itertools
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import IO

from lightning.pytorch.utilities import rank_zero_only

from dqs_lightning.checkpoint.atomic import remove_temporaries
from dqs_lightning.cli.errors import InputError, refusing

VARIABLE = "DQS_RUN_DIR"
"""Environment variable through which ranks that Lightning starts receive the first one's choice."""
LOCK = ".lock"


class RunDir:
    """The directory of a run and the checkpoint that it continues from, chosen but not yet claimed.

    Refuses a directory that holds a run that this command would write over.

    Args:
        run_dir: the directory; None: runs/<task>/<agent>/<time>, with a number added where that is taken.
        ckpt_path: a checkpoint file, or `auto`: the newest checkpoint of `run_dir`, or of runs/<task>/<agent>/, if
            there is one. None: a new run.
        task: name of the environment.
        agent: name of the agent.
    """

    def __init__(self, run_dir: str | None, ckpt_path: str | None, task: str, agent: str) -> None:
        above = os.environ.get(VARIABLE) if os.environ.get("LOCAL_RANK", "0") != "0" else None  # in another rank
        self._above = above is not None
        run_dir = above or run_dir
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
        with self._using():
            if ckpt_path == "auto":
                self.ckpt_path = last if last.is_file() else None
            elif ckpt_path is not None:
                self.ckpt_path = Path(ckpt_path)
                if not self.ckpt_path.is_file():
                    raise InputError(f"--ckpt_path={ckpt_path}: no such file; must be a checkpoint's path or auto")
            own = self.ckpt_path is not None and last.exists() and last.samefile(self.ckpt_path)
            held = (self.path / "config.yaml").exists() or last.exists()
        # With auto, a run without a checkpoint was stopped before its first one: there is nothing to lose.
        if held and not own and self.owned and ckpt_path != "auto":
            raise InputError(
                f"--run_dir={self.path}: holds a run; continue it with --ckpt_path=auto, or choose another directory"
            )

    @property
    def owned(self) -> bool:
        """Whether this process creates, locks and removes the directory: in the first rank only."""
        return not self._above and getattr(rank_zero_only, "rank", 0) == 0

    def claim(self) -> Path:
        """Creates the directory, locks it until this process ends, and returns it; it may have another name then."""
        if not self.owned:
            return self.path
        base = self.path
        for number in itertools.count(2):
            with self._using():
                try:
                    self._create()
                    self._take_lock()
                    break
                except InputError:  # another run has it
                    if self.named:
                        raise
                    self.path = base.with_name(f"{base.name}-{number}")
        remove_temporaries(self.path)
        remove_temporaries(self.path / "checkpoints")
        os.environ[VARIABLE] = str(self.path)
        return self.path

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

    def _using(self) -> refusing:
        return refusing(f"--run_dir={self.path}: cannot be used: ", OSError)

    def discard(self) -> None:
        """Removes what `claim` created."""
        if not self.owned:
            return
        if self.path in self._created:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._lock is not None and self.ckpt_path is None:
            for name in ("config.yaml", "run.json"):
                (self.path / name).unlink(missing_ok=True)
        for folder in reversed(self._created):
            with contextlib.suppress(OSError):  # another process may use it by now
                folder.rmdir()
        self.release()

    def release(self) -> None:
        """Lets other processes use the directory."""
        if not self.owned:
            return
        os.environ.pop(VARIABLE, None)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
