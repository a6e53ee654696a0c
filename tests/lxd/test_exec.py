"""exec and exec_cancel by OpenNebula's own scripts, as 7.2 calls them."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.sax.saxutils import escape

import pytest
from mapper_driver.actions import exec as execution
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import ExecResult

from .conftest import Lab, lxd_is_enough
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


@pytest.fixture
def machine(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Machine]:
    found = Machine.build(One(tmp_path, lab.socket, version="7.2.0"), client, images, 81)
    found.set_up()
    yield found
    found.tear_down()


def _exec(machine: Machine, command: str, stdin: str = "") -> int:
    """As one_vmm_exec builds the line: the command escaped, the input not."""
    section = f"<QEMU_GA_EXEC><COMMAND>{escape(command)}</COMMAND><STDIN>{escape(stdin)}</STDIN></QEMU_GA_EXEC>"
    xml = machine.xml.replace("<VMID>", f"{section}<VMID>", 1)
    data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
    done = machine.one.run("exec", "81", "node", command, *stdin.split(), xml=data)
    assert "Traceback" not in done.stderr
    return done.returncode


def _result(machine: Machine) -> ExecResult:
    until = time.monotonic() + 20
    while (found := execution.result(machine.name, machine.client)) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def test_commands(machine: Machine) -> None:
    assert execution.result(machine.name, machine.client) is None
    assert _exec(machine, "sh -c 'echo out; echo err >&2; exit 3'") == 0
    assert _result(machine) == ExecResult(3, b"out\n", b"err\n")
    text = b"two words; $(touch /hacked)\n"
    assert _exec(machine, "cat", base64.b64encode(text).decode()) == 0
    assert _result(machine) == ExecResult(0, text, b"")
    # a line is words and not a script, here and in the guest
    assert _exec(machine, "echo '$(id)' ; touch /hacked") == 0
    assert _result(machine) == ExecResult(0, b"$(id) ; touch /hacked\n", b"")
    assert machine.inside("sh", "-c", "ls /hacked 2>&1 || true").startswith("ls: ")
    assert _exec(machine, "/no/such/program") == 0
    assert _result(machine).status == 127
    # however much a guest writes, a probe of root's takes only the beginning of it into its memory
    amount = 32 * execution.MAX_OUTPUT
    assert _exec(machine, f"sh -c 'head -c {amount} /dev/zero; head -c {amount} /dev/zero >&2; exit 4'") == 0
    assert _result(machine) == ExecResult(4, bytes(execution.MAX_OUTPUT), bytes(execution.MAX_OUTPUT))
    for length in (execution.MAX_OUTPUT - 3, execution.MAX_OUTPUT):
        assert _exec(machine, f"sh -c 'head -c {length} /dev/zero >&2'") == 0
        assert _result(machine) == ExecResult(0, b"", bytes(length))
    assert _exec(machine, "/no/such/program") == 0
    assert _result(machine).status == 127
    for bad, stdin in (("", ""), ("echo 'x", ""), ("cat", "not base64!"), ("echo " + "x" * 100_000, "")):
        assert _exec(machine, bad, stdin) in (2, 7)
    assert _result(machine).status == 127, "what is refused changes nothing"


@lxd_is_enough
def test_cancel_ends_the_whole_command(machine: Machine) -> None:
    ok(machine.call("exec_cancel"))  # there is none
    assert _exec(machine, "sh -c 'echo begun; sleep 1234 & sleep 1234'") == 0
    assert _exec(machine, "true") == 5, "one at a time"
    for _ in range(2):
        ok(machine.call("exec_cancel"))
    found = _result(machine)
    assert (found.status, found.stdout) == (137, b"begun\n")
    assert "sleep 1234" not in machine.inside("ps")
    assert _exec(machine, "true") == 0
    assert _result(machine).status == 0
    machine.client.stop(machine.name)
    assert _exec(machine, "true") == 12
    ok(machine.power("cancel"))
    assert _exec(machine, "true") == 3
    assert machine.call("exec_cancel").returncode == 3
