"""Reads configuration files: strict YAML of bounded size, and files that extend one another."""

import copy
import functools
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from dqs_lightning.checkpoint.bounded import MAX_DEPTH, check_bounded
from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.cli.files import read_text
from dqs_lightning.cli.shipped import alternatives, find

MAX_BYTES = 2**20
"""Largest size of a configuration; the parser needs about 20 s for it."""
MAX_VALUES = 100_000
"""Largest number of values in a configuration; the parser takes minutes for more."""

_INTEGRAL = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE]\+?\d{1,2}", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*|\.[\d_]+|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
    re.ASCII,
)


class Loader(yaml.SafeLoader):
    """Safe YAML of bounded size in which keys are text and given once, 1e6 is an integer, and dates stay text."""

    def get_single_data(self) -> Any:
        try:
            return super().get_single_data()
        except InputError:
            raise
        except RecursionError:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels") from None
        except (ValueError, TypeError, OverflowError) as error:  # of a number, or a list as a key
            raise yaml.YAMLError(str(error)) from error

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        check_bounded(node, _children, MAX_VALUES)  # once its aliases are written out
        return node

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
        """Returns a float, or an integer where an exponent makes a whole number."""
        text = integral(str(node.value))
        return int(text) if text.lstrip("+-").isdigit() else self.construct_yaml_float(node)


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if not tag.endswith((":float", ":timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def integral(text: str) -> str:
    """Returns a whole number with an exponent, such as 1e6 or 2.5e5, without it; any other text as it is."""
    if not _INTEGRAL.fullmatch(text):
        return text
    number = Decimal(text.replace("_", ""))
    return str(int(number)) if number == int(number) else text


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML text; a text that was read before is not parsed again."""
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader)


def read_config(path: Path, key: str = "--config=") -> dict[str, Any]:
    """Reads a configuration file, which must hold a mapping; an error's message begins with `key`."""
    with refusing(f"{key}{str(path)[:200]}: cannot be read: ", OSError):  # such as a name that is too long
        found = path.is_file()
    if not found:
        raise InputError(f"{key}{path}: no such file{alternatives(path)}")
    with refusing(key, InputError):
        text = read_text(path, MAX_BYTES)
    with refusing(f"{key}{path}: ", InputError), refusing("not valid YAML: ", yaml.YAMLError):
        content = load_yaml(text)
    if not content:
        raise InputError(f"{key}{path}: the file is empty")
    if not isinstance(content, dict):
        raise InputError(f"{key}{path}: must hold keys and values, not a {type(content).__name__}")
    return content


def config_chain(name: Path, key: str = "--config=", folder: Path = Path()) -> dict[Path, dict[str, Any]]:
    """Reads a configuration and those that it extends, in the order of their precedence: the configuration first.

    `name` is that of a file in `folder` or of a shipped configuration (see `find`). `extends` has one name or several,
    each of a file in the folder of the extending one, or of a shipped configuration; of several a later one overrides
    an earlier one. A file may be reached once only. An error's message begins with `key`.
    """
    path = find(name, folder)
    chain: dict[Path, dict[str, Any]] = {}

    def visit(file: Path) -> None:
        content = read_config(file, key)
        if file.resolve() in {known.resolve() for known in chain}:
            raise InputError(f"{key}{path}: {file} is extended twice")
        chain[file] = content
        if "config" in content:
            raise InputError(f"{file}: config: no such key; other files are named in extends")
        bases = content.get("extends")
        bases = [] if bases is None else [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
            raise InputError(f"{file}: extends={bases}: must be the path of a file, or a list of paths")
        for base in reversed(bases):
            visit(find(Path(base), file.parent))

    visit(path)
    return chain
