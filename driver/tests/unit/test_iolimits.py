"""Limits of disks: from OpenNebula's attributes to the files of control groups, and through the hook's command."""

from __future__ import annotations

import pytest
from mapper_driver import iolimits
from mapper_driver.iolimits import Setting
from mapper_driver.lxd.cgroups import Group, Version, memory_kept, memory_limit, own_paths
from mapper_driver.opennebula.vm import IoLimits

pytestmark = pytest.mark.unit

HOOK = "/usr/bin/python3 -I -m limits /run/mapper/driver/one-42.json"


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        (IoLimits(), {}),
        (IoLimits(total_bytes=10), {"rbps": 10, "wbps": 10}),
        (IoLimits(total_iops=5, read_bytes=7), {"riops": 5, "wiops": 5, "rbps": 7}),
        (IoLimits(total_bytes=10, read_bytes=7, write_bytes=20), {"rbps": 7, "wbps": 10}),
        (
            IoLimits(read_bytes=1, write_bytes=2, read_iops=3, write_iops=4),
            {"rbps": 1, "wbps": 2, "riops": 3, "wiops": 4},
        ),
    ],
)
def test_of_a_disk(limits: IoLimits, wanted: dict[str, int]) -> None:
    """All four at once, which LXD's own keys cannot."""
    assert iolimits.of_disk(limits) == wanted


def test_files() -> None:
    """What is not limited is written too: the device may have belonged to another disk before."""
    assert iolimits.settings({"rbps": 1000}, (7, 3), Version.V2) == (
        Setting("io.max", "7:3 rbps=1000 wbps=max riops=max wiops=max"),
    )
    assert iolimits.settings({"rbps": 1000, "wiops": 5}, (7, 3), Version.V1) == (
        Setting("blkio.throttle.read_bps_device", "7:3 1000"),
        Setting("blkio.throttle.write_bps_device", "7:3 0"),
        Setting("blkio.throttle.read_iops_device", "7:3 0"),
        Setting("blkio.throttle.write_iops_device", "7:3 5"),
    )


def test_words_and_back() -> None:
    limits = {10: {"rbps": 1}, 1: {"wiops": 3, "rbps": 2}, 2: {}}
    assert iolimits.words(limits) == ("1:rbps=2,wiops=3", "10:rbps=1")
    assert iolimits.parse_words(iolimits.words(limits)) == {1: limits[1], 10: limits[10]}


@pytest.mark.parametrize(
    "word", ["one-42", "lxc", "1:", "1:rbps", "1:rbps=", "-1:rbps=1", "1:rbps=1;x", "99999:rbps=1"]
)
def test_what_lxc_appends_is_no_limit(word: str) -> None:
    assert iolimits.parse_words((word,)) == {}


def test_a_disk_comes_and_goes() -> None:
    """disk 1 beside disk 10; lines of others stay, and the hook that places the tree stays the last."""
    start = "lxc.signal.halt = SIGPWR\nlxc.hook.pre-start = /x"
    ten = iolimits.with_disk(start, HOOK, 10, {"rbps": 5})
    assert ten == f"lxc.hook.start-host = {HOOK} 10:rbps=5\n{start}"
    both = iolimits.with_disk(ten, HOOK, 1, {"wbps": 6})
    assert both == f"lxc.hook.start-host = {HOOK} 1:wbps=6 10:rbps=5\n{start}"
    assert iolimits.with_disk(both, HOOK, 1, {}) == ten
    assert iolimits.with_disk(ten, HOOK, 10, {}) == start
    assert iolimits.with_disk(start, HOOK, 3, {}) == start


# --- control groups ------------------------------------------------------------------------------------


def test_the_group_of_the_container_and_not_of_what_the_guest_made_in_it() -> None:
    text = (
        "9:name=systemd:/lxc.payload.one-42/init.scope\n4:memory:/lxc.payload.one-42\n1:cpu,cpuacct:/x/lxc.payload.one-42/a/b\n"
        "0::/lxc.payload.one-42/system.slice/x:y.service\n"
    )
    assert own_paths(text) == {
        "name=systemd": "/lxc.payload.one-42",
        "memory": "/lxc.payload.one-42",
        "cpu": "/x/lxc.payload.one-42",
        "cpuacct": "/x/lxc.payload.one-42",
        "": "/lxc.payload.one-42",
    }


def test_memory(tmp_path: object) -> None:
    one, two = Group(Version.V1, str(tmp_path)), Group(Version.V2, str(tmp_path))
    files = {
        "memory.max": "max\n",
        "memory.limit_in_bytes": "1048576\n",
        "memory.stat": "cache 999\nrss 1\ntotal_rss 10\ntotal_shmem 5\nanon 100\nfile 999\nkernel 20\nshmem 3\n",
    }
    for name, text in files.items():
        with open(f"{tmp_path}/{name}", "w", encoding="ascii") as file:
            file.write(text)
    assert (memory_limit(one), memory_limit(two)) == (1048576, None)
    assert (memory_kept(one), memory_kept(two)) == (15, 123)
