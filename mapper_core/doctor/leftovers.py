"""What is on the host and in no record (M-15): devices, daemons and mounts that look like ours.

Nothing is touched, and the hints name the one thing to look at: what belongs to another runtime directory is no leftover.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mapper_core.doctor.check import Check, Status
from mapper_core.linux import loop, mountinfo
from mapper_core.runtime import ENVIRONMENT

if TYPE_CHECKING:
    from mapper_core.mapping import Mapper

_TAG = "mapper:"
_DAEMONS = ("qemu-storage-daemon", "qemu-nbd")
_PERHAPS = f"if no other {ENVIRONMENT} is in use on this host"


def examine(mapper: Mapper) -> tuple[Check, ...]:
    """Look for leftovers."""
    if os.geteuid() != 0:
        return ()
    known = frozenset(mapper.journal.ids())
    found = (
        *_loop_devices(known),
        *_daemons(mapper.runtime.exports, known),
        *_exports(mapper.runtime.exports, known),
        *_staged_mounts(mapper),
    )
    return found or (Check("leftovers", Status.OK, "none"),)


def _loop_devices(known: frozenset[str]) -> Iterator[Check]:
    for status in loop.list_devices():
        key = status.tag.removeprefix(_TAG)
        if key != status.tag and key not in known:
            yield Check(
                f"loop device {status.device.path}",
                Status.WARNING,
                f"is tagged {status.tag}, but there is no such record",
                f"{_PERHAPS}: losetup --detach {status.device.path}",
            )


def _daemons(exports: str, known: frozenset[str]) -> Iterator[Check]:
    prefix = f"{exports}/".encode(errors="surrogateescape")
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                argv = file.read().split(b"\0")
        except OSError:
            continue
        program = os.fsdecode(argv[0].rsplit(b"/", 1)[-1])
        if program not in _DAEMONS:
            continue
        keys = {os.fsdecode(key) for word in argv if (key := _key_in(word, prefix))} - known
        for missing in sorted(keys):
            yield Check(
                f"process {pid}",
                Status.WARNING,
                f"{program} serves {missing}, of which there is no record",
                f"kill {pid}",
            )


def _key_in(word: bytes, prefix: bytes) -> bytes:
    """The mapping whose directory a word of a command line names, such as ``--pid-file=/run/mapper/exports/KEY/pid``."""
    _, found, rest = word.partition(prefix)
    return rest.split(b"/", 1)[0].split(b",", 1)[0] if found else b""


def _exports(exports: str, known: frozenset[str]) -> Iterator[Check]:
    mounted = {entry.target for entry in mountinfo.below(exports)}
    for target in sorted(mounted):
        if target[len(exports) + 1 :].split("/")[0] not in known:
            yield Check(f"mount {target}", Status.WARNING, "is an export without a record", f"umount {target}")
    try:
        names = sorted(os.listdir(exports))
    except FileNotFoundError:
        return
    for name in names:
        path = f"{exports}/{name}"
        # a plugin's file of a mapping is named like its directory, with something behind a dot
        if name.partition(".")[0] not in known and not any(mountinfo.is_below(target, path) for target in mounted):
            yield Check(f"directory {path}", Status.WARNING, "is of a mapping without a record", f"rm -r {path}")


def _staged_mounts(mapper: Mapper) -> Iterator[Check]:
    from mapper_core.tree import mounted

    known = {tree.directory for tree in mounted.records(mapper)} if os.path.isdir(mapper.runtime.trees) else set()
    for entry in mountinfo.below(mapper.runtime.mounts):
        if not any(entry.target == directory or mountinfo.is_below(entry.target, directory) for directory in known):
            yield Check(f"mount {entry.target}", Status.WARNING, "is a tree without a record", f"umount {entry.target}")
