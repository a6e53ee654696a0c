"""RAW of type lxd: two spellings, and what a template may not set."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapper_driver.raw import HARMLESS, NEVER, RawConfig, matches, parse_raw

from mapper_core.errors import MapperError, Refused, UsageError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "data",
    [
        "limits.processes=100\nboot.autostart = true",
        "\n# a comment\n  limits.processes=100\r\n\nboot.autostart=true\n",
        '"limits.processes": "100", "boot.autostart": "true"',
        '{"limits.processes": 100, "boot.autostart": true}',
        '\n "limits.processes":"100",\n "boot.autostart":"true"\n',
    ],
)
def test_spellings(data: str) -> None:
    assert parse_raw(data) == RawConfig((("boot.autostart", "true"), ("limits.processes", "100")))


@pytest.mark.parametrize("data", ["", "  \n", "{}", "# nothing"])
def test_nothing(data: str) -> None:
    assert parse_raw(data) == RawConfig()


@pytest.mark.parametrize(
    "data",
    [
        "lxc.tty.max = 4\nlxc.environment = A=b",
        "raw.lxc=lxc.tty.max=4\nlxc.environment=A=b",
        json.dumps({"raw.lxc": "lxc.tty.max = 4\n# why\n\nlxc.environment = A=b"}),
    ],
)
def test_lines_of_lxc_are_kept(data: str) -> None:
    assert parse_raw(data).lxc == ("lxc.tty.max = 4", "lxc.environment = A=b")


def test_values_with_equals_signs() -> None:
    assert parse_raw("environment.PATH=/a=b").config == (("environment.PATH", "/a=b"),)


DANGEROUS = [
    "security.privileged=true",
    "security.nesting=true",
    "security.syscalls.intercept.mount=true",
    "security.protection.delete=true",
    "raw.apparmor=x",
    "raw.idmap=both 0 0",
    "raw.seccomp=x",
    "raw.qemu=x",
    "linux.kernel_modules=overlay",
    "linux.sysctl.kernel.core_pattern=|/x",
    "limits.memory=64GiB",
    "limits.cpu=64",
    "limits.cpu.allowance=100%",
    "limits.kernel.rtprio=99",
    "nvidia.runtime=true",
    "snapshots.schedule=@hourly",
    "something.new=1",
    "lxc.apparmor.profile=unconfined",
    "lxc.cap.keep=sys_admin",
    "lxc.cgroup2.devices.allow=a",
    "lxc.execute.cmd=/x",
    "lxc.hook.pre-start=/x",
    "lxc.hook.post-stop=/x",
    "lxc.init.cmd=/x",
    "lxc.log.file=/etc/passwd",
    "lxc.mount.entry=/ host none bind 0 0",
    "lxc.namespace.keep=net",
    "lxc.proc.oom_score_adj=-1000",
    "lxc.seccomp.profile=none",
]


@pytest.mark.parametrize("data", DANGEROUS)
def test_dangerous_keys_are_refused(data: str) -> None:
    """S-27: an error that names the key and the remedy, never a key left out in silence."""
    key = data.partition("=")[0]
    with pytest.raises(Refused, match=f"RAW sets {key.replace('.', '[.]')}, which a template may not set") as caught:
        parse_raw(data)
    assert caught.value.subject == key and "raw_allow" in caught.value.hint
    as_json = json.dumps(dict([data.split("=", 1)]))
    with pytest.raises(Refused):
        parse_raw(as_json)
    parsed = parse_raw(data, (key,))
    assert len(parsed.config) + len(parsed.lxc) == 1
    assert parse_raw(data, (key[:-1] + "*",)) == parsed


@pytest.mark.parametrize(
    "data",
    [
        "user.one_status=1",
        "user.mapper_exec=13d4f84b-0000-0000-0000-000000000000 0123456789abcdef0123456789abcdef",
        "volatile.idmap.next=[]",
        "volatile.last_state.idmap=[]",
        "lxc.idmap=u 0 0 65536",
        "lxc.rootfs.path=/",
        "lxc.include=/etc/shadow",
        "raw.lxc=lxc.rootfs.options=x",
    ],
)
def test_what_nobody_can_allow(data: str) -> None:
    with pytest.raises(Refused, match="which the driver needs for itself"):
        parse_raw(data, ("lxc.*", "raw.*", "volatile.*", "user.*"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('"limits.processes": "100",', "not the body of a JSON object"),
        ('"limits.processes" "100"', "not the body of a JSON object"),
        ('{"limits.processes": NaN}', "NaN"),
        ('"a' * 1000, "not the body of a JSON object"),
        ('"x": ' + "[" * 100_000, "not the body of a JSON object"),
        ('"limits.processes": null', "neither text nor"),
        ('"limits.processes": 1.5', "neither text nor"),
        ('"limits.processes": {"a": 1}', "neither text nor"),
        ('"limits.processes": "1", "limits.processes": "2"', "limits.processes twice"),
        ("limits.processes=1\nlimits.processes=2", "limits.processes twice"),
        ("limits.processes", "not key=value"),
        ("=1", "not a name of a key"),
        ("Limits.processes=1", "not a name of a key"),
        ("../x=1", "not a name of a key"),
        ("limits processes=1", "not a name of a key"),
        ('"raw.lxc": "security.nesting=true"', "not lxc.KEY = VALUE"),
        ("lxc.signal.halt=", "not lxc.KEY = VALUE"),
        ('"environment.A": "x\\nlxc.mount.entry = / x"', "control characters"),
        ('"limits.processes": "1\\u0000"', "control characters"),
        ("environment.A=" + "x" * 70_000, "too long"),
    ],
)
def test_wrong(data: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_raw(data)
    assert len(str(caught.value)) < 250


def test_line_ends_in_user_data() -> None:
    data = json.dumps({"user.user-data": "#cloud-config\nhostname: x\n"})
    assert parse_raw(data).config == (("user.user-data", "#cloud-config\nhostname: x\n"),)


def test_the_lists_do_not_contradict() -> None:
    assert not any(matches(key.rstrip("*"), NEVER) for key in HARMLESS)


@given(st.text(max_size=200))
def test_any_text(data: str) -> None:
    try:
        parsed = parse_raw(data)
    except MapperError:
        return
    assert all(matches(key, HARMLESS) and not matches(key, NEVER) for key, _ in parsed.config)
    assert all(matches(line.partition(" ")[0], HARMLESS) for line in parsed.lxc)
