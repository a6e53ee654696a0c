"""What the life-cycle actions decide: states, versions, checkpoints, commands, inventories."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mapper_driver import checkpoint, inventory, machine_file
from mapper_driver.actions import exec as execution
from mapper_driver.actions.exec import KEY, MAX_BYTES, Command, parse_command
from mapper_driver.checkpoint import Checkpoint, Kind
from mapper_driver.instance import STATUS_KEY
from mapper_driver.inventory import Inventory, KeptDisk, KeptFiles
from mapper_driver.lxd.model import AUTOSTART, Instance, InstanceState, Status
from mapper_driver.monitor import MachineState, Usage, Work, machine_state, poll_line, usage
from mapper_driver.opennebula.argv import Exec, Poll, parse_argv
from mapper_driver.opennebula.config import SaveAs, parse_config
from mapper_driver.opennebula.lcm import Saving, saving_of
from mapper_driver.opennebula.protocol import RestartCalls, restart_calls
from mapper_driver.opennebula.vm import VmIdentity
from mapper_driver.opennebula.xml import read_document
from mapper_driver.poweroff import OFF_SECONDS, Seen, Step, decide
from mapper_driver.restarting import RESTART_KEY, RESTART_SECONDS, is_restarting

from mapper_core.errors import NotFound, Refused, StateCorrupt, UsageError
from mapper_core.model import Access, Disk, IdMap, IdRange
from mapper_core.runtime import Runtime

pytestmark = pytest.mark.unit

MakeXml = Callable[..., bytes]
NOW = 1_800_000_000.0


def test_how_often_a_restart_is_called() -> None:
    two = ("5.10.5", "5.12.13", "6.0.3", "6.8.3")
    one = ("6.9.80", "6.10.5", "6.99.80", "7.0.0", "7.4.0", "", "unknown")
    assert {version: restart_calls(version) for version in two} == dict.fromkeys(two, RestartCalls.TWO)
    assert {version: restart_calls(version) for version in one} == dict.fromkeys(one, RestartCalls.ONE)


def _instance(status: Status, **config: str) -> Instance:
    return Instance("one-1", status, config, {}, config, {})


def test_states_that_oned_reacts_to() -> None:
    """N-06; FROZEN as PAUSED would be ignored."""
    wanted = {
        Status.RUNNING: MachineState.RUNNING,
        Status.FREEZING: MachineState.SUSPENDED,
        Status.FROZEN: MachineState.SUSPENDED,
        Status.STOPPED: MachineState.POWEROFF,
        Status.ERROR: MachineState.FAILURE,
        Status.OTHER: None,
    }
    assert {status: machine_state(_instance(status), Work.NONE, NOW) for status in Status} == wanted
    assert {machine_state(_instance(status), Work.UNDER_WAY, NOW) for status in Status} == {None}
    assert machine_state(_instance(Status.STOPPED, **{STATUS_KEY: "0"}), Work.NONE, NOW) is None


@pytest.mark.parametrize(
    ("mark", "wanted"),
    [
        (str(int(NOW)), True),
        (str(int(NOW - RESTART_SECONDS + 1)), True),
        (str(int(NOW - RESTART_SECONDS)), False),
        (str(int(NOW + 60)), False),
        ("", False),
        ("soon", False),
        ("-1", False),
        ("٣", False),
    ],
)
def test_a_mark_of_a_restart_is_worth_something_for_a_while(mark: str, wanted: bool) -> None:
    config = {RESTART_KEY: mark}
    assert is_restarting(config, NOW) is wanted
    assert (machine_state(_instance(Status.STOPPED, **config), Work.NONE, NOW) is None) is wanted


def test_the_line_of_poll() -> None:
    """N-04: what is not known is absent."""
    state = InstanceState(Status.RUNNING, pid=1, memory=3 << 20, received=0, sent=None)
    assert poll_line(MachineState.RUNNING, usage(state)) == "STATE=a MEMORY=3072 NETRX=0"
    assert poll_line(MachineState.POWEROFF, usage(InstanceState(Status.STOPPED, memory=0))) == "STATE=d"
    assert poll_line(None, Usage()) == "STATE=-"


@pytest.mark.parametrize(
    ("state", "wanted"),
    [("6", Saving.SUSPEND), ("5", Saving.STOP), ("7", Saving.STOP), ("3", Saving.STOP), ("", Saving.STOP)],
)
def test_why_it_is_saved(make_xml: MakeXml, state: str, wanted: Saving) -> None:
    assert saving_of(read_document(make_xml(vm=f"<LCM_STATE>{state}</LCM_STATE>"))) is wanted


def test_options_of_save() -> None:
    default = parse_config(b"{}", "lxdrc").save
    assert (default.suspend, default.stop) == (SaveAs.REFUSE, SaveAs.REFUSE)
    found = parse_config(b":save:\n  :suspend: freeze\n  :stop: shutdown\n", "lxdrc")
    assert (found.save.suspend, found.save.stop) == (SaveAs.FREEZE, SaveAs.SHUTDOWN)
    assert found.warnings == ()
    for text in (b"save: {stop: freeze}", b"save: {suspend: maybe}", b"save: {stop: 1}", b"save: [x]"):
        with pytest.raises(UsageError, match="lxdrc"):
            parse_config(text, "lxdrc")


def test_wild() -> None:
    def machine(deploy_id: str) -> VmIdentity:
        return VmIdentity(7, "x", deploy_id, 0, "/ds/0")

    assert [machine(name).is_wild for name in ("", "one-7", "one-77", "web")] == [False, False, True, True]


# --- the checkpoint -----------------------------------------------------------------------------------


def test_checkpoint(tmp_path: Path) -> None:
    path = str(tmp_path / "7" / "checkpoint")
    with pytest.raises(NotFound):
        checkpoint.write(path, Checkpoint(7, Kind.FROZEN, "node"))
    (tmp_path / "7").mkdir()
    for kind in Kind:
        checkpoint.write(path, Checkpoint(7, kind, "node"))
        assert checkpoint.read(path, 7) == Checkpoint(7, kind, "node")
    assert os.listdir(tmp_path / "7") == ["checkpoint"]
    with pytest.raises(StateCorrupt, match="machine 7"):
        checkpoint.read(path, 8)
    checkpoint.remove(path)
    checkpoint.remove(path)
    with pytest.raises(NotFound):
        checkpoint.read(path, 7)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path, make: Callable[[str], None]) -> None:
    path = str(tmp_path / "checkpoint")
    make(path)
    with pytest.raises(StateCorrupt):
        checkpoint.read(path, 7)
    with pytest.raises(Refused):
        checkpoint.write(path, Checkpoint(7, Kind.FROZEN, "node"))
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_what_is_written_and_removed_is_so_after_a_power_cut_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note of a revert that comes back would revert the machine again, with all that it has written since."""
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(os.path.realpath(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "mapper-revert"
    machine_file.write(str(path), {"snapshot": "mapper-7-0"}, "note")
    assert synced == [f"{path}.new", str(tmp_path)]
    machine_file.remove(str(path))
    assert synced[2:] == [str(tmp_path)]
    machine_file.remove(str(path))


def test_a_checkpoint_lies_in_the_directory_of_its_machine() -> None:
    checkpoint.check_path("/var/lib/one/datastores/0/7/checkpoint", 7)
    for path in ("/var/lib/one/datastores/0/77/checkpoint", "/checkpoint", "/etc/7", "/var/lib/one/datastores/7/0/x"):
        with pytest.raises(UsageError):
            checkpoint.check_path(path, 7)


# --- commands -----------------------------------------------------------------------------------------


def _command(make_xml: MakeXml, command: str, stdin: str = "") -> Command:
    section = f"<QEMU_GA_EXEC><COMMAND>{command}</COMMAND><STDIN>{stdin}</STDIN></QEMU_GA_EXEC>"
    return parse_command(read_document(make_xml(section)))


def test_command(make_xml: MakeXml) -> None:
    assert _command(make_xml, "ls -l '/a b' $HOME;reboot") == Command(("ls", "-l", "/a b", "$HOME;reboot"))
    assert _command(make_xml, "cat", "aGVs\nbG8=") == Command(("cat",), "aGVsbG8=")
    for command, stdin in (("", ""), ("  ", ""), ("echo 'x", ""), ("cat", "no base64!"), ("cat", "aGVsbG8")):
        with pytest.raises(UsageError):
            _command(make_xml, command, stdin)
    with pytest.raises(Refused):
        _command(make_xml, "x" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="QEMU_GA_EXEC"):
        parse_command(read_document(make_xml()))
    assert KEY.startswith("user.")


def test_what_exec_has_noted_and_what_it_has_not() -> None:
    """Both words become parts of requests of root's."""
    noted = ("13d4f84b-5d30-4ef4-8e2e-3a1f0a6d3f10", "0123456789abcdef" * 2)
    assert execution._of(" ".join(noted)) == noted
    for other in ("", noted[0], f"{noted[0]} ", f"x/../../../profiles/y?a= {noted[1]}", f"{' '.join(noted)}\n"):
        assert execution._of(other) == ("", "")


def test_arguments_of_exec_and_poll() -> None:
    """one_vmm_exec does not quote the input: the shell makes any number of words of it."""
    for rest in ((), ("ls -l",), ("cat", "more", "-f", "words")):
        assert parse_argv(Exec, "exec", ("6", "node", *rest)) == Exec(vm_id=6, on_host="node")
    assert parse_argv(Exec, "exec_cancel", ("6", "node")) == Exec(vm_id=6, on_host="node")
    for bad in ((), ("6",), ("x", "node"), ("6", "no de", "ls")):
        with pytest.raises(UsageError):
            parse_argv(Exec, "exec", bad)
    assert parse_argv(Poll, "poll", ("one-6", "node", "6", "node")).deploy_id == "one-6"


# --- the inventory ------------------------------------------------------------------------------------


def _inventory() -> Inventory:
    ids = (IdRange(0, 100000, 65536), IdRange(65536, 1000, 1))
    return Inventory(
        container="one-7",
        rootfs="/var/lib/lxd/storage-pools/default/containers/one-7/rootfs",
        root="one-7.0",
        disks=(
            KeptDisk("one-7.0", Disk("/ds/0/7/disk.0", "qcow2", ("/ds/0/7",)), Access.READ_WRITE, None, True),
            KeptDisk("one-7.1", Disk("one/one-7-1", "rbd", (), (("user", "x"),)), Access.READ_ONLY, "loop", False),
        ),
        files=(KeptFiles("one-7.2", "/ds/0/7/disk.2"),),
        idmap=IdMap(ids, ids[:1]),
        starts_at_boot=True,
    )


def test_inventory_survives_a_round_trip(tmp_path: Path) -> None:
    runtime, kept = Runtime(str(tmp_path)), _inventory()
    inventory.write(runtime, kept)
    path = inventory.path_of(runtime, "one-7")
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert inventory.read(path) == kept
    assert inventory.paths(runtime) == (path,)
    inventory.forget(runtime, "one-7")
    inventory.forget(runtime, "one-7")
    assert inventory.read(path) is None and inventory.paths(runtime) == ()


def test_inventories_outlive_the_runtime_directory() -> None:
    assert inventory.directory(Runtime("/run/mapper"), {}) == "/var/lib/mapper/containers"
    assert inventory.directory(Runtime("/run/mapper"), {"MAPPER_STATE_DIR": "/srv/m"}) == "/srv/m/containers"
    assert inventory.directory(Runtime("/tmp/t"), {}) == "/tmp/t/containers"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"disks": [{}]},
        {"disks": 7},
        {"files": None},
        {"idmap": {"uid": [[1]]}},
        {"container": 5},
    ],
)
def test_a_damaged_inventory_is_said(tmp_path: Path, change: dict[str, object]) -> None:
    runtime = Runtime(str(tmp_path))
    inventory.write(runtime, _inventory())
    path = Path(inventory.path_of(runtime, "one-7"))
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(StateCorrupt, match=r"one-7\.json"):
        inventory.read(str(path))


# --- power-off ----------------------------------------------------------------------------------------


def test_when_the_disks_of_a_stopped_container_are_released() -> None:
    """Not in the moment in which a guest reboots, and never while anybody is going to start it."""
    off, seen = _instance(Status.STOPPED), Seen(NOW - OFF_SECONDS, "")
    assert decide(off, None, NOW) is Step.WATCH
    assert decide(off, Seen(NOW - OFF_SECONDS + 1, ""), NOW) is Step.WAIT
    assert decide(off, seen, NOW) is Step.RELEASE
    assert decide(replace(off, last_used="2026-01-01T00:00:00Z"), seen, NOW) is Step.WATCH, "it was started since"
    assert decide(off, Seen(NOW + 1, ""), NOW) is Step.WATCH, "the clock was put back"
    for status in Status:
        if status is not Status.STOPPED:
            assert decide(_instance(status), seen, NOW) is Step.NONE
    yes = [(AUTOSTART, value) for value in ("true", "TRUE", "1", "yes", "On")]  # LXD takes all of them
    for key, value in ((STATUS_KEY, "0"), (RESTART_KEY, str(int(NOW))), *yes):
        assert decide(_instance(Status.STOPPED, **{key: value}), seen, NOW) is Step.NONE
    assert decide(_instance(Status.STOPPED, **{AUTOSTART: "false"}), seen, NOW) is Step.RELEASE
