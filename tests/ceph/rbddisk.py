"""RBD images as disks of Mapper, for the tests of the plugin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mapper_rbd import claims, names, session
from mapper_rbd import cluster as settings_of

from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions, MappedDisk
from mapper_core.registry import Registry
from mapper_core.runtime import Runtime
from mapper_core.testing.disks import Part, make_disk

from .cluster import Cluster

RW = MapOptions()
RO = MapOptions(Access.READ_ONLY)
USER = "test"


def disk(cluster: Cluster, source: str, **settings: str) -> Disk:
    """What the driver makes of a DISK: plain data."""
    known = {"user": cluster.user, "conf": cluster.conf, "keyring": cluster.keyring, "timeout": "5"}
    return Disk(source, "rbd", settings=tuple({**known, **settings}.items()))


def options(cluster: Cluster) -> tuple[str, ...]:
    """The same for a command line."""
    return tuple(word for name, value in disk(cluster, "").settings for word in ("-o", f"{name}={value}"))


def host(directory: Path) -> Mapper:
    """Another host: with a journal of its own. Its disks are given another name for it, see :func:`disk`."""
    runtime = Runtime(str(directory))
    runtime.prepare()
    return Mapper(runtime, Registry.load())


@contextmanager
def mapped(mapper: Mapper, wanted: Disk, how: MapOptions = RW) -> Iterator[MappedDisk]:
    found = mapper.map(wanted, how, user=USER)
    try:
        yield found
    finally:
        mapper.unmap(found.id, user=USER)


def holders(cluster: Cluster, source: str) -> tuple[str, ...]:
    """Cookies of the locks of ours that an image has."""
    wanted = disk(cluster, source)
    with session.open_volume(names.parse(source), settings_of.from_settings(wanted.settings)) as volume:
        lockers = (*claims.info(volume, claims.LOCK).lockers, *claims.info(volume, claims.CLIENT_LOCK).lockers)
        return tuple(locker.cookie for locker in lockers)


def forget_after(cluster: Cluster, seconds: int) -> None:
    """Let a cluster forget dead clients sooner than after 30 s; for those that connect from now on."""
    order = {"prefix": "config set", "var": "osd_client_watch_timeout", "val": [str(seconds)]}
    with cluster.as_user("admin").connection() as connection:
        status, _, message = connection.osd_command(0, json.dumps(order), b"")
        assert status == 0, message


def system_disk(directory: Path) -> Path:
    """A raw disk with a GPT, a root filesystem and another."""
    fstab = "LABEL=root / ext4 defaults 0 1\nLABEL=home /home ext4 defaults 0 2\n"
    files = (
        ("/etc/fstab", fstab),
        ("/etc/os-release", "ID=test\n"),
        ("/home/.keep", ""),
        ("/sbin/init", "#!/bin/sh\n"),
    )
    return make_disk(
        directory / "system.raw",
        (
            Part("ext4", 24, ("-L", "root"), files),
            Part("ext4", 16, ("-L", "home"), (("/user/hello", "from rbd\n"),)),
        ),
    )


def server_of(mapper: Mapper, found: MappedDisk) -> int:
    """Process number of the storage daemon of a mapping."""
    return int(Path(f"{mapper.runtime.exports}/{found.id}/pid").read_text(encoding="ascii"))


def read(device: str, length: int, offset: int = 0) -> bytes:
    """Read a device past the page cache's memory of what this process wrote."""
    fd = os.open(device, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def write(device: str, data: bytes, offset: int = 0) -> None:
    """Write to a device; it is stored when the call returns."""
    fd = os.open(device, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        with suppress(OSError):
            os.close(fd)
