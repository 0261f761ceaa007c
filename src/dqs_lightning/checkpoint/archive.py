"""Checkpoint files that are whole or invisible on disk, carry a digest of their content, and run no code.

A run's checkpoint is `last.ckpt` (what all ranks share: weights, optimizer, loops, callbacks) and one file per rank
(its own: replay, random state, simulators), whose digests `last.ckpt` holds.
"""

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dqs_lightning.checkpoint.atomic import atomic_file

PREFIX = b"sha256:"
COMMENT_BYTES = len(PREFIX) + hashlib.sha256().digest_size * 2
"""Length of the archive comment in which a file holds the digest of the bytes before it."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or continued; the message names the file."""


class NotSavedError(RuntimeError):
    """Checkpoints could not be written several times in a row; the message names the cause."""


def _digest(file: IO[bytes], size: int) -> str:
    """SHA-256 of the first `size` bytes, in hexadecimal; leaves the file's position after them."""
    found = hashlib.sha256()
    file.seek(0)
    while block := file.read(min(size, 1 << 20)):
        found.update(block)
        size -= len(block)
    return found.hexdigest()


def atomic_save(value: Any, path: str | os.PathLike[str]) -> str:
    """torch.save so that `path` holds either the old value or the whole new one, even if the machine stops.

    The file is a zip archive whose comment holds the SHA-256 digest of all bytes before it.

    Returns:
        The digest.
    """
    with atomic_file(Path(path)) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch closes its archive after a failed write, and fails again
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise (cause or error) from error
        file.seek(-2, os.SEEK_END)  # the length of the archive's comment, which is empty
        file.write(COMMENT_BYTES.to_bytes(2, "little"))
        digest = _digest(file, file.tell())
        file.write(PREFIX + digest.encode())
    return digest


def verified_digest(path: str | os.PathLike[str]) -> str | None:
    """The digest of a file that `atomic_save` wrote, after comparing it with the content; None: it has none.

    Raises:
        CheckpointError: when the content has another digest.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - COMMENT_BYTES))
        comment = file.read()
        if not comment.startswith(PREFIX):
            return None
        found = _digest(file, size - COMMENT_BYTES)
    if found.encode() != comment[len(PREFIX) :]:
        raise CheckpointError(f"{path}: is damaged: its content does not have the digest that was saved with it")
    return found


def safe_load(path: str | os.PathLike[str], map_location: Any = "cpu", digest: str | None = None) -> Any:
    """Loads tensors and plain values from a file, without running code from it.

    Args:
        path: the file.
        map_location: see `torch.load`.
        digest: that the file must have; None: any.

    Raises:
        CheckpointError: when the file is missing, damaged, has another digest, or holds anything else.
    """
    try:
        found = verified_digest(path)
        if digest is not None and found != digest:
            raise CheckpointError(f"{path}: does not belong to the checkpoint beside it, which names another digest")
        return torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint file") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason[:200]})") from error


AGENT = "agent.ckpt"
"""Name of the checkpoint in a folder that `save_pretrained` wrote."""


def checkpoint_of(run: Path, best: bool = False) -> Path:
    """Returns the last or best checkpoint of a run directory, or that of a saved agent; any other path as it is."""
    if (run / AGENT).is_file():
        return run / AGENT
    return run / "checkpoints" / ("best.ckpt" if best else "last.ckpt") if run.is_dir() else run


def load_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads what all ranks of a run share, from its `last.ckpt`.

    Raises:
        CheckpointError: when the file cannot be read or is no run's checkpoint, such as a rank's own file.
    """
    found = safe_load(path)
    if not isinstance(found, dict) or "state_dict" not in found:
        raise CheckpointError(f"{path}: not a run's checkpoint; use its last.ckpt")
    return found


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file checkpoints, written atomically in the target's own folder and read without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        atomic_save(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint: dict[str, Any] = safe_load(path, map_location)
        return checkpoint
