"""What has to be where: a pure function of the version of OpenNebula and of what lies there already."""

from __future__ import annotations

import enum
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mapper_core.errors import NotFound, NotSupported, UsageError
from mapper_driver.opennebula.framing import number_of

REMOTES = "/var/lib/one/remotes"
DATASTORES = "/var/lib/one/datastores"
SAMPLES = "/usr/share/mapper/samples"
OLDEST = (5, 12, 0)
#: A directory that sudoers(5) and systemd.service(5) take as it is written.
PLAIN = re.compile(r"(/[A-Za-z0-9._+-]+)+")

#: OpenNebula's own probes for LXD (5.12 to 6.8) say what ours say, and would say it a second time.
_REPLACED = (
    "im/lxd-probes.d/host/monitor/linux_usage.rb",
    *(
        f"im/lxd-probes.d/host/system/{name}"
        for name in ("architecture.sh", "cpu.sh", "linux_host.rb", "name.sh", "profiles.sh", "wild_vm.rb")
    ),
    "im/lxd-probes.d/vm/monitor/poll.rb",
    "im/lxd-probes.d/vm/status/state.rb",
)

#: What OpenNebula has for all hypervisors: our name of it, and where it is.
_COMMON = {
    "im/lxd.d/monitord-client.rb": "im/common.d/monitord-client.rb",
    "im/lxd.d/monitord-client_control.sh": "im/common.d/monitord-client_control.sh",
    "im/lxd-probes.d/host/beacon/date.sh": "im/common.d/date.sh",
    "im/lxd-probes.d/host/system/version.sh": "im/common.d/version.sh",
    "im/lxd-probes.d/host/system/monitor_ds.rb": "im/node-probes.d/monitor_ds.rb",
    "im/lxd-probes.d/host/system/numa_host.rb": "im/node-probes.d/numa_host.rb",
    "im/lxd-probes.d/host/system/pci.rb": "im/node-probes.d/pci.rb",
    "im/lxd-probes.d/host/monitor/numa_usage.rb": "im/node-probes.d/numa_usage.rb",
    "im/lxd-probes.d/vm/monitor/monitor_ds_vm.rb": "im/node-probes.d/monitor_ds_vm.rb",
}

#: The agent fails without a directory for each kind of probe; rsync takes empty ones along.
_EMPTY = ("im/lxd-probes.d/vm/snapshot", "im/lxd-probes.d/vm/execution")


class Part(enum.Enum):
    """For which machine."""

    ALL = "all"
    FRONTEND = "frontend"
    NODE = "node"


class Kind(enum.Enum):
    """What is put in place."""

    FILE = "file"  # nobody edits it: what is there is moved away
    CONFIG = "config"  # somebody may have edited it: what is there stays
    LINK = "link"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to be put in place.

    :param path: absolute, without the destination directory.
    :param content: of a file; of a link where it leads to.
    :param mode: permission bits.
    :param of_frontend: it belongs to whom the remotes belong, and not to root.
    """

    path: str
    kind: Kind
    content: bytes = b""
    mode: int = 0o644
    of_frontend: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it.

    :param items: directories before what is in them.
    :param away: files of OpenNebula that take part no more.
    :param version: of OpenNebula; empty when only the node is set up.
    """

    items: tuple[Item, ...]
    away: tuple[str, ...] = ()
    version: str = ""


def data_directory(name: str) -> str:
    """Where the files are that come with the driver: in the package, or beside it in a working tree."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for path in (f"{package}/{name}", os.path.normpath(f"{package}/../../{name}")):
        if os.path.isdir(path):
            return path
    raise NotFound("the driver was installed without its files", subject=name, hint="install mapper-driver again")


def detect(destdir: str, given: str) -> str:
    """OpenNebula's version: what was given, else what the remotes say; empty when there are none.

    :raises UsageError: it is none.
    :raises NotSupported: it is too old.
    """
    text = given
    if not text:
        try:
            with open(f"{destdir}{REMOTES}/VERSION", encoding="ascii", errors="replace") as file:
                text = file.read(64).strip()
        except FileNotFoundError:
            return ""
    number = number_of(text)
    if number is None:
        raise UsageError(f"{text!r} is not a version of OpenNebula", hint="such as --one-version 6.10.5")
    if number < OLDEST:
        raise NotSupported(f"OpenNebula {text} is too old, 5.12 is the oldest that works")
    return text


def make(part: Part, version: str, user: str, destdir: str, programs: str = "") -> Plan:
    """What to put in place.

    :param version: as :func:`detect` gives it; empty: nothing for a front-end.
    :param user: OpenNebula's.
    :param programs: directory of mapper-driver-root on the node; empty: where this interpreter's programs are.
    :raises UsageError: that has a name with which sudo would be given a file that it cannot read.
    """
    programs = programs or sysconfig.get_path("scripts")
    if part is not Part.FRONTEND and not PLAIN.fullmatch(programs):
        hint = "install Mapper into a directory of letters and digits, such as /opt/mapper"
        raise UsageError(
            "sudo and systemd cannot be told of programs in a directory of this name", subject=programs, hint=hint
        )
    words = {"BIN": programs, "USER": user, "DATASTORES": DATASTORES}
    items: list[Item] = []
    away: tuple[str, ...] = ()
    if part is not Part.NODE and version:
        items += _frontend(version, destdir)
        away = tuple(f"{REMOTES}/{name}" for name in _REPLACED)
    if part is not Part.FRONTEND:
        items += _node(words)
    return Plan(tuple(items), away, version)


def _frontend(version: str, destdir: str) -> Iterator[Item]:
    source = data_directory("remotes")
    for name in _files(source):
        kind = Kind.CONFIG if name.startswith("etc/") else Kind.FILE
        yield Item(f"{REMOTES}/{name}", kind, _read(f"{source}/{name}"), _mode(f"{source}/{name}"), of_frontend=True)
    for name in _EMPTY:
        yield Item(f"{REMOTES}/{name}", Kind.DIRECTORY, mode=0o755, of_frontend=True)
    for name, target in _COMMON.items():
        if os.path.exists(f"{destdir}{REMOTES}/{target}"):  # rsync of a link that leads nowhere would fail
            leads = os.path.relpath(target, os.path.dirname(name))
            yield Item(f"{REMOTES}/{name}", Kind.LINK, leads.encode(), of_frontend=True)
    number = number_of(version) or OLDEST
    words = {
        "LIVE_RESIZE": '\n    LIVE_RESIZE    = "yes",' if number >= (6, 0, 0) else "",
        "IMPORTED": "",
    }
    if number < (6, 99, 0):
        actions = (
            "terminate, terminate-hard, reboot, reboot-hard, poweroff, poweroff-hard, suspend, resume, stop, delete"
        )
        words["IMPORTED"] = f'\n    IMPORTED_VMS_ACTIONS = "{actions}"'
    samples = data_directory("samples")
    for name in _files(samples):
        content = filled(_read(f"{samples}/{name}"), words).replace(b",\n]", b"\n]")
        yield Item(f"{SAMPLES}/{name}", Kind.FILE, content)


def _node(words: Mapping[str, str]) -> Iterator[Item]:
    source = data_directory("node")
    for name in _files(source):
        mode = 0o440 if name.startswith("etc/sudoers.d/") else 0o644
        yield Item(f"/{name}", Kind.CONFIG, filled(_read(f"{source}/{name}"), words), mode)
    unit = "mapper-driver-boot.service"
    yield Item(f"/etc/systemd/system/multi-user.target.wants/{unit}", Kind.LINK, f"../{unit}".encode())


def filled(text: bytes, words: Mapping[str, str]) -> bytes:
    """A file with its ``@WORD@`` replaced."""
    for name, value in words.items():
        text = text.replace(f"@{name}@".encode(), value.encode())
    return text


def _files(directory: str) -> list[str]:
    return sorted(
        os.path.relpath(f"{place}/{name}", directory)
        for place, _, names in os.walk(directory)
        for name in names
        if not name.endswith((".pyc", "~"))
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _mode(path: str) -> int:
    with open(path, "rb") as file:  # a wheel does not keep the bits
        return 0o755 if file.read(2) == b"#!" else 0o644
