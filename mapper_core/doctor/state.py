"""What we have written down: the runtime directory and the journal in it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mapper_core import users
from mapper_core.doctor.check import Check, Status
from mapper_core.errors import Busy, MapperError
from mapper_core.journal import State
from mapper_core.linux import mountinfo, process_info
from mapper_core.resources import DaemonResource
from mapper_core.runtime import ENVIRONMENT, MAX_LENGTH, boot_id
from mapper_core.transports.storage_daemon import PROGRAM

if TYPE_CHECKING:
    from mapper_core.journal import Record
    from mapper_core.mapping import Mapper
    from mapper_core.runtime import Runtime

_RECONCILE = "mapper-cli reconcile"


def examine(mapper: Mapper) -> tuple[Check, ...]:
    """Examine what is written down."""
    directory = _directory(mapper.runtime)
    if directory.status is Status.FAILED or not os.access(mapper.runtime.disks, os.R_OK | os.X_OK):
        return (directory,)
    problems = (*_disks(mapper), *_trees(mapper))
    count = f"{len(mapper.journal.ids())} disk(s)"
    return (directory, *(problems or (Check("journal", Status.OK, f"{count}, no record damaged or half done"),)))


def _directory(runtime: Runtime) -> Check:
    name, root = "runtime directory", runtime.root
    if not root.startswith("/") or len(os.fsencode(root)) > MAX_LENGTH:
        return Check(
            name,
            Status.FAILED,
            f"{root} is not an absolute path of at most {MAX_LENGTH} bytes",
            f"change {ENVIRONMENT}",
        )
    try:
        found = os.lstat(root)
    except FileNotFoundError:
        return Check(name, Status.OK, f"{root} does not exist yet")
    if not stat.S_ISDIR(found.st_mode):
        return Check(name, Status.FAILED, f"{root} is not a directory", f"look at it, then: rm {root}")
    if found.st_uid not in (0, os.geteuid()):
        return Check(name, Status.FAILED, f"{root} belongs to user {found.st_uid}", "look at it, then remove it")
    if found.st_mode & 0o077:
        return Check(name, Status.FAILED, f"others than root can enter {root}", f"chmod 700 {root}")
    if not os.access(root, os.R_OK | os.X_OK):
        return Check(name, Status.WARNING, f"{root} cannot be read", "run it as root")
    return Check(name, Status.OK, root)


# --- disks --------------------------------------------------------------------------------------------------


def _disks(mapper: Mapper) -> Iterator[Check]:
    for key in mapper.journal.ids():
        try:
            record = mapper.journal.read(key)
            if record is not None:
                yield from _disk(mapper, record)
        except MapperError as error:
            yield Check(f"record {key}", Status.FAILED, str(error), error.hint)


def _disk(mapper: Mapper, record: Record) -> Iterator[Check]:
    name = f"disk {record.disk.source}"
    if mapper.find(record.id) is None:
        if _is_locked(mapper, record.id):
            return  # somebody maps or unmaps it now
        if record.boot != boot_id():
            reason = "its record is of an earlier boot"
        elif record.state == State.MAPPED and record.attachment is not None:
            reason = f"its device {record.attachment.device} is gone, or somebody else's by now"
        else:
            reason = f"its record was left half done ({record.state})"
        yield Check(name, Status.WARNING, reason, _RECONCILE)
        return
    device = record.attachment.device if record.attachment else ""
    for resource in record.resources:
        if isinstance(resource, DaemonResource) and not process_info.find_by_argument(
            PROGRAM, f"{resource.directory}/pid"
        ):
            yield Check(
                name,
                Status.FAILED,
                f"its {PROGRAM} is gone: reads and writes of {device} fail",
                f"unmount what is on it, then: mapper-cli unmap {device}",
            )
    if record.disk.source.startswith("/") and not os.path.lexists(record.disk.source):
        yield Check(
            name,
            Status.WARNING,
            f"the image was deleted, but it is still mapped to {device}",
            f"mapper-cli unmap {device}",
        )
    for user in record.users:
        directory = users.tree_of(user)
        if directory is not None and not _has_tree(mapper, directory):
            yield Check(
                name, Status.WARNING, f"is held by the tree {directory}, of which there is no record", _RECONCILE
            )


def _is_locked(mapper: Mapper, key: str) -> bool:
    path = f"{mapper.runtime.locks}/{key}"
    if not os.path.exists(path):
        return False  # asking for the lock would make the file
    try:
        with mapper.lock(key):
            return False
    except Busy:
        return True


# --- trees --------------------------------------------------------------------------------------------------


def _has_tree(mapper: Mapper, directory: str) -> bool:
    from mapper_core.tree import mounted

    return mounted.has_record(mapper, directory)


def _trees(mapper: Mapper) -> Iterator[Check]:
    from mapper_core.tree import mounted

    if not os.path.isdir(mapper.runtime.trees):
        return
    for error in mounted.damaged(mapper):
        yield Check(f"tree record {error.subject}", Status.FAILED, error.message, error.hint)
    for tree in mounted.records(mapper):
        name = f"tree {tree.directory}"
        if tree.boot != boot_id():
            yield Check(name, Status.WARNING, "its record is of an earlier boot", _RECONCILE)
        elif not tree.complete:
            yield Check(name, Status.WARNING, "is being mounted, or was left half done", _RECONCILE)
        elif not mountinfo.at(tree.directory):
            yield Check(
                name,
                Status.WARNING,
                "is not mounted in this mount namespace",
                f"mapper-cli umount {shlex.quote(tree.directory)}",
            )
