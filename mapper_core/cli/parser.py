"""The command line: commands, options, help.

Normally only the parser of the command that was typed is built; that of all is for help, mistakes and completion.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn, TypedDict

from mapper_core.cli.arguments import add_verbose
from mapper_core.cli.commands import COMMANDS, Command
from mapper_core.cli.output import PROGRAM
from mapper_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


_HELP_WIDTH = 110


class _Texts(TypedDict):
    description: str
    epilog: str
    formatter_class: type[argparse.HelpFormatter]
    allow_abbrev: bool


class Arguments(argparse.Namespace):
    """What was typed. Each command has those of its own options only.

    :param handler: ``module:function`` below ``mapper_core.cli``.
    """

    # no defaults here: argparse takes an attribute that exists for one that was typed
    handler: str
    version: bool
    verbose: bool
    json: bool
    image: str
    target: str
    targets: list[str]
    directory: str
    directories: list[str]
    format: str | None
    read_only: bool
    transport: str | None
    allow_dir: list[str]
    option: list[tuple[str, str]]
    max_size: int | None
    size: int
    new_size: tuple[bool, int]
    grow: bool
    partition: int | None
    action: str
    name: str
    root: str
    idmap: tuple[int, int] | None
    dry_run: bool
    shell: str


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the examples need.

    Without a width argparse imports ``shutil`` to ask the terminal, for each argument that is added: 3 ms.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_HELP_WIDTH)


class HelpWanted(Exception):
    """Is raised when somebody asks for help.

    :param text: the help.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Parser(argparse.ArgumentParser):
    """An argument parser that prints nothing: mistakes are errors like all others, help is data like all other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, subject=self.prog)

    def print_help(self, file: object = None) -> NoReturn:
        raise HelpWanted(self.format_help())


#: What people type who know other tools, and what it is called here.
_HABITS = {
    "attach": "map",
    "connect": "map",
    "add": "map",
    "umap": "unmap",
    "detach": "unmap",
    "disconnect": "unmap",
    "del": "unmap",
    "list": "ls",
    "show": "ls",
    "status": "ls",
    "info": "inspect",
    "parts": "partitions",
    "partx": "partitions",
    "unmount": "umount",
    "check": "doctor",
    "grow": "resize",
    "snap": "snapshot",
    "cleanup": "reconcile",
    "repair": "reconcile",
    "losetup": "map",
    "kpartx": "map",
    "qemu-nbd": "map",
    "lsblk": "partitions",
    "delete": "unmap",
    "remove": "unmap",
    "rm": "unmap",
    "convert": "image convert",
    "build": "image build",
    "revert": "snapshot revert",
    "help": "--help",
}

#: Likewise the options of losetup, kpartx and qemu-nbd that stand where a command is here.
_HABITS_OF_OPTIONS = {
    "-a": "map",
    "-c": "map",
    "--connect": "map",
    "-f": "map",
    "-d": "unmap",
    "--detach": "unmap",
    "--disconnect": "unmap",
    "-l": "ls",
    "--list": "ls",
}

#: Options that are not needed here.
_NEEDLESS = {
    "-P": "partitions have their devices without being asked for",
    "--partscan": "partitions have their devices without being asked for",
    "--find": "a free device is found without being asked",
    "--show": "the device is printed without being asked",
}


def _explain(error: UsageError, words: Sequence[str]) -> UsageError:
    """Return the error with a hint that fits what was typed."""
    import re

    if words and words[0] in _HABITS_OF_OPTIONS:
        hint = f"did you mean: {PROGRAM} {_HABITS_OF_OPTIONS[words[0]]}"
        return UsageError(f"a command is missing before {words[0]}", subject=PROGRAM, hint=hint)
    if match := re.search(r"argument COMMAND: invalid choice: (.*) \(choose from", error.message):
        import difflib

        typed = match[1].strip("'\"")
        near = difflib.get_close_matches(typed, list(COMMANDS), n=1)
        name = _HABITS.get(typed) or (near[0] if near else "")
        hint = f"did you mean: {PROGRAM} {name}" if name else f"see: {PROGRAM} --help"
        return UsageError(f"there is no command {match[1]}", subject=typed, hint=hint)
    if needless := next((_NEEDLESS[word] for word in words if word in _NEEDLESS), ""):
        return UsageError(error.message, subject=error.subject, hint=needless)
    if "required: IMAGE" in error.message and {"-f", "--format"} & set(words):
        hint = (
            "-f takes the format of the image (as in qemu-nbd); a free device is found without being asked (losetup -f)"
        )
        return UsageError(error.message, subject=error.subject, hint=hint)
    return UsageError(error.message, subject=error.subject, hint=error.hint or f"see: {error.subject} --help")


_EPILOG = """\
Examples:
  mapper-cli map disk.qcow2 -f qcow2       prints the device, such as /dev/nbd0
  mapper-cli mount disk.qcow2 /mnt -f qcow2
  mapper-cli umount /mnt
  mapper-cli unmap disk.qcow2
  mapper-cli doctor                        when something does not work

Data goes to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found,
4 bad image, 5 in use, 6 not supported, 7 refused for safety, 8 no free device, 9 too late, 10 bad journal,
77 needs root. All of them, and the environment variables: man 8 mapper-cli.
"""


def build() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = _Parser(
        prog=PROGRAM,
        description="Makes block devices and mounted trees from disk images.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    add_verbose(parser, default=False)
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", parser_class=_Parser, prog=PROGRAM
    )
    for name, command in COMMANDS.items():
        _add_arguments(commands.add_parser(name, help=command.summary, **_texts(command)), command)
    return parser


def build_one(name: str) -> argparse.ArgumentParser:
    """Make the parser of one command, for the words behind its name; it is 5 ms faster than that of all."""
    parser = _Parser(prog=f"{PROGRAM} {name}", **_texts(COMMANDS[name]))
    _add_arguments(parser, COMMANDS[name])
    return parser


def _texts(command: Command) -> _Texts:
    return {
        "description": command.description,
        "epilog": _examples(command),
        "formatter_class": _Formatter,
        "allow_abbrev": False,
    }


def _add_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.set_defaults(handler=command.handler)
    command.add(parser)
    add_verbose(parser)


def _examples(command: Command) -> str:
    width = max(len(line) for line, _ in command.examples)
    lines = (f"  {PROGRAM} {line.ljust(width)}  # {meaning}" for line, meaning in command.examples)
    return "\n".join(("Examples:", *lines))


def parse(words: Sequence[str]) -> Arguments:
    """Understand a command line.

    :param words: without the program's name.
    :raises UsageError: it makes no sense.
    :raises HelpWanted: help was asked for.
    """
    arguments = Arguments()
    try:
        if words and words[0] in COMMANDS:
            build_one(words[0]).parse_args(words[1:], arguments)
        else:
            build().parse_args(words, arguments)
    except UsageError as error:
        raise _explain(error, words) from None
    for name in ("handler", "version", "verbose"):
        vars(arguments).setdefault(name, "" if name == "handler" else False)
    if not arguments.handler and not arguments.version:
        raise UsageError("a command is missing", subject=PROGRAM, hint=f"see: {PROGRAM} --help")
    return arguments
