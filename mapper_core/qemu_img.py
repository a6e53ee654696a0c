"""qemu-img, for plugins whose formats it writes. The format and every file are said; nothing is probed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mapper_core.errors import CommandFailed, ImageInUse, MapperError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapper_core.model import ImageInfo
    from mapper_core.newfile import NewFile

#: Resizing and snapshots change tables only, but those of a large image take their time.
SECONDS = 600


def create(driver: str, path: str, size: int, *options: str, finish: Callable[[NewFile], object] | None = None) -> None:
    """Make an image. It has its name when it is complete.

    :param driver: qemu's name of the format.
    :param size: bytes.
    :param options: of the format, such as ``compat=1.1``.
    :param finish: changes what qemu-img has made.
    :raises AlreadyExists: there is something of that name.
    :raises ToolMissing, CommandFailed: qemu-img is not installed, or cannot do it.
    """
    from mapper_core.newfile import new_file
    from mapper_core.process import run

    with new_file(path) as file:
        given = tuple(word for option in options for word in ("-o", option))
        os.set_inheritable(file.fd, True)
        argv = ("qemu-img", "create", "-q", "-f", driver, *given, file.name, str(size))
        run(argv, timeout=SECONDS, subject=path, inherit=(file.fd,))
        if finish is not None:
            finish(file)


def change(image: ImageInfo, command: str, *arguments: str, after: tuple[str, ...] = ()) -> None:
    """Run a command that writes to an image, on exactly the files that were inspected.

    :param command: of qemu-img.
    :param arguments: in front of the image.
    :param after: behind it.
    :raises ImageInUse: another program has locked it.
    :raises ToolMissing, CommandFailed: qemu-img is not installed, or cannot do it.
    """
    from mapper_core.model import Access, ReferenceKind
    from mapper_core.process import Lifetime, run
    from mapper_core.transports.blockgraph import graph_of, to_file_name

    name = to_file_name(graph_of(image), Access.READ_WRITE)
    own = (item.path for item in image.references if item.kind is not ReferenceKind.BACKING)
    argv = ("qemu-img", command, "-q", *arguments, name, *after)
    try:
        # its tables were written by a stranger: whatever they do to qemu-img, other files stay as they are. And what we
        # have begun is not to happen after somebody has looked at the image again because we were killed
        run(argv, timeout=SECONDS, subject=image.path, writes=(image.path, *own), lifetime=Lifetime.OURS)
    except CommandFailed as error:
        raise explained(error, image.path) from error


def explained(error: CommandFailed, subject: str) -> MapperError:
    """Return the error for a program of qemu that failed: what it says about its image lock has a class of its own."""
    if '" lock' in error.stderr or "lock on" in error.stderr:
        return ImageInUse(
            "the image is locked by another program",
            subject=subject,
            hint="a virtual machine or a qemu tool uses it (or an image on top of it); stop that first",
        )
    return error
