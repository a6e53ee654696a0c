"""Where in a tree a filesystem may be mounted.

This is the textual half of the check. A path that passes may still lead through symbolic links; it is resolved
inside of the tree, by the kernel, when it is opened.
"""

from __future__ import annotations

import os

from mapper_core.errors import UnsafePath
from mapper_core.partitions.reader import escape_controls

#: PATH_MAX without the final NUL, and NAME_MAX, both in bytes: limits.h(7).
MAX_PATH = 4095
MAX_NAME = 255

#: The container mounts its own here; a filesystem of the image below would be hidden, or would hide the kernel's.
RESERVED = ("/proc", "/sys", "/dev", "/run")


def normalise(target: str) -> str:
    """Return an absolute path without ``//``, ``/./`` and a final ``/``.

    :raises UnsafePath: it is empty, relative, too long, contains ``..`` or NUL, or is reserved for the container.
    """
    if not target.startswith("/"):
        raise UnsafePath("the mount point is not an absolute path", subject=shown(target) or "(empty)")
    if "\0" in target:
        raise UnsafePath("the mount point contains a NUL character", subject=shown(target))
    names = [name for name in target.split("/") if name not in ("", ".")]
    if ".." in names:
        raise UnsafePath("the mount point contains '..'", subject=shown(target))
    path = "/" + "/".join(names)
    if len(os.fsencode(target)) > MAX_PATH or any(len(os.fsencode(name)) > MAX_NAME for name in names):
        raise UnsafePath("the mount point is too long", subject=shown(target))
    if names and f"/{names[0]}" in RESERVED:
        raise UnsafePath(f"a filesystem of the image must not be mounted below /{names[0]}", subject=shown(path))
    return path


def depth(path: str) -> int:
    """Return the number of names in a normalised path."""
    return path.count("/") if path != "/" else 0


def shown(path: str) -> str:
    """Shorten a hostile path and make it fit for a message."""
    path = escape_controls(path)
    return path if len(path) <= 80 else path[:77] + "..."
