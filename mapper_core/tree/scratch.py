"""A tree in memory: files that are no disk (a contextualisation ISO this kernel cannot mount) shown as a mounted
tree.

It is a tmpfs with a size limit, so it is journalled, found again and taken away like every other tree, and leaves
nothing on any disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from mapper_core.errors import ImageInUse, UsageError
from mapper_core.linux import mountinfo, mounts
from mapper_core.mapping import Mapper
from mapper_core.model import Access
from mapper_core.tree import mounted, record
from mapper_core.tree.record import TreeRecord

#: Source of the tmpfs in mountinfo, by which its tree knows it.
SOURCE = "mapper-scratch"


def scratch_tree(
    mapper: Mapper, name: str, *, owner: str, size: int, uid: int, gid: int, fill: Callable[[int], object]
) -> str:
    """Make a read-only tree of files.

    :param name: of the directory below ``<runtime>/mounts``.
    :param size: limit, bytes.
    :param uid: host id of its top directory.
    :param gid: likewise.
    :param fill: gets a descriptor of the top directory and writes the files.
    :returns: the directory.
    :raises ImageInUse: there is a tree of this name.
    """
    directory = f"{mapper.runtime.mounts}/{name}"
    if "/" in name or name in ("", ".", ".."):
        raise UsageError("is not a single name", subject=name)
    with mounted.lock(mapper, directory), contextlib.ExitStack() as undo:
        if (old := mounted.find(mapper, directory)) is not None:
            if old.complete and old.boot == mapper.boot and mountinfo.at(directory):
                raise ImageInUse("a tree is mounted here already", subject=directory)
            mounted.dismantle_locked(mapper, old)
        tree = TreeRecord(directory, "", owner, mapper.boot, own_directory=True, source=SOURCE)
        undo.callback(lambda: mounted.dismantle_locked(mapper, mounted.find(mapper, directory)))
        record.write(mapper.runtime.trees, tree)
        os.mkdir(directory, 0o700)
        mounted.make_shared(mapper.runtime.mounts)
        options = (f"size={size}", "mode=0755", f"uid={uid}", f"gid={gid}")
        fd = mounts.new_filesystem(
            "tmpfs", SOURCE, options=options, access=Access.READ_WRITE, attributes=mounted.STAGING
        )
        try:
            target = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                mounts.attach(fd, target)
            finally:
                os.close(target)
            fill(fd)
            mounts.set_attributes(fd, set=mounts.MountAttribute.READ_ONLY)
        finally:
            os.close(fd)
        record.write(mapper.runtime.trees, TreeRecord(directory, "", owner, mapper.boot, True, True, SOURCE))
        undo.pop_all()
    return directory
