"""The arguments of the commands of ``mapper-cli``: what they take, how it is read, how a shell completes it."""

from __future__ import annotations

import argparse

from mapper_core.cli.output import parse_size
from mapper_core.errors import UsageError
from mapper_core.transports import NAMES as TRANSPORTS

# --- types of values ----------------------------------------------------------------------------------------


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message}: {error.hint}") from error


def _new_size(text: str) -> tuple[bool, int]:
    """``(relative, bytes)``."""
    return text.startswith("+"), _size(text.removeprefix("+"))


def _idmap(text: str) -> tuple[int, int]:
    first, separator, count = text.partition(":")
    if separator and first.isascii() and count.isascii() and first.isdigit() and count.isdigit():
        host, number = int(first), int(count)
        if number > 0 and host + number < 1 << 32:  # ids have 32 bits; (uid_t)-1 is none (user_namespaces(7))
            return host, number
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:COUNT (first host id, number of ids): 100000:65536")


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


#: What can be done with snapshots.
SNAPSHOT_ACTIONS = ("list", "create", "revert", "delete")


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


def add_image(parser: argparse.ArgumentParser) -> None:
    """What a command works on."""
    image = parser.add_argument("image", metavar="IMAGE", help="image file, block device, or name of a volume")
    _completes(image, COMPLETE_FILE)
    add_declaration(parser)


def add_declaration(parser: argparse.ArgumentParser) -> None:
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


def add_mapping(parser: argparse.ArgumentParser) -> None:
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


def add_root(parser: argparse.ArgumentParser) -> None:
    """Which partition is the root."""
    parser.add_argument(
        "--root",
        metavar="HINT",
        default="",
        help="which partition is the root filesystem: a number, UUID=, LABEL=, PARTUUID= or PARTLABEL=",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """How the answer is printed."""
    parser.add_argument("--json", action="store_true", help="print JSON; errors are JSON on stderr then")


def add_verbose(parser: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """How much is said.

    :param default: ``SUPPRESS`` below a parser that has the option too: else a ``-v`` before the command would be overwritten.
    """
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help="say more on stderr")


# --- the arguments of each command ---------------------------------------------------------------------------


def for_map(parser: argparse.ArgumentParser) -> None:
    """Those of ``map``."""
    add_image(parser)
    add_mapping(parser)
    add_json(parser)


def for_unmap(parser: argparse.ArgumentParser) -> None:
    """Those of ``unmap``."""
    targets = parser.add_argument(
        "targets", metavar="IMAGE|DEVICE", nargs="+", help="image, device, partition node or id of a mapping"
    )
    _completes(targets, COMPLETE_MAPPED)
    add_json(parser)


def for_partitions(parser: argparse.ArgumentParser) -> None:
    """Those of ``partitions``."""
    target = parser.add_argument("target", metavar="IMAGE|DEVICE", help="image or device, mapped or not")
    _completes(target, COMPLETE_FILE)
    add_declaration(parser)
    add_json(parser)


def for_inspect(parser: argparse.ArgumentParser) -> None:
    """Those of ``inspect``."""
    add_image(parser)
    add_json(parser)


def for_plan(parser: argparse.ArgumentParser) -> None:
    """Those of ``plan``."""
    add_image(parser)
    add_root(parser)
    add_json(parser)


def for_mount(parser: argparse.ArgumentParser) -> None:
    """Those of ``mount``."""
    add_image(parser)
    directory = parser.add_argument("directory", metavar="DIR", help="existing directory that becomes the tree's root")
    _completes(directory, COMPLETE_DIRECTORY)
    add_mapping(parser)
    parser.add_argument(
        "--idmap",
        metavar="HOST:COUNT",
        type=_idmap,
        help="show ids 0 to COUNT-1 of the image as HOST and above, for an unprivileged container",
    )
    add_root(parser)
    add_json(parser)


def for_umount(parser: argparse.ArgumentParser) -> None:
    """Those of ``umount``."""
    directories = parser.add_argument("directories", metavar="DIR", nargs="+", help="directory that was given to mount")
    _completes(directories, COMPLETE_TREE)
    add_json(parser)


def for_create(parser: argparse.ArgumentParser) -> None:
    """Those of ``create``."""
    add_image(parser)
    parser.add_argument("size", metavar="SIZE", type=_size, help="of the disk: bytes, or 512M, 10G, 1.5T")
    add_json(parser)


def for_resize(parser: argparse.ArgumentParser) -> None:
    """Those of ``resize``."""
    add_image(parser)
    parser.add_argument(
        "new_size", metavar="SIZE|+SIZE", type=_new_size, help="the new size, or how much is added: 20G, +5G"
    )
    parser.add_argument(
        "--grow", action="store_true", help="let a partition grow as far as there is room, and the filesystem in it"
    )
    parser.add_argument(
        "--partition",
        metavar="NUMBER",
        type=int,
        help="which partition grows; without it the one with the root filesystem",
    )
    add_json(parser)


def for_image(parser: argparse.ArgumentParser) -> None:
    """Those of ``image``."""
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    convert = actions.add_parser(
        "convert",
        help="make a copy in another format",
        description="Copies a disk into a new image. The source is mapped read-only meanwhile; nothing is ever overwritten.",
        formatter_class=parser.formatter_class,
        allow_abbrev=False,
    )
    _completes(convert.add_argument("image", metavar="IMAGE", help="what is copied"), COMPLETE_FILE)
    _add_target(convert)
    add_declaration(convert)
    make = actions.add_parser(
        "build",
        help="make a new image with a system in it",
        description="Makes a new image with one filesystem, and fills it from an archive (--from-tar) or from Debian's packages\n"
        "(--suite): one of the two is needed. Nothing is ever overwritten.",
        formatter_class=parser.formatter_class,
        allow_abbrev=False,
    )
    _add_target(make)
    make.add_argument("--size", metavar="SIZE", type=_size, required=True, help="of the disk: 512M, 10G, 1.5T")
    make.add_argument(
        "--from-tar", metavar="FILE", dest="archive", default="", help="archive with the system; - for standard input"
    )
    make.add_argument(
        "--suite", metavar="NAME", default="", help="a release of Debian, built from its packages: bookworm"
    )
    make.add_argument("--mirror", metavar="URL", default="", help="where its packages come from")
    make.add_argument(
        "--package",
        metavar="NAME",
        action="append",
        default=[],
        help="package of Debian to be added; can be repeated",
    )
    make.add_argument("--filesystem", metavar="TYPE", default="ext4", help="ext4 (default), xfs or btrfs")
    for action in (convert, make):
        add_json(action)
        add_verbose(action)


def _add_target(parser: argparse.ArgumentParser) -> None:
    _completes(parser.add_argument("target", metavar="TARGET", help="the new image"), COMPLETE_FILE)
    _completes(
        parser.add_argument("-O", "--target-format", metavar="FORMAT", required=True, help="format of the new image"),
        COMPLETE_FORMAT,
    )
    parser.add_argument(
        "--target-option",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="setting for the plugin of the new image; can be repeated",
    )


def for_snapshot(parser: argparse.ArgumentParser) -> None:
    """Those of ``snapshot``."""
    parser.add_argument("action", metavar="ACTION", choices=SNAPSHOT_ACTIONS, help=", ".join(SNAPSHOT_ACTIONS))
    add_image(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the snapshot; not for list")
    add_json(parser)


def for_plugin(parser: argparse.ArgumentParser) -> None:
    """Those of ``plugin``."""
    parser.add_argument("action", metavar="ACTION", choices=("new",), help="new")
    parser.add_argument("name", metavar="NAME", help="of the format: lower-case letters, digits and underscores")
    directory = parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="where the project will be; without it mapper-NAME, here"
    )
    _completes(directory, COMPLETE_DIRECTORY)
    add_json(parser)


def for_break_lock(parser: argparse.ArgumentParser) -> None:
    """Those of ``break-lock``."""
    add_image(parser)
    add_json(parser)


def for_reconcile(parser: argparse.ArgumentParser) -> None:
    """Those of ``reconcile``."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add_json(parser)


def for_completion(parser: argparse.ArgumentParser) -> None:
    """Those of ``completion``."""
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")
