"""Files that say what was done to the host, one JSON object in each.

A file is replaced atomically (write, fsync, rename, fsync of the directory; on a tmpfs there is nothing to sync). Its version is
checked: one that a newer version has written is an error, never a guess.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from mapper_core.errors import StateCorrupt
from mapper_core.linux.files import is_in_memory, read_bytes
from mapper_core.linux.syscalls import kernel_error

_encode = json.JSONEncoder(separators=(",", ":")).encode


def write_json(path: str, data: dict[str, Any]) -> None:
    """Replace ``path`` atomically by ``data``, mode 0600, on disk when the call returns.

    :raises KernelError: it cannot be written; what was there before is there still.
    """
    try:
        _replace(path, data)
    except OSError as error:
        hint = "nothing is done that is not written down first: make room, and make the filesystem writable"
        raise kernel_error(error, "what is about to be done cannot be written down", subject=path, hint=hint) from error


def _replace(path: str, data: dict[str, Any]) -> None:
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/.{name}.{os.getpid()}"
    # a left-over of a process with the same pid that was killed here may be overwritten
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            content = _encode(data).encode()
            while content:  # of a full filesystem the first write may take a part, and only the second one fails
                content = content[os.write(fd, content) :]
            in_memory = is_in_memory(fd)
            if not in_memory:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # a signal handler may raise just after the rename
            os.unlink(temporary)
        raise
    if not in_memory:
        sync_directory(directory)


def overwrite(path: str, offset: int, content: bytes) -> None:
    """Change some bytes of a file of :func:`write_json`, on disk when the call returns.

    :raises KernelError: it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, content, offset)
            if not is_in_memory(fd):
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise kernel_error(error, "what was done cannot be written down", subject=path) from error


def read_json(path: str, version: int) -> dict[str, Any] | None:
    """Return the object in a file of :func:`write_json`, or ``None`` when there is none.

    :raises StateCorrupt: it cannot be read, or has another version.
    """
    try:
        data = json.loads(read_bytes(path).decode())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise corrupt(path, "is not a JSON object")
    if data.get("version") != version:
        raise StateCorrupt(
            f"was written by another version of Mapper (journal version {data.get('version')}, this one reads {version})",
            subject=path,
            hint="finish with the version that wrote it, or upgrade this one",
        )
    return data


def json_files(directory: str) -> tuple[str, ...]:
    """Paths of the files of :func:`write_json` in a directory, which may be missing, by name; none that is half written."""
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else ()
    return tuple(f"{directory}/{name}" for name in names if name.endswith(".json") and not name.startswith("."))


def remove_json(path: str) -> None:
    """Remove a file of :func:`write_json`, with what killed writers have left of it; a missing one is fine.

    One that a power cut brings back is of an earlier boot, and is removed again for that.
    """
    directory, _, name = path.rpartition("/")
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(directory):
            if entry.startswith(f".{name}."):
                _remove_if_left(f"{directory}/{entry}")
        os.unlink(path)


def _remove_if_left(temporary: str) -> None:
    """Remove a half-written file, unless its writer lives."""
    from mapper_core.linux import process_info

    pid = temporary.rpartition(".")[2]
    if pid.isdigit() and not process_info.is_running(int(pid)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def sync_directory(directory: str) -> None:
    """Make durable what was named, renamed or removed in a directory (:manpage:`fsync(2)`)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def corrupt(path: str, why: str) -> StateCorrupt:
    """The error for a record that makes no sense.

    :param why: it does not; the end of a sentence that begins with the path.
    """
    return StateCorrupt(
        why, subject=path, hint="move the file away; `mapper-cli doctor` then shows what is left on the host"
    )
