"""The daemon dies while a disk or a context is attached. Nothing of that is left when the action returns, or the error says what,
why, and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mapper_driver import inventory
from mapper_driver.lxd.client import LxdClient

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.reconcile import Mode, reconcile
from mapper_core.tree import mounted

from .dying import Door, Moment
from .host import Host
from .machine import CONTEXT, ok
from .plug import Done, Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 52
PLACE = "/media/2"
#: At the second change that ``attach_disk`` asks for, when the disk is limited: then the container has it, and the daemon has
#: written it down.
WRITTEN_DOWN = Moment(number=2)
COMMAND = "mapper-cli reconcile"


@dataclass(frozen=True)
class Attempt:
    """A machine with one disk, to which disk 2 is to be attached.

    :param state: environment of the node.
    :param pid: its first process.
    """

    plug: Plug
    state: dict[str, str]
    pid: int
    disk: str

    @classmethod
    def of(cls, plug: Plug, state: dict[str, str]) -> Attempt:
        limits = "<TOTAL_IOPS_SEC>500</TOTAL_IOPS_SEC></DISK>"
        pid = plug.machine.client.state(plug.machine.name).pid
        return cls(plug, state, pid, plug.make(2).replace("</DISK>", limits))

    def attach(self, **environment: str) -> Done:
        return self.plug.attach(2, self.disk, **self.state, **environment)

    def fails(self, **environment: str) -> str:
        """What it says then, in one line."""
        done = self.attach(**environment)
        assert done.returncode not in (0, 1), done
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done
        return done.stderr

    def is_seen(self) -> bool:
        return any(entry.target == PLACE for entry in mountinfo.entries(self.pid))

    def is_free(self) -> bool:
        """Not mapped, not mounted, not in what is kept for the next boot; no daemon is asked."""
        mapper, directory = Mapper.open(), f"{Mapper.open().runtime.mounts}/{self.plug.machine.name}.2"
        kept = inventory.read(inventory.path_of(mapper.runtime, self.plug.machine.name))
        assert kept is not None
        is_kept = any(disk.tree.endswith(".2") for disk in kept.disks)
        is_mounted = self.is_seen() or mountinfo.under(directory) != () or mounted.find(mapper, directory) is not None
        return not is_kept and not is_mounted and mapper.find(str(self.plug.path(2))) is None

    def devices(self, client: LxdClient) -> set[str]:
        """Those of its own that the daemon has written down; its limits are in ``raw.lxc``."""
        found = client.instance(self.plug.machine.name)
        assert "start-host" not in found.config["raw.lxc"] or "disk2" in found.devices
        return set(found.devices) - {"root"}


@pytest.fixture
def attempt(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempt]:
    machine = host.small_machine(VM, "")
    monkeypatch.setenv("LXD_SOCKET", host.lab.socket)  # for reconcile
    machine.set_up()
    yield Attempt.of(Plug(machine), host.state)
    machine.on(host.one, host.client).tear_down()


@contextlib.contextmanager
def _door(host: Host, kill: Callable[[], None], moment: Moment) -> Iterator[str]:
    """The socket of a daemon that dies at a moment."""
    with Door(host.lab.socket, kill).open() as door:
        door.arm(moment)
        yield door.path
        assert door.has_killed()


def test_the_daemon_dies(host: Host, attempt: Attempt) -> None:
    """U-03: one machine for all, which saves its deployments."""
    _and_nobody_answers(host, attempt)
    _while_a_context_is_added(host, attempt)
    _and_another_runs_at_once(host, attempt)
    if host.lab.product == "lxd":
        _and_the_guest_uses_the_disk(host, attempt)


def _and_nobody_answers(host: Host, attempt: Attempt) -> None:
    """When the action returns nothing is left all the same. What the daemon finds again is for the next action, or reconcile."""
    for moment in (
        Moment(when=attempt.is_seen),
        WRITTEN_DOWN,
    ):  # the second daemon of Incus is cut off from the container
        with _door(host, host.kill_daemon, moment) as socket:
            said = attempt.fails(LXD_SOCKET=socket)
        assert "the daemon is gone" in said and "the disk is free" in said and COMMAND in said
        assert attempt.is_free()
        host.start_daemon()
        if moment is WRITTEN_DOWN:
            assert attempt.devices(host.client) == {"disk2"}
            assert "should not have it" in reconcile(Mapper.open(), Mode.DRY_RUN).actions[0].outcome
            report = reconcile(Mapper.open())
            assert (len(report.actions), report.problems) == (1, ())
        else:
            ok(attempt.plug.detach(7, **host.state))
        assert attempt.devices(host.client) == set()
        assert reconcile(Mapper.open()).actions == ()


def _while_a_context_is_added(host: Host, attempt: Attempt) -> None:
    """The same by ``reconfigure``; the next call, which is the next action, adds it."""
    machine, iso = attempt.plug.machine, attempt.plug.path(9)
    host.images.build_context(str(iso), {"VALUE": "new"})
    with _door(host, host.kill_daemon, Moment()) as socket:
        done = attempt.plug.call("reconfigure", "hda", str(iso), added=CONTEXT, LXD_SOCKET=socket, **host.state)
    assert done.returncode == 11 and "the disk is free" in done.stderr and COMMAND in done.stderr
    assert mountinfo.under(f"{Mapper.open().runtime.mounts}/{machine.name}.9") == ()
    assert not any(entry.target == "/context" for entry in mountinfo.entries(attempt.pid))
    host.start_daemon()
    ok(attempt.plug.call("reconfigure", "hda", str(iso), added=CONTEXT, **host.state))
    assert "VALUE='new'" in machine.on(host.one, host.client).inside("cat", "/context/context.sh")
    assert attempt.devices(host.client) == {"context"}


def _and_another_runs_at_once(host: Host, attempt: Attempt) -> None:
    """As systemd starts one: all is taken back, what the first had written down as well; and the next call works."""

    def replace() -> None:
        host.kill_daemon()
        host.start_daemon()

    with _door(host, replace, WRITTEN_DOWN) as socket:
        said = attempt.fails(LXD_SOCKET=socket)
    assert "the daemon is gone" in said and COMMAND not in said
    assert attempt.is_free() and attempt.devices(host.client) == {"context"}
    ok(attempt.attach())
    assert attempt.plug.machine.on(host.one, host.client).inside("cat", f"{PLACE}/number") == "2"
    ok(attempt.plug.detach(2, **host.state))
    assert attempt.is_free() and attempt.devices(host.client) == {"context"}


def _and_the_guest_uses_the_disk(host: Host, attempt: Attempt) -> None:
    """It cannot be taken back then: the error names who uses it. Afterwards reconcile takes it away."""
    machine = attempt.plug.machine.on(host.one, host.client)
    enter = f"until cd {PLACE} && test -e number; do :; done; echo $$ > /tmp/pid; exec sleep 4322"
    Plug(machine).start_inside("sh", "-c", enter)
    is_used = Path(f"/proc/{attempt.pid}/root/tmp/pid").exists
    with _door(host, host.kill_daemon, Moment(number=2, when=is_used)) as socket:
        said = attempt.fails(LXD_SOCKET=socket)
    assert "disk 2 is still held" in said and "(sleep)" in said and said.index("(sleep)") < said.index(COMMAND)
    assert attempt.is_seen() and not attempt.is_free()
    host.start_daemon()
    assert attempt.devices(host.client) == {"disk2", "context"}
    assert "(sleep)" in reconcile(Mapper.open(), settle_seconds=0).problems[0].outcome
    machine.on(host.one, host.client).inside("sh", "-c", "kill $(cat /tmp/pid)")
    assert reconcile(Mapper.open()).problems == ()
    assert attempt.is_free() and attempt.devices(host.client) == {"context"}
