"""The commands of ``mapper-cli`` with their options, one table: the parser, completion and the tests read it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mapper_core.cli.output import parse_size
from mapper_core.errors import UsageError
from mapper_core.transports import NAMES as TRANSPORTS

if TYPE_CHECKING:
    from collections.abc import Callable


# --- types of values ----------------------------------------------------------------------------------------


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message}: {error.hint}") from error


def _idmap(text: str) -> tuple[int, int]:
    first, separator, count = text.partition(":")
    if separator and first.isascii() and count.isascii() and first.isdigit() and count.isdigit():
        host, number = int(first), int(count)
        if number > 0 and host + number <= 1 << 32:  # ids have 32 bits; (uid_t)-1 is none (user_namespaces(7))
            return host, number
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:COUNT (first host id, number of ids): 100000:65536")


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


# --- options that several commands have ---------------------------------------------------------------------


def _completes(action: argparse.Action, how: dict[str, str]) -> None:
    """Tell shtab how to complete an argument; argparse itself ignores the attribute."""
    action.complete = how  # type: ignore[attr-defined]


#: Shell functions of the completion script, see :mod:`mapper_core.cli.host`.
COMPLETE_FILE = {"bash": "_shtab_compgen_files", "zsh": "_files"}
COMPLETE_DIRECTORY = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
COMPLETE_FORMAT = {"bash": "_mapper_cli_formats", "zsh": "_mapper_cli_formats"}
COMPLETE_TRANSPORT = {"bash": "_mapper_cli_transports", "zsh": "_mapper_cli_transports"}
COMPLETE_MAPPED = {"bash": "_mapper_cli_mapped", "zsh": "_mapper_cli_mapped"}
COMPLETE_TREE = {"bash": "_mapper_cli_trees", "zsh": "_mapper_cli_trees"}


def _add_image(parser: argparse.ArgumentParser) -> None:
    image = parser.add_argument("image", metavar="IMAGE", help="image file, block device, or name of a volume")
    _completes(image, COMPLETE_FILE)
    _add_declaration(parser)


def _add_declaration(parser: argparse.ArgumentParser) -> None:
    """What the caller declares about an image."""
    _completes(
        parser.add_argument(
            "-f",
            "--format",
            metavar="FORMAT",
            help="format of the image, the name of a plugin; without it the content is asked, which a guest can forge",
        ),
        COMPLETE_FORMAT,
    )
    _completes(
        parser.add_argument(
            "--allow-dir",
            metavar="DIR",
            action="append",
            default=[],
            help="directory in which files that the image refers to may lie, besides its own; can be repeated",
        ),
        COMPLETE_DIRECTORY,
    )
    parser.add_argument(
        "-o",
        "--option",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="setting for the format's plugin, such as user=NAME of a storage cluster; can be repeated",
    )


def _add_mapping(parser: argparse.ArgumentParser) -> None:
    """How the image is mapped."""
    parser.add_argument("-r", "--read-only", action="store_true", help="never write to the image")
    _completes(
        parser.add_argument(
            "--transport",
            metavar="NAME",
            help=f"how the image becomes a device: {', '.join(TRANSPORTS)}, or one of the plugin's own;"
            " without it the first that works here",
        ),
        COMPLETE_TRANSPORT,
    )
    parser.add_argument("--max-size", metavar="SIZE", type=_size, help="refuse larger virtual disks; 512M, 10G, 1.5T")


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        metavar="HINT",
        default="",
        help="which partition is the root filesystem: a number, UUID=, LABEL=, PARTUUID= or PARTLABEL=",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON; errors are JSON on stderr then")


# --- commands -----------------------------------------------------------------------------------------------


def _map(parser: argparse.ArgumentParser) -> None:
    _add_image(parser)
    _add_mapping(parser)
    _add_json(parser)


def _unmap(parser: argparse.ArgumentParser) -> None:
    targets = parser.add_argument(
        "targets", metavar="IMAGE|DEVICE", nargs="+", help="image, device, partition node or id of a mapping"
    )
    _completes(targets, COMPLETE_MAPPED)
    _add_json(parser)


def _partitions(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument("target", metavar="IMAGE|DEVICE", help="image or device, mapped or not")
    _completes(target, COMPLETE_FILE)
    _add_declaration(parser)
    _add_json(parser)


def _inspect(parser: argparse.ArgumentParser) -> None:
    _add_image(parser)
    _add_json(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
    _add_image(parser)
    _add_root(parser)
    _add_json(parser)


def _mount(parser: argparse.ArgumentParser) -> None:
    _add_image(parser)
    directory = parser.add_argument("directory", metavar="DIR", help="existing directory that becomes the tree's root")
    _completes(directory, COMPLETE_DIRECTORY)
    _add_mapping(parser)
    parser.add_argument(
        "--idmap",
        metavar="HOST:COUNT",
        type=_idmap,
        help="show ids 0 to COUNT-1 of the image as HOST and above, for an unprivileged container",
    )
    _add_root(parser)
    _add_json(parser)


def _umount(parser: argparse.ArgumentParser) -> None:
    directories = parser.add_argument("directories", metavar="DIR", nargs="+", help="directory that was given to mount")
    _completes(directories, COMPLETE_TREE)
    _add_json(parser)


def _break_lock(parser: argparse.ArgumentParser) -> None:
    _add_image(parser)
    _add_json(parser)


def _reconcile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    _add_json(parser)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")


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
        _map,
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
        _unmap,
    ),
    "ls": Command(
        "disks:ls",
        "list mapped disks and mounted trees",
        "Lists what is mapped and mounted now; nothing when there is nothing.",
        (("ls", "a table"), ("ls --json | jq -r '.disks[].device'", "the devices, for a script")),
        _add_json,
    ),
    "partitions": Command(
        "disks:partitions",
        "list the partitions of an image or device",
        "Lists partitions and filesystems. A raw file or a device is only read, without root and without mapping;\n"
        "an image of another format is mapped read-only for the moment.",
        (("partitions disk.raw -f raw", "a file"), ("partitions /dev/loop0", "a device")),
        _partitions,
    ),
    "inspect": Command(
        "disks:inspect",
        "show the header of an image",
        "Shows format, sizes and the files an image refers to, from its header only.\n"
        "No other program opens the image. Needs no root.",
        (("inspect disk.qcow2 -f qcow2", "size and backing chain"),),
        _inspect,
    ),
    "plan": Command(
        "trees:plan",
        "show what mount would mount where",
        "Shows which filesystem of the image would be mounted where by its own /etc/fstab, and what would be\n"
        "left out and why. The image is mapped read-only for the moment.",
        (("plan disk.qcow2 -f qcow2", "a table"), ("plan two-systems.raw -f raw --root 3", "partition 3 is the root")),
        _plan,
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
        _mount,
    ),
    "umount": Command(
        "trees:umount",
        "revert mount",
        "Unmounts a tree and releases its disk. What is not mounted is a success.",
        (("umount /mnt", "the directory that was given to mount"),),
        _umount,
    ),
    "plugins": Command(
        "host:plugins",
        "list installed format plugins",
        "Lists the installed plugins, and why a broken one cannot be used.",
        (("plugins", "a table"), ("plugins --json", "for a script")),
        _add_json,
    ),
    "doctor": Command(
        "host:doctor",
        "examine this host",
        "Examines what this host can do and whether something was left behind. It only looks, it changes nothing.\n"
        "Exit status 0 when no check has failed, else 1.",
        (("doctor", "a report"), ("doctor --json", "for monitoring")),
        _add_json,
    ),
    "break-lock": Command(
        "takeover:break_lock",
        "take a disk away from a host that is dead",
        "Takes a disk of a cluster away from the host that holds it, when that host is dead and does not come back: its\n"
        "clients are shut out of the cluster, then its lock is removed. A host that lives loses what it has not written.",
        (("break-lock one/one-7 -f rbd -o user=oneadmin", "the host that had the image can write no more"),),
        _break_lock,
    ),
    "reconcile": Command(
        "host:reconcile",
        "put in order what crashes left behind",
        "Undoes mappings and trees that a crash left half done or whose owner is gone. What is in use stays.",
        (("reconcile --dry-run", "say what would be done"), ("reconcile", "do it")),
        _reconcile,
    ),
    "completion": Command(
        "host:completion",
        "print a completion script for a shell",
        "Prints a script that completes commands, options, formats and mapped devices.",
        (
            ("completion bash >/etc/bash_completion.d/mapper-cli", "for all users"),
            ('completion zsh >"${fpath[1]}/_mapper-cli"', "for zsh"),
        ),
        _completion,
    ),
}
