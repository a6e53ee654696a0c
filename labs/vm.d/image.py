"""Builds what the virtual machine starts from: Debian's kernel, a small initramfs and a root disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass

import bootstrap
from common import LabError, run

HERE = os.path.dirname(os.path.abspath(__file__))
SUITE = "bookworm"
SPARE_MIB = 3072  # free space on the root disk; what is written in a run goes to a temporary file instead
#: What decides about the content of an image.
INPUTS = ("packages.txt", "add-kernel", "initramfs-init", "image.py")
#: Without these the initramfs cannot reach the root disk; ext4 is built into the kernel.
DISK_MODULES = ("virtio_pci", "virtio_blk")
NEEDS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "cpio": "cpio",
    "modprobe": "kmod",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
}


@dataclass(frozen=True)
class Image:
    """A built machine.

    :param directory: in which its files are.
    """

    directory: str

    @property
    def kernel(self) -> str:
        """Debian's kernel."""
        return f"{self.directory}/kernel"

    @property
    def initramfs(self) -> str:
        """Loads the modules for the root disk."""
        return f"{self.directory}/initramfs"

    @property
    def root(self) -> str:
        """Root disk, one ext4; never written."""
        return f"{self.directory}/root.img"

    @property
    def is_built(self) -> bool:
        """Whether it is there; it appears in one step, when all of it is."""
        return os.path.isdir(self.directory)

    @property
    def allocated(self) -> int:
        """Bytes it takes on the disk."""
        return sum(os.stat(path).st_blocks * 512 for path in (self.kernel, self.initramfs, self.root))


def require_programs() -> None:
    """Say at once all that is missing.

    :raises LabError: with the command that installs it.
    """
    missing = sorted({package for program, package in NEEDS.items() if shutil.which(program) is None})
    if missing:
        raise LabError(f"this host lacks programs: apt-get install --no-install-recommends {' '.join(missing)}")
    if os.geteuid() != 0:
        raise LabError("the virtual machine is built as root")


def image_in(cache: str) -> Image:
    """The image that belongs to the present inputs, built or not."""
    content = hashlib.sha256(f"{SUITE} {os.uname().machine}".encode())
    for name in INPUTS:
        with open(f"{HERE}/{name}", "rb") as file:
            content.update(file.read())
    return Image(f"{cache}/image-{content.hexdigest()[:16]}")


def build(cache: str) -> Image:
    """Build the image unless it is there; remove those of other inputs.

    :raises LabError: something is missing or failed.
    """
    image = image_in(cache)
    if image.is_built:
        return image
    require_programs()
    with bootstrap.workplace(cache, "build-") as directory:
        _make_root(directory)
        tree = f"{directory}/root"
        _make_initramfs(directory, tree)
        [kernel] = [name for name in os.listdir(f"{tree}/boot") if name.startswith("vmlinuz-")]
        os.rename(f"{tree}/boot/{kernel}", f"{directory}/kernel")
        _make_disk(tree, f"{directory}/root.img")
        for name in ("root", "initramfs.d"):
            shutil.rmtree(f"{directory}/{name}")
        for name in os.listdir(cache):
            if name.startswith("image-"):
                shutil.rmtree(f"{cache}/{name}")
        os.chmod(directory, 0o755)
        os.rename(directory, image.directory)
    return image


def in_use(cache: str) -> list[str]:
    """Work directories of commands that are running."""
    return [path for path in _workplaces(cache) if not bootstrap.is_free(path)]


def remove_abandoned(cache: str) -> None:
    """Remove the work directories of commands that were killed."""
    for path in _workplaces(cache):
        if bootstrap.is_free(path):
            shutil.rmtree(path, ignore_errors=True)


def _workplaces(cache: str) -> list[str]:
    return [*bootstrap.workplaces(cache, "build-"), *bootstrap.workplaces(cache, "run-")]


def packages() -> list[str]:
    """Names from packages.txt."""
    with open(f"{HERE}/packages.txt", encoding="utf-8") as file:
        names = (line.partition("#")[0].strip() for line in file)
        return [name for name in names if name]


def _make_root(directory: str) -> None:
    """Unpack and configure the packages."""
    options = ["--variant=minbase", f"--customize-hook={HERE}/add-kernel"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    bootstrap.bootstrap(f"{directory}/root", SUITE, packages(), f"{directory}/log", *options)


def _make_initramfs(directory: str, tree: str) -> None:
    [version] = os.listdir(f"{tree}/lib/modules")
    top = f"{directory}/initramfs.d"
    for name in ("bin", "modules", "dev", "root"):
        os.makedirs(f"{top}/{name}")
    shutil.copy(f"{tree}/bin/busybox", f"{top}/bin/busybox")
    shutil.copy(f"{HERE}/initramfs-init", f"{top}/init")
    argv = ["modprobe", "--dirname", tree, "--set-version", version, "--show-depends"]
    wanted: list[str] = []
    for module in DISK_MODULES:
        shown = subprocess.run([*argv, module], capture_output=True, text=True, timeout=60, check=True).stdout
        wanted += [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]
    for number, path in enumerate(dict.fromkeys(wanted)):
        shutil.copy(path, f"{top}/modules/{number:02}-{os.path.basename(path)}")
    names = "\n".join(os.path.relpath(os.path.join(at, name), top) for at, ds, fs in os.walk(top) for name in ds + fs)
    with open(f"{directory}/initramfs", "wb") as file:
        subprocess.run(
            ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"],
            input=names.encode(), stdout=file, cwd=top, timeout=60, check=True,
        )  # fmt: skip


def _make_disk(tree: str, path: str) -> None:
    """Make the root disk without mounting anything."""
    for name in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(f"{tree}/{name}")
    used = sum(os.lstat(os.path.join(at, name)).st_blocks for at, _, names in os.walk(tree) for name in names) * 512
    with open(path, "wb") as file:
        file.truncate((used * 11 // 10 >> 20 << 20) + (SPARE_MIB << 20))
    run("nice", "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", tree, path, seconds=300)
