"""Error messages and exit codes of the commands."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from dqs_callbacks import NonFiniteError
from dqs_lightning.checkpoint.archive import CheckpointError
from dqs_lightning.cli.errors import InputError, did_you_mean, refusing, reported, short, shown
from dqs_lightning.envs import EnvironmentFailure


def command(error: Exception) -> int:
    """Returns the exit code of a command that raises an error while it reads run/config.yaml."""

    @reported("dqs-some")
    def main(arguments: Sequence[str]) -> int:
        raise error

    return main(["run", "--out=there/x"])


def yaml_error() -> Exception:
    try:
        yaml.safe_load("[")
    except yaml.YAMLError as error:
        return error
    raise AssertionError


def omegaconf_error() -> Exception:
    try:
        OmegaConf.to_container(OmegaConf.create({"a": "${b}"}), resolve=True)
    except Exception as error:
        return error
    raise AssertionError


EXPECTED = {
    "input": (InputError("x=1: must be 2"), 2, "x=1: must be 2"),
    "checkpoint": (CheckpointError("x.ckpt: damaged"), 2, "x.ckpt: damaged"),
    "configuration of Lightning": (MisconfigurationException("no such device"), 2, "no such device"),
    "YAML": (yaml_error(), 2, "while parsing a flow"),
    "interpolation": (omegaconf_error(), 2, "Interpolation key 'b' not found"),
    "file on the command line": (FileNotFoundError(errno.ENOENT, "No such file", "run"), 2, "run: No such file"),
    "file below a folder": (PermissionError(errno.EACCES, "Denied", "run/config.yaml"), 2, "run/config.yaml: Denied"),
    "file of an option": (NotADirectoryError(errno.ENOTDIR, "Not a folder", "there/x/y"), 2, "there/x/y: Not a folder"),
    "divergence": (NonFiniteError("loss is nan"), 3, "diverged: loss is nan"),
    "environment": (EnvironmentFailure("Pendulum-v1 died"), 4, "Pendulum-v1 died"),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_an_expected_error_is_a_message_and_an_exit_code(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, code, message = EXPECTED[case]
    assert command(error) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dqs-some: {message}") and len(err.splitlines()) <= 5


FAULTS = {
    "a bug": KeyError("x"),
    "a value that no argument gave": ValueError("x"),
    "a file that the command line does not name": FileNotFoundError(errno.ENOENT, "No such file", "elsewhere"),
    "a file with a similar name": FileNotFoundError(errno.ENOENT, "No such file", "running"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device", "run"),
    "a broken connection": ConnectionResetError(errno.ECONNRESET, "Connection reset"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_any_other_error_keeps_its_traceback(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(FAULTS[case])):
        command(FAULTS[case])
    assert capsys.readouterr() == ("", "")


def test_main_without_arguments_reads_the_command_line_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @reported("dqs-some")
    def main() -> int:
        Path("missing.yaml").read_text()
        return 0

    monkeypatch.setattr("sys.argv", ["dqs-some", "--config", "missing.yaml"])
    assert main() == 2 and capsys.readouterr().err == "dqs-some: missing.yaml: No such file or directory\n"
    monkeypatch.setattr("sys.argv", ["dqs-some"])
    with pytest.raises(FileNotFoundError):
        main()


def test_a_message_is_short_and_its_control_characters_are_escaped() -> None:
    assert short("a\n\n b \x1b[31m\x00\n" + "c\n" * 9) == "a\n b \\x1b[31m\\x00\nc\nc\nc"
    assert len(cut := short("x" * 10_000 + ": too long")) == 500 and cut.endswith("x: too long")
    assert shown(None) == "null" and shown([1, "a"]) == "[1, 'a']" and shown("a b") == "a b"
    assert len(shown("x" * 10_000)) == 100


@pytest.mark.parametrize(
    ("error", "kinds", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), (OSError,), "--out=x: No space left on device"),
        (ValueError("two\n  lines \x1b[2J"), (ValueError,), "--out=x: two lines \\x1b[2J"),
        (
            InputError("tau=0: must be > 0\nDid you mean 1?"),
            (InputError,),
            "--out=x: tau=0: must be > 0\nDid you mean 1?",
        ),
        (InputError("tau=0: must be > 0"), (ValueError,), "tau=0: must be > 0"),
    ],
)
def test_errors_of_the_given_types_become_input_errors(
    error: Exception, kinds: tuple[type[Exception]], message: str
) -> None:
    with pytest.raises(InputError) as refusal, refusing("--out=x: ", *kinds):
        raise error
    assert str(refusal.value) == message


def test_errors_of_other_types_are_passed_on() -> None:
    with pytest.raises(KeyError), refusing("--out=x: ", OSError, ValueError):
        raise KeyError("a bug")


def test_a_similar_name_is_suggested() -> None:
    assert did_you_mean("sedes", ["seeds", "tasks"]) == "\nDid you mean seeds?" and did_you_mean("x", ["seeds"]) == ""
