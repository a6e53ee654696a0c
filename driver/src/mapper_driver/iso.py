"""Reading an ISO 9660 image without the kernel: contextualisation data for the container.

The files are copied into a tree in memory. Names of Rock Ridge are used where the image has them, else Joliet's, else
the plain ones. Only directories and regular files are copied, with limits, and never a name with a slash: the image
is guest data.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any, BinaryIO

from mapper_core.errors import BadImage, ImageNotFound, Refused

#: A context image carries scripts and keys; files of the datastore (FILES_DS) can make it larger.
MAX_BYTES = 256 << 20
MAX_ENTRIES = 10_000
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Owner:
    """Host ids that own what is written."""

    uid: int
    gid: int


def size_needed(path: str) -> int:
    """Return a limit for a tree with the content of an image, bytes: the image's size and room for the directories.

    :raises ImageNotFound: there is no such file.
    :raises Refused: the image is larger than :data:`MAX_BYTES`.
    """
    try:
        size = os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageNotFound("does not exist", subject=path) from error
    if size > MAX_BYTES:
        raise Refused(f"has {size} bytes; files are copied from images of up to {MAX_BYTES} bytes", subject=path)
    return size + (8 << 20)


def extract(path: str, root_fd: int, *, owner: Owner) -> int:
    """Copy all files of an image.

    :param path: the image.
    :param root_fd: directory to write into.
    :returns: number of files and directories.
    :raises BadImage: it is no ISO image, or a damaged one.
    :raises Refused: it has more entries or deeper directories than a sane one.
    """
    import pycdlib
    from pycdlib.pycdlibexception import PyCdlibException

    image = pycdlib.PyCdlib()
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadImage("is not a regular file", subject=path)
        try:
            image.open_fp(file)
            try:
                kind = "rr_path" if image.has_rock_ridge() else "joliet_path" if image.has_joliet() else "iso_path"
                return _Copy(image, kind, owner, path).directory("/", root_fd, 0)
            finally:
                image.close()
        except (PyCdlibException, ValueError, IndexError, KeyError, RecursionError, MemoryError, UnicodeError) as error:
            raise BadImage(
                f"is no readable ISO 9660 image: {error}", subject=path, hint="was the file transferred completely?"
            ) from error
        except OSError as error:  # two files of one name, or more content than the image has room for
            raise BadImage(f"cannot be unpacked: {error.strerror}", subject=path) from error


class _Copy:
    """One copy, with what it has seen so far."""

    def __init__(self, image: Any, kind: str, owner: Owner, path: str) -> None:
        self._image = image
        self._kind = kind
        self._owner = owner
        self._path = path
        self._entries = 0

    def directory(self, path: str, directory_fd: int, depth: int) -> int:
        """Copy one directory and all below."""
        if depth > MAX_DEPTH:
            raise Refused(f"has directories deeper than {MAX_DEPTH}", subject=self._path)
        for child in self._image.list_children(**{self._kind: path}):
            if child is None or child.is_dot() or child.is_dotdot():
                continue
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                raise Refused(f"has more than {MAX_ENTRIES} files", subject=self._path)
            name = self._name(child)
            inside = f"{path.rstrip('/')}/{name}"
            if child.is_dir():
                os.mkdir(name, 0o755, dir_fd=directory_fd)
                child_fd = os.open(
                    name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd
                )
                try:
                    os.fchown(child_fd, self._owner.uid, self._owner.gid)
                    self.directory(inside, child_fd, depth + 1)
                finally:
                    os.close(child_fd)
            elif child.is_file() and not self._is_link(child):
                self._file(inside, name, directory_fd, child)
        return self._entries

    def _file(self, inside: str, name: str, directory_fd: int, child: Any) -> None:
        mode = 0o755 if self._mode(child) & 0o111 else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, mode, dir_fd=directory_fd)
        with os.fdopen(fd, "wb") as file:
            out: BinaryIO = file
            self._image.get_file_from_iso_fp(out, **{self._kind: inside})
            file.flush()
            os.fchown(file.fileno(), self._owner.uid, self._owner.gid)

    def _name(self, child: Any) -> str:
        if self._kind == "rr_path":
            raw = child.rock_ridge.name()
            name = raw.decode("utf-8", "surrogateescape")
        elif self._kind == "joliet_path":
            name = child.file_identifier().decode("utf-16_be")
        else:
            name = child.file_identifier().decode("ascii", "surrogateescape")
            return self._checked(name)
        return self._checked(name)

    def _checked(self, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
            raise Refused(f"has a file with the impossible name {name!r}", subject=self._path)
        return name

    def _is_link(self, child: Any) -> bool:
        return child.rock_ridge is not None and child.rock_ridge.is_symlink()

    def _mode(self, child: Any) -> int:
        return int(child.rock_ridge.get_file_mode()) if child.rock_ridge is not None else 0
