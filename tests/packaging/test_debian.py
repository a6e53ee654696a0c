"""The Debian package on a clean node: installed, checked, one machine's life by OpenNebula's user, removed; nothing is left.

The node is a copy of Debian 12 with the package's dependencies and LXD (``labs/debian12.py``), in namespaces of its own. In it
``node.sh`` does all the work; here its traces are judged.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import ROOT, Wheelhouse, run

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(1000)]

VM = 7801
DISKS = (
    "<DISK><DISK_ID>0</DISK_ID><TYPE>FILE</TYPE><DISK_TYPE>FILE</DISK_TYPE><FORMAT>qcow2</FORMAT><DRIVER>qcow2</DRIVER>"
    "<SOURCE>/var/lib/one/datastores/1/a</SOURCE><CLONE>YES</CLONE><SIZE>64</SIZE><TARGET>sda</TARGET></DISK>"
    "<DISK><DISK_ID>1</DISK_ID><TYPE>FILE</TYPE><DISK_TYPE>FILE</DISK_TYPE><FORMAT>raw</FORMAT><DRIVER>raw</DRIVER>"
    "<SOURCE>/var/lib/one/datastores/1/b</SOURCE><CLONE>YES</CLONE><SIZE>16</SIZE><TARGET>/data</TARGET></DISK>"
)


def _vm(deploy_id: str) -> str:
    return (
        f"<VM><ID>{VM}</ID><NAME>test</NAME><DEPLOY_ID>{deploy_id}</DEPLOY_ID><TEMPLATE><CPU>1</CPU><MEMORY>128</MEMORY>{DISKS}"
        f"<VMID>{VM}</VMID></TEMPLATE><USER_TEMPLATE/><HISTORY_RECORDS><HISTORY><OID>{VM}</OID><SEQ>0</SEQ><VM_MAD>lxd</VM_MAD>"
        "<TM_MAD>ssh</TM_MAD><DS_ID>0</DS_ID></HISTORY></HISTORY_RECORDS></VM>"
    )


@dataclass(frozen=True)
class Node:
    """What was seen on the node.

    :param shared: its files.
    """

    shared: Path

    def text(self, name: str) -> str:
        return (self.shared / "out" / name).read_text()


def _depends(deb: Path) -> list[str]:
    text = run("dpkg-deb", "--field", deb, "Depends")
    return list(dict.fromkeys(entry.split()[0] for entry in text.replace("|", ",").split(",")))


@pytest.fixture(scope="module")
def deb(wheelhouse: Wheelhouse, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deb")
    return Path(run(ROOT / "scripts" / "build-deb", "--wheels", wheelhouse.directory, out).strip())


@pytest.fixture(scope="module")
def node(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The whole life."""
    packages = [*_depends(deb), "lxd", "lxd-client", "iproute2"]
    tree = subprocess.run(
        ["/usr/bin/python3", ROOT / "labs" / "debian12.py", *packages],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if tree.returncode != 0:
        pytest.skip(f"Debian 12 is missing: {tree.stderr.strip()}")
    shared = tmp_path_factory.mktemp("node")
    (shared / "out").mkdir()
    shutil.copy(deb, shared / "mapper.deb")
    shutil.copy(Path(__file__).with_name("node.sh"), shared / "node.sh")
    (shared / "VERSION").write_text("6.10.5\n")
    (shared / "vm.xml").write_text(_vm(""))
    (shared / "action.xml").write_text(f"<VMM_DRIVER_ACTION_DATA>{_vm(f'one-{VM}')}</VMM_DRIVER_ACTION_DATA>")
    (shared / "agent.xml").write_text("<MONITOR_CONFIGURATION><HOST_ID>2</HOST_ID></MONITOR_CONFIGURATION>")
    run(ROOT / "labs" / "image", "system", shared / "disk.0", "--format", "qcow2")
    run(sys.executable, "-c", _DATA, shared / "disk.1")
    namespaces = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
    argv = (*namespaces, "sh", ROOT / "labs" / "debian12.sh", tree.stdout.strip(), shared, "sh", "/shared/node.sh")
    with (shared / "log").open("w") as log:
        done = subprocess.run(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=500, check=False)
    assert (shared / "out" / "finished").exists(), (done.returncode, (shared / "log").read_text()[-6000:])
    yield Node(shared)
    shutil.rmtree(shared)


_DATA = """
import sys
from pathlib import Path
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
disks.make_filesystem(Path(sys.argv[1]), Part("ext4", 16, (), (("/hello", "world"),)))
"""


def test_the_package(deb: Path) -> None:
    """An environment of its own: nothing of it is where other packages put theirs, nothing can be changed by others."""
    rows = [line.split() for line in run("dpkg-deb", "--contents", deb).splitlines()]
    paths = [row[5].removeprefix(".") for row in rows]
    allowed = ("/usr/lib/mapper/", "/usr/share/doc/mapper/", "/usr/share/man/man8/mapper-cli.8.gz")
    others = {path for path in paths if not path.endswith("/") and not path.startswith(allowed)}
    assert others == {"/usr/bin/mapper-cli", "/usr/sbin/mapper-driver", "/usr/sbin/mapper-driver-root"}
    assert {row[1] for row in rows} == {"root/root"}
    assert not [row for row in rows if row[0][0] != "l" and (row[0][5] == "w" or row[0][8] == "w" or "s" in row[0])]
    assert not [path for path in paths if path.endswith(("/pip", "/activate")) or re.search("/mapper_.*/tests/", path)]
    assert run("dpkg-deb", "--field", deb, "Package").strip() == "mapper"


def test_the_check_says_what_is_missing_and_nothing_is(node: Node) -> None:
    found = json.loads(node.text("check.json"))
    by_name = {check["name"]: check for check in found["checks"]}
    for name in ("user", "sudo", "scripts", "options", "daemon", "storage pool", "datastores"):
        assert by_name[name]["status"] == "ok", by_name[name]
    assert (
        "5.0.2" in by_name["daemon"]["detail"] and "/usr/lib/mapper/bin/mapper-driver-root" in by_name["sudo"]["detail"]
    )
    assert [check for check in found["checks"] if check["status"] == "failed"] == []
    assert all(
        check["hint"]
        for check in found["checks"]
        if check["status"] == "warning" and not check["name"].startswith("plugin")
    )
    assert found["ok"] and not (node.shared / "out" / "check.status").exists()


def test_a_machine_lives_by_the_hand_of_oneadmin(node: Node) -> None:
    """Its environment would lead elsewhere (LXD_SOCKET, PYTHONPATH ...): none of it counts."""
    for action in ("deploy", "poll", "cancel"):
        assert node.text(f"{action}.status") == "0\n", node.text(f"{action}.err")
    assert node.text("deploy.out") == f"one-{VM}\n"
    assert node.text("inside-hello").strip() == "world"
    assert re.search(r" / / .* - ext4 /dev/loop\d+p\d ", node.text("inside-mounts"))
    assert node.text("poll.out").startswith("STATE=a ")
    assert node.text("status").endswith(f'VM = [ ID="{VM}", DEPLOY_ID="one-{VM}", STATE="RUNNING" ]\n')
    [encoded] = re.findall(r'MONITOR="([^"]+)"', node.text("monitor"))
    assert {"MEMORY", "DISKRDBYTES"} <= set(re.findall(r"^(\w+)=", base64.b64decode(encoded).decode(), re.M))
    assert json.loads(node.text("ls.json")) == {"disks": [], "trees": []}, "everything is released"
    run("e2fsck", "-fn", node.shared / "disk.1")


def test_oneadmin_may_do_nothing_else(node: Node) -> None:
    """S: one command, with a place for the scripts that nobody else could have put there."""
    lines = [line.strip() for line in node.text("sudo-list").splitlines() if "NOPASSWD" in line]
    assert lines == ["(root : root) NOPASSWD: /usr/lib/mapper/bin/mapper-driver-root"]
    refused = node.text("refused")
    assert "allowed" not in refused, refused
    for reason in (
        "No such file",
        "/tmp/theirs/vmm/lxd belongs to user",
        "usage: mapper-driver-root",
        "not an absolute path",
    ):
        assert reason in refused
    assert refused.count("a password is required") == 2, "another program, and the same one by its other name"


def test_the_time_of_each_step(node: Node) -> None:
    """In the log of the machine as OpenNebula reads it, and as JSON on the node."""
    assert re.search(r"^INFO: deploy: \d+\.\d{3} s: start the container$", node.text("deploy.err"), re.M)
    deploy, poll, cancel = (json.loads(line) for line in node.text("driver.json").splitlines())
    assert [item["result"] for item in (deploy, poll, cancel)] == ["ok"] * 3
    steps = {step["name"]: step["seconds"] for step in deploy["steps"]}
    assert {"create the container", "mount disk 0", "mount disk 1", "start the container"} <= set(steps)
    assert sum(steps.values()) <= deploy["seconds"] and deploy["daemon_seconds"] > 0
    assert {"stop the container"} <= {step["name"] for step in cancel["steps"]}


def test_after_an_upgrade_of_opennebula_the_scripts_are_ours_again(node: Node) -> None:
    """By a trigger of dpkg, for the version that is there now."""
    assert [line for line in node.text("dpkg-triggered").splitlines() if "are in place, for OpenNebula" in line] == [
        "44 files are in place, for OpenNebula 6.8.3",
        "44 files are in place, for OpenNebula 6.10.5",
    ]


def test_nothing_is_left(node: Node) -> None:
    before, after = (node.text(name).splitlines() for name in ("before", "after"))
    assert after == before
    assert "mapper" not in node.text("logs")
    assert "files are removed" in node.text("dpkg-remove") and "left where it is" not in node.text("dpkg-remove")
    left = set(node.text("after-remove").splitlines()) - set(before)
    assert not [line for line in left if line.startswith(("/usr", "/etc", "/var/lib/one/remotes"))], (
        "not even before it is purged"
    )
