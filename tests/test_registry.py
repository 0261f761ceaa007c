import inspect
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from dqs_lightning.registry import GROUP, components, load_entry_points, nearest, with_arguments_of


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    def area(self) -> float:
        return 1.0


class Solid(Shape):
    """Is still abstract."""


class Cube(Solid, Square):
    pass


class _Hidden(Square):
    pass


class Tile(_Hidden):
    pass


def test_components_are_the_public_concrete_subclasses() -> None:
    assert components(Shape) == {"Cube": Cube, "Square": Square, "Tile": Tile}
    assert list(components(Shape)) == ["Cube", "Square", "Tile"]


def test_a_class_defined_later_is_found() -> None:
    assert "Circle" not in components(Shape)

    class Circle(Shape):
        def area(self) -> float:
            return 3.14

    assert components(Shape)["Circle"] is Circle
    assert "Circle" not in components(Solid)


def test_a_concrete_base_class_is_a_component_itself() -> None:
    assert components(Square) == {"Cube": Cube, "Square": Square, "Tile": Tile}


@pytest.mark.parametrize(
    "written, meant",
    [
        ("Cosin", "Cosine"),
        ("cosine", "Cosine"),
        ("Kerras", "Karras"),
        ("geometrical", "Geometric"),
        ("Karras", "Karras"),
    ],
)
def test_nearest_finds_the_intended_name(written: str, meant: str) -> None:
    assert nearest(written, ["Cosine", "Geometric", "Karras", "Linear", "Power"]) == meant


@pytest.mark.parametrize("allowed", [["Cosine", "Geometric"], []])
def test_nearest_returns_none_without_a_similar_name(allowed: list[str]) -> None:
    assert nearest("xyzzy", allowed) is None


def test_entry_points_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module named by an installed package's entry point is imported, and its name is returned."""
    info = tmp_path / "outside-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = outside_components\n")
    (tmp_path / "outside_components.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_components", raising=False)
    assert "outside_components" in load_entry_points()
    assert sys.modules.pop("outside_components").LOADED


class Small:
    def __init__(self, width: int, depth: int = 2) -> None:
        self.width, self.depth = width, depth


class Large(Small):
    @with_arguments_of(Small)
    def __init__(self, width: int, height: float = 0.5, **kwargs: Any) -> None:
        super().__init__(width, **kwargs)
        self.height = height


def test_a_constructor_has_the_names_and_types_of_the_arguments_that_it_passes_on() -> None:
    parameters = inspect.signature(Large).parameters
    assert list(parameters) == ["width", "height", "depth"]
    assert parameters["depth"].default == 2 and get_type_hints(Large.__init__)["depth"] is int
    made = Large(3, depth=4)
    assert (made.width, made.height, made.depth) == (3, 0.5, 4)
    with pytest.raises(TypeError, match="breadth"):
        Large(3, breadth=1)
