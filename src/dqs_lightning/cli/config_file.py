"""Reads configuration files: strict YAML, and files that extend one another."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import yaml

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.reading import MAX_YAML_BYTES, BoundedLoader

_INTEGRAL = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE]\+?(\d{1,2})")
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class Loader(BoundedLoader):
    """Bounded YAML in which keys are text and given once, and in which 1e6 is an integer; dates stay text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, where = key_node.value, f"line {key_node.start_mark.line + 1}"
            if key_node.tag != "tag:yaml.org,2002:str":
                written = key if isinstance(key, str) else f"a {key_node.id}"
                raise InputError(f'{where}: key {written}: must be text; put it in quotes: "{written}"')
            if key in seen:
                raise InputError(f"{where}: key {key} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A float, or an integer where an exponent makes a whole number."""
        text = integral(str(node.value))
        return int(text) if text.lstrip("+-").isdigit() else self.construct_yaml_float(node)


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if not tag.endswith((":float", ":timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)


def integral(text: str) -> str:
    """A number with an exponent, such as 1e6 or 2.5e5, as an integer's digits; any other text as it is."""
    if not _INTEGRAL.fullmatch(text):
        return text
    whole, _, exponent = text.replace("_", "").lower().partition("e")
    mantissa, _, decimals = whole.partition(".")
    decimals = decimals.rstrip("0")
    zeros = int(exponent) - len(decimals)
    return f"{int(mantissa + decimals) * 10**zeros}" if zeros >= 0 else text


def load_yaml(text: str) -> Any:
    """The value of a YAML text; a text that was read before is not parsed again.

    Raises:
        InputError: when a key is not text or is given twice.
        yaml.YAMLError: when it is not YAML, is nested too deeply or has too many values.
    """
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader)


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file as a mapping.

    Raises:
        InputError: when it is missing or unreadable, not UTF-8, empty, not YAML, not a mapping, nested too deeply, or
            names a key twice.
    """
    try:
        text = None
        if path.is_file():
            if (size := path.stat().st_size) > MAX_YAML_BYTES:
                raise InputError(f"--config={path}: has {size:,} bytes; must be at most {MAX_YAML_BYTES:,}")
            text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"--config={path}: must be text in UTF-8; byte {error.start} is not") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--config={str(path)[:200]}: cannot be read: {reason}") from error
    if text is None:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"; {path.parent} has {', '.join(near[:12])}" if near else ""
        raise InputError(f"--config={path}: no such file{there}")
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"--config={path}: not valid YAML: {' '.join(str(error).split())[:200]}") from error
    except InputError as error:
        raise InputError(f"--config={path}: {error}") from error
    if not content:
        raise InputError(f"--config={path}: the file is empty")
    if not isinstance(content, dict):
        raise InputError(f"--config={path}: must hold keys and values, not a {type(content).__name__}")
    return content


def config_chain(path: Path) -> dict[Path, dict[str, Any]]:
    """A configuration file and those that it extends, by path, in the order of their precedence: the file first.

    `extends` names one file or several, relative to the file; of several a later one overrides an earlier one.

    Raises:
        InputError: see `read_config`; and when `extends` is no path or list of paths, or a file is reached twice, as
            when it extends itself.
    """
    chain: dict[Path, dict[str, Any]] = {}

    def visit(file: Path) -> None:
        content = read_config(file)
        if file.resolve() in {known.resolve() for known in chain}:
            raise InputError(f"--config={path}: {file} is extended twice")
        chain[file] = content
        if "config" in content:
            raise InputError(f"{file}: config: no such key; other files are named in extends")
        bases = content.get("extends")
        bases = [] if bases is None else [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
            raise InputError(f"{file}: extends={bases}: must be the path of a file, or a list of paths")
        for base in reversed(bases):
            visit(file.parent / base)

    visit(path)
    return chain
