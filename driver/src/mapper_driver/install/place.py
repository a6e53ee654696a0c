"""Puts a plan in place and takes it away.

What was done is in a manifest, written before it is done. So an installation that is interrupted can be repeated or removed; what
somebody has changed since is not ours any more and stays; what OpenNebula had in a place comes back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mapper_core.errors import StateCorrupt
from mapper_core.state_files import read_json, write_json
from mapper_driver.install.plan import REMOTES, Item, Kind, Plan

STATE = "/var/lib/mapper"
MANIFEST = f"{STATE}/installed.json"
ORIGINALS = f"{STATE}/originals"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was put in place.

    :param mark: digest of a file, goal of a link; empty for a directory, and for a file that was only moved away.
    :param original: what was there before has been kept.
    """

    path: str
    kind: Kind
    mark: str
    original: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What was done.

    :param done: paths that were put in place, or removed.
    :param kept: paths that somebody has changed, and that were left as they are.
    :param restored: paths of OpenNebula that are back.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()


def manifest(destdir: str) -> tuple[Entry, ...]:
    """What an earlier installation has put in place.

    :raises StateCorrupt: the manifest is damaged.
    """
    data = read_json(destdir + MANIFEST, VERSION)
    if data is None:
        return ()
    try:
        return tuple(
            Entry(str(path), Kind(kind), str(mark), original is True) for path, kind, mark, original in data["entries"]
        )
    except (KeyError, TypeError, ValueError) as error:
        hint = "move it away, and run mapper-driver install-remotes: it recognises what is in place"
        raise StateCorrupt(f"misses or garbles a field: {error!r}", subject=destdir + MANIFEST, hint=hint) from error


def install(plan: Plan, destdir: str) -> Report:
    """Put everything in place. What an earlier version has put there and this one has not is removed.

    :raises OSError: something cannot be written; :func:`uninstall` removes what was.
    """
    known = {entry.path: entry for entry in manifest(destdir)}
    owner = _owner(destdir + REMOTES)
    wanted: list[Entry] = []
    kept: list[str] = []
    for item in plan.items:
        entry = _entry(item, known.get(item.path), destdir)
        if item.kind is Kind.DIRECTORY:
            continue
        if _is_somebodys(item, known.get(item.path), destdir):
            kept.append(item.path)
            if item.path in known:
                wanted.append(known[item.path])
            continue
        wanted.append(entry)
    away = (path for path in plan.away if path in known or os.path.lexists(destdir + path) or _is_kept(path, destdir))
    wanted += [Entry(path, Kind.FILE, "", original=True) for path in away]
    paths = {entry.path for entry in wanted} | set(kept)
    gone = [entry for entry in known.values() if entry.path not in paths and entry.kind is not Kind.DIRECTORY]
    empty = [item.path for item in plan.items if item.kind is Kind.DIRECTORY]
    made = _directories([*empty, *(os.path.dirname(entry.path) for entry in wanted)], known.values(), destdir)
    _write((*made, *wanted, *gone), destdir)
    removed = _remove(gone, destdir)
    for entry in made:
        _make_directory(entry.path, destdir, owner)
    items = {item.path: item for item in plan.items}
    for entry in wanted:
        if entry.path in kept:
            continue
        _move_away(entry, known.get(entry.path), destdir)
        if entry.path in items:
            _put(items[entry.path], destdir, owner)
    _write((*made, *wanted), destdir)
    return Report(tuple(entry.path for entry in wanted if entry.mark), tuple(kept), removed.restored)


def uninstall(destdir: str) -> Report:
    """Remove what was put in place, as far as it is as it was put there."""
    entries = manifest(destdir)
    report = _remove(entries, destdir)
    for entry in entries:
        if entry.original:  # and OpenNebula has put a newer one there itself
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_original(entry.path, destdir))
            _prune(os.path.dirname(_original(entry.path, destdir)), destdir + ORIGINALS)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(destdir + MANIFEST)
    with contextlib.suppress(OSError):  # the inventories of containers may be there
        os.rmdir(destdir + STATE)
    return report


def _remove(entries: Sequence[Entry], destdir: str) -> Report:
    done, kept, restored = [], [], []
    for entry in sorted(entries, key=lambda entry: entry.path, reverse=True):
        path = destdir + entry.path
        if entry.kind is Kind.DIRECTORY:
            with contextlib.suppress(OSError):  # somebody has put something into it
                os.rmdir(path)
            continue
        original = _original(entry.path, destdir)
        if os.path.lexists(path) and entry.mark != _mark(path):
            kept.append(entry.path)
            continue
        if os.path.lexists(path):
            os.unlink(path)
            done.append(entry.path)
        if entry.original and os.path.lexists(original):
            shutil.move(original, path)
            restored.append(entry.path)
            _prune(os.path.dirname(original), destdir + ORIGINALS)
    return Report(tuple(done), tuple(kept), tuple(restored))


def _entry(item: Item, before: Entry | None, destdir: str) -> Entry:
    mark = item.content.decode() if item.kind is Kind.LINK else hashlib.sha256(item.content).hexdigest()
    original = bool(before and before.original) or _is_foreign(item.path, mark, before, destdir)
    return Entry(item.path, item.kind, mark, original or _is_kept(item.path, destdir))


def _is_foreign(path: str, mark: str, before: Entry | None, destdir: str) -> bool:
    """Whether something is there that is neither what is to be there nor what we had put there."""
    if not os.path.lexists(destdir + path):
        return False
    found = _mark(destdir + path)
    return not (mark and found == mark) and not (before is not None and before.mark and found == before.mark)


def _is_somebodys(item: Item, before: Entry | None, destdir: str) -> bool:
    """Whether what is there was made or changed by somebody, and matters to him."""
    return item.kind is not Kind.FILE and _is_foreign(item.path, _entry(item, before, destdir).mark, before, destdir)


def _move_away(entry: Entry, before: Entry | None, destdir: str) -> None:
    """Keep what is there and is not ours."""
    path, target = destdir + entry.path, _original(entry.path, destdir)
    if not _is_foreign(entry.path, entry.mark, before, destdir):
        return
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    shutil.move(path, target)


def _put(item: Item, destdir: str, owner: tuple[int, int]) -> None:
    path = destdir + item.path
    temporary = f"{path}.mapper-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        if item.kind is Kind.LINK:
            os.symlink(item.content.decode(), temporary)
        else:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(item.content)
                os.fchmod(file.fileno(), item.mode)
        if item.of_frontend and os.geteuid() == 0:
            os.chown(temporary, *owner, follow_symlinks=False)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _directories(needed: Iterable[str], before: Iterable[Entry], destdir: str) -> tuple[Entry, ...]:
    """Directories that have to be made, and those that were made before; no others are ours to remove."""
    found = {entry.path for entry in before if entry.kind is Kind.DIRECTORY}
    for path in needed:
        while path != "/" and not os.path.isdir(destdir + path):
            found.add(path)
            path = os.path.dirname(path)
    return tuple(Entry(path, Kind.DIRECTORY, "") for path in sorted(found))


def _make_directory(path: str, destdir: str, owner: tuple[int, int]) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(destdir + path, 0o755)
        if path.startswith(f"{REMOTES}/") and os.geteuid() == 0:
            os.chown(destdir + path, *owner)


def _original(path: str, destdir: str) -> str:
    return f"{destdir}{ORIGINALS}{path}"


def _is_kept(path: str, destdir: str) -> bool:
    """Whether what OpenNebula had there has been kept, also by an installation whose manifest is lost."""
    return os.path.lexists(_original(path, destdir))


def _prune(directory: str, top: str) -> None:
    while directory.startswith(top):
        try:
            os.rmdir(directory)
        except OSError:
            return
        directory = os.path.dirname(directory)


def _mark(path: str) -> str:
    if os.path.islink(path):
        return os.readlink(path)
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return "?"


def _owner(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return os.geteuid(), os.getegid()
    return found.st_uid, found.st_gid


def _write(entries: Sequence[Entry], destdir: str) -> None:
    os.makedirs(destdir + STATE, mode=0o755, exist_ok=True)
    rows = [[entry.path, entry.kind.value, entry.mark, entry.original] for entry in entries]
    write_json(destdir + MANIFEST, {"version": VERSION, "entries": rows})
