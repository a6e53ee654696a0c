"""A machine whose guest has powered itself off: its disks become images again, as ``shutdown`` would have made them.

oned calls no script when that happens, nor when it then deletes, moves or copies the disks of the machine. So whoever looks at
the machines for oned takes the disks back. The container stays, stopped, in the state it has after a boot of the host: every
action can go on from there, and nothing is deleted because of something that was only seen.

A guest that reboots is stopped for a moment too, and neither LXD 5.0 nor Incus 6.0 tells the difference. So a container has to
be seen stopped twice, :data:`OFF_SECONDS` apart and without a start in between. Left alone are those that LXD starts by itself
(``boot.autostart``), those with which an action has not finished, and those between the two calls of a restart.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mapper_core.errors import Busy, MapperError
from mapper_core.state_files import read_json, write_json
from mapper_core.tree import mounted
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound
from mapper_driver.instance import STATUS_KEY
from mapper_driver.lxd import placement
from mapper_driver.lxd.model import Instance, Status
from mapper_driver.ownership import lock_for_release
from mapper_driver.restarting import is_restarting

OFF_SECONDS = 60.0
"""How long a container has to be stopped. LXD needs some seconds for the reboot of a guest, on a busy host more."""

_SETTLE_SECONDS = 1.0
_VERSION = 1


class Step(enum.Enum):
    """What follows from one look at a container."""

    NONE = "none"
    WATCH = "watch"
    WAIT = "wait"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Seen:
    """An earlier look at a stopped container.

    :param since: when, seconds since the epoch.
    :param started: when the container was started last, as the daemon writes it.
    """

    since: float
    started: str


def decide(found: Instance, seen: Seen | None, now: float) -> Step:
    """What to do with a container that has disks.

    :param seen: the first look since it was started; ``None`` when there was none.
    :param now: seconds since the epoch.
    """
    if (
        found.status is not Status.STOPPED
        or found.config.get(STATUS_KEY) == "0"
        or is_restarting(found.config, now)
        or found.starts_by_itself
    ):
        return Step.NONE
    if seen is None or seen.started != found.last_used or now < seen.since:
        return Step.WATCH
    return Step.RELEASE if now - seen.since >= OFF_SECONDS else Step.WAIT


def look(found: Instance, node: Node, now: float) -> None:
    """Look at a container, and take its disks back when it is off. What goes wrong is logged, and tried again at a later look.

    It never waits for an action, and an action that comes meanwhile waits until it is done.
    """
    if found.status is not Status.STOPPED or not _has_disks(found.name, node):
        return
    try:
        step = decide(found, _read(found.name, node), now)
        if step is Step.WATCH:
            with lock_for_release(node.mapper, found.name):
                _write(found.name, Seen(now, found.last_used), node)
        elif step is Step.RELEASE:
            with lock_for_release(node.mapper, found.name):
                _release(found.name, node, now)
    except (Busy, InstanceNotFound):
        return  # an action works on it, and does all that is needed
    except (MapperError, OSError) as error:
        node.log.warning(f"{found.name} is off, but not all of its disks could be released: {error}")


def _has_disks(container: str, node: Node) -> bool:
    owner = node.storage(container).owner
    return any(tree.owner == owner for tree in mounted.records(node.mapper))


def _release(container: str, node: Node, now: float) -> None:
    """With the lock: look once more, then take all disks back."""
    node.client.settle(container, deadline_seconds=_SETTLE_SECONDS)
    if decide(node.client.instance(container), _read(container, node), now) is not Step.RELEASE:
        return
    node.hide_console(container)
    record = placement.read(placement.record_path(node.mapper.runtime, container))
    if record is not None:
        placement.unplace(record, node.client.daemon_pid())
    placement.forget(node.mapper.runtime, container)  # and with it our mark; the next start mounts the disks anew
    node.storage(container).release()
    node.log.info(f"the guest of {container} has powered itself off; released its disks")


# --- the mark -----------------------------------------------------------------------------------------


def _path(container: str, node: Node) -> str:
    return placement.off_path(placement.record_path(node.mapper.runtime, container))


def _read(container: str, node: Node) -> Seen | None:
    data = read_json(_path(container, node), _VERSION)
    try:
        return None if data is None else Seen(float(data["since"]), str(data["started"]))
    except (KeyError, TypeError, ValueError):
        return None  # it is written anew


def _write(container: str, seen: Seen, node: Node) -> None:
    write_json(_path(container, node), {"version": _VERSION, "since": seen.since, "started": seen.started})
