"""Containers as owners of trees, as ``mapper-cli reconcile`` asks about them (entry point ``lxd`` in
``mapper.owners``).

Errs on the side of the living: a container is gone only when no action works on it, nobody uses its disks, and the
daemon (if there is one) knows no such container or one that an interrupted action never finished.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from mapper_core.errors import Busy, MapperError, NotFound
from mapper_core.linux import holders, locks, namespaces
from mapper_core.mapping import Mapper
from mapper_core.tree import mounted
from mapper_driver import inventory, unfinished
from mapper_driver.errors import InstanceNotFound, LxdUnavailable
from mapper_driver.instance import STATUS_KEY
from mapper_driver.lxd import lending, placement
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status, check_name

if TYPE_CHECKING:
    from mapper_driver.actions.node import Node

_LOCK_PREFIX = "container-"

#: How long an action waits for a release that has begun; it takes a fraction of a second.
_RELEASE_SECONDS = 20.0


def container_of(user: str) -> str:
    """The container in ``lxd:<container>``."""
    return user.partition(":")[2]


@contextlib.contextmanager
def lock(mapper: Mapper, container: str) -> Iterator[None]:
    """Lock a container against other actions. A release of the disks of one that is off is waited for: it is short, and oned
    has not asked for it.

    :raises Busy: another action works on it.
    """
    with (
        locks.try_lock_of(_lock_path(mapper, container), lambda: False),
        locks.try_lock_of(_release_path(mapper, container), lambda: False, _RELEASE_SECONDS),
    ):
        yield


@contextlib.contextmanager
def lock_for_release(mapper: Mapper, container: str) -> Iterator[None]:
    """As :func:`lock`, for what must be in no action's way.

    :raises Busy: an action works on it, or another release.
    """
    with locks.try_lock_of(_release_path(mapper, container), lambda: False):
        if is_locked(mapper, container):
            raise Busy("an action works on it", subject=container)
        yield


def _lock_path(mapper: Mapper, container: str) -> str:
    return f"{mapper.runtime.locks}/{_LOCK_PREFIX}{check_name(container)}"


def _release_path(mapper: Mapper, container: str) -> str:
    return f"{_lock_path(mapper, container)}.release"


def is_locked(mapper: Mapper, container: str) -> bool:
    """Whether an action works on a container. The lock itself is not touched, so that no action is refused because of this."""
    try:
        fd = os.open(_lock_path(mapper, container), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return locks.holder_pid(fd) != 0
    finally:
        os.close(fd)


def locked(mapper: Mapper) -> frozenset[str]:
    """All containers on which an action works."""
    try:
        names = os.listdir(mapper.runtime.locks)
    except FileNotFoundError:
        return frozenset()
    found = (name.removeprefix(_LOCK_PREFIX) for name in names if name.startswith(_LOCK_PREFIX) and "." not in name)
    return frozenset(container for container in found if is_locked(mapper, container))


def is_alive(user: str) -> bool:
    """Say whether a container exists and may use its disks."""
    mapper, container = Mapper.open(), container_of(user)
    try:
        with lock(mapper, container):
            return _is_used(mapper, user) or _is_known(mapper, container)
    except Busy:
        return True


def let_go(user: str) -> None:
    """Remove what is left of a container that is gone, so that its disks can be released.

    :raises TreeStillPlaced: something is mounted in its directory that cannot be taken away.
    :raises DeviceBusy: naming who uses one of its disks in the daemon's mount namespace.
    """
    mapper, container = Mapper.open(), container_of(user)
    record = placement.read(placement.record_path(mapper.runtime, container))
    client: LxdClient | None = None
    with contextlib.suppress(LxdUnavailable):
        client = LxdClient.connect()
    if record is not None:
        placement.unplace(record, client.daemon_pid() if client else os.getpid())
    if client is not None:
        with contextlib.suppress(InstanceNotFound):
            client.delete(container)
        for tree in mounted.records(mapper):
            if tree.owner == user:
                lending.withdraw(tree.directory, client.daemon_pid())
                lending.withdraw_from_home(tree.directory, os.path.dirname(client.socket), client.daemon_pid())
    placement.forget(mapper.runtime, container)
    inventory.forget(mapper.runtime, container)
    unfinished.forget(mapper.runtime, container)


def left_over(user: str) -> tuple[str, ...]:
    """What is held for a living container that it should not have, as far as that can be told now: directories of trees."""
    mapper, container = Mapper.open(), container_of(user)
    with contextlib.suppress(MapperError), lock(mapper, container):
        node = _node(mapper, container)
        storage = node.storage(container)
        return tuple(map(storage.directory, _leftovers().of(node.client.instance(container), node)))
    return ()


def take_away(user: str, directory: str) -> bool:
    """Take such a tree from its container and release it; ``False`` when the container may have it by now.

    :raises DeviceBusy: naming who uses it.
    """
    mapper, container = Mapper.open(), container_of(user)
    with lock(mapper, container):
        node = _node(mapper, container)
        found, storage = node.client.instance(container), node.storage(container)
        for disk_id in _leftovers().of(found, node):
            if storage.directory(disk_id) == directory:
                _leftovers().take_one_away(found, disk_id, node)
                return True
    return False


def _leftovers() -> ModuleType:
    from mapper_driver.actions import leftovers  # with all that actions need

    return leftovers


def _node(mapper: Mapper, container: str) -> Node:
    from mapper_driver.actions.node import Node
    from mapper_driver.opennebula.config import Config
    from mapper_driver.opennebula.framing import Log

    client = LxdClient.connect()
    client.settle(container)
    return Node(mapper, client, Config(), Log("reconcile", "", io.StringIO()))


def _is_known(mapper: Mapper, container: str) -> bool:
    try:
        client = LxdClient.connect()
        client.settle(container)
        found = client.instance(container)
    except LxdUnavailable:
        # it may come back and start the container again, as long as that has a directory
        record = placement.read(placement.record_path(mapper.runtime, container))
        return record is not None and os.path.isdir(os.path.dirname(record.rootfs))
    except InstanceNotFound:
        return False
    return found.status is not Status.STOPPED or STATUS_KEY not in found.config


def _is_used(mapper: Mapper, user: str) -> bool:
    """Whether a filesystem of the container's disks is mounted in a mount namespace that is neither ours nor the daemon's: a
    container runs on it.
    """
    known = {0, namespaces.mount_namespace_id()}
    with contextlib.suppress(LxdUnavailable):
        known.add(namespaces.mount_namespace_id(LxdClient.connect().daemon_pid()))
    for tree in mounted.records(mapper):
        if tree.owner != user:
            continue
        for device in mounted.devices_of(mapper, tree)[:1]:
            with contextlib.suppress(NotFound, MapperError):
                if any(item.namespace not in known for item in holders.holders(device)):
                    return True
    return False
