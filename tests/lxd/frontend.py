"""OpenNebula's side of one machine's whole life: what oned keeps in its database, the XML it makes of that, and its two ways to run
a script on a node.

The storage drivers' part, files that appear, move and go, is done by the tests.
"""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from mapper_core.runtime import ENVIRONMENT

from .conftest import ROOT

NODE = "node1"


class Way(Enum):
    """How one_vmm_exec runs a script: through the shell of an ssh session, with the XML as it is in a here-document; or itself on
    the front-end (``-l``), with the XML in base64.
    """

    SSH = "ssh"
    LOCAL = "local"


@dataclass(frozen=True)
class Answer:
    """What one_vmm_exec has read.

    :param info: the standard output without white space at its ends.
    """

    status: int
    info: str
    stderr: str


def section(tag: str, values: Mapping[str, object]) -> str:
    """An element with values, all of them CDATA and in the order of their names, as oned writes its templates."""
    inner = "".join(f"<{name}><![CDATA[{value}]]></{name}>" for name, value in sorted(values.items()))
    return f"<{tag}>{inner}</{tag}>"


@dataclass
class Frontend:
    """A machine in oned's database, and the node it is on.

    :param directory: the node's: its copy of the scripts, its datastores.
    :param vm: number of the machine.
    :param disks: their elements, by number; the context is none of them.
    """

    directory: Path
    socket: str
    vm: int
    way: Way = Way.SSH
    version: str = "6.10.5"
    options: str = ""
    disks: dict[int, dict[str, object]] = field(default_factory=dict)
    nics: dict[int, dict[str, object]] = field(default_factory=dict)
    aliases: dict[int, dict[str, object]] = field(default_factory=dict)
    snapshots: dict[int, dict[str, object]] = field(default_factory=dict)
    size: dict[str, object] = field(default_factory=dict)
    before: dict[str, object] = field(default_factory=dict)
    context_id: int = 5
    sequence: int = 0
    deployed: bool = False

    def __post_init__(self) -> None:
        """Copy the scripts to the node, as rsync does: links become files."""
        shutil.copytree(ROOT / "driver" / "remotes", self.remotes)
        (self.remotes / "VERSION").write_text(f"{self.version}\n", encoding="ascii")
        lxdrc = self.remotes / "etc" / "vmm" / "lxd" / "lxdrc"
        lxdrc.parent.mkdir(parents=True, exist_ok=True)
        text = f":datastore_location: {self.directory}/datastores\n:socket: {self.socket}\n:stop_timeout: 20\n"
        lxdrc.write_text(text + self.options, encoding="utf-8")
        self.home.mkdir(parents=True)

    @property
    def remotes(self) -> Path:
        return self.directory / "tmp" / "one"

    @property
    def home(self) -> Path:
        """Home directory of OpenNebula's user."""
        return self.directory / "home"

    @property
    def deploy_id(self) -> str:
        return f"one-{self.vm}"

    @property
    def vm_dir(self) -> Path:
        return self.directory / "datastores" / "0" / str(self.vm)

    def path(self, name: str) -> str:
        """Of a file in the machine's directory, as oned writes it."""
        return f"{self.directory}//datastores/0/{self.vm}/{name}"

    # --- XML ---

    def vm_xml(self, lcm_state: int) -> str:
        """``<VM>``."""
        context = {"DISK_ID": self.context_id, "TARGET": "hdb", "NETWORK": "YES", "START_SCRIPT": "echo '$HOME' `id`"}
        template = [section("CONTEXT", context), *(section("DISK", disk) for disk in self.disks.values())]
        template += [section("NIC", nic) for nic in self.nics.values()]
        template += [section("NIC_ALIAS", nic) for nic in self.aliases.values()]
        template += [section("RAW", {"TYPE": "lxd", "DATA": "limits.processes=100"})]
        template += [section("RESIZE", self.before)] if self.before else []
        template += [section("SNAPSHOT", snapshot) for snapshot in self.snapshots.values()]
        plain = {"TEMPLATE_ID": 4, "TM_MAD_SYSTEM": "ssh", "VMID": self.vm, **self.size}
        template += [f"<{name}><![CDATA[{value}]]></{name}>" for name, value in plain.items()]
        history = (
            f"<HISTORY><OID>{self.vm}</OID><SEQ>{self.sequence}</SEQ><HOSTNAME>{NODE}</HOSTNAME><HID>2</HID><CID>0</CID>"
            "<STIME>1</STIME><ETIME>0</ETIME><VM_MAD><![CDATA[lxd]]></VM_MAD><TM_MAD><![CDATA[ssh]]></TM_MAD>"
            "<DS_ID>0</DS_ID><ACTION>0</ACTION></HISTORY>"
        )
        return (
            f"<VM><ID>{self.vm}</ID><UID>0</UID><GID>0</GID><UNAME>oneadmin</UNAME><NAME>life</NAME><LAST_POLL>0</LAST_POLL>"
            f"<STATE>3</STATE><LCM_STATE>{lcm_state}</LCM_STATE><RESCHED>0</RESCHED><STIME>1</STIME><ETIME>0</ETIME>"
            f"<DEPLOY_ID>{self.deploy_id if self.deployed else ''}</DEPLOY_ID><MONITORING/><SCHED_ACTIONS/>"
            f"<TEMPLATE>{''.join(template)}</TEMPLATE>"
            f"{section('USER_TEMPLATE', {'HYPERVISOR': 'lxd', 'LXD_SECURITY_NESTING': 'true'})}"
            f"<HISTORY_RECORDS>{history}</HISTORY_RECORDS><BACKUPS><BACKUP_IDS/></BACKUPS></VM>"
        )

    def action_xml(self, lcm_state: int, checkpoint: str = "", disk: str = "") -> str:
        """``<VMM_DRIVER_ACTION_DATA>``: the machine and its system datastore, which has a template of its own."""
        datastore = (
            "<DATASTORE><ID>0</ID><UID>0</UID><NAME>system</NAME><DS_MAD><![CDATA[-]]></DS_MAD><TM_MAD><![CDATA[ssh]]></TM_MAD>"
            f"<BASE_PATH><![CDATA[{self.directory}//datastores/0]]></BASE_PATH><TYPE>1</TYPE><DISK_TYPE>0</DISK_TYPE>"
            f"{section('TEMPLATE', {'DISK_TYPE': 'FILE', 'TM_MAD': 'ssh', 'TYPE': 'SYSTEM_DS'})}</DATASTORE>"
        )
        return (
            f"<VMM_DRIVER_ACTION_DATA><HOST>{NODE}</HOST><MIGR_HOST/><DEPLOY_ID>{self.deploy_id}</DEPLOY_ID>"
            f"<LOCAL_DEPLOYMENT_FILE/><REMOTE_DEPLOYMENT_FILE/><CHECKPOINT_FILE>{checkpoint}</CHECKPOINT_FILE>"
            f"<TM_COMMAND/><TM_COMMAND_ROLLBACK/><DISK_TARGET_PATH>{disk}</DISK_TARGET_PATH>{self.vm_xml(lcm_state)}{datastore}"
            "</VMM_DRIVER_ACTION_DATA>"
        )

    # --- calls ---

    def run(self, script: str, parameters: tuple[str, ...], stdin: str) -> Answer:
        """Run a script of the node; number of the machine and name of the node come last."""
        path = str(self.remotes / "vmm" / "lxd" / script)
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "MAPPER_DRIVER": str(Path(sys.executable).parent / "mapper-driver"),
            ENVIRONMENT: os.environ[ENVIRONMENT],
        }
        argv, text = [path, *parameters, str(self.vm), NODE], base64.b64encode(stdin.encode()).decode()
        if self.way is Way.SSH:
            quoted = " ".join(shlex.quote(word) if word else "''" for word in parameters)
            line = (
                f"(cat << 'EOT' | {path} {quoted} {self.vm} {NODE}); echo \"ExitCode: $? EOF_ERR\" 1>&2; echo EOF_OUT"
            )
            argv, text = ["bash", "-s"], f"{line}\n{stdin}\nEOT\n"
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=110, check=False, cwd=self.home, env=environment
        )
        if self.way is Way.LOCAL:
            return Answer(done.returncode, done.stdout.strip(), done.stderr)
        info, marker, rest = done.stdout.partition("EOF_OUT\n")
        stderr, _, code = done.stderr.rpartition("ExitCode: ")
        assert (marker, rest, done.returncode) == ("EOF_OUT\n", "", 0), done
        return Answer(int(code.split()[0]), info.strip(), stderr)

    def act(self, script: str, *parameters: str, lcm_state: int = 3, checkpoint: str = "", disk: str = "") -> Answer:
        """Any action but ``deploy``; for the parameter ``COPY`` oned repeats the XML."""
        xml = self.action_xml(lcm_state, checkpoint, disk)
        copy = base64.b64encode(xml.encode()).decode()
        return self.run(script, tuple(copy if word == "COPY" else word for word in parameters), xml)

    def deploy(self) -> Answer:
        """``deploy``: over ssh the deployment file is not on the node."""
        self.deployed = False
        answer = self.run("deploy", (self.path(f"deployment.{self.sequence}"), NODE), self.vm_xml(2))
        self.deployed = answer.status == 0
        self.sequence += 1
        return answer
