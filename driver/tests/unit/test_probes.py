"""What the probes decide: which states are told, what a container uses, what a template for import says."""

from __future__ import annotations

import base64
import random
import zlib
from typing import cast

import pytest
from mapper_driver.actions import exec as execution
from mapper_driver.instance import STATUS_KEY
from mapper_driver.lxd.answers import instance, state
from mapper_driver.lxd.blockio import Transfers, devices_of, parse_device, parse_v1, parse_v2
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.glance import Glance, Piece
from mapper_driver.lxd.model import ExecResult, Instance, Status
from mapper_driver.monitor import MachineState, Usage, attributes
from mapper_driver.opennebula.protocol import knows_wild
from mapper_driver.probes import executions, host, machines
from mapper_driver.probes.changes import TIMES_MISSING, History, Known, Seen, machine_id, report
from mapper_driver.probes.run import parse

from mapper_core.errors import UsageError
from mapper_core.mapping import Mapper

pytestmark = pytest.mark.unit

RUNNING, POWEROFF = MachineState.RUNNING, MachineState.POWEROFF
NOW = 1_800_000_000.0
SYNC = 180.0
FRESH = History(NOW - 1)


def _line(container: str, state: str) -> str:
    return f'VM = [ ID="{machine_id(container)}", DEPLOY_ID="{container}", STATE="{state}" ]\n'


HEADING = "SYNC_STATE=yes\nMISSING_STATE=POWEROFF\n"


# --- states ---------------------------------------------------------------------------------------------------


def test_the_first_look_after_a_boot_tells_everything() -> None:
    """N-05: the state is right in the first report, and machines that are not there are named switched off by the heading."""
    text, after = report(History(), [Seen("one-2", POWEROFF), Seen("one-1", RUNNING)], (), NOW, SYNC)
    assert text == HEADING + _line("one-1", "RUNNING") + _line("one-2", "POWEROFF")
    assert after == History(NOW, 0.0, {"one-1": Known(RUNNING), "one-2": Known(POWEROFF)})


def test_only_changes_are_told_until_the_next_full_report() -> None:
    _, after = report(History(), [Seen("one-1", RUNNING), Seen("one-2", RUNNING)], (), NOW, SYNC)
    text, after = report(after, [Seen("one-1", RUNNING), Seen("one-2", MachineState.SUSPENDED)], (), NOW + 5, SYNC)
    assert text == _line("one-2", "SUSPENDED")
    text, after = report(after, [Seen("one-1", RUNNING), Seen("one-2", MachineState.SUSPENDED)], (), NOW + 10, SYNC)
    assert text == ""
    text, _ = report(after, [Seen("one-1", RUNNING), Seen("one-2", MachineState.SUSPENDED)], (), NOW + SYNC, SYNC)
    assert text.startswith(HEADING) and text.count("VM =") == 2
    text, _ = report(after, [Seen("one-1", RUNNING)], (), NOW - 3600, SYNC)
    assert text.startswith(HEADING), "the clock was set back"


def test_a_machine_that_is_missing_is_switched_off_after_a_few_looks() -> None:
    """N-01: for one look it may have been between two containers."""
    history = History(NOW, 0.0, {"one-1": Known(RUNNING)})
    for number in range(1, TIMES_MISSING):
        text, history = report(history, [], (), NOW + number, SYNC)
        assert (text, history.known["one-1"].missing) == ("", number)
    text, history = report(history, [], (), NOW + 9, SYNC)
    assert (text, history.known) == (_line("one-1", "POWEROFF"), {})
    history = History(NOW, 0.0, {"one-1": Known(RUNNING, TIMES_MISSING - 1)})
    text, history = report(history, [Seen("one-1", RUNNING)], (), NOW + 1, SYNC)
    assert (text, history.known["one-1"].missing) == ("", 0), "it is back"


def test_a_machine_on_which_an_action_works_keeps_its_state() -> None:
    """one#5581: in the full report too, and while its container is not there."""
    history = History(NOW, 0.0, {"one-1": Known(RUNNING), "one-2": Known(RUNNING)})
    for _ in range(TIMES_MISSING + 1):
        text, history = report(history, [Seen("one-1", None)], ["one-1", "one-2"], NOW + 5, SYNC)
        assert text == ""
    text, history = report(history, [Seen("one-1", None)], ["one-1", "one-2"], NOW + SYNC, SYNC)
    assert text == HEADING + _line("one-1", "RUNNING") + _line("one-2", "RUNNING")
    text, _ = report(history, [Seen("one-1", POWEROFF)], (), NOW + SYNC + 5, SYNC)
    assert text == _line("one-1", "POWEROFF")


def test_a_full_report_waits_for_a_machine_of_which_nothing_is_known_but_not_for_ever() -> None:
    """Without a line the heading would switch it off."""
    seen = [Seen("one-1", None), Seen("one-2", RUNNING)]
    text, history = report(History(), seen, ["one-1"], NOW, SYNC)
    assert (text, history.due) == (_line("one-2", "RUNNING"), NOW)
    text, waiting = report(history, seen, ["one-1"], NOW + 5, SYNC)
    assert (text, waiting.due) == ("", NOW)
    text, done = report(waiting, [Seen("one-1", RUNNING), seen[1]], (), NOW + 10, SYNC)
    assert text == HEADING + _line("one-1", "RUNNING") + _line("one-2", "RUNNING")
    assert (done.synced, done.due) == (NOW + 10, 0.0)
    text, _ = report(waiting, seen, ["one-1"], NOW + SYNC, SYNC)
    assert text == HEADING + _line("one-2", "RUNNING"), "a deploy that was killed holds up nobody for ever"


def test_what_is_remembered_can_be_written_down() -> None:
    history = History(NOW, NOW + 1, {"one-1": Known(RUNNING, 2), "by-hand": Known(MachineState.FAILURE)})
    assert History.from_json(history.to_json()) == history
    for damaged in (
        {},
        {"synced": 0, "due": 0, "known": {"one-1": ["GONE", 0]}},
        {"synced": "x", "due": 0, "known": {}},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            History.from_json(damaged)


def test_numbers() -> None:
    names = {"one-7": 7, "one-0": 0, "one-": -1, "one-7a": -1, "by-hand": -1, "xone-7": -1, "one-007": -1, "one-00": -1}
    assert {name: machine_id(name) for name in names} == names
    versions = {"5.12.13": True, "6.10.5": True, "6.99.80": False, "7.0.0": False, "": False}
    assert {version: knows_wild(version) for version in versions} == versions


def _glance(name: str = "one-1", status: str = "Running", **config: str) -> Glance:
    answer = {"name": name, "status": status, "config": config, "expanded_config": {"image.os": "x", **config}}
    return Glance(instance({**answer, "architecture": "x86_64"}, ""), None)


def test_one_that_vanished_while_the_daemon_looked_is_no_failure() -> None:
    """N-01: LXD 5.0 answers with the status Error and no description."""
    vanished = Glance(instance({"name": "one-1", "status": "Error"}, ""), None)
    assert machines._state(vanished, frozenset(), NOW) is None
    assert machines._state(_glance(status="Error"), frozenset(), NOW) is MachineState.FAILURE
    assert machines._state(_glance(), frozenset({"one-1"}), NOW) is None
    assert machines._state(_glance(**{STATUS_KEY: "0"}), frozenset(), NOW) is None


# --- usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ([5, 1_000_000_000, 10.0], [5, 3_000_000_000, 12.0], 100.0),
        ([5, 1_000_000_000, 10.0], [5, 1_000_000_000, 12.0], 0.0),
        ([4, 9_000_000_000, 10.0], [5, 3_000_000_000, 12.0], None),
        ([5, 9_000_000_000, 10.0], [5, 3_000_000_000, 12.0], None),
        ([5, 1, 10.0], [5, 3, 10.0], None),
        (None, [5, 3, 10.0], None),
        (["x", {}, 1], [5, 3, 10.0], None),
        ("abc", [5, 3, 10.0], None),
        ([5, 1, 10.0], None, None),
    ],
)
def test_percent_of_a_processor(before: object, after: object, wanted: float | None) -> None:
    """N-04: between two lives of a container, or without a counter, nothing is known; that is not 0."""
    assert machines.percent(before, after) == wanted


def test_counters_that_cannot_be_true_are_left_out() -> None:
    """N-04."""
    answer = {"status": "Running", "cpu": {"usage": 2**64 - 1}, "memory": {"usage": 3_600_000_000_000_000_000}}
    found = state({**answer, "network": {"eth0": {"counters": {"bytes_received": -1, "bytes_sent": 7}}}})
    assert (found.cpu_ns, found.memory, found.received, found.sent) == (None, None, None, 7)
    assert found.status is Status.RUNNING


def test_disks_of_both_kinds_of_control_groups() -> None:
    """N-02, N-04."""
    v2 = "7:3 rbytes=1024 wbytes=512 rios=3 wios=2 dbytes=0 dios=0\n259:0 rbytes=18446744073709551615\n8:0 \n"
    assert parse_v2(v2) == {"7:3": Transfers(1024, 512, 3, 2)}
    moved = "7:3 Read 1024\n7:3 Write 512\n7:3 Total 1536\nTotal 1536\n"
    assert parse_v1(moved, "7:3 Read 3\n7:3 Write 2\nTotal 5\n") == {"7:3": Transfers(1024, 512, 3, 2)}
    assert parse_v2("") == parse_v1("", "") == {}
    assert parse_device("      33        0     3906       5       13        0       26       3 0 0 0") == Transfers(
        3906 * 512, 26 * 512, 33, 13
    )
    with pytest.raises(ValueError, match="too short"):
        parse_device("33")


def test_devices_of_mounts() -> None:
    text = (
        b"94 149 259:28 / / rw,idmapped shared:12 - ext4 /dev/loop12p3 rw\n"
        b"95 94 0:31 /@ /b rw - btrfs /dev/loop\\0401 rw\n"
        b"96 94 0:32 / /dev/sda rw - tmpfs /dev/sdb rw\n246 94 7:11 / /data rw - ext4 /dev/loop11 rw\n"
    )
    assert devices_of(text) == {"259:28", "/dev/loop 1", "7:11"}


def test_attributes() -> None:
    assert attributes(Usage()) == {}
    found = attributes(Usage(1, 2, 3, 4.5, Transfers(5, 6, 7, 8)))
    assert " ".join(f"{name}={value}" for name, value in found.items()) == (
        "CPU=4.5 MEMORY=1 NETRX=2 NETTX=3 DISKRDBYTES=5 DISKWRBYTES=6 DISKRDIOPS=7 DISKWRIOPS=8"
    )


# --- containers that were made by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, {"CPU": "0.5", "VCPU": "1", "MEMORY": "512"}),
        (
            {"limits.cpu.allowance": "150%", "limits.cpu": "2", "limits.memory": "2GiB"},
            {"CPU": "1.5", "VCPU": "2", "MEMORY": "2048"},
        ),
        (
            {"limits.cpu.allowance": "10ms/100ms", "limits.cpu": "0,2-4", "limits.memory": "50%"},
            {"CPU": "0.5", "VCPU": "4", "MEMORY": "512"},
        ),
        ({"limits.cpu": "x", "limits.memory": "1000000000"}, {"VCPU": "1", "MEMORY": "953"}),
    ],
)
def test_a_template_of_a_container(config: dict[str, str], wanted: dict[str, str]) -> None:
    """N-06: those without limits do not break the report."""
    found = machines.template_of(_glance("by-hand", **config))
    assert {name: found[name].strip('"') for name in wanted} == wanted


@pytest.mark.parametrize(
    ("status", "wanted"),
    [("Running", "RUNNING"), ("Stopped", "POWEROFF"), ("Frozen", "SUSPENDED"), ("Error", "FAILURE")],
)
def test_states_of_imports(status: str, wanted: str) -> None:
    """N-06."""
    [line] = machines.wild([_glance("by-hand", status), _glance("one-7")])
    assert line.startswith('VM = [ ID=-1, DEPLOY_ID="by-hand", VM_NAME="by-hand", IMPORT_TEMPLATE="')
    assert f'IMPORT_STATE="{wanted}"\n' in base64.b64decode(line.split('"')[5]).decode()


# --- the node -------------------------------------------------------------------------------------------------


def test_the_node() -> None:
    before = host.cpu_time("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 ...")
    now = host.cpu_time("cpu  200 0 50 1000 150 0 0 0 30 0\ncpu0 ...")
    assert host.free_cpu(before, now, 200) == 150
    assert host.free_cpu(now, before, 200) == 200, "counters went back"
    assert host.memory_of("MemTotal:  100 kB\nMemAvailable: 40 kB\nHugePages_Total:       0\n\n")["MemAvailable"] == 40
    assert host.quoted('Intel "X"\n\\') == '"Intel X"'


def test_the_result_of_a_command() -> None:
    text = executions.line(7, ExecResult(3, b"out" * 100, b'"err"\n'))
    assert (
        text.startswith('VM = [ ID="7", PID="0", STATUS="DONE", RETURN_CODE="3", STDOUT="b3V0')
        and text.count("\n") == 1
    )
    assert base64.b64encode(b'"err"\n').decode() in text


class _Daemon:
    """Knows containers in which a command has ended, and what it has written."""

    def __init__(self, written: dict[str, bytes]) -> None:
        self.written = written
        self.asked = {execution.KEY: f"{'0' * 36} {'f' * 32}"}

    def instance(self, name: str) -> Instance:
        return instance({"name": name, "status": "Running", "config": self.asked if name in self.written else {}}, "")

    def output(self, name: str, command: str, stream: str, wanted: str) -> Piece:
        if stream == "stderr":
            return Piece(b"\nexit 0\n", 8)
        return Piece(self.written[name][: execution.MAX_OUTPUT], len(self.written[name]))

    def set_config(self, name: str, changes: dict[str, str | None]) -> None:
        assert changes == {execution.KEY: None}

    def forget_output(self, name: str, command: str) -> None:
        del self.written[name]


def test_results_of_many_commands_are_told_in_answers_that_arrive() -> None:
    """The agent sends an answer as one datagram, encrypted perhaps, in base64; a larger one is lost for ever."""
    largest = executions.line(2**31 - 1, ExecResult(255, *[b"x" * execution.MAX_OUTPUT] * 2))
    assert len(largest) <= executions.MAX_BYTES
    encrypted = zlib.compress(random.Random(1).randbytes(-(-executions.MAX_BYTES // 117) * 128))
    assert len(b"EXEC_VM SUCCESS 2147483647 1800000000 " + base64.b64encode(encrypted)) <= 65507, (
        "65535 less the headers"
    )
    mapper = Mapper.open()
    mapper.runtime.prepare()
    written = {f"one-{number}": b"x" * 20_000 for number in range(4)} | {"by-hand": b"x", "one-9": b"small"}
    daemon, names, answers = _Daemon(written), [*written, "one-10"], []
    while daemon.written:
        answers.append("".join(executions.results_of(names, mapper, cast(LxdClient, daemon))))
    told = [line.split('"')[1] for answer in answers for line in answer.splitlines()]
    assert sorted(told) == ["0", "1", "2", "3", "9"], "each of them once"
    assert [len(answer.splitlines()) for answer in answers] == [3, 2]
    assert max(map(len, answers)) <= executions.MAX_BYTES


# --- how the agent calls --------------------------------------------------------------------------------------


def test_a_call() -> None:
    directory = "/var/tmp/one/im/lxd.d/../lxd-probes.d/vm/status"
    xml = b"<X><PROBES_PERIOD><SYNC_STATE_VM><![CDATA[60]]></SYNC_STATE_VM></PROBES_PERIOD></X>"
    call = parse(directory, ["lxd", "2", "host"], xml, {"LXD_SOCKET": "/s", "MAPPER_ONE_VERSION": "6.8.3"})
    assert (call.kind, call.host_id, call.sockets, call.sync_seconds) == ("vm/status", 2, ("/s",), 60)
    assert call.one_version == "6.8.3"
    assert parse(directory, ["lxd", "2"], b"", {}).sync_seconds == 180


@pytest.mark.parametrize(
    ("directory", "argv"),
    [
        ("/x/im/lxd-probes.d/vm/snapshot", ["lxd", "2", "h"]),
        ("/x/im/lxd-probes.d/vm/status", ["lxd"]),
        ("/x/im/lxd-probes.d/vm/status", ["lxd", "../x", "h"]),
        ("/x/im/lxd-probes.d/vm/status", ["lxd", "٣", "h"]),
        ("/", []),
    ],
)
def test_calls_that_are_none(directory: str, argv: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(directory, argv, b"", {})
