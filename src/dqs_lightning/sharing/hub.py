"""Agents on the Hugging Face Hub, through `huggingface_hub` (the extra `hub`)."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dqs_lightning.checkpoint.archive import AGENT, CheckpointError
from dqs_lightning.sharing.text import printable

ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s@]+))?", re.ASCII)
"""An address; pathlib makes one slash of the two."""


class HubError(CheckpointError):
    """A repository of the Hub that cannot be read or written; the message names it, in one line."""


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address on the Hub, which begins with hf://."""
    return os.fspath(path).startswith("hf:/")


def download(address: str | os.PathLike[str]) -> Path:
    """Returns the checkpoint of an agent on the Hub, in the cache of `huggingface_hub`; nothing in it is run.

    A copy that is in the cache is used where the Hub cannot be reached.

    Args:
        address: hf://owner/name, or hf://owner/name@revision for a branch, tag or commit.

    Raises:
        HubError: for another address, a repository or revision that is missing, or one without an agent.
    """
    shown = printable(re.sub(r"^hf:/+", "hf://", os.fspath(address)), 200)
    found = ADDRESS.fullmatch(os.fspath(address))
    if found is None:
        raise HubError(f"{shown}: must be hf://owner/name or hf://owner/name@revision")
    with _reported(shown) as hub:
        return Path(hub.hf_hub_download(found["name"], AGENT, revision=found["revision"]))


def check_repository(name: str) -> None:
    """Raises a HubError for what is no owner/name, or where `huggingface_hub` is not installed."""
    shown = f"repository={printable(name, 200)}"
    with _reported(shown):
        from huggingface_hub.utils import validate_repo_id

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
            raise HubError(f"{shown}: must be owner/name")
        validate_repo_id(name)


def upload(folder: Path, name: str, revision: str | None, private: bool | None, message: str, token: str | None) -> str:
    """Uploads the files of a folder in one commit to a repository, which is created if it is missing.

    Returns:
        The address of the commit.

    Raises:
        HubError: when the Hub refuses it or cannot be reached.
    """
    with _reported(f"hf://{printable(name, 200)}") as hub:
        api = hub.HfApi(token=token)
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        done = api.upload_folder(folder_path=folder, repo_id=name, revision=revision, commit_message=message)
        return str(done.commit_url)


@contextmanager
def _reported(shown: str) -> Iterator[Any]:
    """Gives the module `huggingface_hub`, and turns its exceptions into a HubError that begins with `shown`."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise HubError(f'{shown}: needs huggingface_hub; run pip install "dqs-lightning[hub]"')
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        yield huggingface_hub
    except CheckpointError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(f"{shown}: is gated; ask for access on its page, then log in with hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"{shown}: no such repository, or a private one; hf auth login gives access") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{shown}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"{shown}: {constants.ENDPOINT} cannot be reached, and no copy is in the cache") from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{shown}: has no {AGENT}; it is not an agent that push_to_hub uploaded") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; is the token right? hf auth login saves one" if status in (401, 403) else ""
        reason = error.server_message or error.response.reason_phrase
        raise HubError(f"{shown}: refused with status {status} ({printable(reason, 200)}){hint}") from error
    except Exception as error:  # of its HTTP client, which has changed between versions
        raise HubError(f"{shown}: {type(error).__name__}: {printable(' '.join(str(error).split()), 300)}") from error
