"""The file that OpenNebula keeps for a saved machine. It has no memory of the machine in it, but says what became of it."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import stat
from dataclasses import dataclass

from mapper_core.errors import NotFound, Refused, StateCorrupt, UsageError

VERSION = 1
MAX_BYTES = 4096
_MAGIC = "mapper"


class Kind(enum.Enum):
    """What became of a machine that was saved."""

    FROZEN = "frozen"  # its container is on the node, frozen, with its memory
    SHUT_DOWN = "shutdown"  # its guest has shut down; it starts anew from its disks


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved machine.

    :param vm: its number.
    :param node: OpenNebula's name of the node on which it was saved.
    """

    vm: int
    kind: Kind
    node: str


def check_path(path: str, vm: int) -> None:
    """Make sure that a path is one of the machine's own directory. (While it migrates, which datastore that is in cannot
    be told from its description.)

    :raises UsageError: it is not.
    """
    if os.path.basename(os.path.dirname(path)) != str(vm):
        raise UsageError(f"the checkpoint does not lie in the directory of machine {vm}", subject=path)


def write(path: str, checkpoint: Checkpoint) -> None:
    """Make it durable. It belongs to the owner of the directory, who has to move it.

    :raises Refused: there is something else than a file.
    :raises NotFound: there is no such directory.
    """
    _refuse_other(path)
    content = {"format": _MAGIC, "version": VERSION, "vm": checkpoint.vm, "kind": checkpoint.kind.value}
    data = json.dumps({**content, "node": checkpoint.node}).encode() + b"\n"
    directory, temporary = os.path.dirname(path), f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, flags, 0o600)
    except FileNotFoundError as error:
        raise NotFound("the directory of the machine does not exist", subject=directory) from error
    except OSError as error:
        raise Refused(f"the checkpoint cannot be written: {error.strerror}", subject=path) from error
    with contextlib.ExitStack() as undo:
        undo.callback(os.unlink, temporary)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            owner = os.stat(directory)
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        undo.pop_all()


def read(path: str, vm: int) -> Checkpoint:
    """Read the file of a machine.

    :raises NotFound: there is none.
    :raises StateCorrupt: it is not one of ours, damaged, or that of another machine.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        hint = "nothing was started; recover the file, or terminate the virtual machine"
        raise NotFound("the checkpoint does not exist", subject=path, hint=hint) from error
    except OSError as error:
        raise StateCorrupt(f"the checkpoint cannot be opened: {error.strerror}", subject=path) from error
    try:
        data = os.read(fd, MAX_BYTES + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    try:
        found = json.loads(data)
        if found["format"] != _MAGIC or found["version"] != VERSION:
            raise ValueError("another format")
        checkpoint = Checkpoint(int(found["vm"]), Kind(found["kind"]), str(found["node"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StateCorrupt("the checkpoint is damaged, or was not written by this driver", subject=path) from error
    if checkpoint.vm != vm:
        raise StateCorrupt(f"this is the checkpoint of machine {checkpoint.vm}, not of {vm}", subject=path)
    return checkpoint


def remove(path: str) -> None:
    """Remove the file; a missing one is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _refuse_other(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Refused("there is something that is no file", subject=path)
