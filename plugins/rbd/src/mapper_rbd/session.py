"""Connections to a cluster: opened for one piece of work, bounded in time, and every failure typed.

Sources: librados and librbd of Ceph 16, ``rados.pyx``, ``rbd.pyx``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mapper_core.errors import (
    AccessDenied,
    DeadlineExceeded,
    ImageInUse,
    ImageNotFound,
    MapperError,
    UnsupportedFormat,
    UsageError,
)
from mapper_rbd import bindings
from mapper_rbd.cluster import Cluster
from mapper_rbd.names import VolumeName

#: Requests to monitors and storage daemons that nobody answers fail after ``Cluster.timeout``; librados waits for ever by default.
_TIMEOUTS = ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout")

#: A library in our process is to write neither log nor socket; its errors reach us as exceptions.
_QUIET = (("log_to_stderr", "false"), ("err_to_stderr", "false"), ("log_file", ""), ("admin_socket", ""))


@dataclass(frozen=True, slots=True)
class Session:
    """A connection, with one pool (and namespace) chosen.

    :param client: ``rados.Rados``.
    :param ioctx: ``rados.Ioctx``.
    :param rbd: the module.
    """

    cluster: Cluster
    client: Any
    ioctx: Any
    rbd: Any

    @property
    def fsid(self) -> str:
        """Identity of the cluster."""
        return str(self.client.get_fsid())

    @property
    def pool_id(self) -> int:
        """Number of the pool: never used again, unlike its name."""
        return int(self.ioctx.get_pool_id())


@dataclass(frozen=True, slots=True)
class Volume:
    """An open image.

    :param image: ``rbd.Image``.
    :param id: number of the image within its pool: never used again, unlike its name.
    """

    session: Session
    name: VolumeName
    image: Any
    id: str

    @property
    def header(self) -> str:
        """The object that clients watch, and whose locks they hold."""
        return f"rbd_header.{self.id}"

    @property
    def ioctx(self) -> Any:
        """Of its pool and namespace."""
        return self.session.ioctx


@contextlib.contextmanager
def connect(name: VolumeName, cluster: Cluster) -> Iterator[Session]:
    """Connect to a cluster, and choose the pool and namespace of an image.

    :raises DeadlineExceeded: no answer in time.
    :raises AccessDenied: there is no key, or the cluster does not take it.
    :raises ImageNotFound: there is no such pool.
    :raises UsageError: the configuration is wrong.
    """
    rados, rbd = bindings.rados(), bindings.rbd()
    conf = cluster.conf_file
    check_files(cluster)
    client: Any = None
    try:
        with _connecting(cluster, conf):
            client = rados.Rados(rados_id=cluster.user, conffile=conf or None)
            timeouts = ((option, str(cluster.timeout)) for option in _TIMEOUTS)
            for option, value in (*_QUIET, *timeouts, *cluster.overrides()):
                client.conf_set(option, value)
            check_monitors(str(client.conf_get("mon_host") or ""))
            client.connect()
        with translated(str(name), cluster):
            try:
                ioctx = client.open_ioctx(name.pool)
            except rados.ObjectNotFound:
                raise ImageNotFound(f"the cluster has no pool {name.pool}", subject=str(name)) from None
            ioctx.set_namespace(name.namespace)
            yield Session(cluster, client, ioctx, rbd)
    finally:
        if client is not None:
            client.shutdown()


@contextlib.contextmanager
def open_volume(name: VolumeName, cluster: Cluster, *, writable: bool = False) -> Iterator[Volume]:
    """Connect and open an image; without ``writable`` nobody notices (no watch).

    :raises ImageNotFound: there is no such pool, namespace, image or snapshot.
    :raises UnsupportedFormat: it is an image of RBD's first format.
    """
    with connect(name, cluster) as session, translated(str(name), cluster), _image(session, name, writable) as image:
        if image.old_format():
            raise UnsupportedFormat(
                "is an image of RBD's format 1, which is not supported",
                subject=str(name),
                hint=f"convert it with: rbd migration prepare --image-format 2 {name}",
            )
        yield Volume(session, name, image, str(image.id()))


@contextlib.contextmanager
def _image(session: Session, name: VolumeName, writable: bool) -> Iterator[Any]:
    try:
        image = session.rbd.Image(
            session.ioctx, name.image, snapshot=name.snapshot or None, read_only=not writable or bool(name.snapshot)
        )
    except session.rbd.ImageNotFound:
        raise _not_found(session, name) from None
    try:
        yield image
    finally:
        image.close()


def _not_found(session: Session, name: VolumeName) -> ImageNotFound:
    """Say what exactly is missing."""
    if name.namespace:
        namespace, missing = name.namespace, f"the pool {name.pool} has no namespace {name.namespace}"
        session.ioctx.set_namespace("")
        if not session.rbd.RBD().namespace_exists(session.ioctx, namespace):
            return ImageNotFound(missing, subject=str(name))
        session.ioctx.set_namespace(namespace)
    if name.snapshot:
        with contextlib.suppress(session.rbd.ImageNotFound):
            session.rbd.Image(session.ioctx, name.image, read_only=True).close()
            return ImageNotFound(f"the image has no snapshot {name.snapshot}", subject=str(name))
    where = f"{name.pool}/{name.namespace}" if name.namespace else name.pool
    return ImageNotFound("the image does not exist", subject=str(name), hint=f"see: rbd ls {where}")


# --- errors -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def translated(subject: str, cluster: Cluster) -> Iterator[None]:
    """Give the errors of librados and librbd their types."""
    try:
        yield
    except Exception as error:
        if type(error).__module__ not in ("rados", "rbd"):
            raise
        raise typed(error, subject, cluster) from error


def check_files(cluster: Cluster) -> None:
    """Make sure that what is to be read can be read to its end: librados would wait for ever for the writer of a pipe.

    :raises UsageError: naming what is no regular file; one that is missing is told later, when it is needed.
    """
    for name in ("conf", "keyring", "keyfile"):
        path = getattr(cluster, name)
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            continue
        if not stat.S_ISREG(mode) and path != os.devnull:
            raise UsageError(f"the {name} is no regular file", subject=path)


def check_monitors(addresses: str) -> None:
    """Make sure that the names of all monitors have addresses: librados gives up at the first that has none, and prints that.

    :param addresses: the option ``mon_host``: names or numbers, with ports and protocols or without.
    :raises UsageError: naming the one that has none.
    """
    import socket

    for name in monitor_names(addresses):
        try:
            socket.getaddrinfo(name, None)
        except OSError as error:
            raise UsageError(
                f"the address of the monitor {name} is not known: {error.strerror}",
                subject="mon_host",
                hint="check the name, or write its address",
            ) from error


def monitor_names(addresses: str) -> tuple[str, ...]:
    """Return the names of hosts in a list of monitors; what is a number needs no name."""
    bare = re.sub(r"\bv[12]:|/\d+", "", addresses)
    words = (word.strip("[]") for word in re.split(r"[\s,;]+", bare))
    names = (word if word.count(":") > 1 else word.partition(":")[0] for word in words)
    return tuple(name for name in names if re.search(r"[A-Za-z]", name) and name.count(":") < 2)


def number_of(error: Exception) -> int:
    """The errno of an error of librados or librbd; 0 when it has none."""
    return abs(int(getattr(error, "errno", 0) or 0))


def typed(error: Exception, subject: str, cluster: Cluster) -> MapperError:
    """Return an error of librados or librbd as one of ours."""
    number = number_of(error)
    if number == errno.ETIMEDOUT:
        return DeadlineExceeded(
            f"the cluster did not answer within {cluster.timeout} s",
            subject=subject,
            hint="see: ceph -s; a longer wait: -o timeout=SECONDS",
        )
    if number in (errno.EPERM, errno.EACCES):
        return AccessDenied(
            f"client.{cluster.user} may not do that: {error}",
            subject=subject,
            hint=f"see: ceph auth get client.{cluster.user}; it needs the profiles rbd",
        )
    if number == errno.ESHUTDOWN:
        return AccessDenied(
            "this client was shut out by the cluster (blocklisted)",
            subject=subject,
            hint="another host has taken the image; see: ceph osd blocklist ls",
        )
    if number == errno.ENOENT:
        return ImageNotFound(f"does not exist any more: {error}", subject=subject)
    if number == errno.EBUSY:
        return ImageInUse(f"is in use: {error}", subject=subject)
    return MapperError(f"the cluster reports: {os.strerror(number) if number else ''} ({error})", subject=subject)


@contextlib.contextmanager
def _connecting(cluster: Cluster, conf: str) -> Iterator[None]:
    """As :func:`translated`, for the connection itself: what an error number means there."""
    who = f"client.{cluster.user}"
    try:
        yield
    except Exception as error:
        if type(error).__module__ not in ("rados", "rbd"):
            raise
        number = number_of(error)
        if number == errno.ETIMEDOUT:
            raise DeadlineExceeded(
                f"the monitors of the cluster did not answer within {cluster.timeout} s",
                subject=cluster.mon_host or conf,
                hint="check mon_host and the network; a longer wait: -o timeout=SECONDS",
            ) from error
        if number == errno.ENOENT and conf and not os.path.exists(conf):
            raise UsageError("the configuration file does not exist", subject=conf) from error
        if number == errno.ENOENT:
            raise AccessDenied(
                f"there is no key of {who}", subject=who, hint="name its file: -o keyring=FILE or -o keyfile=FILE"
            ) from error
        if number in (errno.EPERM, errno.EACCES):
            raise AccessDenied(
                f"the cluster does not accept {who} with this key",
                subject=who,
                hint=f"compare the key with: ceph auth get {who}",
            ) from error
        raise UsageError(
            f"the cluster cannot be reached with this configuration: {error}",
            subject=conf,
            hint=f"try: ceph --conf {conf} --id {cluster.user} -s",
        ) from error
