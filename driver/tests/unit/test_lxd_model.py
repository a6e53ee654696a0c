"""What LXD says, as types."""

from __future__ import annotations

import json

import pytest
from mapper_driver.errors import LxdFailed
from mapper_driver.lxd import answers, idmap
from mapper_driver.lxd.model import Status

from mapper_core.model import IdMap, IdRange

pytestmark = pytest.mark.unit


def entry(uid: bool, gid: bool, host: int, inside: int, count: int) -> dict[str, object]:
    return {"Isuid": uid, "Isgid": gid, "Hostid": host, "Nsid": inside, "Maprange": count}


def test_map_with_a_hole() -> None:
    """As `raw.idmap` makes it: one id of the host is let through, the rest is in two ranges."""
    text = json.dumps(
        [entry(True, False, 100000, 0, 1000), entry(True, True, 1000, 1000, 1), entry(False, True, 1, 0, 9)]
    )
    assert idmap.parse(text) == IdMap(
        uid=(IdRange(0, 100000, 1000), IdRange(1000, 1000, 1)), gid=(IdRange(1000, 1000, 1), IdRange(0, 1, 9))
    )


@pytest.mark.parametrize("text", ["", "[]", "null"])
def test_privileged(text: str) -> None:
    assert idmap.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "7",
        '["x"]',
        '[{"Isuid": true}]',
        json.dumps([entry(True, False, 1, 0, 9)]),
        json.dumps([entry(True, True, -1, 0, 9)]),
        json.dumps([entry(True, True, 1, 0, 0)]),
    ],
)
def test_no_map(text: str) -> None:
    with pytest.raises(LxdFailed, match="c1"):
        idmap.parse(text, subject="c1")


def test_the_next_map_must_be_there() -> None:
    with pytest.raises(LxdFailed, match=r"volatile\.idmap\.next"):
        idmap.next_map({}, subject="c1")


def test_ids_on_the_host() -> None:
    ranges = (IdRange(0, 100000, 1000), IdRange(2000, 5, 1))
    assert [idmap.to_host(ranges, inside) for inside in (0, 999, 1000, 2000, 2001)] == [100000, 100999, None, 5, None]


def test_missing_counters_are_absent_and_not_zero() -> None:
    """N-04."""
    state = answers.state({"status": "Running", "pid": 7, "cpu": {}, "memory": {"usage": -1}, "network": None})
    assert (state.status, state.pid) == (Status.RUNNING, 7)
    assert (state.cpu_ns, state.memory, state.received, state.sent) == (None, None, None, None)


def test_traffic_is_counted_without_loopback() -> None:
    counters = {
        name: {"counters": {"bytes_received": size, "bytes_sent": 1}}
        for name, size in (("lo", 9), ("e0", 5), ("e1", 6))
    }
    state = answers.state({"status": "Running", "network": counters})
    assert (state.received, state.sent) == (11, 2)


def test_words_of_newer_daemons() -> None:
    assert answers.state({"status": "Hibernating"}).status is Status.OTHER
    assert answers.state({}).status is Status.OTHER
    assert (
        answers.server(
            {"environment": {"server": "incus", "server_version": "6.0.4", "server_pid": 9, "new": 1}}
        ).product
        == "incus"
    )
