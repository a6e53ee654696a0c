"""Small files of ours in a machine's directory. OpenNebula moves and deletes them with its disks."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from typing import Any

from mapper_core.errors import NotFound, Refused, StateCorrupt
from mapper_core.state_files import sync_directory

MAX_BYTES = 4096
_FORMAT, _VERSION = "mapper", 1


def write(path: str, content: Mapping[str, object], what: str) -> None:
    """Make a file durable. It belongs to the owner of the directory, who has to move it.

    :param what: it is, for errors.
    :raises Refused: there is something else than a file, or it cannot be written.
    :raises NotFound: there is no such directory.
    """
    _refuse_other(path)
    data = json.dumps({"format": _FORMAT, "version": _VERSION, **content}).encode() + b"\n"
    directory, temporary = os.path.dirname(path), f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, flags, 0o600)
    except FileNotFoundError as error:
        raise NotFound("the directory of the machine does not exist", subject=directory) from error
    except OSError as error:
        raise Refused(f"the {what} cannot be written: {error.strerror}", subject=path) from error
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
    sync_directory(directory)


def read(path: str, what: str) -> dict[str, Any] | None:
    """Read a file of :func:`write`; ``None`` when there is none.

    :raises StateCorrupt: it is not one of ours, or damaged.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateCorrupt(f"the {what} cannot be opened: {error.strerror}", subject=path) from error
    try:
        data = os.read(fd, MAX_BYTES + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    try:
        found = json.loads(data)
        if found["format"] != _FORMAT or found["version"] != _VERSION:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, what) from error
    return dict(found)


def remove(path: str) -> None:
    """Remove a file, and make that durable: a power cut must not bring back what it says. A missing one is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(os.path.dirname(path))


def damaged(path: str, what: str) -> StateCorrupt:
    """The error for a file whose content makes no sense."""
    return StateCorrupt(f"the {what} is damaged, or was not written by this driver", subject=path)


def _refuse_other(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Refused("there is something that is no file", subject=path)
