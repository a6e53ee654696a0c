"""Network interfaces that a daemon has made for a container and forgotten, because it died before it wrote them down.

LXD and Incus make a pair (:manpage:`veth(4)`): one end stays on the host under OpenNebula's name, the other is given to the
container. After a new start the daemon neither removes the pair nor can it make another of that name.
"""

from __future__ import annotations

import contextlib
import os
import re

from mapper_core.errors import CommandFailed
from mapper_core.process import run

DIRECTORY = "/sys/class/net"
"""Where the kernel shows the host's interfaces."""

_CAP_NET_ADMIN = 12
_SECONDS = 30.0

#: What both daemons call the other end until the container has it.
_OTHER_END = re.compile(r"veth[0-9a-f]{8}")


def exists(name: str) -> bool:
    """Whether the host has an interface of that name."""
    return os.path.exists(f"{DIRECTORY}/{name}")


def is_unfinished(name: str) -> bool:
    """Whether an interface is one end of a pair of a daemon's whose other end was not given to any container."""
    return exists(name) and any(
        _OTHER_END.fullmatch(other) and _number(name, "iflink") == _number(other, "ifindex") and _are_pair(name, other)
        for other in os.listdir(DIRECTORY)
    )


def remove(name: str) -> None:
    """Remove an interface, and with it the other end of the pair wherever that is. One that is gone is a success.

    :raises CommandFailed: the kernel refuses.
    """
    if exists(name):
        try:
            run(("ip", "link", "delete", "dev", name), timeout=_SECONDS, subject=name, capabilities=(_CAP_NET_ADMIN,))
        except CommandFailed:
            if exists(name):
                raise


def _are_pair(one: str, other: str) -> bool:
    return _number(other, "iflink") == _number(one, "ifindex") != 0


def _number(name: str, file: str) -> int:
    with contextlib.suppress(OSError, ValueError), open(f"{DIRECTORY}/{name}/{file}", encoding="ascii") as text:
        return int(text.read())
    return 0
