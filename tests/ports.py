"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

#: Below those that the kernel gives to connections (net.ipv4.ip_local_port_range), of which other tests open many.
_FIRST, _LAST = 20000, 31999


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    for port in random.sample(range(_FIRST, _LAST), 100):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports are taken")
