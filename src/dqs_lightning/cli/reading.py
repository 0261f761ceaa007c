"""Text, JSON and YAML from files that may hold anything: each fault is an `InputError` that names the file."""

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dqs_lightning.checkpoint.bounded import MAX_DEPTH, check_bounded
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import printable

MAX_BYTES = 512 * 2**20
"""Largest size of a text, such as the metrics of a long run."""
MAX_YAML_BYTES = 2**20
"""Largest size of a configuration; the parser needs about 20 s for it."""
MAX_YAML_VALUES = 100_000
"""Largest number of values in a configuration; the parser takes minutes for more."""


class BoundedLoader(yaml.SafeLoader):
    """Safe YAML that refuses, as `yaml.YAMLError`, what would not fit once its aliases are written out."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_data(self) -> Any:
        try:
            return super().get_single_data()
        except InputError:
            raise
        except (ValueError, TypeError, OverflowError) as error:  # of a number, a date, or a list as a key
            raise yaml.YAMLError(str(error)) from error

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        try:
            check_bounded(node, _children, MAX_YAML_VALUES)
        except ValueError as error:
            raise yaml.YAMLError(str(error)) from error
        return node


def read_text(file: Path, most: int = MAX_BYTES) -> str:
    """Return the content of a regular file of UTF-8 text of at most so many bytes.

    Raises:
        InputError: when it is something else, such as a folder, a pipe or binary data, or cannot be read.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
            raise InputError(f"{file}: must be a regular file")
        if status.st_size > most:
            raise InputError(f"{file}: has {status.st_size:,} bytes; must be at most {most:,}")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: must be UTF-8 text; byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def read_json(file: Path) -> Any:
    """Return the value in a file of JSON.

    Raises:
        InputError: when the file cannot be read or is not JSON.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
        check_bounded(content)
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {printable(error)}") from error
    return content


def read_yaml(file: Path) -> Any:
    """Return the value in a file of YAML, of plain values only.

    Raises:
        InputError: when the file cannot be read or is not such YAML.
    """
    text = read_text(file, MAX_YAML_BYTES)
    try:
        return yaml.load(text, BoundedLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML: {printable(' '.join(str(error).split()))}") from error


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()
