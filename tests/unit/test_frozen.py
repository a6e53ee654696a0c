"""The quick dataclass decorator behaves like the standard one."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from dataclasses import dataclass as standard
from typing import Any, ClassVar

import pytest

from mapper_core.frozen import dataclass as quick
from mapper_core.frozen import plain, replace

pytestmark = pytest.mark.unit


@quick(frozen=True, slots=True)
class Quick:
    """A value."""

    kind: ClassVar[str] = "thing"
    name: str
    size: int = 4
    tags: tuple[str, ...] = ()

    @property
    def double(self) -> int:
        return self.size * 2


@standard(frozen=True, slots=True)
class Standard:
    """A value."""

    kind: ClassVar[str] = "thing"
    name: str
    size: int = 4
    tags: tuple[str, ...] = ()


def test_fields_defaults_and_class_variables() -> None:
    value = Quick("a", tags=("x",))
    assert (value.name, value.size, value.tags, value.kind, value.double) == ("a", 4, ("x",), "thing", 8)


def test_comparison_hash_and_text_are_those_of_a_dataclass() -> None:
    assert Quick("a", 1) == Quick(size=1, name="a") != Quick("a", 2)
    assert len({Quick("a"), Quick("a"), Quick("b")}) == 2
    assert Quick("a").__eq__(Standard("a")) is NotImplemented
    assert repr(Quick("a", 1)) == repr(Standard("a", 1)).replace("Standard", "Quick")


def test_a_value_cannot_be_changed_and_has_no_other_attributes() -> None:
    value = Quick("a")
    with pytest.raises(dataclasses.FrozenInstanceError, match="'name'"):
        value.name = "b"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="'name'"):
        del value.name
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), (("a", 1, (), 4), {}), (("a",), {"name": "b"}), (("a",), {"colour": "red"})],
    ids=["missing", "too many", "twice", "unknown"],
)
def test_wrong_arguments_are_refused(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    for cls in (Quick, Standard):
        with pytest.raises(TypeError):
            cls(*args, **kwargs)  # type: ignore[arg-type]


def test_the_tools_of_the_standard_library_understand_it() -> None:
    value = Quick("a", 1, ("x",))
    assert dataclasses.is_dataclass(Quick) and dataclasses.is_dataclass(value)
    assert [(field.name, field.default) for field in dataclasses.fields(Quick)] == [
        (field.name, field.default) for field in dataclasses.fields(Standard)
    ]
    assert dataclasses.replace(value, size=2) == Quick("a", 2, ("x",))
    assert dataclasses.asdict(value) == dataclasses.asdict(Standard("a", 1, ("x",)))
    assert dataclasses.astuple(value) == ("a", 1, ("x",))
    assert inspect.signature(Quick) == inspect.signature(Standard)
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == copy.copy(value) == value
    match value:
        case Quick(name, size):
            assert (name, size) == ("a", 1)


def test_what_it_does_not_do_itself_the_standard_decorator_does() -> None:
    @quick(frozen=True, slots=True)
    class WithField:
        names: list[str] = dataclasses.field(default_factory=list)

    @quick(frozen=True, slots=True)
    class Child(Quick):
        colour: str = "red"

    assert WithField().names == [] and WithField().names is not WithField().names
    assert Child("a").colour == "red" and Child("a").name == "a"


def test_own_methods_win() -> None:
    @quick(frozen=True, slots=True)
    class Own:
        name: str

        def __post_init__(self) -> None:
            if not self.name:
                raise ValueError("empty")

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

    assert repr(Own("a")) == "own" and Own("a") == 3 and hash(Own("a")) == hash(Own("a"))
    with pytest.raises(ValueError, match="empty"):
        Own("")


def test_replace_is_that_of_the_standard_library() -> None:
    value = Quick("a", tags=("x",))
    assert replace(value, size=5) == dataclasses.replace(value, size=5) == Quick("a", 5, ("x",))
    assert replace(Standard("a"), name="b") == Standard("b")
    with pytest.raises(TypeError, match="colour"):
        replace(value, colour="red")


def test_the_constructor_stays_the_same_when_the_class_is_used_often() -> None:
    @quick(frozen=True, slots=True)
    class Often:
        first: int
        second: str = "b"

    before = inspect.signature(Often)
    values = [Often(number, second="x") for number in range(200)]
    assert values[0] == Often(0, "x") and values[-1] == Often(199, "x")
    assert Often(1) == Often(first=1, second="b")
    assert inspect.signature(Often) == before
    untyped: Any = Often
    for positional, named in (((), {}), ((1, "b", 3), {}), ((1,), {"first": 1}), ((1,), {"third": 3})):
        with pytest.raises(TypeError):
            untyped(*positional, **named)
    with pytest.raises(dataclasses.FrozenInstanceError):
        values[0].first = 2  # type: ignore[misc]


@quick(frozen=True, slots=True)
class One:
    """A value with one field, which is a tuple itself."""

    items: tuple[int, ...]


@quick(frozen=True, slots=True)
class Empty:
    """A value without fields."""


@pytest.mark.parametrize("value", [Quick("a", 1), Standard("a", 1), One((1, 2)), Empty()])
def test_plain_is_the_fields_and_no_deeper(value: Any) -> None:
    assert plain(value) == {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    assert list(plain(value)) == [field.name for field in dataclasses.fields(value)]
    nested = Quick("a", tags=(One((1,)),))  # type: ignore[arg-type]
    assert plain(nested)["tags"] == (One((1,)),)
    assert replace(value) == value
    assert hash(replace(value)) == hash(value)
