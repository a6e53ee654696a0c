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


def results(mapper: Mapper, sockets: Sequence[str]) -> Iterator[str]:
    """A line for each command that has ended, which is forgotten then. One that cannot be looked at stops no other (N-01)."""
    started = [item.instance.name for item in glance.configurations(sockets) if execution.KEY in item.instance.config]
    client = LxdClient.connect(sockets) if started else None
    for name in started:
        with contextlib.suppress(MapperError):
            assert client is not None
            found = _take(mapper, name, client)
            if found is not None and machine_id(name) >= 0:
                yield line(machine_id(name), found)


def _take(mapper: Mapper, name: str, client: LxdClient) -> ExecResult | None:
    try:
        with lock(mapper, name):  # the next command may be about to start
            found = execution.result(name, client)
            if found is not None:
                execution.forget(name, client)
            return found
    except Busy:
        return None


def line(number: int, found: ExecResult) -> str:
    """In oned's words. The guest has no agent whose process number could be told."""
    out, err = (base64.b64encode(stream).decode() for stream in (found.stdout, found.stderr))
    return f'VM = [ ID="{number}", PID="0", STATUS="DONE", RETURN_CODE="{found.status}", STDOUT="{out}", STDERR="{err}" ]\n'
