"""Which states oned is told: changes at once, all of them once in a while. Pure.

That is the protocol of OpenNebula's agent from 5.12 to 7.x: usually only machines whose state has changed are reported; every
``SYNC_STATE_VM`` seconds all are, with a heading after which oned takes every machine that it misses in the list for switched off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mapper_driver.monitor import MachineState

#: So many reports in a row a machine has to be missing before it is called switched off: it may have been between two containers.
TIMES_MISSING = 3
_HEADING = f"SYNC_STATE=yes\nMISSING_STATE={MachineState.POWEROFF.value}\n"
#: With a number as OpenNebula writes it: one-007 is not machine 7.
_OURS = re.compile(r"one-(0|[1-9][0-9]{0,9})")


def machine_id(container: str) -> int:
    """OpenNebula's number of a machine; -1 for containers that were made by hand."""
    match = _OURS.fullmatch(container)
    return int(match[1]) if match else -1


@dataclass(frozen=True, slots=True)
class Seen:
    """A container in this look.

    :param state: ``None``: it is about to change, or could not be seen.
    """

    container: str
    state: MachineState | None


@dataclass(frozen=True, slots=True)
class Known:
    """A container as it was reported last.

    :param missing: how often it has been missing since.
    """

    state: MachineState
    missing: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """What was reported.

    :param synced: when everything was, seconds since the epoch.
    :param due: since when that waits for actions to end; 0: it does not.
    :param known: by container.
    """

    synced: float = 0.0
    due: float = 0.0
    known: Mapping[str, Known] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        known = {name: [item.state.value, item.missing] for name, item in self.known.items()}
        return {"synced": self.synced, "due": self.due, "known": known}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> History:
        """The opposite.

        :raises KeyError, TypeError, ValueError: it is damaged.
        """
        known = {str(name): Known(MachineState(item[0]), int(item[1])) for name, item in data["known"].items()}
        return cls(float(data["synced"]), float(data["due"]), known)


def report(
    before: History, seen: Iterable[Seen], busy: Iterable[str], now: float, sync_seconds: float
) -> tuple[str, History]:
    """The lines for oned, and what is to be remembered.

    A machine on which an action works keeps the state that was reported last, also when its container is not there just now: to
    oned, POWEROFF in the middle of a shutdown is the end of it.

    :param busy: containers on which an action works.
    :param now: seconds since the epoch.
    """
    found, at_work = {item.container: item.state for item in seen}, frozenset(busy)
    known: dict[str, Known] = {}
    changed: dict[str, MachineState] = {}
    for container, state in found.items():
        last = before.known.get(container)
        if state is not None:
            known[container] = Known(state)
        elif last is not None:
            known[container] = Known(last.state)
        if state is not None and (last is None or last.state is not state):
            changed[container] = state
    for container, last in before.known.items():
        if container in found:
            continue
        missing = last.missing + (container not in at_work)
        if missing < TIMES_MISSING:
            known[container] = Known(last.state, missing)
        else:
            changed[container] = MachineState.POWEROFF
    if 0 <= now - before.synced < sync_seconds:
        return _lines(changed), History(before.synced, 0.0, known)
    # the heading switches off a machine of which nothing can be said: wait until the action has ended, but not for ever
    due = before.due or now
    if found.keys() - known.keys() and 0 <= now - due < sync_seconds:
        return _lines(changed), History(before.synced, due, known)
    gone = {container: state for container, state in changed.items() if container not in known}
    return _HEADING + _lines({name: item.state for name, item in known.items()} | gone), History(now, 0.0, known)


def _lines(states: Mapping[str, MachineState]) -> str:
    return "".join(
        f'VM = [ ID="{machine_id(container)}", DEPLOY_ID="{container}", STATE="{state.value}" ]\n'
        for container, state in sorted(states.items())
    )
