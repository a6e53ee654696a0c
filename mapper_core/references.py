"""Following the names that a hostile image contains, and never out of the directories that the caller allows."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from mapper_core.errors import BackingFileMissing, ForbiddenReference
from mapper_core.frozen import dataclass
from mapper_core.imagefile import KERNEL_DIRECTORIES, Budget, ImageFile, open_image
from mapper_core.model import ReferenceKind
from mapper_core.policy import is_below

#: Images in a chain. OpenNebula's snapshots make one each; qemu keeps every file of the chain open.
DEPTH_LIMIT = 64

_NOUNS = {
    ReferenceKind.BACKING: "backing file",
    ReferenceKind.DATA: "external data file",
    ReferenceKind.EXTENT: "extent",
}

_REMEDIES = {
    ReferenceKind.BACKING: "bring the file there, or correct the name with: qemu-img rebase -u",
    ReferenceKind.DATA: "bring the file there",
    ReferenceKind.EXTENT: "an image in several files must be copied with all of them",
}


@dataclass(frozen=True, slots=True)
class Boundary:
    """The directories in which the files of one disk may lie.

    :param directories: real paths.
    """

    directories: tuple[str, ...]

    @classmethod
    def around(cls, image: ImageFile, allowed_dirs: tuple[str, ...]) -> Boundary:
        """Return the boundary of a disk: the directory of its top image, and those that the caller allows.

        The directory of a block device (``/dev``) and the root directory are no place for images and don't count,
        unless the caller names them.
        """
        own = os.path.dirname(image.path)
        own_dirs = () if image.is_device or own == "/" else (own,)
        allowed = tuple(os.path.realpath(directory) for directory in allowed_dirs if directory.startswith("/"))
        return cls(own_dirs + allowed)

    def resolve(self, written: bytes, image: ImageFile, kind: ReferenceKind) -> tuple[str, str]:
        """Follow a name that is written in an image.

        A relative name starts at the directory of the image's real path, whatever symbolic link led to the image. So
        the result depends on the image alone. (qemu starts at the name it was given, which opens another file, or
        none, when that name is a link: M-01.)

        :returns: the name as text, and the real path.
        :raises ForbiddenReference: the name is not a plain path, or leads to a place outside of the boundary.
        :raises BackingFileMissing: there is no such file.
        """
        noun = _NOUNS[kind]
        name = self._plain(written, image, noun)
        path = os.path.realpath(os.path.join(os.path.dirname(image.path), name))
        # before anything is said about its existence: an image must not be able to ask what the host has
        if not any(is_below(path, directory) for directory in self.directories):
            raise ForbiddenReference(
                f"its {noun} {name!r} leads to {path}, outside of {self._described()}",
                subject=image.path,
                hint=f"only if you trust the image: allow the directory {os.path.dirname(path)}",
            )
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BackingFileMissing(
                f"its {noun} {name!r} does not exist: {path}",
                subject=image.path,
                hint=f"a relative name starts at {os.path.dirname(image.path)}; {_REMEDIES[kind]}",
            ) from None
        except OSError as error:
            raise ForbiddenReference(
                f"its {noun} {name!r} cannot be followed: {error.strerror}", subject=image.path
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise ForbiddenReference(
                f"its {noun} {name!r} is not a regular file: {path}",
                subject=image.path,
                hint="images may only refer to files",
            )
        return name, path

    def _plain(self, written: bytes, image: ImageFile, noun: str) -> str:
        try:
            name = written.decode()
        except UnicodeDecodeError:
            name = ""
        if not name.isprintable() or not name:
            raise ForbiddenReference(f"the name of its {noun} is not printable text: {written!a}", subject=image.path)
        # the rule of qemu's path_has_protocol(): a colon before the first slash
        if ":" in name.split("/", 1)[0]:
            raise ForbiddenReference(
                f"its {noun} {name!r} is not a file name but a protocol or option string",
                subject=image.path,
                hint="images may only refer to files, by a plain path",
            )
        if any(is_below(os.path.normpath(name), directory) for directory in ("/dev", *KERNEL_DIRECTORIES)):
            raise ForbiddenReference(
                f"its {noun} {name!r} is a device or an interface of the kernel", subject=image.path
            )
        return name

    def _described(self) -> str:
        return ", ".join(self.directories) or "every allowed directory"


class Walk:
    """The inspection of one disk: the files that it consists of, each opened once and closed when it is read.

    :param allowed_dirs: directories, besides that of the top image, in which the others may lie.
    """

    def __init__(self, allowed_dirs: tuple[str, ...]) -> None:
        self._allowed_dirs = allowed_dirs
        self._budget = Budget()
        self._boundary = Boundary(())
        self._seen: set[tuple[int, int]] = set()
        self._depth = 1

    @contextmanager
    def open_top(self, path: str) -> Iterator[ImageFile]:
        """Open the image that the caller named; to be called first.

        :raises ImageNotFound, UnsafePath, KernelError: see :func:`mapper_core.imagefile.open_image`.
        """
        with open_image(path, self._budget) as image:
            self._boundary = Boundary.around(image, self._allowed_dirs)
            self._seen.add(image.key)
            yield image

    @contextmanager
    def follow(self, written: bytes, image: ImageFile, kind: ReferenceKind) -> Iterator[tuple[str, ImageFile]]:
        """Open a file that an image refers to.

        :param image: the image that contains the name; it may be closed already.
        :returns: the name as text, and the file.
        :raises ForbiddenReference, BackingFileMissing: see :meth:`Boundary.resolve`.
        :raises CorruptImage: the file is part of the disk already: a circle, or two parts that share their bytes.
        :raises UnsupportedFormat: the chain is too deep.
        """
        name, path = self._boundary.resolve(written, image, kind)
        if kind is ReferenceKind.BACKING:
            self._depth += 1
            if self._depth > DEPTH_LIMIT:
                raise image.unsupported(
                    f"the chain of backing files has more than {DEPTH_LIMIT} images",
                    "shorten it with: qemu-img commit, or qemu-img convert",
                )
        with open_image(path, self._budget) as found:
            if found.path != path or found.is_device:
                raise ForbiddenReference(f"its {_NOUNS[kind]} {name!r} was replaced meanwhile", subject=image.path)
            if found.key in self._seen:
                what = "a circle of backing files" if kind is ReferenceKind.BACKING else "the same file twice"
                raise image.corrupt(f"the disk has {what}: {name!r} is part of it already")
            self._seen.add(found.key)
            yield name, found
