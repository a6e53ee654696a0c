"""The leak oracle: what is in use now that was not in use before.

::

    before = leaks.snapshot()
    ...
    found = leaks.diff(before, leaks.snapshot())
    assert not found, str(found)

It counts loop, nbd, rbd and device-mapper devices, partitions, mounts of all mount namespaces, FUSE filesystems,
storage daemons, child processes, the file descriptors of this process, files below the runtime directory, and
temporary files. For shell scripts::

    python -m mapper_core.testing.leaks snapshot >before.json
    python -m mapper_core.testing.leaks diff before.json --wait 5

The second command prints one line for each leak and then their number; it ends with status 1 when there are any.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mapper_core.runtime import DEFAULT, ENVIRONMENT
from mapper_core.testing import observe
from mapper_core.testing.observe import Item

#: Kinds that belong to this process, whatever they touch.
OWN = ("fd", "child")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was in use at one moment."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What is left over; false when there is nothing."""

    items: tuple[Item, ...]

    def __bool__(self) -> bool:
        return bool(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        if not self.items:
            return "leaks: 0"
        lines = [f"leak: {item.kind}: {item.text}" for item in self.items]
        return "\n".join([*lines, f"leaks: {len(self.items)}"])


def snapshot(runtime_dirs: Sequence[str] | None = None) -> Snapshot:
    """Look at the whole host.

    :param runtime_dirs: runtime directories to look into; by default the one that the product would use.
    """
    if runtime_dirs is None:
        runtime_dirs = (os.environ.get(ENVIRONMENT) or DEFAULT,)
    return Snapshot(
        (
            *observe.descriptors(),
            *observe.block_devices(),
            *observe.mounts(),
            *observe.processes(tuple(runtime_dirs)),
            *(item for directory in runtime_dirs for item in observe.files(directory)),
            *observe.temporary(),
        )
    )


def diff(before: Snapshot, after: Snapshot, scope: Sequence[str] | None = None) -> Leaks:
    """Say what is in ``after`` and was not in ``before``.

    A mount that appears in several namespaces is one leak. A new namespace starts as a copy of an old one: the mounts
    it has inherited are no leaks.

    :param scope: directories; only what belongs to one of them counts, or to this process. ``None``
        counts everything, which is right on a host that does nothing else.
    """
    known = {item.key for item in before.items}
    namespaces = {item.namespace for item in before.items}
    aliases = {item.alias for item in before.items if item.alias}
    found: dict[str, Item] = {}
    for item in after.items:
        if item.key in known:
            continue
        if item.namespace not in namespaces and item.alias in aliases:
            continue
        if scope is not None and item.kind not in OWN and not _belongs(item, scope):
            continue
        found.setdefault(item.alias or item.key, item)
    return Leaks(tuple(found.values()))


def wait_for_none(
    before: Snapshot,
    seconds: float,
    runtime_dirs: Sequence[str] | None = None,
    scope: Sequence[str] | None = None,
) -> Leaks:
    """Compare until nothing is left, for some seconds at most.

    A process that has been told to end, or a loop device that is cleared when its last user closes it, needs a moment.
    No event tells about all kinds of resources, so this asks again and again.

    :param seconds: deadline; 0 looks once.
    :return: what is left at the end.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = diff(before, snapshot(runtime_dirs), scope)
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(0.02)


def _belongs(item: Item, scope: Sequence[str]) -> bool:
    return any(observe.lies_in(text, directory) for text in item.touches for directory in scope)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    :return: exit status: 0 no leaks, 1 leaks (argparse ends with 2 on wrong usage).
    """
    parser = argparse.ArgumentParser(prog="python -m mapper_core.testing.leaks", description="count what is left over")
    commands = parser.add_subparsers(dest="command", required=True)
    take = commands.add_parser("snapshot", help="print what is in use now, as JSON")
    compare = commands.add_parser("diff", help="print what is in use now and was not in use then")
    compare.add_argument("before", metavar="FILE", help="output of 'snapshot'")
    compare.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="give it time to go (default 0)")
    compare.add_argument("--scope", action="append", metavar="DIR", help="only what belongs to this directory")
    for command in (take, compare):
        command.add_argument(
            "--runtime-dir", action="append", metavar="DIR", help=f"default: ${ENVIRONMENT}, {DEFAULT}"
        )
    options = parser.parse_args(argv)
    if options.command == "snapshot":
        # descriptors mean something within one process only
        items = [dataclasses.asdict(item) for item in snapshot(options.runtime_dir).items if item.kind not in OWN]
        json.dump({"items": items}, sys.stdout, indent=1)
        print()
        return 0
    with open(options.before, encoding="utf-8") as file:
        read = [Item(**{**item, "touches": tuple(item["touches"])}) for item in json.load(file)["items"]]
    own = (item for item in snapshot(()).items if item.kind in OWN)
    found = wait_for_none(Snapshot((*read, *own)), options.wait, options.runtime_dir, options.scope)
    print(found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
