"""The commands of ``mapper-cli``, one table: the parser, completion and the tests read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core.cli import arguments

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


class Command:
    """One command of mapper-cli.

    :param handler: ``module:function`` below ``mapper_core.cli``.
    :param summary: one line for the list of commands.
    :param examples: pairs of a command line (without the program) and what it does.
    :param add: adds the arguments.
    """

    __slots__ = ("add", "description", "examples", "handler", "summary")

    def __init__(
        self,
        handler: str,
        summary: str,
        description: str,
        examples: tuple[tuple[str, str], ...],
        add: Callable[[argparse.ArgumentParser], None],
    ) -> None:
        self.handler = handler
        self.summary = summary
        self.description = description
        self.examples = examples
        self.add = add


COMMANDS: dict[str, Command] = {
    "map": Command(
        "disks:map_image",
        "load an image into a block device",
        "Loads a disk image into a block device, with its partitions, and prints the device node.\n"
        "Mapping the same image again prints the same device.",
        (
            ("map disk.qcow2 -f qcow2", "prints /dev/nbd0 or /dev/loop0"),
            ("map data.raw -f raw -r", "read-only"),
            ("map vm.vmdk -f vmdk --transport storage_daemon", "do not use nbd, even where the kernel has it"),
            ("map clone.qcow2 -f qcow2 --allow-dir /srv/base", "its backing file lies in /srv/base"),
        ),
        arguments.for_map,
    ),
    "unmap": Command(
        "disks:unmap",
        "revert map",
        "Releases what map made. What is not mapped is a success, so it can be repeated.\n"
        "Nothing is changed when a device is still mounted or held by somebody else.",
        (
            ("unmap disk.qcow2", "by image"),
            ("unmap /dev/loop0 /dev/nbd3", "by device; several at once"),
        ),
        arguments.for_unmap,
    ),
    "ls": Command(
        "disks:ls",
        "list mapped disks and mounted trees",
        "Lists what is mapped and mounted now; nothing when there is nothing.",
        (("ls", "a table"), ("ls --json | jq -r '.disks[].device'", "the devices, for a script")),
        arguments.add_json,
    ),
    "partitions": Command(
        "disks:partitions",
        "list the partitions of an image or device",
        "Lists partitions and filesystems. A raw file or a device is only read, without root and without mapping;\n"
        "an image of another format is mapped read-only for the moment.",
        (("partitions disk.raw -f raw", "a file"), ("partitions /dev/loop0", "a device")),
        arguments.for_partitions,
    ),
    "inspect": Command(
        "disks:inspect",
        "show the header of an image",
        "Shows format, sizes and the files an image refers to, from its header only.\n"
        "No other program opens the image. Needs no root.",
        (("inspect disk.qcow2 -f qcow2", "size and backing chain"),),
        arguments.for_inspect,
    ),
    "plan": Command(
        "trees:plan",
        "show what mount would mount where",
        "Shows which filesystem of the image would be mounted where by its own /etc/fstab, and what would be\n"
        "left out and why. The image is mapped read-only for the moment.",
        (("plan disk.qcow2 -f qcow2", "a table"), ("plan two-systems.raw -f raw --root 3", "partition 3 is the root")),
        arguments.for_plan,
    ),
    "mount": Command(
        "trees:mount",
        "mount all filesystems of an image as one tree",
        "Maps an image and mounts its filesystems below a directory, as its /etc/fstab says.",
        (
            ("mount disk.qcow2 /mnt -f qcow2", "the whole system, writable"),
            ("mount disk.raw /mnt -f raw -r", "only look at it"),
            ("mount disk.raw /mnt -f raw --idmap 100000:65536", "for an unprivileged container"),
        ),
        arguments.for_mount,
    ),
    "umount": Command(
        "trees:umount",
        "revert mount",
        "Unmounts a tree and releases its disk. What is not mounted is a success.",
        (("umount /mnt", "the directory that was given to mount"),),
        arguments.for_umount,
    ),
    "create": Command(
        "capacity:create",
        "make a new, empty disk",
        "Makes an image that reads as zeros and takes no room until it is written. Nothing is ever overwritten.",
        (("create disk.qcow2 10G -f qcow2", "a new image"), ("create data.raw 512M -f raw", "a sparse file")),
        arguments.for_create,
    ),
    "image": Command(
        "image:run",
        "make an image from another one, or with a system in it",
        "convert copies a disk to a new one of any format whose plugin can make disks. build makes a new disk with one filesystem\n"
        "on it, unpacks a system there, and adds what applies OpenNebula's context at each start.",
        (
            ("image convert win.vmdk win.qcow2 -f vmdk -O qcow2", "another format"),
            (
                "image build web.qcow2 -O qcow2 --size 4G --suite bookworm --package openssh-server",
                "from Debian's packages",
            ),
            (
                "image build web.qcow2 -O qcow2 --size 4G --from-tar -",
                "from a container: lxc exec web -- tar -C / --one-file-system -c . | ...",
            ),
        ),
        arguments.for_image,
    ),
    "resize": Command(
        "capacity:resize",
        "make a disk larger, also while it is in use",
        "Makes a disk larger: the image and, when it is mapped, its device. Never smaller.\n"
        "With --grow a partition and the filesystem in it (ext2/3/4, xfs, btrfs) grow too, mounted or not.",
        (
            ("resize disk.qcow2 20G -f qcow2", "the image, and its device"),
            ("resize disk.qcow2 +5G -f qcow2 --grow", "and the root filesystem"),
            ("resize disk.raw +1G -f raw --grow --partition 4", "and the filesystem of partition 4"),
        ),
        arguments.for_resize,
    ),
    "snapshot": Command(
        "snapshots:snapshot",
        "list, create, revert or delete snapshots of a disk",
        "Keeps states of a disk and brings them back. Of a disk that is in use the filesystems stand still for the moment.\n"
        "What was written since a snapshot is lost by revert, for which the disk must not be mapped.",
        (
            ("snapshot create disk.qcow2 before -f qcow2", "keep the present state"),
            ("snapshot list disk.qcow2 -f qcow2", "a table"),
            ("snapshot revert disk.qcow2 before -f qcow2", "throw away what was written since"),
        ),
        arguments.for_snapshot,
    ),
    "plugins": Command(
        "host:plugins",
        "list installed format plugins",
        "Lists the installed plugins, and why a broken one cannot be used.",
        (("plugins", "a table"), ("plugins --json", "for a script")),
        arguments.add_json,
    ),
    "plugin": Command(
        "plugin:plugin",
        "begin a plugin for a new format",
        "Writes a project for a format plugin: package, tests, README and CI. One function is left to be written, which\n"
        "reads the format's header. Nothing is ever overwritten.",
        (
            ("plugin new vhdx", "makes mapper-vhdx in the current directory"),
            ("plugin new vhdx /src/vhdx", "makes the directory /src/vhdx"),
        ),
        arguments.for_plugin,
    ),
    "doctor": Command(
        "host:doctor",
        "examine this host",
        "Examines what this host can do and whether something was left behind. It only looks, it changes nothing.\n"
        "Exit status 0 when no check has failed, else 1.",
        (("doctor", "a report"), ("doctor --json", "for monitoring")),
        arguments.add_json,
    ),
    "break-lock": Command(
        "takeover:break_lock",
        "take a disk away from a host that is dead",
        "Takes a disk of a cluster away from the host that holds it, when that host is dead and does not come back: its\n"
        "clients are shut out of the cluster, then its lock is removed. A host that lives loses what it has not written.",
        (("break-lock one/one-7 -f rbd -o user=oneadmin", "the host that had the image can write no more"),),
        arguments.for_break_lock,
    ),
    "reconcile": Command(
        "host:reconcile",
        "put in order what crashes left behind",
        "Undoes mappings and trees that a crash left half done or whose owner is gone. What is in use stays.",
        (("reconcile --dry-run", "say what would be done"), ("reconcile", "do it")),
        arguments.for_reconcile,
    ),
    "completion": Command(
        "host:completion",
        "print a completion script for a shell",
        "Prints a script that completes commands, options, formats and mapped devices.",
        (
            ("completion bash >/etc/bash_completion.d/mapper-cli", "for all users"),
            ('completion zsh >"${fpath[1]}/_mapper-cli"', "for zsh"),
        ),
        arguments.for_completion,
    ),
}
