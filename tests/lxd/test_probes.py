"""The probes as OpenNebula's agent runs them: the tree of the remotes as rsync leaves it on a node, every executable of a
directory, the agent's arguments, its configuration on the standard input, and its working directory.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd import placement
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status
from mapper_driver.ownership import lock
from mapper_driver.poweroff import OFF_SECONDS

from mapper_core.mapping import Mapper

from .conftest import Lab
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

BIN = Path(sys.executable).parent
AGENT = (
    "<MONITOR_CONFIGURATION><DATASTORE_LOCATION><![CDATA[/var/lib/one//datastores]]></DATASTORE_LOCATION><NETWORK>"
    "<MONITOR_ADDRESS><![CDATA[127.0.0.1]]></MONITOR_ADDRESS><PORT><![CDATA[4124]]></PORT></NETWORK><PROBES_PERIOD>"
    "<BEACON_HOST><![CDATA[30]]></BEACON_HOST><STATE_VM><![CDATA[5]]></STATE_VM><SYNC_STATE_VM><![CDATA[180]]></SYNC_STATE_VM>"
    "</PROBES_PERIOD><HOST_ID>2</HOST_ID></MONITOR_CONFIGURATION>\n"
)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """What the probes remember until the host is booted is no leak."""
    yield
    shutil.rmtree(f"{os.environ['MAPPER_RUNTIME_DIR']}/monitor", ignore_errors=True)


@dataclass(frozen=True)
class Agent:
    """OpenNebula's agent on a node: ``/var/tmp/one``."""

    directory: Path
    environment: dict[str, str]

    @classmethod
    def install(cls, where: Path, lab: Lab, version: str) -> Agent:
        """As the administrator does it on the front-end, and OpenNebula on the way to the node."""
        remotes = where / "var/lib/one/remotes"
        for name in ("common.d/date.sh", "common.d/monitord-client.rb", "common.d/monitord-client_control.sh"):
            (remotes / "im" / name).parent.mkdir(parents=True, exist_ok=True)
            (remotes / "im" / name).write_text("#!/bin/sh\necho DATE=1\n")
            (remotes / "im" / name).chmod(0o755)
        (remotes / "VERSION").write_text(version)
        argv = [str(BIN / "mapper-driver"), "install-remotes", "--destdir", str(where), "--part", "frontend"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        node = where / "var/tmp/one"
        shutil.copytree(remotes, node)  # follows links, as rsync -L
        (node / "etc/vmm/lxd/lxdrc").write_text(f":socket: {lab.socket}\n")
        inherited = {"MAPPER_RUNTIME_DIR": os.environ["MAPPER_RUNTIME_DIR"]}
        return cls(node, {"PATH": "/usr/bin:/bin", "MAPPER_DRIVER": str(BIN / "mapper-driver"), **inherited})

    def run(self, path: str, expected: int = 0) -> str:
        """All probes of a directory; the answer that goes to monitord."""
        # the agent's own program names itself by the path it was started with
        directory = f"{self.directory}/im/lxd.d/../lxd-probes.d/{path}"
        answer = ""
        for probe in sorted(os.listdir(directory)):
            program = f"{directory}/{probe}"
            if not os.path.isfile(program) or not os.access(program, os.X_OK):
                continue
            done = subprocess.run(
                [program, "lxd", "2", "node"],
                input=AGENT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                cwd=self.directory / "im/lxd.d",
                env=self.environment,
            )
            assert done.returncode == expected, (program, done.stderr)
            answer += done.stderr if expected else done.stdout
        return answer

    def states(self) -> tuple[str, dict[str, str]]:
        """``vm/status``: the heading, and the state by container."""
        text = self.run("vm/status")
        found = re.findall(r'^VM = \[ ID="(-?\d+)", DEPLOY_ID="([^"]+)", STATE="(\w+)" \]$', text, re.M)
        assert len(found) == text.count("VM =")
        assert all(name == f"one-{number}" or number == "-1" for number, name, _ in found)
        return text.partition("VM =")[0], {name: state for _, name, state in found}

    def usage(self) -> dict[str, dict[str, float]]:
        """``vm/monitor``: attributes by container."""
        found = re.findall(
            r'^VM = \[ ID="-?\d+", DEPLOY_ID="([^"]+)", MONITOR="([^"]*)" \]$', self.run("vm/monitor"), re.M
        )
        pairs = {name: re.findall(r'^(\w+)="([\d.]+)"$', base64.b64decode(text).decode(), re.M) for name, text in found}
        return {name: {key: float(value) for key, value in values} for name, values in pairs.items()}


@pytest.fixture
def containers(lab: Lab, client: LxdClient, images: ModuleType) -> Iterator[list[str]]:
    """Two that run, with their files in the daemon's storage: for the daemon they are like those that the driver makes."""
    names = ["one-7701", "by-hand-77"]
    with ExitStack() as undo:
        for name in names:
            assert lab.lxc("init", "--empty", name).returncode == 0
            undo.callback(client.delete, name)
            images.write_system(f"/proc/{client.daemon_pid()}/root{client.rootfs(client.instance(name))}")
            client.start(name)
            undo.callback(client.stop, name)
        yield names


def _monitor_of(container: str) -> int:
    """LXC's process that looks after a container."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"[lxc monitor]") and words.rstrip(b"\0 ").endswith(container.encode()):
            return int(name)
    raise AssertionError(container)


def test_states_of_containers_that_work_stop_freeze_fail_and_vanish(
    containers: list[str], lab: Lab, client: LxdClient, tmp_path: Path
) -> None:
    """N-01, N-05, N-06: one look a time, as every five seconds; only changes are told."""
    one, by_hand = containers
    agent = Agent.install(tmp_path, lab, "6.8.3")
    _can_be_imported(agent, by_hand, lab)
    heading, states = agent.states()
    assert heading == "SYNC_STATE=yes\nMISSING_STATE=POWEROFF\n", "the first look after a boot tells all"
    assert (states[one], states[by_hand]) == ("RUNNING", "RUNNING")
    assert agent.states() == ("", {}), "nothing has changed"
    client.freeze(one)
    assert agent.states()[1] == {one: "SUSPENDED"}
    client.unfreeze(one)
    assert agent.states()[1] == {one: "RUNNING"}
    with lock(Mapper.open(), one):  # an action works on it
        client.stop(one)
        assert agent.states() == ("", {})
    assert agent.states()[1] == {one: "POWEROFF"}
    client.start(one)
    monitor = _monitor_of(one)
    os.kill(monitor, signal.SIGSTOP)
    try:
        assert agent.states()[1] == {one: "FAILURE"}, "and it does not hold up the others"
    finally:
        os.kill(monitor, signal.SIGCONT)
    assert agent.states()[1] == {one: "RUNNING"}
    _come_and_go(agent, one, lab)
    client.stop(one)
    client.delete(one)
    told = [agent.states()[1].get(one) for _ in range(4)]
    assert [state for state in told if state] == ["POWEROFF"] and not told[0], "told once, and not at the first look"
    assert lab.lxc("init", "--empty", one).returncode == 0  # for the fixture
    (tmp_path / "var/tmp/one/etc/vmm/lxd/lxdrc").write_text(":socket: /nonexistent/socket\n")
    assert "no LXD or Incus daemon answers" in agent.run("vm/status", expected=11), "nobody is called switched off"


def _can_be_imported(agent: Agent, by_hand: str, lab: Lab) -> None:
    """N-06: with and without limits; OpenNebula's own machines are none of them."""
    text = agent.run("host/system")
    lab.lxc("config", "set", by_hand, "limits.memory=300MiB", "limits.cpu.allowance=20%")
    for content, memory, cpu in ((text, 512, 0.5), (agent.run("host/system"), 300, 0.2)):
        form = r'^VM = \[ ID=-1, DEPLOY_ID="([^"]+)", VM_NAME="[^"]+", IMPORT_TEMPLATE="([^"]+)" \]$'
        templates = {name: base64.b64decode(value).decode() for name, value in re.findall(form, content, re.M)}
        assert not [name for name in templates if name.startswith("one-")]
        for line in (f'MEMORY="{memory}"\n', f'CPU="{cpu}"\n', 'IMPORT_STATE="RUNNING"\n'):
            assert line in templates[by_hand]


def _come_and_go(agent: Agent, one: str, lab: Lab) -> None:
    """N-01: while the daemon lists, a container is made and deleted all the time."""
    enough, came = threading.Event(), threading.Event()

    def come_and_go() -> None:
        while not enough.is_set():
            assert lab.lxc("init", "--empty", "one-7709").returncode == 0
            came.set()
            assert lab.lxc("delete", "one-7709", "--force").returncode == 0

    busy = threading.Thread(target=come_and_go)
    busy.start()
    try:
        assert came.wait(30)
        for _ in range(4):
            assert set(agent.states()[1].items()) <= {("one-7709", "POWEROFF")}, "the others have not changed"
            assert one in agent.usage()
    finally:
        enough.set()
        busy.join()


_B64 = base64.b64encode(b"said\n").decode()


def _executed(machine: Machine, agent: Agent) -> str:
    """What the probe says when a command of ``exec`` has ended."""
    section = "<QEMU_GA_EXEC><COMMAND>sh -c 'echo said; exit 3'</COMMAND><STDIN/></QEMU_GA_EXEC>"
    xml = machine.xml.replace("<VMID>", f"{section}<VMID>", 1)
    data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
    ok(machine.one.run("exec", "77", "node", "sh", xml=data))
    until = time.monotonic() + 20
    while not (text := agent.run("vm/execution")):
        assert time.monotonic() < until
    return text


def _powers_itself_off(machine: Machine, agent: Agent) -> None:
    """oned calls nothing then: the probe that tells it takes the disks back, when it has seen it a while."""
    mapper = Mapper.open()
    machine.inside("poweroff")
    until = time.monotonic() + 30
    while machine.status() is not Status.STOPPED:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert agent.states()[1][machine.name] == "POWEROFF"
    assert mapper.journal.ids() != (), "it may be a reboot"
    mark = Path(placement.off_path(placement.record_path(mapper.runtime, machine.name)))
    found = json.loads(mark.read_text(encoding="utf-8"))
    mark.write_text(json.dumps({**found, "since": found["since"] - OFF_SECONDS}), encoding="utf-8")
    until = time.monotonic() + 30
    while mapper.journal.ids() != ():  # not while the daemon still works on it
        assert time.monotonic() < until
        assert agent.states() == ("", {}), "told once"


@pytest.mark.parametrize("product", ["lxd"], indirect=True)
def test_what_a_machine_uses_and_what_the_node_has(
    lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path
) -> None:
    """N-02, N-03, N-04: a busy loop and 40 MB of memory are seen, disks are counted once, the counters only grow."""
    machine = Machine.build(One(tmp_path, lab.socket), client, images, 77)
    ok(machine.deploy())
    try:
        agent = Agent.install(tmp_path, lab, "6.10.5")
        before = agent.usage()[machine.name]
        assert "CPU" not in before, "one look tells no percentage"
        assert {"MEMORY", "DISKRDBYTES", "DISKWRBYTES", "DISKRDIOPS", "DISKWRIOPS"} <= set(before)
        began = time.monotonic()
        machine.inside(
            "sh", "-c", "head -c 40000000 /dev/zero > /tmp/x; i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done"
        )
        machine.inside("sh", "-c", "dd if=/dev/zero of=/data/file bs=1M count=8 2>/dev/null; sync")
        after = agent.usage()[machine.name]
        passed = time.monotonic() - began
        assert 100 / passed * 0.1 < after["CPU"] <= 100 * (os.cpu_count() or 1), (after, passed)
        assert after["MEMORY"] - before["MEMORY"] > 30_000
        written = after["DISKWRBYTES"] - before["DISKWRBYTES"]
        assert 48_000_000 <= written < 70_000_000, "of both disks, and not once more for the disk of the images"
        assert all(after[name] >= before[name] for name in before if name != "MEMORY")
        polled = dict(word.split("=", 1) for word in ok(machine.power("poll")).stdout.split())
        assert polled["STATE"] == "a" and int(polled["MEMORY"]) > 30_000
        assert (
            _executed(machine, agent)
            == f'VM = [ ID="77", PID="0", STATUS="DONE", RETURN_CODE="3", STDOUT="{_B64}", STDERR="" ]\n'
        )
        assert agent.run("vm/execution") == "", "told once"
        client.freeze(machine.name)
        assert machine.name not in agent.usage()
        client.unfreeze(machine.name)

        system = dict(line.split("=", 1) for line in agent.run("host/system").splitlines() if not line.startswith("VM"))
        assert int(system["TOTALCPU"]) == 100 * (os.cpu_count() or 1)
        assert (system["HYPERVISOR"], system["CGROUPS_VERSION"] in "12") == ("lxd", True)
        assert "default" in system["LXD_PROFILES"].strip('"').split()
        used = dict(line.split("=", 1) for line in agent.run("host/monitor").splitlines())
        assert int(used["FREEMEMORY"]) + int(used["USEDMEMORY"]) == int(system["TOTALMEMORY"])
        assert int(used["FREECPU"]) + int(used["USEDCPU"]) == int(system["TOTALCPU"])
        assert agent.run("host/beacon") == "DATE=1\n"
        assert agent.run("vm/snapshot") == agent.run("vm/execution") == ""
        _powers_itself_off(machine, agent)
    finally:
        ok(machine.power("cancel"))
