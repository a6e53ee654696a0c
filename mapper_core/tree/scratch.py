"""A tree in memory: files that are no disk (a contextualisation ISO this kernel cannot mount) shown as a mounted
tree.

It is a tmpfs with a size limit, so it is journalled, found again and taken away like every other tree, and leaves
nothing on any disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable

from mapper_core.errors import ImageInUse, NotMapped, UsageError
from mapper_core.linux import mountinfo, mounts
from mapper_core.linux.files import open_directory
from mapper_core.mapping import Mapper
from mapper_core.model import Access
from mapper_core.tree import mounted, mounting, record, staging
from mapper_core.tree.record import TreeRecord

#: Source of the tmpfs in mountinfo, by which its tree knows it.
SOURCE = "mapper-scratch"

#: Where the new files of :func:`refill_tree` are collected, in the tree itself; nobody but root of the host may look.
_INCOMING = ".incoming"


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
        staging.make(mapper.runtime, directory)
        options = (f"size={size}", "mode=0755", f"uid={uid}", f"gid={gid}")
        fd = mounts.new_filesystem(
            "tmpfs", SOURCE, options=options, access=Access.READ_WRITE, attributes=mounting.ATTRIBUTES
        )
        try:
            target = open_directory(directory)
            try:
                mounts.attach(fd, target)
            finally:
                os.close(target)
            fill(fd)
            mounts.set_attributes(fd, set=mounts.MountAttribute.READ_ONLY)
        finally:
            os.close(fd)
        record.mark(mapper.runtime.trees, directory, complete=True)
        undo.pop_all()
    return directory


def refill_tree(mapper: Mapper, name: str, *, owner: str, size: int, fill: Callable[[int], object]) -> None:
    """Replace the files of a tree in its own filesystem: every mount of it, in whatever container, shows the new ones.

    The old files stay until the new ones are complete. Each file is replaced in one step, so that who reads one gets the
    old or the new. A call that was killed is finished by the next.

    :param size: limit, bytes.
    :param fill: gets a descriptor of an empty directory and writes the files.
    :raises NotMapped: there is no such tree.
    :raises ImageInUse: it belongs to somebody else.
    """
    directory = f"{mapper.runtime.mounts}/{name}"
    with mounted.lock(mapper, directory), contextlib.ExitStack() as stack:
        tree = mounted.find(mapper, directory)
        if tree is None or not tree.complete or tree.source != SOURCE or not mountinfo.at(directory):
            raise NotMapped("no files are shown here", subject=directory)
        if tree.owner != owner:
            raise ImageInUse(f"the tree belongs to {tree.owner}", subject=directory)
        clone = mounts.clone_tree(directory, recursive=False)
        stack.callback(os.close, clone)
        mounts.set_attributes(clone, clear=mounts.MountAttribute.READ_ONLY)
        writable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=clone)
        stack.callback(os.close, writable)
        _remove(_INCOMING, writable)
        mounts.reconfigure(writable, (f"size={_used(writable) + size}",))
        os.mkdir(_INCOMING, 0o700, dir_fd=writable)
        stack.callback(_remove, _INCOMING, writable)
        incoming = os.open(_INCOMING, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=writable)
        stack.callback(os.close, incoming)
        fill(incoming)
        _exchange(incoming, writable)


def _exchange(incoming: int, top: int) -> None:
    """Directories first: the file that makes somebody look at them may be the last one."""
    with os.scandir(incoming) as found:
        fresh = sorted((not entry.is_dir(follow_symlinks=False), entry.name) for entry in found)
    for is_file, name in fresh:
        if not is_file or _is_directory(name, top):
            _remove(name, top)
        os.rename(name, name, src_dir_fd=incoming, dst_dir_fd=top)
    for name in os.listdir(top):
        if name != _INCOMING and (True, name) not in fresh and (False, name) not in fresh:
            _remove(name, top)


def _is_directory(name: str, parent: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    return False


def _remove(name: str, parent: int) -> None:
    """Remove a file or a tree; no link is followed."""
    with contextlib.suppress(FileNotFoundError):
        if _is_directory(name, parent):
            shutil.rmtree(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)


def _used(fd: int) -> int:
    status = os.fstatvfs(fd)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
