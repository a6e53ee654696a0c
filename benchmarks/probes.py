#!/usr/bin/env python3
"""Measures what OpenNebula's probes cost on a node with many containers.

    .venv/bin/python benchmarks/probes.py [--containers 500] [--limit 2]

The daemon is played: a server on a unix socket that answers as LXD 5.0 does, with the given number of containers, of which a tenth
is stopped. So only the probe is measured, started as the agent starts it: interpreter, request, answer. (That the answers of
real daemons are understood, tests/lxd/test_probes.py shows.) The exit status is 1 when a probe takes longer than the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import resource
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
PROBES = ("vm/status", "vm/monitor", "host/system", "host/monitor")


@dataclass(frozen=True)
class Cost:
    """Of one probe.

    :param seconds: until the answer was there.
    :param cpu_seconds: of a processor.
    :param requests: to the daemon.
    """

    probe: str
    seconds: float
    cpu_seconds: float
    requests: int
    answer: str


def container(number: int, pid: int) -> dict[str, object]:
    """What ``GET /1.0/instances?recursion=2`` says of one; with less it leaves out ``state``."""
    runs = number % 10 != 0
    config = {
        "boot.autostart": "false",
        "limits.cpu": "2",
        "limits.cpu.allowance": "50%",
        "limits.memory": "768MiB",
        "security.protection.delete": "true",
        **{f"volatile.eth{nic}.hwaddr": f"00:16:3e:00:00:{nic:02x}" for nic in range(4)},
        "volatile.idmap.next": json.dumps([{"Isuid": True, "Hostid": 100000, "Nsid": 0, "Maprange": 65536}] * 2),
    }
    devices = {f"disk{disk}": {"type": "disk", "source": f"/run/mapper/mounts/{number}.{disk}"} for disk in range(4)}
    counters = {"bytes_received": 12345678 + number, "bytes_sent": 87654321, "packets_received": 1, "packets_sent": 1}
    addresses = [
        {"family": "inet", "address": f"192.168.0.{last}", "netmask": "24", "scope": "global"} for last in range(4)
    ]
    network = {
        name: {"addresses": addresses, "counters": counters, "hwaddr": "00:16:3e:00:00:01", "mtu": 1500, "state": "up"}
        for name in ("lo", "eth0", "eth1")
    }
    state = {
        "status": "Running" if runs else "Stopped",
        "status_code": 103 if runs else 102,
        "cpu": {"usage": 123456789000 if runs else 0},
        "memory": {"usage": 123456789 if runs else 0, "usage_peak": 0, "swap_usage": 0, "swap_usage_peak": 0},
        "network": network if runs else None,
        "disk": {},
        "pid": pid if runs else 0,
        "processes": 42 if runs else 0,
    }
    return {
        "name": f"one-{number}",
        "type": "container",
        "status": state["status"],
        "status_code": state["status_code"],
        "architecture": "x86_64",
        "profiles": ["default"],
        "config": config,
        "devices": devices,
        "expanded_config": config,
        "expanded_devices": devices,
        "created_at": "2026-01-01T00:00:00Z",
        "last_used_at": "2026-01-01T00:00:00Z",
        "location": "none",
        "project": "default",
        "state": state,
    }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, path: str, count: int) -> None:
        super().__init__(path, _Answer)
        self.asked: list[str] = []
        items = [container(number, os.getpid()) for number in range(count)]
        without = [{key: value for key, value in item.items() if key != "state"} for item in items]
        self.answers = {
            "/1.0/instances?recursion=2": items,
            "/1.0/instances?recursion=1": without,
            "/1.0/profiles": ["/1.0/profiles/default"],
        }
        self.bodies = {
            path: json.dumps({"type": "sync", "status_code": 200, "metadata": value}).encode()
            for path, value in self.answers.items()
        }


class _Answer(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer what was prepared."""
        self.server.asked.append(self.path)
        body = self.server.bodies.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body or b"{}")))
        self.end_headers()
        self.wfile.write(body or b"{}")

    def address_string(self) -> str:
        """A unix socket has none."""
        return "-"

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def daemon(directory: str, count: int) -> Iterator[_Server]:
    """A daemon with many containers."""
    with _Server(f"{directory}/s", count) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def measure(server: _Server, directory: str, probe: str) -> Cost:
    """Run one probe as the agent does."""
    script = ROOT / "driver/remotes/im/lxd-probes.d" / probe / "mapper.sh"
    environment = {
        "PATH": "/usr/bin:/bin",
        "MAPPER_DRIVER": str(BIN / "mapper-driver"),
        "MAPPER_RUNTIME_DIR": f"{directory}/r",
        "MAPPER_ONE_VERSION": "6.10.5",
        "LXD_SOCKET": f"{directory}/s",
    }
    asked = len(server.asked)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [str(script), "lxd", "2", "node"],
        input="<MONITOR_CONFIGURATION/>",
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(probe, took, cpu, len(server.asked) - asked, done.stdout)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--containers", type=int, default=500)
    parser.add_argument("--limit", type=float, default=2.0, help="seconds")
    arguments = parser.parse_args()
    worst = 0.0
    with (
        tempfile.TemporaryDirectory(prefix="probes-", dir="/run") as directory,
        daemon(directory, arguments.containers) as server,
    ):
        for probe in PROBES * 2:  # the second time with something to compare with
            cost = measure(server, directory, probe)
            worst = max(worst, cost.seconds)
            print(
                f"{probe:14} {cost.seconds:6.2f} s, {cost.cpu_seconds:5.2f} s of a processor, {cost.requests} request(s), "
                f"{cost.answer.count('VM =')} machines"
            )
    print(f"{arguments.containers} containers: {worst:.2f} s at most, limit {arguments.limit:g} s")
    return 0 if worst <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
