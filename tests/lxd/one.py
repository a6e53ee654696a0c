"""OpenNebula's side of the tests: the real action scripts with arguments and XML as oned sends them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from mapper_driver import main

from mapper_core.runtime import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "driver" / "remotes" / "vmm" / "lxd"


def disk_xml(number: int, *, kind: str = "raw", **elements: str) -> str:
    """A ``<DISK>``."""
    values = {
        "DISK_ID": str(number),
        "DISK_TYPE": "FILE",
        "DRIVER": kind,
        "FORMAT": kind,
        "READONLY": "NO",
        "TARGET": "sd" + chr(ord("a") + number),
        "TYPE": "FILE",
        "CLONE": "YES",
        "SIZE": "64",
        "SOURCE": f"/var/lib/one//datastores/1/{number}",
        **elements,
    }
    return "<DISK>" + "".join(f"<{name}><![CDATA[{value}]]></{name}>" for name, value in values.items()) + "</DISK>"


@dataclass(frozen=True)
class One:
    """A front-end with one node.

    :param directory: the node's datastores and options.
    :param socket: of the daemon.
    """

    directory: Path
    socket: str
    version: str = "6.10.5"

    def vm_dir(self, vm: int) -> Path:
        """The machine's directory in the system datastore."""
        path = self.directory / "datastores" / "0" / str(vm)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def vm_xml(self, vm: int, disks: str, *, deployed: bool = False, template: str = "", user: str = "") -> str:
        """A ``<VM>``."""
        return (
            f"<VM><ID>{vm}</ID><NAME>test {vm}</NAME><DEPLOY_ID>{f'one-{vm}' if deployed else ''}</DEPLOY_ID><TEMPLATE>"
            f"<CPU>0.5</CPU><VCPU>1</VCPU><MEMORY>128</MEMORY>{disks}{template}<VMID>{vm}</VMID></TEMPLATE>"
            f"<USER_TEMPLATE><HYPERVISOR>lxd</HYPERVISOR>{user}</USER_TEMPLATE><HISTORY_RECORDS><HISTORY><OID>{vm}</OID>"
            "<SEQ>0</SEQ><HOSTNAME>node</HOSTNAME><HID>1</HID><CID>0</CID><VM_MAD>lxd</VM_MAD><TM_MAD>ssh</TM_MAD>"
            "<DS_ID>0</DS_ID></HISTORY></HISTORY_RECORDS></VM>"
        )

    def run(self, action: str, *argv: str, xml: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run an action script."""
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", ENVIRONMENT: os.environ[ENVIRONMENT]}
        return subprocess.run(
            [str(SCRIPTS / action), *argv],
            input=xml,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
            env={**variables, **self._variables(), **environment},
        )

    def here(self, action: str, *argv: str, xml: str) -> subprocess.CompletedProcess[str]:
        """The same in this process, which is quicker: for what a test needs and does not prove."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in self._variables().items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(xml.encode())))
            status = main.run(str(SCRIPTS), action, argv)
        return subprocess.CompletedProcess((action, *argv), status, out.getvalue(), err.getvalue())

    def _variables(self) -> dict[str, str]:
        lxdrc = self.directory / "lxdrc"
        if not lxdrc.exists():
            lxdrc.write_text(f":datastore_location: {self.directory}/datastores\n:stop_timeout: 20\n")
        return {
            "LXD_SOCKET": self.socket,
            "MAPPER_DRIVER": str(Path(sys.executable).parent / "mapper-driver"),
            "MAPPER_LXDRC": str(lxdrc),
            "MAPPER_ONE_VERSION": self.version,
        }

    def deploy(self, vm: int, xml: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``deploy``."""
        deployment = f"{self.directory}//datastores/0/{vm}/deployment.0"
        return self.run("deploy", deployment, "node", str(vm), "node", xml=xml, **environment)

    def end(self, vm: int, xml: str, action: str = "cancel", **environment: str) -> subprocess.CompletedProcess[str]:
        """``shutdown`` or ``cancel``."""
        data = (
            f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST><MIGR_HOST/><DEPLOY_ID>one-{vm}</DEPLOY_ID>{xml}"
            "</VMM_DRIVER_ACTION_DATA>"
        )
        return self.run(action, f"one-{vm}", "node", str(vm), "node", xml=data, **environment)
