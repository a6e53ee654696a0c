"""An image that ``mapper-cli image build`` has made of a container's files: it is deployed, and takes OpenNebula's context."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient

from .conftest import Lab
from .machine import CONTEXT, Machine, ok
from .one import One, disk_xml

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

CLI = str(Path(sys.executable).with_name("mapper-cli"))
MAC = "02:00:0a:00:00:07"


def test_it_is_deployed_and_takes_the_context(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    images.write_system(str(tree))
    with (tree / "etc/init.d/rcS").open("a") as script:
        script.write("for one in /etc/rcS.d/S*; do $one start; done\necho done >/context-done\n")
    packed = subprocess.run(["tar", "-C", str(tree), "-c", "."], capture_output=True, check=True, timeout=60).stdout
    one = One(tmp_path, lab.socket)
    image = one.vm_dir(35) / "disk.0"
    argv = [CLI, "image", "build", str(image), "-O", "qcow2", "--size", "48M", "--from-tar", "-"]
    subprocess.run(argv, input=packed, capture_output=True, check=True, timeout=100)

    images.build_context(
        str(one.vm_dir(35) / "disk.9"),
        {
            "SET_HOSTNAME": "built",
            "SSH_PUBLIC_KEY": "ssh-ed25519 AAAA me@here\nssh-ed25519 BBBB it's mine",
            "ETH0_MAC": MAC,
            "ETH0_IP": "10.0.0.7",
            "ETH0_MASK": "255.255.240.0",
            "ETH0_DNS": "10.0.0.1 10.0.0.2",
            "START_SCRIPT_BASE64": base64.b64encode(b"echo 'from the script' >/started\n").decode(),
        },
    )
    bridge = lab.variables["MAPPER_LAB_BRIDGE"]
    nic = f"<NIC><NIC_ID>0</NIC_ID><BRIDGE>{bridge}</BRIDGE><MAC>{MAC}</MAC><TARGET>one-35-0</TARGET><VN_MAD>bridge</VN_MAD></NIC>"
    machine = Machine(
        one,
        client,
        35,
        one.vm_xml(35, disk_xml(0, kind="qcow2"), deployed=True, template=CONTEXT + (nic if bridge else "")),
    )
    ok(machine.deploy())
    try:
        machine.inside("sh", "-c", "for i in $(seq 100); do [ ! -e /context-done ] || exit 0; sleep 0.1; done; exit 1")
        assert machine.inside("hostname") == "built\n"
        assert machine.inside("cat", "/etc/hostname") == "built\n"
        assert machine.inside("cat", "/started") == "from the script\n"
        keys = machine.inside("cat", "/root/.ssh/authorized_keys")
        assert keys == "ssh-ed25519 AAAA me@here\nssh-ed25519 BBBB it's mine\n"
        assert machine.inside("cat", "/etc/resolv.conf") == "nameserver 10.0.0.1\nnameserver 10.0.0.2\n"
        if bridge:
            assert "10.0.0.7/20" in machine.inside("ip", "address", "show")
        ok(machine.power("reboot"))
        machine.inside("sh", "-c", "for i in $(seq 100); do [ ! -e /context-done ] || exit 0; sleep 0.1; done; exit 1")
        assert machine.inside("cat", "/root/.ssh/authorized_keys") == keys, "no key twice"
    finally:
        ok(machine.power("cancel"))
    machine.nothing_left()
