"""Finds configurations by name: files of the user, and those that come with this package."""

import contextlib
import difflib
from pathlib import Path

SUFFIX = ".yaml"
_PACKAGE = Path(__file__).parents[1]
SHIPPED = next((path for path in (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs") if path.is_dir()), _PACKAGE)
"""Folder of the configurations that come with the package: in the wheel, or `configs/` of a source checkout."""
DEFAULT = SHIPPED / "default.yaml"
"""The configuration that `dqs-fit` reads where none is given."""


def shipped() -> dict[str, Path]:
    """Returns the configurations that come with the package, by name, such as `walker` or `methods/qsm`."""
    files = sorted(SHIPPED.rglob(f"*{SUFFIX}"))
    return {file.relative_to(SHIPPED).with_suffix("").as_posix(): file for file in files}


def find(name: Path, folder: Path = Path()) -> Path:
    """Returns the file of a configuration: the one in `folder`, or else the shipped one of that name.

    The suffix .yaml may be left out. A name without a file is returned as a path in `folder`.
    """
    names = [name] if name.suffix == SUFFIX else [name, Path(f"{name}{SUFFIX}")]
    folders = [folder] if name.is_absolute() or ".." in name.parts else [folder, SHIPPED]
    with contextlib.suppress(OSError):  # such as a name that is too long, which reading it reports
        for place in folders:
            for written in names:
                if (place / written).is_file():
                    return place / written
    return folder / name


def alternatives(missing: Path) -> str:
    """Returns the end of a message about a file that does not exist: those of its folder, and shipped ones like it."""
    folder = missing.parent
    there = sorted(path.name for path in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    text = f"; {folder} has {', '.join(there[:12])}" if there else ""
    deepest_first = sorted(shipped(), key=lambda name: -name.count("/"))
    by_stem = {name.rpartition("/")[2]: name for name in deepest_first}
    near = [by_stem[stem] for stem in difflib.get_close_matches(missing.stem.lower(), by_stem)]
    similar = f"Shipped ones with a similar name: {', '.join(near)}; dqs-fit --list" if near else "dqs-fit --list"
    return f"{text}\n{similar} shows all shipped ones"
