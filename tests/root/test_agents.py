"""The probe that ends agents of OpenNebula which another one has replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PROBE = Path(__file__).parents[2] / "driver/remotes/im/lxd-probes.d/host/beacon/monitord-client-shepherd.sh"


@contextmanager
def _agent(directory: Path, host_id: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that looks like an agent, with the names and arguments of OpenNebula's, and a child that does as well."""
    script = directory / "monitord-client.rb"
    script.write_text("import os, signal\nchild = os.fork()\nif child:\n    print(child, flush=True)\nsignal.pause()\n")
    argv = ["ruby", str(script), "lxd", host_id, "node"]
    with subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_only_replaced_agents_of_this_host_are_ended(tmp_path: Path) -> None:
    """``monitord-client_control.sh`` of 5.12 to 7.x writes the number of its agent into a file for each host."""
    host_id = str(10**8 + os.getpid())
    numbers = Path(f"/tmp/one-monitord-{host_id}.pid")
    call = ["/bin/sh", str(PROBE), "lxd", host_id, "node"]
    with ExitStack() as stack:
        (current, child), (replaced, _) = (stack.enter_context(_agent(tmp_path, host_id)) for _ in range(2))
        other, _ = stack.enter_context(_agent(tmp_path, f"{host_id}1"))
        stack.callback(numbers.unlink, missing_ok=True)
        subprocess.run(call, check=True, timeout=30)
        numbers.write_text(f"{current.pid}\n")
        os.chown(numbers, 12345, -1)  # anybody may write into /tmp
        subprocess.run(call, check=True, timeout=30)
        assert [item.poll() for item in (current, replaced, other)] == [None] * 3
        os.chown(numbers, os.geteuid(), -1)
        subprocess.run(call, check=True, timeout=30)
        assert replaced.wait(10) < 0
        assert current.poll() is None and other.poll() is None
        assert Path(f"/proc/{child}/stat").read_text().split()[2] == "S", "what an agent starts looks like itself"
