"""``mapper-driver install-remotes``, ``uninstall`` and ``check``, for administrators."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from mapper_core.errors import MapperError, NeedsRoot, UsageError


def run(words: Sequence[str]) -> int:
    """Run a command; return its exit status."""
    try:
        arguments = _parser().parse_args(words)
        if arguments.command == "check":
            return _check(arguments)
        destdir = _destination(arguments.destdir)
        return _install(arguments, destdir) if arguments.command == "install-remotes" else _uninstall(destdir)
    except MapperError as error:
        print(f"mapper-driver: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"mapper-driver: error: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 1


def _install(arguments: argparse.Namespace, destdir: str) -> int:
    from mapper_driver.install import place, plan

    version = plan.detect(destdir, arguments.one_version)
    part = plan.Part(arguments.part)
    if part is plan.Part.FRONTEND and not version:
        raise UsageError(
            f"no OpenNebula is in {destdir}{plan.REMOTES}", hint="run it on the front-end, or say --one-version"
        )
    report = place.install(plan.make(part, version, arguments.user, destdir, arguments.programs), destdir)
    print(f"{len(report.done)} files are in place", end="")
    print(f", for OpenNebula {version}" if version else "; there is no front-end of OpenNebula here")
    _say("left as it is, because somebody has made or changed it", report.kept)
    if version and part is not plan.Part.NODE:
        print(f"next: copy what you need from {plan.SAMPLES} to /etc/one, restart opennebula, run: onehost sync -f")
    if part is not plan.Part.FRONTEND:
        print("next: mapper-driver check")
    return 0


def _uninstall(destdir: str) -> int:
    from mapper_driver.install import place

    report = place.uninstall(destdir)
    print(f"{len(report.done)} files are removed, {len(report.restored)} of OpenNebula are back")
    _say("left where it is, because somebody has changed it", report.kept)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from mapper_core.cli.host import show
    from mapper_core.cli.output import Output, Style
    from mapper_core.doctor import examine
    from mapper_core.mapping import Mapper
    from mapper_core.registry import Registry
    from mapper_core.runtime import Runtime
    from mapper_driver.install import node

    checks = (*node.examine(arguments.user), *examine(Mapper(Runtime.from_environment(), Registry.load())))
    output = Output(Style.JSON if arguments.json else Style.TEXT, program="mapper-driver")
    status = show(checks, output)
    output.flush()
    return status


def _say(what: str, paths: Sequence[str]) -> None:
    for path in paths:
        print(f"{what}: {path}", file=sys.stderr)


def _destination(text: str) -> str:
    """The directory that stands for ``/``, without a slash at the end."""
    path = os.path.realpath(text)
    if not os.path.isdir(path):
        raise UsageError("is not a directory", subject=text)
    if path == "/" and os.geteuid() != 0:
        raise NeedsRoot("only root can do that", hint="run it as root")
    return "" if path == "/" else path


class _Parser(argparse.ArgumentParser):
    """Exit status and form of our own errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="mapper-driver --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mapper-driver")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for name, what in (
        (
            "install-remotes",
            "put the driver's files in place: OpenNebula's remotes where they are, and the node's files",
        ),
        ("uninstall", "remove what install-remotes has put in place, and nothing else"),
    ):
        command = commands.add_parser(name, description=what)
        command.add_argument("--destdir", default="/", metavar="DIR", help="stands for / (for packages)")
        command.add_argument(
            "--one-version", default="", metavar="V", help="of OpenNebula; default: what its remotes say"
        )
        command.add_argument("--part", default="all", choices=("all", "frontend", "node"), help="for which machine")
        command.add_argument("--user", default="oneadmin", type=_user, metavar="NAME", help="OpenNebula's user")
        command.add_argument(
            "--programs", default="", type=_programs, metavar="DIR", help="where mapper-driver-root is on the node"
        )
    check = commands.add_parser(
        "check", description="examine this node; the exit status is 1 when something must be done"
    )
    check.add_argument("--user", default="oneadmin", type=_user, metavar="NAME", help="OpenNebula's user")
    check.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _user(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text, re.ASCII):
        raise argparse.ArgumentTypeError("is not the name of a user")
    return text


def _programs(text: str) -> str:
    from mapper_driver.install.plan import PLAIN

    if text and not PLAIN.fullmatch(text):
        raise argparse.ArgumentTypeError("is not a plain absolute path")
    return text
