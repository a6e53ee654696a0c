"""Examines a host: what it can do, and what was left behind on it. It only looks.

Each check says what was found and, when something is wrong, what to do. The parts: ``host`` (transports, plugins, programs,
kernel), ``state`` (runtime directory, journal), ``leftovers`` (devices, daemons and mounts that no record describes), ``lvm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core.doctor.check import Check, Status

if TYPE_CHECKING:
    from mapper_core.mapping import Mapper

__all__ = ["Check", "Status", "examine"]


def examine(mapper: Mapper) -> tuple[Check, ...]:
    """Make all checks.

    :param mapper: its plugins and its runtime directory are examined; the directory need not exist.
    :returns: in a fixed order; a check that breaks is a failed check and does not stop the others.
    """
    from mapper_core.doctor import host, leftovers, lvm, state

    found: list[Check] = []
    for part in (host.examine, state.examine, leftovers.examine, lvm.examine):
        try:
            found += part(mapper)
        except Exception as error:
            name = part.__module__.rpartition(".")[2]
            found.append(Check(name, Status.FAILED, f"cannot be examined: {type(error).__name__}: {error}"))
    return tuple(found)
