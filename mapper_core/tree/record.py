"""The journal of mounted trees: one JSON file for each directory, in ``<runtime>/trees``."""

from __future__ import annotations

import contextlib
import functools
import os

from mapper_core.errors import StateCorrupt
from mapper_core.frozen import dataclass, plain
from mapper_core.state_files import corrupt, overwrite, read_json, remove_json, write_json

VERSION = 2

#: Bytes of a file name; the longest suffix that is appended to it is short.
MAX_NAME = 200

#: So begins a record; the next character says whether the tree is complete: 0 or 1.
_BEGIN = '{"complete":'

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.")
_ESCAPES = {byte: "-" if byte == 0x2F else f"\\x{byte:02x}" for byte in range(256) if byte not in _PLAIN}


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """A tree that is, or is about to be, mounted.

    :param directory: real path of the directory it is mounted on.
    :param disk_id: key of the mapping under it.
    :param owner: who asked for it.
    :param boot: boot in which it was made.
    :param complete: whether all its mounts were made.
    :param own_directory: whether the directory was made for the tree and goes with it.
    :param source: what is mounted when there is no disk under it.
    """

    directory: str
    disk_id: str
    owner: str
    boot: str
    complete: bool = False
    own_directory: bool = False
    source: str = ""


def path_of(trees: str, directory: str) -> str:
    """Return the file of a directory's record."""
    return f"{trees}/{key_of(directory)}.json"


@functools.lru_cache(maxsize=8)  # asked for at every step of one tree
def key_of(directory: str) -> str:
    """Return a file name for a directory, escaped as by ``systemd-escape --path``; a digest for very long ones."""
    raw = os.fsencode(directory).strip(b"/")
    name = raw.decode("latin-1").translate(_ESCAPES)
    if len(name) <= MAX_NAME:
        return name or "-"
    import hashlib  # 4 ms to import: only paid for such a path

    return hashlib.sha256(raw).hexdigest()


def write(trees: str, record: TreeRecord) -> None:
    """Make the record durable."""
    rest = plain(record)
    complete = rest.pop("complete")
    write_json(path_of(trees, record.directory), {"complete": int(complete), "version": VERSION, **rest})


def mark(trees: str, directory: str, *, complete: bool) -> None:
    """Say in a directory's record whether the tree is complete, durably.

    One byte is overwritten: whoever reads sees the old record or the new, and no room is needed.
    """
    overwrite(path_of(trees, directory), len(_BEGIN), b"1" if complete else b"0")


def read(trees: str, directory: str) -> TreeRecord | None:
    """Return the record of a directory, or ``None``."""
    return _read(path_of(trees, directory))


def read_all(trees: str) -> tuple[TreeRecord, ...]:
    """Return all records that can be read, in the order of their directories. A damaged one stops nobody, see :func:`damaged`."""
    found = []
    for path in _paths(trees):
        with contextlib.suppress(StateCorrupt):
            found.append(_read(path))
    return tuple(sorted((record for record in found if record is not None), key=lambda record: record.directory))


def damaged(trees: str) -> tuple[StateCorrupt, ...]:
    """Return what is wrong with each record that cannot be read."""
    found = []
    for path in _paths(trees):
        try:
            _read(path)
        except StateCorrupt as error:
            found.append(error)
    return tuple(found)


def exists(trees: str, directory: str) -> bool:
    """Say whether a directory has a record, readable or not."""
    return os.path.exists(path_of(trees, directory))


def remove(trees: str, directory: str) -> None:
    """Forget a directory's record."""
    remove_json(path_of(trees, directory))


def _paths(trees: str) -> list[str]:
    return [f"{trees}/{name}" for name in sorted(os.listdir(trees)) if name.endswith(".json")]


def _read(path: str) -> TreeRecord | None:
    data = read_json(path, VERSION)
    if data is None:
        return None
    try:
        return TreeRecord(**{name: data[name] for name in TreeRecord.__slots__} | {"complete": bool(data["complete"])})
    except KeyError as error:
        raise corrupt(path, f"misses a field: {error}") from error
