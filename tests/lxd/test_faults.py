"""What goes wrong around every action: another works on the machine, the daemon is away, there is no such container. The
actions run in this process, so that all of them fit into one test.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from mapper_driver import main
from mapper_driver.opennebula.argv import ACTIONS
from mapper_driver.ownership import lock

from mapper_core.mapping import Mapper

from .conftest import Lab
from .machine import CONTEXT
from .one import SCRIPTS
from .plug import Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 95
Call = Callable[..., tuple[int, str, str]]
#: What an action answers about a container that is not there; all others answer 3. What is to end has ended, and some are
#: refused whatever there is.
GONE = dict.fromkeys(("shutdown", "cancel", "detach_disk", "detach_nic", "poll"), 0)
GONE |= dict.fromkeys(("migrate", "migrate_local", "save"), 6)


@pytest.fixture
def call(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run an action on a machine; returns status and both outputs."""
    monkeypatch.setenv("MAPPER_ONE_VERSION", "6.10.5")

    def act(plug: Plug, action: str, socket: str = lab.socket) -> tuple[int, str, str]:
        machine = plug.machine
        parameters, added = _parameters(plug, action)
        monkeypatch.setenv("LXD_SOCKET", socket)
        monkeypatch.setenv("MAPPER_LXDRC", str(machine.one.directory / "lxdrc"))
        xml = machine.xml.replace("<VMID>", f"{added}<VMID>", 1)
        data = xml if action == "deploy" else f"<VMM_DRIVER_ACTION_DATA>{xml}</VMM_DRIVER_ACTION_DATA>"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
        tail = (str(machine.id), "node")
        words = (*tail, "true") if action.startswith("exec") else (*parameters, *tail)
        capsys.readouterr()
        status = main.run(str(SCRIPTS), action, words)
        said = capsys.readouterr()
        return status, said.out, said.err

    return act


def _parameters(plug: Plug, action: str) -> tuple[tuple[str, ...], str]:
    """Arguments of an action, and what is in the machine's template for it."""
    machine = plug.machine
    name, checkpoint, mac = machine.name, str(machine.checkpoint), "02:00:0a:5f:00:02"
    disk = "<DISK><DISK_ID>20</DISK_ID><DISK_TYPE>FILE</DISK_TYPE><TYPE>FILE</TYPE><FORMAT>raw</FORMAT><ATTACH>YES</ATTACH></DISK>"
    nic = f"<NIC><NIC_ID>2</NIC_ID><BRIDGE>b</BRIDGE><MAC>{mac}</MAC><TARGET>t</TARGET><ATTACH>YES</ATTACH></NIC>"
    command = "<QEMU_GA_EXEC><COMMAND>true</COMMAND><STDIN/></QEMU_GA_EXEC>"
    known: dict[str, tuple[tuple[str, ...], str]] = {
        "deploy": (("/x/deployment.0", "node"), ""),
        "save": ((name, checkpoint, "node"), ""),
        "restore": ((checkpoint, "node", name), ""),
        "migrate": ((name, "other", "node"), ""),
        "migrate_local": ((name, "other", "node"), ""),
        "attach_disk": ((name, str(plug.path(20)), "sdx", "23", "copy"), disk),
        "detach_disk": ((name, str(plug.path(20)), "sdx", "23"), disk),
        "attach_nic": ((name, mac, "b", "-", "dummy", "t"), nic),
        "detach_nic": ((name, mac), nic),
        "prereconfigure": ((name, "hda"), ""),
        "reconfigure": ((name, "hda", str(plug.path(9))), ""),
        "snapshot_create": ((name, "0"), ""),
        "snapshot_revert": ((name, f"mapper-{machine.id}-0"), ""),
        "snapshot_delete": ((name, f"mapper-{machine.id}-0"), ""),
        "resize": ((name,), ""),
        "resize_disk": ((name, "1", "64", "copy", "node"), ""),
        "exec": ((), command),
        "exec_cancel": ((), command),
    }
    return known.get(action, ((name, "node"), ""))


def test_faults_around_every_action(plug: Plug, call: Call) -> None:
    """Each says what it is in one line and changes nothing; Y-05: none begins while another works on the machine."""
    before, unknown = plug.state(), replace(plug.machine, id=96, xml=plug.machine.xml.replace(str(VM), "96"))
    refused_anyway = ("migrate", "migrate_local")

    def one_line(action: str, answer: tuple[int, str, str], status: int, word: str) -> None:
        assert answer[0] == status and word in answer[2], (action, answer)
        assert answer[1] == "" and len(answer[2].strip().splitlines()) == 1 and "Traceback" not in answer[2], action

    for action in ACTIONS:
        with lock(Mapper.open(), plug.machine.name):
            busy = call(plug, action)
        away = call(plug, action, "/nonexistent/socket")
        if action == "poll":
            assert busy[0] == 0 and busy[1].startswith("STATE=-")
        else:
            one_line(action, busy, 6 if action in refused_anyway else 5, plug.machine.name)
        one_line(
            action,
            away,
            6 if action in refused_anyway else 11,
            "" if action in refused_anyway else "/nonexistent/socket",
        )
        assert plug.state() == before, action
        if action != "deploy":
            gone = call(Plug(unknown), action)
            if GONE.get(action) == 0:
                assert gone[:2] == (0, "STATE=d\n" if action == "poll" else ""), (action, gone)
            else:
                one_line(action, gone, GONE.get(action, 3), "96")
            assert plug.state() == before, action
    assert list(unknown.one.vm_dir(96).iterdir()) == []
    assert CONTEXT in plug.machine.xml and plug.machine.all_disks()
