"""The arguments of the action scripts, typed.

OpenNebula's one_vmm_exec calls ``SCRIPT PARAMETER... VMID HOST``: the last two are appended to whatever the action
has. Each class below lists the parameters of an action in their order; :data:`ACTIONS` is the whole table.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from mapper_core.errors import UsageError

from . import fields as values
from .vm import VmIdentity

A = TypeVar("A", bound="Common")

FORCE = "-f"
"""Appended by the scripts ``cancel`` and ``reset``, which are ``shutdown`` and ``reboot`` in a hurry."""


class Stop(enum.Enum):
    """How a container is asked to stop."""

    GRACEFUL = "graceful"
    HARD = "hard"


def _number(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 10 or (value[0] == "0" and value != "0"):
        raise ValueError("a number")
    return int(value)


def _instance(value: str) -> str:
    if not values.INSTANCE.fullmatch(value):
        raise ValueError("a name of a container")
    return value


def _path(value: str) -> str:
    path = values.absolute_path(value)
    if path is None:
        raise ValueError("an absolute path without '..'")
    return path


def _optional_path(value: str) -> str:
    return _path(value) if value else ""


def _word(value: str) -> str:
    if not values.WORD.fullmatch(value):
        raise ValueError("a plain word")
    return value


def _host(value: str) -> str:
    if not values.HOST.fullmatch(value):
        raise ValueError("a name of a node")
    return value


def _optional_word(value: str) -> str:
    """``-`` is how OpenNebula writes "none"."""
    return _word(value) if value not in ("", "-") else ""


def _target(value: str) -> str:
    return _path(value) if value.startswith("/") else _optional_word(value)


def _interface(value: str) -> str:
    if not values.INTERFACE.fullmatch(value):
        raise ValueError("a name of a network interface")
    return value


def _mac(value: str) -> str:
    if not values.MAC.fullmatch(value.lower()):
        raise ValueError("an address of a network card")
    return value.lower()


def _index(value: str) -> int:
    """Last letter of the target, counted from ``a``; below 0 when it is none."""
    if not re.fullmatch(r"-?[0-9]{1,7}", value, re.ASCII):
        raise ValueError("a number")
    return int(value)


def _anything(value: str) -> str:
    """For the copy of the standard input, which nobody needs."""
    return ""


def _argument(read: Callable[[str], object]) -> Any:
    return field(metadata={"read": read})


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What is appended to the parameters of every action.

    :param vm_id: number of the machine.
    :param on_host: name of the node the script runs for, as OpenNebula knows it.
    """

    vm_id: int
    on_host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy(Common):
    """``deploy``. Over ssh the deployment file does not exist on the node; its content is on the standard input."""

    deployment_file: str = _argument(_path)
    host: str = _argument(_host)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutDown(Common):
    """``shutdown`` and ``cancel``, ``reboot`` and ``reset``."""

    deploy_id: str = _argument(_instance)
    host: str = _argument(_host)
    stop: Stop = Stop.GRACEFUL


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll(Common):
    """``poll``."""

    deploy_id: str = _argument(_instance)
    host: str = _argument(_host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Save(Common):
    """``save``."""

    deploy_id: str = _argument(_instance)
    checkpoint: str = _argument(_path)
    host: str = _argument(_host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(Common):
    """``restore``: another order than ``save``."""

    checkpoint: str = _argument(_path)
    host: str = _argument(_host)
    deploy_id: str = _argument(_instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate(Common):
    """``migrate`` and ``migrate_local``."""

    deploy_id: str = _argument(_instance)
    destination: str = _argument(_host)
    source: str = _argument(_host)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachDisk(Common):
    """``attach_disk``."""

    deploy_id: str = _argument(_instance)
    disk_path: str = _argument(_path)
    target: str = _argument(_target)
    target_index: int = _argument(_index)
    stdin_copy: str = _argument(_anything)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachDisk(Common):
    """``detach_disk``."""

    deploy_id: str = _argument(_instance)
    disk_path: str = _argument(_path)
    target: str = _argument(_target)
    target_index: int = _argument(_index)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachNic(Common):
    """``attach_nic``."""

    deploy_id: str = _argument(_instance)
    mac: str = _argument(_mac)
    bridge: str = _argument(_interface)
    model: str = _argument(_optional_word)
    vn_mad: str = _argument(_word)
    target: str = _argument(_interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachNic(Common):
    """``detach_nic``."""

    deploy_id: str = _argument(_instance)
    mac: str = _argument(_mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prereconfigure(Common):
    """``prereconfigure``: the context ISO is about to be rewritten."""

    deploy_id: str = _argument(_instance)
    context_target: str = _argument(_target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfigure(Common):
    """``reconfigure``: the context ISO is new. Its path is empty when the machine has no context."""

    deploy_id: str = _argument(_instance)
    context_target: str = _argument(_target)
    context_path: str = _argument(_optional_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Common):
    """``snapshot_create`` (a number), ``snapshot_revert`` and ``snapshot_delete`` (what ``create`` printed)."""

    deploy_id: str = _argument(_instance)
    snapshot: str = _argument(_word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Common):
    """``resize``: of memory and processors."""

    deploy_id: str = _argument(_instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeDisk(Common):
    """``resize_disk``."""

    deploy_id: str = _argument(_instance)
    disk_id: int = _argument(_number)
    size_mib: int = _argument(_number)
    stdin_copy: str = _argument(_anything)
    host: str = _argument(_host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec(Common):
    """``exec`` and ``exec_cancel``. The command and its input come last, the input without any quotes: they are read from the
    XML instead.
    """


ACTIONS: dict[str, type[Common]] = {
    "deploy": Deploy,
    "shutdown": ShutDown,
    "cancel": ShutDown,
    "reboot": ShutDown,
    "reset": ShutDown,
    "save": Save,
    "restore": Restore,
    "migrate": Migrate,
    "migrate_local": Migrate,
    "attach_disk": AttachDisk,
    "detach_disk": DetachDisk,
    "attach_nic": AttachNic,
    "detach_nic": DetachNic,
    "prereconfigure": Prereconfigure,
    "reconfigure": Reconfigure,
    "snapshot_create": Snapshot,
    "snapshot_revert": Snapshot,
    "snapshot_delete": Snapshot,
    "resize": Resize,
    "resize_disk": ResizeDisk,
    "poll": Poll,
    "exec": Exec,
    "exec_cancel": Exec,
}
_HARD = frozenset({"cancel", "reset"})


def arguments_of(action: str) -> type[Common]:
    """Find what arguments an action has.

    :raises UsageError: when there is no such action.
    """
    kind = ACTIONS.get(action)
    if kind is None:
        raise UsageError(f"there is no action {values.shown(action)}", subject="mapper-driver")
    return kind


def parse_argv(kind: type[A], action: str, argv: Sequence[str]) -> A:
    """Type the arguments of an action script.

    :param kind: what :func:`arguments_of` says for the action.
    :param action: name of the script.
    :param argv: its arguments, without the script itself.
    :raises UsageError: for a wrong number of arguments, or one that cannot be what it must be.
    """
    words = list(argv)
    given: dict[str, Any] = {}
    if kind is ShutDown:
        hard = action in _HARD or words[-1:] == [FORCE]
        if words[-1:] == [FORCE]:
            words.pop()
        given["stop"] = Stop.HARD if hard else Stop.GRACEFUL
    if kind is Exec:
        words = words[:2]
    readers: dict[str, Callable[[str], object]]
    readers = {item.name: item.metadata["read"] for item in fields(kind) if "read" in item.metadata}
    readers |= {"vm_id": _number, "on_host": _host}
    if len(words) != len(readers):
        raise UsageError(
            f"{action} got {len(words)} arguments, expected {len(readers)}",
            subject=action,
            hint=f"usage: {action} {' '.join(readers).upper()}",
        )
    for word, (name, read) in zip(words, readers.items(), strict=True):
        try:
            given[name] = read(word)
        except ValueError as error:
            raise UsageError(
                f"{action}: {name.upper()} is not {error}: {values.shown(word)}", subject=action
            ) from error
    return kind(**given)


def check_same_machine(arguments: Common, vm: VmIdentity) -> None:
    """Compare the arguments with the XML: both must be about one machine.

    :raises UsageError: when they are not.
    """
    if arguments.vm_id != vm.id:
        raise UsageError(
            f"the arguments are about machine {arguments.vm_id}, the XML about {vm.id}", subject=vm.container
        )
    deploy_id = getattr(arguments, "deploy_id", "")
    if deploy_id and vm.deploy_id and deploy_id != vm.deploy_id:
        raise UsageError(
            f"the arguments are about container {deploy_id}, the XML about {vm.deploy_id}", subject=deploy_id
        )
