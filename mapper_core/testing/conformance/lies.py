"""Return values that make no sense: the plugin's own hooks are called, and then something else is returned for them.

All kinds of nonsense are in the tests of :mod:`mapper_core.answers`; here is what has to be undone. Each must end as an error of
ours, with nothing left behind: what ``map`` had made by then, ``unmap`` takes away although it is
not told about any device.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest

from mapper_core.errors import MapperError, PluginFault
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Attachment, ImageInfo, Partition, PartitionTable, Reference, ReferenceKind
from mapper_core.registry import Registry
from mapper_core.testing.conformance.bench import MIB, USER, Bench, OnBench, difference, pattern, proves

#: Is given what the hook really returned; returns or raises something else.
Lie = Callable[[Any], Any]


def _raises(error: BaseException) -> Lie:
    def lie(_honest: Any) -> Any:
        raise error

    return lie


MAP: dict[str, Lie] = {
    "None": lambda _: None,
    "a missing node": lambda _: Attachment("/dev/mapper-kit-is-not-there", "kit"),
    "a character device": lambda _: Attachment("/dev/null", "kit"),
    "a file": lambda _: Attachment("/etc/passwd", "kit"),
    "a way out of /dev": lambda _: Attachment("/dev/../etc/passwd", "kit"),
    "KeyError": _raises(KeyError("kit")),
    "OSError": _raises(OSError(5, "kit")),
    "SystemExit": _raises(SystemExit(0)),
}
INSPECT: dict[str, Lie] = {
    "None": lambda _: None,
    "no size": lambda _: _image(virtual_size=0),
    "another size": lambda _: _image(virtual_size=MIB + 512),
    "a file of the host": lambda _: _image(references=(Reference(ReferenceKind.BACKING, "x", "/etc/passwd"),)),
    "a circle": lambda _: _circle(),
    "RecursionError": _raises(RecursionError("kit")),
}
TABLE: dict[str, Lie] = {
    "text": lambda _: "p1",
    "behind the end": lambda _: _table(Partition(1, 4096, 1 << 50)),
    "overlapping": lambda _: _table(Partition(1, 4096, 8192), Partition(2, 8192, 8192)),
    "half a sector": lambda _: _table(Partition(1, 4096 + 100, 4096)),
}


class OnLies(OnBench):
    """As root: see the module."""

    @proves("hostile values", "map", "unmap")
    def test_map_returns_nonsense(self, bench: Bench) -> None:
        """Something else than a device that was made for it; also the device of another disk, which keeps it."""
        with bench.mapped(bench.disk(pattern(MIB, seed=2)), Access.READ_ONLY) as other:
            lies = {**MAP, "another disk": lambda _: Attachment(other.device, other.transport)}
            if host := _disk_of_the_host():
                lies["a disk of the host"] = lambda honest: Attachment(host, honest.transport)
            for error in self._refuses(bench, "map", lies):
                assert isinstance(error, (PluginFault, OSError)), error
            assert bench.mapper.find(other.id) == other

    @proves("hostile values", "inspect")
    def test_inspect_returns_nonsense(self, bench: Bench) -> None:
        """Something that is no description of the image, or one of another disk."""
        if bench.mapper.registry.can(self.format, "inspect"):
            self._refuses(bench, "inspect", INSPECT)

    @proves("hostile values", "discover_partitions")
    def test_discover_partitions_returns_nonsense(self, bench: Bench) -> None:
        """Partitions that cannot be on the device."""
        self._refuses(bench, "discover_partitions", TABLE)

    @proves("hostile values", "unmap")
    def test_unmap_forgets_everything(self, bench: Bench) -> None:
        """And fails perhaps: the device goes all the same, since all that was made is recorded."""
        disk = bench.disk(pattern(MIB))
        for error in (None, KeyError("kit"), OSError(5, "kit"), SystemExit(0)):
            with bench.case(repr(error)):
                bench.map(disk, Access.READ_ONLY)
                liar = Mapper(bench.mapper.runtime, _Forgetful(bench.mapper.registry, error))
                try:
                    liar.unmap(disk.source, user=USER)
                except (MapperError, OSError):
                    bench.unmap(disk.source)  # what is of a transport of the plugin's own only the plugin can take away
                bench.check_nothing_left()

    def _refuses(self, bench: Bench, hook: str, lies: dict[str, Lie]) -> list[BaseException]:
        """Let a hook lie; return how each map ended."""
        content = pattern(MIB)
        disk = bench.disk(content)
        before = bench.mapper.journal.ids()
        found: list[BaseException] = []
        for name, lie in itertools.islice(lies.items(), 0, None, self.every):
            with bench.case(name):
                liar = Mapper(bench.mapper.runtime, _Lying(bench.mapper.registry, hook, lie))
                with pytest.raises((MapperError, OSError)) as caught:
                    liar.map(disk, bench.options(Access.READ_ONLY), user=USER)
                found.append(caught.value)
                assert bench.mapper.journal.ids() == before, repr(caught.value)
        assert not difference(bench.content(disk), content), "the plugin does not work any more"
        bench.note("values", len(found))
        return found


class _Lying(Registry):
    """A registry in which one hook returns something else than its plugin says."""

    def __init__(self, honest: Registry, hook: str, lie: Lie) -> None:
        super().__init__(honest.plugins, honest._manager)
        self._hook, self._lie = hook, lie

    def _call(self, name: str, hook: str, call: Callable[[], Any]) -> Any:
        if hook != self._hook:
            return super()._call(name, hook, call)

        def lying() -> Any:
            return self._lie(call())

        return super()._call(name, hook, lying)


class _Forgetful(Registry):
    """A registry in which a plugin's ``unmap`` does nothing."""

    def __init__(self, honest: Registry, error: BaseException | None) -> None:
        super().__init__(honest.plugins, honest._manager)
        self._error = error

    def _call(self, name: str, hook: str, call: Callable[[], Any]) -> Any:
        def forget() -> None:
            if self._error is not None:
                raise self._error

        return super()._call(name, hook, forget if hook == "unmap" else call)


def _disk_of_the_host() -> str:
    """A block device that is none of ours; empty when there is none."""
    names = (name for name in sorted(os.listdir("/sys/block")) if not name.startswith(("loop", "nbd", "rbd", "dm-")))
    return next((f"/dev/{name}" for name in names if os.path.exists(f"/dev/{name}")), "")


def _image(**fields: Any) -> ImageInfo:
    return ImageInfo(**{"path": "/kit", "format": "kit", "virtual_size": MIB, "file_size": MIB, **fields})


def _circle() -> ImageInfo:
    image = _image()
    object.__setattr__(image, "backing", image)
    return image


def _table(*partitions: Partition) -> PartitionTable:
    return PartitionTable("gpt", 512, partitions)
