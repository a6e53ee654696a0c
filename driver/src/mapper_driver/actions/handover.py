"""Handing a disk over to a container, so that nothing of it is left when that fails: neither mounted in the container, nor written
down by the daemon, nor mapped.

The daemon may be what has failed. Then another one is looked for on its socket, where systemd starts one. When none answers, the
disk is taken from the container and from the host without it. What such a daemon has written down by then it finds again when it
runs: a device without a source, with which LXD neither starts nor changes a container. That, and what somebody uses, stays noted
(:mod:`mapper_driver.unfinished`) for the next action on the machine and for ``mapper-cli reconcile``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from mapper_core.errors import DeadlineExceeded, MapperError, ProcessGone
from mapper_core.linux import process_info
from mapper_driver import unfinished
from mapper_driver.actions.detach_disk import release, take_out
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound, LxdUnavailable
from mapper_driver.lxd import inside
from mapper_driver.lxd.client import LxdClient
from mapper_driver.storage import Storage

_COMMAND = "mapper-cli reconcile"

#: How long a daemon whose connections have ended may take to end itself.
_END_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Handover:
    """A disk and the container that is to have it.

    :param path: where, in the container.
    :param pid: first process of the container; 0 when it does not run.
    :param storage: the container's.
    """

    disk_id: int
    path: str
    pid: int
    storage: Storage


@contextlib.contextmanager
def taken_back_on_failure(given: Handover, node: Node) -> Iterator[None]:
    """Hand the disk over in this block.

    :raises MapperError: that of the block. Its hint says what could not be taken back, why, and with which command it can be.
    """
    container, runtime = given.storage.container, node.mapper.runtime
    unfinished.write_down(runtime, container, given.disk_id)
    try:
        yield
    except BaseException as error:
        try:
            said = _take_back(given, node)
        except (MapperError, OSError) as problem:
            said = _not_undone(given, problem)
        if not said:
            unfinished.strike_out(runtime, container, given.disk_id)
        elif isinstance(error, MapperError):
            error.hint = "; ".join(filter(None, (error.hint, said)))
        else:
            raise MapperError(f"interrupted, and {said}", subject=container) from error
        raise
    unfinished.strike_out(runtime, container, given.disk_id)


def show_if_cut_off(given: Handover, directory: str, node: Node) -> None:
    """Mount a tree in a container whose daemon cannot do that any more, having been replaced (L-03). At the next start of the
    container it can.

    :raises TreeNotPlaced: the guest cannot make the directory.
    """
    if not inside.is_cut_off(given.pid, node.client.daemon_pid()) or inside.has_disk(given.pid, given.path, directory):
        return
    node.client.execute(
        given.storage.container, ("mkdir", "-p", given.path)
    )  # by the guest: it is to belong to its root
    inside.show_disk(given.pid, given.path, directory)
    node.log.info("the daemon was replaced while the container ran; mounted the disk in the container without it")


def _take_back(given: Handover, node: Node) -> str:
    """Take all of it back; say what is left for a daemon that does not answer.

    :raises MapperError: it could not be.
    """
    if given.storage.tree(given.disk_id) is None:  # so the daemon has not heard of it
        return ""
    try:
        _take_back_with_daemon(given, _with_a_daemon(given.storage.container, node))
    except (LxdUnavailable, DeadlineExceeded):
        return _take_back_without_daemon(given, node)
    return ""


def _take_back_with_daemon(given: Handover, node: Node) -> None:
    container = given.storage.container
    try:
        found, pid = node.client.instance(container), node.client.state(container).pid
    except InstanceNotFound:
        given.storage.release_one(given.disk_id)
        return
    take_out(found, pid, given.disk_id, node)
    release(container, pid, given.disk_id, node.storage(container), node)
    node.set_start_limits(container, given.disk_id, {})


def _with_a_daemon(container: str, node: Node) -> Node:
    """The node with the daemon that there is now, which does not work on the container.

    :raises LxdUnavailable: there is none.
    """
    try:
        node.client.check_lives()
    except LxdUnavailable:
        node = dataclasses.replace(node, client=LxdClient.connect((node.client.socket,)))
    node.client.settle(container)
    return node


def _take_back_without_daemon(given: Handover, node: Node) -> str:
    """It is taken from the container although the daemon may have written it down: for oned the machine does not have it, and
    another may be given its image.
    """
    storage, pid = given.storage, given.pid
    try:
        inside.take_disk(pid, given.path, storage.directory(given.disk_id))
    except ProcessGone:
        pid = 0
    daemon = process_info.info(storage.daemon_pid)
    if daemon is not None:
        process_info.wait_for_an_end((daemon,), _END_SECONDS)  # its connections end before its mounts go
    release(storage.container, pid, given.disk_id, storage, node)
    return (
        "the disk is free; the daemon may have noted its device by then, with which it cannot start the container: when it runs "
        f"again, the next action on the machine removes that, or: {_COMMAND}"
    )


def _not_undone(given: Handover, problem: MapperError | OSError) -> str:
    hint = f" ({problem.hint})" if isinstance(problem, MapperError) and problem.hint else ""
    state = "is free, but" if given.storage.tree(given.disk_id) is None else "is still held for the container:"
    return f"disk {given.disk_id} {state} {problem}{hint}; after that run: {_COMMAND}"
