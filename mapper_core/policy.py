"""What the core checks for every plugin, so that no plugin can forget it."""

from __future__ import annotations

import contextlib
import os

from mapper_core import formats
from mapper_core.errors import (
    BackingFileMissing,
    CorruptImage,
    ForbiddenReference,
    MapperError,
    NeedsRoot,
    ReadOnlyImage,
    Refused,
)
from mapper_core.identity import refusal
from mapper_core.model import Access, Disk, ImageInfo, MapOptions
from mapper_core.partitions.reader import fetch_ends

#: Whoever may make a block device of an image may open one of these (loop(4), and nbd of the kernel).
_MAKERS = ("/dev/loop-control", "/dev/nbd0")


def check_privilege(disk: Disk) -> None:
    """Make sure that this process may make block devices, before anything is written down that it could not undo.

    The user's number does not decide it: capabilities or the group of the devices do as well as root.

    :raises NeedsRoot: it may open nothing that makes a block device.
    """
    if os.geteuid() == 0:
        return  # what root lacks is not root
    there = [path for path in _MAKERS if os.path.exists(path)]
    if there and not any(os.access(path, os.R_OK | os.W_OK, effective_ids=True) for path in there):
        raise NeedsRoot(
            f"this needs root: {there[0]} makes block devices, and may not be opened",
            subject=disk.source,
            hint="run it with sudo",
        )


def read_header(path: str) -> bytes:
    """Return the first bytes of an image.

    :raises UnsafePath, NeedsRoot: it cannot be opened.
    """
    fd = _open(path)
    try:
        return os.pread(fd, formats.HEADER_SIZE, 0)
    finally:
        os.close(fd)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise refusal(error, "the image cannot be opened", path) from error


def fetch_ahead(disk_format: str, path: str) -> None:
    """Let the kernel fetch what will be looked at when an image is mapped, while its user goes on.

    :param path: of a regular file or block device.
    """
    if disk_format != formats.RAW:
        return  # only there the ends of the file are those of the disk
    with contextlib.suppress(MapperError, OSError):  # whoever reads it says why that cannot be done
        fd = _open(path)
        try:
            fetch_ends(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)


def check_declared_format(disk: Disk) -> None:
    """Compare the declared format with the first bytes of the file.

    The declaration wins over the content: a raw disk whose guest wrote a qcow2 header into it is refused, not
    reinterpreted (S-01).

    :raises UnsupportedFormat: the file is a compressed stream or an archive (M-22).
    :raises FormatMismatch: the file is an image of another format.
    """
    header = read_header(disk.source)
    found = formats.identify(header)
    if found != disk.format and (found != formats.RAW or disk.format in formats.KNOWN):
        raise formats.refusal(disk.format, header, disk.source)


def check_size(disk: Disk, size: int, options: MapOptions) -> None:
    """Check the size of a disk, bytes, against what the caller allows.

    :raises Refused: it is larger (S-19).
    """
    if options.max_virtual_size is not None and size > options.max_virtual_size:
        raise Refused(
            f"the disk has {size} bytes, more than the allowed {options.max_virtual_size}",
            subject=disk.source,
            hint="raise the limit if the size is right",
        )


def check_image(disk: Disk, image: ImageInfo, options: MapOptions) -> None:
    """Check what a plugin read from a header against what the caller allows.

    :raises ForbiddenReference: a file that the image names lies elsewhere than in the image's directory and
        ``disk.allowed_dirs``.
    :raises ReadOnlyImage: write access to a variant that has none.
    :raises Refused: the disk is larger than allowed (S-19).
    """
    if image.virtual_size <= 0:
        raise CorruptImage("the image has no size", subject=disk.source)
    check_size(disk, image.virtual_size, options)
    if not image.writable and options.access is Access.READ_WRITE:
        raise ReadOnlyImage(
            f"images of the variant {image.variant} can only be read",
            subject=disk.source,
            hint="map it read-only (--read-only)",
        )
    for layer in image.chain():
        for reference in layer.references:
            check_reference(disk, layer, reference.path, reference.written)


def check_reference(disk: Disk, layer: ImageInfo, path: str, written: str) -> None:
    """Check one file that an image names.

    :raises BackingFileMissing: it does not exist.
    :raises ForbiddenReference: it lies outside of the allowed directories.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real):
        raise BackingFileMissing(f"it needs {written!r}, which does not exist", subject=layer.path)
    own = os.path.dirname(os.path.realpath(disk.source))
    # the directory of a block device is /dev: what lies beside it does not belong to the image
    allowed = disk.allowed_dirs if own in ("/", "/dev") or own.startswith("/dev/") else (own, *disk.allowed_dirs)
    if not any(is_below(real, os.path.realpath(directory)) for directory in allowed):
        raise ForbiddenReference(
            f"it refers to {real}, which is outside of the allowed directories",
            subject=layer.path,
            hint="if that file belongs to the image, allow its directory (--allow-dir)",
        )


def is_below(path: str, directory: str) -> bool:
    """Say whether a path lies in a directory, by components: ``/a/bc`` is not below ``/a/b``."""
    return directory == "/" or path == directory or path.startswith(directory.rstrip("/") + "/")
