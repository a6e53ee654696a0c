#!/usr/bin/python3
"""Builds disk images for the demo and the tests: small, real, and without mounting anything.

    labs/image demo DIR [--format qcow2|raw|vmdk] [--seed TEXT]

writes into DIR: ``system.FORMAT`` (GPT with ESP, /boot, root, /home and swap; a Busybox system with a working init),
``data.raw`` (one ext4 filesystem, no partition table) and ``context.iso``, and prints what is in them as JSON.

Everything is derived from the seed, UUIDs included. Needs e2fsprogs, fdisk, dosfstools, util-linux, qemu-utils, genisoimage
and busybox-static. Owners of files other than root need root.

Only the standard library of /usr/bin/python3 (3.11) is used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

MIB = 1 << 20
SECTOR = 512

#: Partition types of the Discoverable Partitions Specification (UAPI group), and the generic one.
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
ROOT_X86_64 = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
HOME = "933ac7e1-2eb4-4f13-b844-0e14e2aef915"
SWAP = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"

#: Commands of Busybox that the system has links to.
APPLETS = """
[ ash awk base64 basename cat chmod chown clear cp cut date dd df dirname dmesg du echo egrep env expr false find free
getty grep head hostname id ifconfig ip kill ln logger ls mkdir mknod mktemp more mount mv nc ping ps pwd readlink rm
rmdir route sed seq sh sleep sort stat stty sync tail tar tee test time top touch tr true tty udhcpc umount uname uniq
uptime vi wc wget which who xargs yes
"""
SBIN_APPLETS = ("halt", "poweroff", "reboot")

# Busybox's init waits two seconds before it ends, for processes that nobody has here; this one does not.
INIT = """\
#!/bin/sh
finish() {
    /etc/init.d/rcK
    exec /bin/busybox "$1" -f
}
trap 'finish poweroff' PWR USR2
trap 'finish halt' USR1
trap 'finish reboot' TERM INT
/etc/init.d/rcS
while :; do
    sleep 100000 &
    wait
done
"""

# LXC mounts proc, sys and dev; a virtual machine would not.
RC_START = """\
#!/bin/sh
[ -e /proc/self ] || mount -t proc proc /proc
[ -s /etc/hostname ] && hostname -F /etc/hostname 2>/dev/null
ip link set lo up 2>/dev/null
echo "boot $(cat /proc/sys/kernel/random/uuid)" >>/var/log/boots
sync -f /var/log/boots  # not all filesystems: those of the host are none of its business
"""

RC_STOP = """\
#!/bin/sh
echo "shutdown" >>/var/log/boots
sync -f /var/log/boots
"""


@dataclass(frozen=True)
class PartitionSpec:
    """One partition of a system image.

    :param mount: mount point; ``swap`` for swap space, empty for none.
    :param filesystem: ``ext4``, ``vfat`` or ``swap``.
    :param tag: how fstab names it: ``UUID``, ``LABEL``, ``PARTUUID``, ``PARTLABEL`` or ``DEVICE``.
    :param size: bytes.
    """

    name: str
    type: str
    filesystem: str
    mount: str
    tag: str
    size: int


FULL = (
    PartitionSpec("esp", ESP, "vfat", "/boot/efi", "UUID", 8 * MIB),
    PartitionSpec("boot", XBOOTLDR, "ext4", "/boot", "PARTUUID", 16 * MIB),
    PartitionSpec("root", ROOT_X86_64, "ext4", "/", "UUID", 64 * MIB),
    PartitionSpec("home", HOME, "ext4", "/home", "LABEL", 32 * MIB),
    PartitionSpec("swap", SWAP, "swap", "swap", "UUID", 8 * MIB),
)


@dataclass(frozen=True)
class PartitionInfo:
    """A partition as it was built. Sizes and offsets are bytes."""

    number: int
    name: str
    filesystem: str
    mount: str
    start: int
    size: int
    uuid: str
    label: str
    partuuid: str


@dataclass(frozen=True)
class ImageInfo:
    """An image as it was built.

    :param partitions: empty for an image that is one filesystem.
    :param uuid: of the filesystem of such an image, else of the partition table.
    """

    path: str
    format: str
    size: int
    uuid: str
    label: str = ""
    fstab: str = ""
    partitions: tuple[PartitionInfo, ...] = field(default=())


class BuildError(Exception):
    """Is raised when a tool is missing or fails."""


def run(*argv: str, text: str = "") -> None:
    """Run a tool; its error output becomes the exception."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
    except FileNotFoundError as error:
        raise BuildError(f"{argv[0]} is not installed") from error
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(argv)}: {done.stderr.strip() or done.returncode}")


def _uuids(seed: str) -> Iterator[str]:
    source = random.Random(seed)  # reproducible on purpose
    while True:
        yield str(uuid.UUID(int=source.getrandbits(128), version=4))


# --- the system ---------------------------------------------------------------------------------------


def _write(path: str, text: str, mode: int = 0o644, owner: int = 0) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    if os.geteuid() == 0:
        os.chown(path, owner, owner)
    os.chmod(path, mode)


def write_system(root: str, *, hostname: str = "mapper", fstab: str = "") -> None:
    """Write the files of a small system below an empty directory. Its init ends on SIGPWR, and ``reboot -f`` works."""
    for name in (
        "bin",
        "sbin",
        "dev",
        "etc",
        "home",
        "boot",
        "mnt",
        "proc",
        "root",
        "run",
        "sys",
        "usr/bin",
        "var/log",
    ):
        os.makedirs(f"{root}/{name}", mode=0o755, exist_ok=True)
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)  # after the fact: mkdir(2) is subject to the umask
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if busybox is None:
        raise BuildError("busybox is not installed (Debian: busybox-static)")
    shutil.copy(busybox, f"{root}/bin/busybox")
    os.chmod(f"{root}/bin/busybox", 0o755)
    for name in APPLETS.split():
        os.symlink("busybox", f"{root}/bin/{name}")
    for name in SBIN_APPLETS:
        os.symlink("../bin/busybox", f"{root}/sbin/{name}")
    _write(f"{root}/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n")
    _write(f"{root}/etc/group", "root:x:0:\nuser:x:1000:\n")
    _write(f"{root}/etc/shadow", "root::19000:0:99999:7:::\n", 0o600)
    _write(f"{root}/etc/os-release", 'NAME="Mapper demo"\nID=mapper-demo\nVERSION_ID=1\n')
    _write(f"{root}/etc/hostname", f"{hostname}\n")
    _write(f"{root}/etc/fstab", fstab)
    _write(f"{root}/sbin/init", INIT, 0o755)
    _write(f"{root}/etc/init.d/rcS", RC_START, 0o755)
    _write(f"{root}/etc/init.d/rcK", RC_STOP, 0o755)
    shutil.copy(busybox, f"{root}/usr/bin/su")
    os.chmod(f"{root}/usr/bin/su", 0o4755)  # set-user-ID: works for a user only where the mount is not nosuid


def _contents(name: str, directory: str, fstab: str) -> None:
    """Files of one partition."""
    if name == "root":
        write_system(directory, fstab=fstab)
    elif name == "boot":
        os.makedirs(f"{directory}/efi")
        _write(f"{directory}/config", "# a kernel would be here\n")
    elif name == "home":
        _write(f"{directory}/user/hello.txt", "hello from /home\n", owner=1000)
        if os.geteuid() == 0:
            os.chown(f"{directory}/user", 1000, 1000)
    else:
        _write(f"{directory}/{name}.txt", f"{name}\n")


# --- filesystems --------------------------------------------------------------------------------------


def make_ext4(path: str, size: int, *, offset: int = 0, tree: str = "", uuid_: str = "", label: str = "") -> None:
    """Make an ext4 filesystem inside of a file, filled from a directory."""
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-m", "0"]
    extended = ["root_owner=0:0", "lazy_itable_init=1", "hash_seed=" + (uuid_ or str(uuid.uuid4()))]
    if offset:
        extended.append(f"offset={offset}")
    argv += ["-E", ",".join(extended)]
    argv += ["-d", tree] if tree else []
    argv += ["-U", uuid_] if uuid_ else []
    argv += ["-L", label] if label else []
    run(*argv, path, f"{size // 1024}k")


def make_vfat(path: str, size: int, *, offset: int, volume_id: str, label: str) -> None:
    """Make a FAT filesystem at an offset of a file."""
    argv = ("mkfs.vfat", "-i", volume_id, "-n", label.upper(), "-h", str(offset // SECTOR))
    run(*argv, "--offset", str(offset // SECTOR), path, str(size // 1024))


def make_swap(path: str, size: int, *, offset: int, uuid_: str, label: str) -> None:
    """Make a swap area at an offset of a file. Everything in it is in its first page, see mkswap(8)."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path)) as area, open(path, "r+b") as disk:
        area.truncate(size)
        run("mkswap", "-q", "-U", uuid_, "-L", label, "-p", "4096", area.name)
        disk.seek(offset)
        disk.write(area.read(4096))


# --- images -------------------------------------------------------------------------------------------


def _fstab(partitions: tuple[PartitionInfo, ...], specs: tuple[PartitionSpec, ...]) -> str:
    lines = ["# <file system> <mount point> <type> <options> <dump> <pass>", "proc /proc proc defaults 0 0"]
    for partition, spec in zip(partitions, specs, strict=True):
        if not spec.mount:
            continue
        names = {
            "UUID": f"UUID={partition.uuid}",
            "LABEL": f"LABEL={partition.label}",
            "PARTUUID": f"PARTUUID={partition.partuuid}",
            "PARTLABEL": f"PARTLABEL={partition.name}",
            "DEVICE": f"/dev/sda{partition.number}",
        }
        target = "none" if spec.mount == "swap" else spec.mount
        options = {"swap": "sw", "vfat": "umask=0077"}.get(spec.filesystem, "defaults,noatime")
        check = "1" if spec.mount == "/" else "2"
        lines.append(f"{names[spec.tag]} {target} {spec.filesystem} {options} 0 {check}")
    lines.append("tmpfs /tmp tmpfs defaults 0 0")
    return "\n".join(lines) + "\n"


def _lay_out(specs: tuple[PartitionSpec, ...], ids: Iterator[str]) -> tuple[PartitionInfo, ...]:
    found, start = [], MIB
    for number, spec in enumerate(specs, 1):
        partuuid, filesystem_uuid = next(ids), next(ids)
        if spec.filesystem == "vfat":
            filesystem_uuid = filesystem_uuid[:4].upper() + "-" + filesystem_uuid[4:8].upper()
        info = PartitionInfo(
            number, spec.name, spec.filesystem, spec.mount, start, spec.size, filesystem_uuid, spec.name, partuuid
        )
        found.append(info)
        start += spec.size
    return tuple(found)


def build_system(
    path: str, *, format_: str = "qcow2", seed: str = "demo", specs: tuple[PartitionSpec, ...] = FULL, options: str = ""
) -> ImageInfo:
    """Build a partitioned system image.

    :param path: file to write; an old one is replaced.
    :param format_: anything ``qemu-img convert`` can write.
    :param options: its ``-o``, such as ``subformat=streamOptimized``.
    """
    ids = _uuids(seed)
    table_uuid = next(ids)
    partitions = _lay_out(specs, ids)
    fstab = _fstab(partitions, specs)
    size = partitions[-1].start + partitions[-1].size + MIB
    with _scratch(path) as scratch:
        raw = f"{scratch}/disk.raw"
        with open(raw, "wb") as file:
            file.truncate(size)
        lines = [f"label: gpt\nlabel-id: {table_uuid}\nfirst-lba: 34"]
        for partition, spec in zip(partitions, specs, strict=True):
            begin, length = partition.start // SECTOR, partition.size // SECTOR
            lines.append(f"start={begin}, size={length}, type={spec.type}, uuid={partition.partuuid}, name={spec.name}")
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", raw, text="\n".join(lines) + "\n")
        for partition in partitions:
            if partition.filesystem == "ext4":
                tree = f"{scratch}/{partition.name}"
                os.mkdir(tree)
                _contents(partition.name, tree, fstab)
                make_ext4(
                    raw, partition.size, offset=partition.start, tree=tree, uuid_=partition.uuid, label=partition.label
                )
            elif partition.filesystem == "vfat":
                volume = partition.uuid.replace("-", "")
                make_vfat(raw, partition.size, offset=partition.start, volume_id=volume, label=partition.label)
            elif partition.filesystem == "swap":
                make_swap(raw, partition.size, offset=partition.start, uuid_=partition.uuid, label=partition.label)
            else:
                raise BuildError(f"cannot make a filesystem of type {partition.filesystem}")
        _finish(raw, path, format_, options)
    return ImageInfo(path, format_, size, table_uuid, fstab=fstab, partitions=partitions)


def build_bare(path: str, *, format_: str = "raw", seed: str = "bare", size: int = 48 * MIB) -> ImageInfo:
    """Build a system that is one ext4 filesystem, without a partition table."""
    filesystem = next(_uuids(seed))
    fstab = f"UUID={filesystem} / ext4 defaults 0 1\n"
    with _scratch(path) as scratch:
        raw, tree = f"{scratch}/disk.raw", f"{scratch}/tree"
        os.mkdir(tree)
        write_system(tree, fstab=fstab)
        make_ext4(raw, size, tree=tree, uuid_=filesystem, label="system")
        _finish(raw, path, format_, "")
    return ImageInfo(path, format_, size, filesystem, label="system", fstab=fstab)


def build_data(
    path: str, *, format_: str = "raw", seed: str = "data", size: int = 32 * MIB, files: Mapping[str, str] | None = None
) -> ImageInfo:
    """Build a data disk: one ext4 filesystem."""
    filesystem = next(_uuids(seed))
    with _scratch(path) as scratch:
        raw, tree = f"{scratch}/disk.raw", f"{scratch}/tree"
        os.mkdir(tree)
        for name, text in (files or {"data.txt": "hello from the data disk\n"}).items():
            _write(f"{tree}/{name}", text)
        make_ext4(raw, size, tree=tree, uuid_=filesystem, label="data")
        _finish(raw, path, format_, "")
    return ImageInfo(path, format_, size, filesystem, label="data")


def build_context(path: str, variables: Mapping[str, str] | None = None) -> ImageInfo:
    """Build a context ISO as OpenNebula does: label CONTEXT, Joliet and Rock Ridge, a ``context.sh`` to be sourced."""
    values = variables or {"HOSTNAME": "mapper-demo", "NETWORK": "YES", "START_SCRIPT": "echo 'it runs'"}
    quoted = {name: value.replace("'", "'\\''") for name, value in values.items()}
    lines = ["# Context variables generated by OpenNebula", *(f"{name}='{value}'" for name, value in quoted.items())]
    with _scratch(path) as scratch:
        tree, iso = f"{scratch}/tree", f"{scratch}/context.iso"
        os.mkdir(tree)
        _write(f"{tree}/context.sh", "\n".join(lines) + "\n")
        run("genisoimage", "-quiet", "-o", iso, "-V", "CONTEXT", "-J", "-R", tree)
        os.replace(iso, path)
    return ImageInfo(path, "raw", os.path.getsize(path), "", label="CONTEXT")


def _finish(raw: str, path: str, format_: str, options: str) -> None:
    if format_ != "raw":
        converted = f"{raw}.{format_}"
        run("qemu-img", "convert", "-f", "raw", "-O", format_, *(["-o", options] if options else []), raw, converted)
        raw = converted
    os.replace(raw, path)


@contextlib.contextmanager
def _scratch(path: str) -> Iterator[str]:
    """A directory beside the result, so that the last step is a rename."""
    with tempfile.TemporaryDirectory(prefix=".image-", dir=os.path.dirname(os.path.abspath(path))) as directory:
        yield directory


def demo(directory: str, *, format_: str = "qcow2", seed: str = "demo") -> dict[str, ImageInfo]:
    """Build the three images of the demo."""
    os.makedirs(directory, exist_ok=True)
    return {
        "system": build_system(f"{directory}/system.{format_}", format_=format_, seed=seed),
        "data": build_data(f"{directory}/data.raw", seed=f"{seed}-data"),
        "context": build_context(f"{directory}/context.iso"),
    }


def main() -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "system", "bare", "data", "context"))
    parser.add_argument("path", metavar="DIR|FILE", help="demo: a directory; else the file to write")
    parser.add_argument("--format", default="", help="default: qcow2 for systems, raw for the others")
    parser.add_argument("--options", default="", help="system: -o of qemu-img convert")
    parser.add_argument("--seed", default="demo")
    chosen = parser.parse_args()
    built: dict[str, ImageInfo]
    try:
        if chosen.what == "demo":
            built = demo(chosen.path, format_=chosen.format or "qcow2", seed=chosen.seed)
        elif chosen.what == "system":
            image = build_system(
                chosen.path, format_=chosen.format or "qcow2", seed=chosen.seed, options=chosen.options
            )
            built = {"system": image}
        elif chosen.what == "bare":
            built = {"bare": build_bare(chosen.path, format_=chosen.format or "raw", seed=chosen.seed)}
        elif chosen.what == "data":
            built = {"data": build_data(chosen.path, format_=chosen.format or "raw", seed=chosen.seed)}
        else:
            built = {"context": build_context(chosen.path)}
    except (BuildError, OSError) as error:
        print(f"labs/image: {error}", file=sys.stderr)
        return 1
    json.dump({name: asdict(image) for name, image in built.items()}, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
