"""Hostile descriptions of machines, by the program that OpenNebula's scripts call; the daemon is never reached.

What is well-formed and odd gets as far as the daemon, which is not there: the checks of the images on a real one are in
``tests/lxd``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Attacker, Canary, Report

pytestmark = pytest.mark.security

SCRIPTS = Path(__file__).parents[2] / "driver" / "remotes" / "vmm" / "lxd"
DISK = (
    "<DISK><DISK_ID>0</DISK_ID><TYPE>FILE</TYPE><DISK_TYPE>FILE</DISK_TYPE><FORMAT>raw</FORMAT><DATASTORE_ID>1</DATASTORE_ID>"
    "%s</DISK>"
)
#: Statuses of the driver: 2 to 7 the request or the machine is wrong, 11 to 14 its own, see docs/exit-codes.md.
REFUSED = range(2, 15)
SHELL = (
    "$(touch @/x)",
    "`touch @/x`",
    ";touch${IFS}@/x;",
    "|touch @/x",
    "\n touch @/x",
    "-x",
    "%s%n%x",
    "'\"",
    "../../..@",
)


def machine(*, name: str = "m", disk: str = "", template: str = "", user: str = "", ds: str = "0") -> bytes:
    return (
        f"<VM><ID>7</ID><NAME>{name}</NAME><TEMPLATE><VMID>7</VMID><MEMORY>64</MEMORY><CPU>1</CPU>{DISK % disk}{template}"
        f"</TEMPLATE><USER_TEMPLATE>{user}</USER_TEMPLATE><HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><DS_ID>{ds}</DS_ID></HISTORY>"
        "</HISTORY_RECORDS></VM>"
    ).encode()


def cdata(text: str) -> str:
    return f"<![CDATA[{text}]]>"


def documents() -> Iterator[tuple[str, bytes]]:
    good = machine()
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(10))
    yield "billion laughs", f"<!DOCTYPE VM [{laughs}]><VM>&l9;</VM>".encode()
    yield "a file as an entity", b'<!DOCTYPE VM [<!ENTITY a SYSTEM "file://@/secret">]><VM><ID>&a;</ID></VM>'
    yield "a parameter entity", b'<!DOCTYPE VM [<!ENTITY % a SYSTEM "file://@/secret"> %a;]><VM/>'
    yield "an external document type", b'<!DOCTYPE VM SYSTEM "file:///dev/zero"><VM/>'
    yield (
        "an include",
        good.replace(
            b"<NAME>", b'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="@/secret" parse="text"/><NAME>'
        ),
    )
    yield "10 MB in one value", machine(name="x" * 10_000_000)
    yield "10 MB of elements", machine(template="<A/>" * 2_500_000)
    attributes = b"".join(b'a%d="" ' % n for n in range(700_000))
    yield "7 MB of attributes", b"<VM " + attributes[:7_000_000].rpartition(b" ")[0] + b"/>"
    some = attributes[:60_000].rpartition(b" ")[0]
    yield "7 MB of tags with attributes", machine(template="".join(f"<A {some.decode()}/>" for _ in range(115)))
    yield "7 MB in one value", machine(name="x" * 7_000_000)
    yield "7 MB of elements", machine(template="<A/>" * 1_700_000)
    yield "7 MB of one tag", b"<" + b"V" * 7_000_000 + b"/>"
    yield "a million levels", b"<VM>" + b"<A>" * 1_000_000
    yield "zero bytes", good.replace(b"<NAME>m", b"<NAME>m\0")
    yield "zero bytes only", bytes(1 << 20)
    yield "control characters", good.replace(b"<NAME>m", b"<NAME>\x1b[2J")
    yield "UTF-16", good.decode().encode("utf-16")
    yield "base64 of base64", base64.b64encode(base64.b64encode(good))
    yield "nothing", b""
    yield "thousands of disks", machine(template=(DISK % "") * 3000)
    yield "a huge number", good.replace(b"<MEMORY>64", b"<MEMORY>" + b"9" * 5000)
    yield "another machine's datastore", machine(ds="0/../../../..@")
    for text in SHELL:
        yield f"name {text}", machine(name=cdata(text))
        yield f"source {text}", machine(disk=f"<SOURCE>{cdata(text)}</SOURCE><TARGET>{cdata(text)}</TARGET>")
        cluster = f"<CEPH_USER>{cdata(text)}</CEPH_USER><CEPH_HOST>{cdata(text)}</CEPH_HOST><SOURCE>one/one-1</SOURCE>"
        yield f"cluster {text}", machine(disk=cluster).replace(b">FILE<", b">RBD<")
        yield f"format {text}", machine().replace(b"<FORMAT>raw", f"<FORMAT>{cdata(text)}".encode())
    for line in (
        "raw.idmap=both 0 0",
        "security.privileged=true",
        "lxc.mount.entry = @ mnt none bind 0 0",
        "lxc.hook.start = /bin/sh",
    ):
        yield f"RAW {line}", machine(template=f"<RAW><TYPE>lxd</TYPE><DATA>{cdata(line)}</DATA></RAW>")
    yield (
        "a cluster's configuration of its own",
        machine(disk="<SOURCE>one/one-1</SOURCE><CEPH_CONF>@/fstab</CEPH_CONF><CEPH_KEY>@/secret</CEPH_KEY>").replace(
            b">FILE<", b">RBD<"
        ),
    )


def test_hostile_machines(attacker: Attacker, canary: Canary, tmp_path: Path, report: Report) -> None:
    """S-12, S-27, M-25: one line says what is wrong; no shell, no file of the host, little memory and time."""
    found = []
    xml = tmp_path / "vm.xml"
    environ = {
        "LXD_SOCKET": str(tmp_path / "no.socket"),
        "MAPPER_ONE_VERSION": "6.10.5",
        "MAPPER_LXDRC": str(tmp_path / "lxdrc"),
    }
    (tmp_path / "lxdrc").write_text(f":datastore_location: {tmp_path}/datastores\n")
    for name, data in documents():
        xml.write_bytes(data.replace(b"@", str(canary.directory).encode()))
        deployment = f"{tmp_path}/datastores/0/7/deployment.0"
        outcome = attacker.driver(xml, environ, "run", str(SCRIPTS), "deploy", deployment, "node", "7", "node")
        wrong = canary.harm()
        report.count("hostile machines", cases=1, runs=1, refused=int(outcome.status in REFUSED), canary=len(wrong))
        if outcome.status not in REFUSED or outcome.stdout or outcome.stderr.count("\n") != 1:
            wrong.append(f"no refusal: {outcome}")
        if canary.secret in outcome.stderr or not outcome.stderr.strip().isprintable():
            wrong.append(f"it says too much: {outcome.stderr!r}")
        if outcome.seconds >= 2 or outcome.kib >= 128 << 10:
            wrong.append(f"it took {outcome.seconds:.1f} s and {outcome.kib} KiB")
        found += [f"{name}: {what}" for what in wrong]
    found += canary.harm_to_host()
    assert not found, "\n".join(found)
