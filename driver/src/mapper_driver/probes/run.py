"""``mapper-driver probe``: one probe, called as OpenNebula's agent calls it.

The agent runs every executable in ``im/lxd-probes.d/KIND`` with the arguments ``lxd HOST_ID HOST_NAME`` and its configuration on
the standard input. What is printed goes to monitord; an exit status other than 0 makes the message a failure, and at the start
the node an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapper_core.errors import MapperError, UsageError

if TYPE_CHECKING:
    from mapper_core.mapping import Mapper
    from mapper_driver.lxd.model import Instance
    from mapper_driver.opennebula.config import Config

#: Seconds between two full reports when the agent does not say so (monitord.conf).
_SYNC_SECONDS = 180.0
_MAX_INPUT = 1024 * 1024
#: The agent's configuration is XML; of all of it one number is needed, and no probe needs to load a parser for that.
_SYNC = re.compile(rb"<SYNC_STATE_VM>\s*(?:<!\[CDATA\[)?\s*([0-9]{1,6})\b")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a probe.

    :param kind: such as ``vm/status``.
    :param host_id: OpenNebula's number of the node.
    """

    kind: str
    host_id: int
    config: Config
    sockets: tuple[str, ...]
    one_version: str
    sync_seconds: float


def run(probe_dir: str, argv: Sequence[str]) -> int:
    """Run a probe; return its exit status.

    :param probe_dir: directory of the script, whose last two parts say which probe it is.
    """
    from mapper_driver.opennebula.framing import error_message

    try:
        answer = _answer(parse(probe_dir, argv, sys.stdin.buffer.read(_MAX_INPUT), os.environ))
    except MapperError as error:
        print(error_message(error, "probe"), file=sys.stderr)
        return error.exit_code or 1
    except Exception as error:  # monitord gets one line, no traceback
        if os.environ.get("MAPPER_DEBUG"):
            raise
        print(error_message(error, "probe"), file=sys.stderr)
        return 1
    sys.stdout.write(answer)
    sys.stdout.flush()
    return 0


def parse(probe_dir: str, argv: Sequence[str], given: bytes, environ: Mapping[str, str]) -> Call:
    """Understand a call.

    :raises UsageError: it is none of the agent's.
    """
    from mapper_driver.lxd.reader import socket_candidates
    from mapper_driver.opennebula.config import find_config, load_config
    from mapper_driver.opennebula.framing import find_version

    directory = os.path.normpath(probe_dir)
    kind = "/".join(directory.split("/")[-2:])
    if kind not in _PROBES:
        raise UsageError(f"there is no probe {kind!r}", hint=f"there are: {', '.join(_PROBES)}")
    host_id = argv[1] if len(argv) >= 2 else ""
    if not re.fullmatch(r"[0-9]{1,9}", host_id, re.ASCII):
        raise UsageError("the arguments must be: lxd HOST_ID HOST_NAME", subject=kind)
    # im/lxd-probes.d, which lies as deep in the remotes as vmm/lxd
    scripts = os.path.normpath(f"{directory}/../..")
    config = load_config(find_config(scripts, environ))
    sync = _SYNC.search(given)
    return Call(
        kind,
        int(host_id),
        config,
        (config.socket,) if config.socket else socket_candidates(environ),
        find_version(scripts, environ),
        float(sync[1]) if sync else _SYNC_SECONDS,
    )


def _answer(call: Call) -> str:
    return _PROBES[call.kind](call)


def _vm_status(call: Call) -> str:
    from mapper_core.mapping import Mapper
    from mapper_driver.probes import machines

    mapper = Mapper.open()
    text, off = machines.status(mapper, call.sockets, call.host_id, call.one_version, call.sync_seconds)
    if off:
        with contextlib.suppress(MapperError, OSError):  # the states are what was asked for
            _release(off, mapper, call)
    return text


def _release(off: Sequence[Instance], mapper: Mapper, call: Call) -> None:
    """Nobody else looks at guests that have powered themselves off."""
    from mapper_driver import poweroff
    from mapper_driver.actions.node import Node
    from mapper_driver.lxd.client import LxdClient
    from mapper_driver.opennebula.framing import Log

    log = Log("probe", call.one_version, sys.stderr)
    node = Node(mapper, LxdClient.connect(call.sockets), call.config, log)
    for instance in off:
        poweroff.look(instance, node, time.time())
    log.success()


def _vm_monitor(call: Call) -> str:
    from mapper_core.mapping import Mapper
    from mapper_driver.probes import machines

    return machines.usage(Mapper.open(), call.sockets, call.host_id, call.one_version)


def _host_system(call: Call) -> str:
    from mapper_driver.probes import host

    return host.system(call.sockets, call.one_version)


def _host_monitor(call: Call) -> str:
    from mapper_core.mapping import Mapper
    from mapper_driver.probes import host

    return host.usage(Mapper.open(), call.host_id)


def _vm_execution(call: Call) -> str:
    from mapper_core.mapping import Mapper
    from mapper_driver.probes import executions

    return "".join(executions.results(Mapper.open(), call.sockets))


_PROBES: dict[str, Callable[[Call], str]] = {
    "vm/status": _vm_status,
    "vm/monitor": _vm_monitor,
    "vm/execution": _vm_execution,
    "host/system": _host_system,
    "host/monitor": _host_monitor,
}
