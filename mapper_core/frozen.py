"""``dataclass`` for classes that are declared on every start.

The standard decorator compiles half a dozen methods for each class: 0.5 ms, and a short command declares 40 classes. This
one gives frozen classes with slots the same behaviour by methods that are shared, and makes the standard description
(``dataclasses.fields``, ``replace``, ``asdict``, the signature) when it is first asked for. Type checkers see the standard one.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

#: So many instances of a class are made before compiling a constructor for it pays.
_OFTEN = 50

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool, slots: bool, **other: Any) -> Any:
        """Make a frozen class with slots; see :func:`dataclasses.dataclass`.

        What is not needed here (inheritance, ``field()``, other parameters) goes to the standard decorator.
        """

        def decorate(cls: type) -> type:
            if not (frozen and slots) or other or cls.__bases__ != (object,) or _has_fields(cls):
                import dataclasses

                return dataclasses.dataclass(frozen=frozen, slots=slots, **other)(cls)
            return _make(cls)

        return decorate


def _has_fields(cls: type) -> bool:
    """Say whether a default is made by ``dataclasses.field``."""
    return any(type(value).__module__ == "dataclasses" for value in vars(cls).values())


def _make(cls: type) -> type:
    body = dict(vars(cls))
    kinds = body.get("__annotations__", {})
    names = tuple(name for name, kind in kinds.items() if not str(kind).startswith(("ClassVar", "typing.ClassVar")))
    defaults = {name: body.pop(name) for name in names if name in body}
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)
    if body.get("__hash__") is None:
        body.pop("__hash__", None)  # Python puts None there when a class has its own __eq__
    twin = _Twin(cls, {"__annotations__": {name: kinds[name] for name in names}, **defaults})
    # what the class defines itself wins, as it does with the standard decorator; but not over "frozen"
    body = {"__eq__": _eq, "__hash__": _hash, "__repr__": _repr, **body}
    body |= {
        "__qualname__": cls.__qualname__,
        "__slots__": names,
        "__match_args__": names,
        "__init__": _init(names, defaults, twin, "__post_init__" in body),
        "__setattr__": _refuse_set,
        "__delattr__": _refuse_delete,
        "__getstate__": _state,
        "__setstate__": _set_state,
        "__dataclass_fields__": _FromTwin(twin, "__dataclass_fields__"),
        "__dataclass_params__": _FromTwin(twin, "__dataclass_params__"),
        "__signature__": _FromTwin(twin, "__signature__"),
    }
    return type(cls.__name__, (), body)


def replace(value: T, **changes: Any) -> T:
    """Return a copy with some fields changed, as :func:`dataclasses.replace` does, in a fifth of its time.

    :param value: of a class with slots.
    """
    return type(value)(**{**plain(value), **changes})


def plain(value: Any) -> dict[str, Any]:
    """Return the fields of an instance of a class with slots; unlike ``asdict`` not those of the values in it."""
    return {name: getattr(value, name) for name in value.__slots__}


class _Twin:
    """The same class made by the standard decorator, when it is first needed."""

    def __init__(self, cls: type, namespace: dict[str, Any]) -> None:
        self._name = cls.__name__
        self._namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__, **namespace}
        self._known: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name of the class."""
        return self._name

    def get(self, name: str) -> Any:
        """Return an attribute of it."""
        if name not in self._known:
            if name == "__dataclass_fields__":
                # what replace() and asdict() need, without a compiled method
                self._known[name] = self._make(init=False, repr=False, eq=False).__dataclass_fields__
            elif name == "__init__":
                self._known[name] = self._make(frozen=True, repr=False, eq=False).__init__
            elif name == "__dataclass_params__":
                self._known[name] = self._make(frozen=True).__dataclass_params__
            else:
                import inspect

                self._known[name] = inspect.signature(self._make(frozen=True))
        return self._known[name]

    def _make(self, **parameters: bool) -> Any:
        from dataclasses import dataclass as standard

        return standard(**parameters)(type(self._name, (), dict(self._namespace)))


class _FromTwin:
    """An attribute by which tools recognise and describe a dataclass."""

    def __init__(self, twin: _Twin, name: str) -> None:
        self._twin = twin
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        return self._twin.get(self._name)


def _init(names: tuple[str, ...], defaults: dict[str, Any], twin: _Twin, post_init: bool) -> Any:
    """Make a constructor, which gives way to the compiled one of the twin when the class turns out to be used often."""
    assign = object.__setattr__
    count = len(names)
    left = _OFTEN

    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        given = len(args)
        if given > count:
            raise TypeError(f"{twin.name}() takes {count} arguments but {given} were given")
        for name, value in zip(names, args, strict=False):
            assign(self, name, value)
        used = 0
        for name in names[given:]:
            if name in kwargs:
                assign(self, name, kwargs[name])
                used += 1
            elif name in defaults:
                assign(self, name, defaults[name])
            else:
                raise TypeError(f"{twin.name}() misses the argument {name!r}")
        if used != len(kwargs):
            wrong = ", ".join(name for name in kwargs if name not in names[given:])
            raise TypeError(f"{twin.name}() got an unknown argument, or one twice: {wrong}")
        if post_init:
            self.__post_init__()
            return
        left -= 1
        if not left:
            type(self).__init__ = twin.get("__init__")

    return __init__


def _values(self: Any) -> tuple[Any, ...]:
    return _getter(self.__class__)(self)


@functools.cache
def _getter(cls: Any) -> Callable[[Any], tuple[Any, ...]]:
    """Return what gets all fields of an instance at once."""
    names: tuple[str, ...] = cls.__slots__
    if len(names) < 2:  # attrgetter() makes no tuple then
        return lambda value: tuple([getattr(value, name) for name in names])
    return operator.attrgetter(*names)


def _eq(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def _repr(self: Any) -> str:
    fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
    return f"{type(self).__qualname__}({fields})"


def _refuse_set(self: Any, name: str, _value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return list(_values(self))


def _set_state(self: Any, state: list[Any]) -> None:
    for name, value in zip(self.__slots__, state, strict=True):
        object.__setattr__(self, name, value)
