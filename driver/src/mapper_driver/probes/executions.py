"""``vm/execution`` (from 7.2): how commands have ended that OpenNebula had started inside of containers."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence

from mapper_core.errors import Busy, MapperError
from mapper_core.mapping import Mapper
from mapper_driver.actions import exec as execution
from mapper_driver.lxd import glance
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import ExecResult
from mapper_driver.ownership import lock
from mapper_driver.probes.changes import machine_id

MAX_BYTES = 44_000
"""Of one answer. The agent loses what does not fit into a datagram (65507 bytes), without an error and for ever; it may encrypt
the answer (117 bytes become 128 with its smallest key), and then writes it in base64. The longest line of one command fits.
"""


def results(mapper: Mapper, sockets: Sequence[str]) -> Iterator[str]:
    """A line for each command that has ended, which is forgotten then; those that do not fit into the answer are told later."""
    started = [item.instance.name for item in glance.configurations(sockets) if execution.KEY in item.instance.config]
    if started:
        yield from results_of(started, mapper, LxdClient.connect(sockets))


def results_of(containers: Sequence[str], mapper: Mapper, client: LxdClient) -> Iterator[str]:
    """The lines of these containers. One that cannot be looked at stops no other (N-01)."""
    room = MAX_BYTES
    for name in containers:
        with contextlib.suppress(MapperError):
            text = _take(mapper, name, client, room)
            room -= len(text)
            yield text


def _take(mapper: Mapper, name: str, client: LxdClient, room: int) -> str:
    try:
        with lock(mapper, name):  # the next command may be about to start
            found = execution.result(name, client)
            if found is None:
                return ""
            text = line(machine_id(name), found) if machine_id(name) >= 0 else ""
            if len(text) > room:
                return ""
            execution.forget(name, client)
            return text
    except Busy:
        return ""


def line(number: int, found: ExecResult) -> str:
    """In oned's words. The guest has no agent whose process number could be told."""
    out, err = (base64.b64encode(stream).decode() for stream in (found.stdout, found.stderr))
    return f'VM = [ ID="{number}", PID="0", STATUS="DONE", RETURN_CODE="{found.status}", STDOUT="{out}", STDERR="{err}" ]\n'
