"""The actions of the core, on real images, as scenes for :mod:`tests.crash.killing`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mapper_core import capabilities, grow
from mapper_core.errors import AlreadyExists, Busy, MapperError, SnapshotMissing
from mapper_core.linux import mountinfo
from mapper_core.linux.filesystem_size import may_grow_ext4
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, IdMap, MapOptions
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from mapper_core.tree import mounted, record
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree
from mapper_core.tree.scratch import refill_tree, scratch_tree

USER = "cli"
OPTIONS = MapOptions()
TEXT = "this must survive\n" * 500


@dataclass
class Image:
    """An image of which each run gets a fresh copy.

    :param template: the original.
    :param partition: which has the filesystem with the file ``/kept``; 0: the whole disk.
    """

    template: Path
    kind: str
    partition: int = 0
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.template.with_name(f"disk.{self.kind}")

    @property
    def disk(self) -> Disk:
        return Disk(str(self.path), self.kind)

    def fresh(self) -> None:
        disks.run("cp", "--sparse=always", "--reflink=auto", str(self.template), str(self.path))

    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def check(self, partition: int | None = None, file: str = "/kept") -> None:
        """The image is sound, so is its filesystem, and the file has the content that it had."""
        partition = self.partition if partition is None else partition
        raw = self.path
        if self.kind != "raw":
            if self.kind == "qcow2":
                try:
                    disks.run("qemu-img", "check", "-q", "-f", self.kind, str(self.path))
                except RuntimeError as error:
                    # a qemu-img that is killed leaves clusters that nobody uses: room is lost, no content
                    if "ended with 3" not in str(error):
                        raise
            raw = self.path.with_suffix(".check")
            disks.run("qemu-img", "convert", "-f", self.kind, "-O", "raw", str(self.path), str(raw))
        offset = 0
        if partition:
            start = disks.run("partx", "-g", "-o", "START", "-n", str(partition), str(raw))
            offset = int(start) * 512
        where = f"{raw}?offset={offset}"
        disks.run("e2fsck", "-fn", where)
        assert disks.run("debugfs", "-R", f"cat {file}", where) == TEXT
        if raw != self.path:
            raw.unlink()


def bare(directory: Path, kind: str) -> Image:
    """A disk that is one ext4."""
    raw = disks.make_filesystem(directory / "bare", Part("ext4", 6, (), (("/kept", TEXT), ("/sbin/init", ""))))
    if kind == "raw":
        return Image(raw, kind)
    return Image(disks.convert(raw, kind, directory / f"bare.{kind}"), kind)


def table(directory: Path, kind: str, label: str = "gpt") -> Image:
    """A disk with a root, and /home as its last partition."""
    fstab = "/dev/sda1 / ext4 defaults 0 1\n/dev/sda2 /home ext4 defaults 0 2\n"
    files = (("/sbin/init", "#!/bin/sh\n"), ("/etc/fstab", fstab), ("/home/.keep", ""))
    parts = (Part("ext4", 4, (), files), Part("ext4", 6, (), (("/kept", TEXT),)))
    raw = disks.make_disk(directory / "table", parts, label=label)
    if kind == "raw":
        return Image(raw, kind, 2)
    return Image(disks.convert(raw, kind, directory / f"table.{kind}"), kind, 2)


def mapped_state(mapper: Mapper) -> object:
    """What the journal, the kernel and the image say, without names that change from run to run."""
    found = tuple(
        (item.disk.source, item.users, item.size, tuple(part.size for part in item.table.partitions))
        for item in mapper.mapped()
    )
    trees = tuple(
        (tree.directory, tree.complete, tuple(entry.target for entry in mountinfo.under(tree.directory)))
        for tree in mounted.records(mapper)
    )
    return found, trees


@dataclass
class Base:
    """What all have.

    :param image: of the action.
    """

    mapper: Mapper
    image: Image

    def state(self) -> object:
        return mapped_state(self.mapper)

    def half_done(self, before: object, after: object) -> tuple[object, ...]:
        return ()

    def mourn(self) -> None:
        """The programs that served the disk are dead, too: whoever needs them takes the disk back and maps it again."""

    def unmap(self) -> None:
        self.mapper.unmap(str(self.image.path), user=USER)

    def take_back(self) -> None:
        self.unmap()
        self.image.check()


class Map(Base):
    """Nothing is written: the image must be the same byte for byte."""

    def prepare(self) -> None:
        self.image.fresh()
        self.was = self.image.digest()

    def act(self) -> None:
        self.mapper.map(self.image.disk, OPTIONS, user=USER)

    def take_back(self) -> None:
        self.unmap()
        assert self.image.digest() == self.was


class Unmap(Map):
    def prepare(self) -> None:
        super().prepare()
        super().act()

    def act(self) -> None:
        self.unmap()


@dataclass
class Mount(Base):
    """With mapped owners, on a directory of the runtime directory, as the driver does it; or on one of the user's own."""

    directory: str
    idmap: IdMap | None = None

    def prepare(self) -> None:
        self.image.fresh()

    def act(self) -> None:
        tree = mounted.find(self.mapper, self.directory)
        if tree is None or not tree.complete:  # a tree that is there already is an error
            mount_tree(self.mapper, TreeRequest(self.image.disk, OPTIONS, self.directory, idmap=self.idmap))

    def take_back(self) -> None:
        unmount_tree(self.mapper, self.directory)
        self.image.check()


class Umount(Mount):
    """What was written into the tree is stored."""

    def prepare(self) -> None:
        super().prepare()
        super().act()
        owner = str(self.idmap.uid[0].host if self.idmap else 0)  # root of the host owns nothing in an idmapped mount
        write = 'printf "%s" "$1" > written && sync written'
        who = ("setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups")
        disks.run("env", f"--chdir={self.directory}", *who, "sh", "-c", write, "sh", TEXT)

    def take_back(self) -> None:
        Mount.act(self)
        unmount_tree(self.mapper, self.directory)  # by now its journal is replayed, if its daemon was killed
        self.image.check()
        self.image.check(1, "/written")

    def act(self) -> None:
        unmount_tree(self.mapper, self.directory)


@dataclass
class Create(Base):
    """A disk that is there and complete, or nothing, not even a file without a name that anybody would know."""

    def prepare(self) -> None:
        self.image.path.unlink(missing_ok=True)
        self.others = set(os.listdir(self.image.path.parent))

    def act(self) -> None:
        with suppress(AlreadyExists):
            capabilities.create(self.mapper, self.image.disk, 8 * MIB)

    def state(self) -> object:
        added = set(os.listdir(self.image.path.parent)) - self.others
        return added, capabilities.size_of(self.mapper, self.image.disk) if added else 0

    def take_back(self) -> None:
        image = self.image
        self.mapper.map(image.disk, OPTIONS, user=USER)
        self.unmap()
        image.path.unlink()


@dataclass
class InUse(Base):
    """An action on a disk that is mapped or mounted, or not."""

    is_mapped: bool = False
    directory: str = ""

    def hold(self) -> None:
        if self.is_mapped:
            self.mapper.map(self.image.disk, OPTIONS, user=USER)
        if self.directory:
            mount_tree(self.mapper, TreeRequest(self.image.disk, OPTIONS, self.directory))

    def let_go(self) -> None:
        if self.directory:
            unmount_tree(self.mapper, self.directory)
        self.unmap()

    def mourn(self) -> None:
        if self.image.kind != "raw" and (self.is_mapped or self.directory):
            with suppress(MapperError):  # refused, in words of ours
                self.act()
            self.let_go()
            self.hold()

    def act(self) -> None:
        raise NotImplementedError

    def take_back(self) -> None:
        self.let_go()
        self.image.check()


class Resize(InUse):
    """The image grows, and the device with it when it is mapped."""

    def prepare(self) -> None:
        self.image.fresh()
        self.hold()

    def act(self) -> None:
        capabilities.resize(self.mapper, self.image.disk, 24 * MIB)

    def state(self) -> object:
        return super().state(), capabilities.size_of(self.mapper, self.image.disk)


@dataclass
class Grow(Base):
    """A partition and its filesystem take the room that there is. The disk is mapped for it, or is mapped already."""

    is_mapped: bool

    def prepare(self) -> None:
        self.image.fresh()
        capabilities.resize(self.mapper, self.image.disk, 24 * MIB)
        if self.is_mapped:
            self.mapper.map(self.image.disk, OPTIONS, user=USER)

    def act(self) -> None:
        grow.grow(self.mapper, self.image.disk, 2)

    def mourn(self) -> None:
        """Where the kernel lets us not, resize2fs has enlarged the filesystem, and that is not made to be killed: a person has to
        let e2fsck repair it, as the error says, and the content is still there.
        """
        if may_grow_ext4():
            return
        for loop in disks.run("losetup", "--noheadings", "--output", "NAME", "-j", str(self.image.path)).split():
            device = f"{loop}p2"
            if os.path.exists(device) and subprocess.run(("e2fsck", "-fn", device), capture_output=True).returncode:
                subprocess.run(("e2fsck", "-fy", device), capture_output=True)

    def state(self) -> object:
        table = json.loads(disks.run("sfdisk", "--json", str(self.image.path)))["partitiontable"]
        start, size = (table["partitions"][1][name] for name in ("start", "size"))
        superblock = self.image.path.read_bytes()[start * 512 + 1024 :]
        return self.users(), size, int.from_bytes(superblock[4:8], "little")

    def users(self) -> tuple[str, ...]:
        return tuple(user for item in self.mapper.mapped() for user in item.users)

    def half_done(self, before: object, after: object) -> tuple[object, ...]:
        """The partition has its new size, the filesystem in it not yet; nobody can see that but who looks for it."""
        assert isinstance(before, tuple) and isinstance(after, tuple)
        return ((before[0], after[1], before[2]),)


@dataclass
class Scratch(Base):
    """Files of an ISO that the kernel cannot mount, shown as a tree."""

    def prepare(self) -> None:
        pass

    @property
    def directory(self) -> str:
        return f"{self.mapper.runtime.mounts}/files"

    def act(self) -> None:
        tree = mounted.find(self.mapper, self.directory)
        if tree is None or not tree.complete:
            scratch_tree(self.mapper, "files", owner=USER, size=MIB, uid=0, gid=0, fill=write_files("old"))

    def state(self) -> object:
        path = Path(self.directory, "file")
        return super().state(), path.read_text() if path.exists() else ""

    def take_back(self) -> None:
        unmount_tree(self.mapper, self.directory, owner=USER)


class Refill(Scratch):
    """They are replaced; who looks sees the old ones or the new ones."""

    def prepare(self) -> None:
        super().act()

    def act(self) -> None:
        refill_tree(self.mapper, "files", owner=USER, size=MIB, fill=write_files("new"))


def write_files(text: str) -> Callable[[int], None]:
    def write(directory: int) -> None:
        fd = os.open("file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=directory)
        os.write(fd, text.encode())
        os.close(fd)

    return write


class Snapshot(InUse):
    """Of a disk that is mapped, or not; or mounted, with its filesystem frozen meanwhile."""

    def prepare(self) -> None:
        self.image.fresh()
        capabilities.snapshot_create(self.mapper, self.image.disk, "first")
        self.hold()

    def act(self) -> None:
        with suppress(AlreadyExists):
            capabilities.snapshot_create(self.mapper, self.image.disk, "second")

    def state(self) -> object:
        names = [item.name for item in capabilities.snapshots(self.mapper, self.image.disk)]
        return super().state(), names, [record.snapshot for record in self.mapper.journal.records()]

    def take_back(self) -> None:
        if self.directory:
            path = Path(self.directory, "not-frozen")
            path.write_text("")
            path.unlink()
        super().take_back()


class SnapshotDelete(Snapshot):
    def act(self) -> None:
        with suppress(SnapshotMissing):
            capabilities.snapshot_delete(self.mapper, self.image.disk, "first")


class SnapshotRevert(Snapshot):
    """To a disk that was smaller, so that it shows."""

    def prepare(self) -> None:
        super().prepare()
        capabilities.resize(self.mapper, self.image.disk, 24 * MIB)

    def act(self) -> None:
        capabilities.snapshot_revert(self.mapper, self.image.disk, "first")

    def state(self) -> object:
        return super().state(), capabilities.size_of(self.mapper, self.image.disk)


@dataclass
class Reconcile(Base):
    """After a crash comes another one: a disk of a dead process, a tree whose maker was killed, half of a mapping."""

    def prepare(self) -> None:
        self.image.fresh()
        directory = f"{self.mapper.runtime.mounts}/half"
        mount_tree(self.mapper, TreeRequest(self.image.disk, OPTIONS, directory))
        tree = mounted.find(self.mapper, directory)
        assert tree is not None
        record.write(self.mapper.runtime.trees, dataclasses.replace(tree, complete=False))
        self.mapper.map(self.image.disk, OPTIONS, user=f"pid:{_dead_process()}")

    def act(self) -> None:
        if problems := reconcile(self.mapper).problems:
            raise Busy(str(problems))

    def take_back(self) -> None:
        self.image.check()


def _dead_process() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid
