"""Classes by name: what can be registered, looked up, built and parsed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from hf_gmar._utils.registry import Registry
from hf_gmar.errors import OptionError


class Shape:
    """The base of the classes in these tests."""

    def __init__(self, owner: str, size: float = 1.0, **options: Any) -> None:
        self.values = (owner, size, options)


class Square(Shape):
    """Passes options on."""

    def __init__(self, owner: str, colour: str = "red", **options: Any) -> None:
        super().__init__(owner, **options)
        self.colour = colour


class Needy(Shape):
    """Has an option without a default."""

    def __init__(self, owner: str, corners: int) -> None:
        super().__init__(owner)
        self.corners = corners


@pytest.fixture
def shapes() -> Registry[Shape]:
    """A registry with one class of its own, which is imported when it is used."""
    return Registry("shape", f"{__name__}:Shape", {"shape": f"{__name__}:Shape"}, positional=1)


def test_a_registered_class_is_known_by_its_name(shapes: Registry[Shape]) -> None:
    shapes.register("square", Square)
    shapes.register("square", Square)
    assert list(shapes) == ["shape", "square"]
    assert "square" in shapes
    assert "circle" not in shapes
    assert shapes["square"] is Square
    assert dict(shapes.items()) == {"shape": Shape, "square": Square}
    assert shapes.name_of(Square) == "square"
    assert shapes.name_of(Needy) is None


@pytest.mark.parametrize("name", ["", "Square", "a square", "-square", "a,b", "a:b", "a=b", 7])
def test_a_name_that_can_not_be_typed(shapes: Registry[Shape], name: Any) -> None:
    with pytest.raises(OptionError, match="the name of a shape has lower-case letters"):
        shapes.register(name, Square)
    assert list(shapes) == ["shape"]


def test_a_name_that_is_taken(shapes: Registry[Shape]) -> None:
    shapes.register("square", Square)
    for name in ("shape", "square"):
        with pytest.raises(OptionError, match=f"there is a shape '{name}' already"):
            shapes.register(name, Needy)


@pytest.mark.parametrize("kind", [int, "Square", None, Square("me")])
def test_what_is_no_class_of_that_kind(shapes: Registry[Shape], kind: Any) -> None:
    with pytest.raises(OptionError, match=r"the shape 'odd' must be a subclass of .*Shape, got"):
        shapes.register("odd", kind)
    assert "odd" not in shapes


def test_an_unknown_name_is_said_with_the_known_ones(shapes: Registry[Shape]) -> None:
    for call in (shapes.__getitem__, shapes.options, shapes.check, shapes.build, shapes.parse):
        with pytest.raises(OptionError, match="there is no shape 'circle'; there are shape"):
            call("circle")


def test_options_of_a_constructor_and_of_those_that_it_calls(shapes: Registry[Shape]) -> None:
    shapes.register("square", Square)
    shapes.register("needy", Needy)
    assert shapes.options("square")["colour"] == "red"
    assert shapes.options("square")["size"] == 1.0
    assert shapes.options("needy") == {"corners": inspect.Parameter.empty}


def test_a_class_is_built_with_what_is_given_and_options(shapes: Registry[Shape]) -> None:
    shapes.register("square", Square)
    square = shapes.build("square", "me", colour="blue", size=2.0)
    assert isinstance(square, Square)
    assert (square.values, square.colour) == (("me", 2.0, {}), "blue")


def test_an_option_that_must_be_given(shapes: Registry[Shape]) -> None:
    shapes.register("needy", Needy)
    with pytest.raises(OptionError, match="the shape 'needy' needs a value for corners"):
        shapes.build("needy", "me")
    shapes.check("needy")


def test_an_unknown_option(shapes: Registry[Shape]) -> None:
    shapes.register("needy", Needy)
    with pytest.raises(OptionError, match="'needy' has no option height, width; it has corners"):
        shapes.build("needy", "me", width=1, height=2)


def test_a_spec_is_a_name_with_options_or_a_pair(shapes: Registry[Shape]) -> None:
    shapes.register("needy", Needy)
    assert shapes.parse("needy:corners=4") == ("needy", {"corners": 4})
    assert shapes.parse(("needy", {"corners": 4})) == ("needy", {"corners": 4})
    assert shapes.parse("needy") == ("needy", {})
    bad: Any
    for bad in (7, ("needy",), ("needy", {}, 1), (7, {})):
        with pytest.raises(OptionError, match="a name, or a pair of a name and its options"):
            shapes.parse(bad)
    for bad in ("needy:corners", ":corners=4", "needy:corners=4,corners=5"):
        with pytest.raises(OptionError):
            shapes.parse(bad)


def test_a_label_is_the_name_with_the_options(shapes: Registry[Shape]) -> None:
    assert shapes.label("needy", {"corners": 4, "size": 0.5}) == "needy (corners=4, size=0.5)"
    assert shapes.label("needy", {}) == "needy"
