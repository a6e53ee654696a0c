"""A cluster of the lab as tests use it: where it is, what is in it, and making images by Ceph's own bindings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mapper_rbd import bindings

LAB = str(Path(__file__).parents[2] / "labs" / "ceph")
POOLS = ("one", "two")
MIB = 1 << 20
#: Longest wait for the cluster, seconds.
ANSWER = 20


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Cluster:
    """How a client reaches a cluster.

    :param directory: of the lab.
    :param user: without ``client.``; the lab has oneadmin, libvirt, nobody and admin.
    :param pool: one that the user may use.
    """

    directory: str
    conf: str
    user: str
    keyring: str
    pool: str

    @classmethod
    def of(cls, directory: str, user: str = "oneadmin") -> Cluster:
        return cls(directory, f"{directory}/ceph.conf", user, f"{directory}/ceph.client.{user}.keyring", POOLS[0])

    def as_user(self, user: str) -> Cluster:
        return replace(self.of(self.directory, user), pool=self.pool)

    def lab(self, *arguments: str) -> str:
        """A command of the lab for this cluster: ``stop osd``, ``start osd`` ..."""
        return run(LAB, *arguments, self.directory)

    def rbd(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """The command rbd(8) as this user."""
        argv = ["rbd", "--conf", self.conf, "--id", self.user, "--keyring", self.keyring, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)

    @contextmanager
    def connection(self, seconds: int = ANSWER) -> Iterator[Any]:
        """A connection by librados, closed in the end: an open one would have sockets that come and go as they like."""
        names = ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout")
        settings = {"keyring": self.keyring, **{name: str(seconds) for name in names}}
        connection = bindings.rados().Rados(conffile=self.conf, rados_id=self.user, conf=settings)
        try:
            connection.connect()
            yield connection
        finally:
            connection.shutdown()  # also without a connection: the object does not free its descriptors itself

    @contextmanager
    def volume(self, source: str, read_only: bool = False) -> Iterator[Any]:
        """An open image ``POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]`` by librbd."""
        path, _, snapshot = source.partition("@")
        pool, namespace, name = _split(path)
        with self.connection() as connection, connection.open_ioctx(pool) as ioctx:
            ioctx.set_namespace(namespace)
            with bindings.rbd().Image(ioctx, name, snapshot=snapshot or None, read_only=read_only) as image:
                yield image


class Images:
    """Makes images as client.admin, and removes them."""

    def __init__(self, cluster: Cluster) -> None:
        self._admin = cluster.as_user("admin")
        self._made: list[str] = []

    def create(self, source: str, size: int = MIB, features: int | None = None) -> str:
        """A new image; with Ceph's default features if none are given. Returns its name."""
        pool, namespace, name = _split(source)
        with self._admin.connection() as connection, connection.open_ioctx(pool) as ioctx:
            ioctx.set_namespace(namespace)
            self._made.append(source)
            bindings.rbd().RBD().create(ioctx, name, size, old_format=False, features=features)
        return source

    def upload(self, source: str, file: Path) -> str:
        """A new image with the contents of a raw file."""
        data = file.read_bytes()
        self.create(source, len(data))
        with self.open(source) as image:
            for offset in range(0, len(data), 4 * MIB):
                if (chunk := data[offset : offset + 4 * MIB]).strip(b"\0"):
                    image.write(chunk, offset)
        return source

    def clone(self, parent: str, source: str) -> str:
        """A clone of ``IMAGE@SNAPSHOT``, which is made and protected first if need be."""
        image, _, snapshot = parent.partition("@")
        with self.open(image) as opened:
            if snapshot not in [one["name"] for one in opened.list_snaps()]:
                opened.create_snap(snapshot)
            if not opened.is_protected_snap(snapshot):
                opened.protect_snap(snapshot)
        pool, namespace, name = _split(image)
        child_pool, child_namespace, child = _split(source)
        with (
            self._admin.connection() as connection,
            connection.open_ioctx(pool) as ioctx,
            connection.open_ioctx(child_pool) as child_ioctx,
        ):
            ioctx.set_namespace(namespace)
            child_ioctx.set_namespace(child_namespace)
            self._made.append(source)
            bindings.rbd().RBD().clone(ioctx, name, snapshot, child_ioctx, child)
        return source

    def remove(self, source: str) -> None:
        """Remove an image and its snapshots; one that does not exist is no error."""
        rbd = bindings.rbd()
        with suppress(rbd.ImageNotFound):
            with self.open(source) as image:
                for one in list(image.list_snaps()):
                    if image.is_protected_snap(one["name"]):
                        image.unprotect_snap(one["name"])
                    image.remove_snap(one["name"])
            pool, namespace, name = _split(source)
            with self._admin.connection() as connection, connection.open_ioctx(pool) as ioctx:
                ioctx.set_namespace(namespace)
                rbd.RBD().remove(ioctx, name)

    def remove_all(self) -> None:
        """Remove what was made here, the last first: clones before their parents."""
        while self._made:
            self.remove(self._made.pop())

    @contextmanager
    def open(self, source: str) -> Iterator[Any]:
        with self._admin.volume(source) as image:
            yield image

    def watchers(self, source: str) -> list[str]:
        """Addresses of the clients that have it open for writing."""
        with self._admin.volume(source, read_only=True) as image:  # which does not watch it
            return [one["addr"] for one in image.watchers_list()]

    def lockers(self, source: str) -> list[str]:
        """Addresses of the clients that hold a lock on it."""
        with self._admin.volume(source, read_only=True) as image:
            return [address for _, _, address in _lockers(image)]


def traces(cluster: Cluster) -> frozenset[str]:
    """What is in the pools: images, snapshots, watchers, locks, entries of the trash, namespaces."""
    rbd = bindings.rbd()
    found = set()
    with cluster.as_user("admin").connection() as connection:
        for pool in POOLS:
            with connection.open_ioctx(pool) as ioctx:
                namespaces = rbd.RBD().namespace_list(ioctx)
                found |= {f"namespace {pool}/{namespace}" for namespace in namespaces}
                for namespace in ("", *namespaces):
                    ioctx.set_namespace(namespace)
                    path = f"{pool}/{namespace}/" if namespace else f"{pool}/"
                    found |= {f"trash {path}{one['name']} {one['id']}" for one in rbd.RBD().trash_list(ioctx)}
                    for name in rbd.RBD().list(ioctx):
                        found |= {f"{what} of {path}{name}" for what in _parts_of(rbd, ioctx, name)}
    return frozenset(found)


def _parts_of(rbd: Any, ioctx: Any, name: str) -> Iterator[str]:
    with rbd.Image(ioctx, name, read_only=True) as image:
        yield f"image {image.id()}"
        yield from (f"snapshot {one['name']}" for one in image.list_snaps())
        yield from (f"watcher {one['addr']}" for one in image.watchers_list())
        yield from (f"lock {client} {address}" for client, _, address in _lockers(image))


def _lockers(image: Any) -> list[tuple[str, str, str]]:
    """Client, cookie and address of each."""
    found = image.list_lockers()
    return found["lockers"] if found else []  # an empty list instead of a dictionary


def sweep(cluster: Cluster, left: frozenset[str]) -> None:
    """Take away what a test has left in the cluster. Clients that still watch or lock are shut out of it for good."""
    words = [line.split(" ") for line in left]
    admin = cluster.as_user("admin")
    with admin.connection() as connection:
        for address in {one[-3] for one in words if one[0] in ("watcher", "lock")}:
            order = {"prefix": "osd blocklist", "blocklistop": "add", "addr": address}
            connection.mon_command(json.dumps(order), b"")
    images = Images(cluster)
    sources = [one[-1] for one in words if one[0] == "image"]
    for _ in sources:  # clones go before their parents, and nobody knows who is whose
        for source in sources:
            with suppress(bindings.rbd().Error):
                images.remove(source)


def _split(source: str) -> tuple[str, str, str]:
    pool, *namespace, name = source.split("/")
    return pool, "".join(namespace), name
