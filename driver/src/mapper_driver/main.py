"""``mapper-driver``: what OpenNebula's action scripts call.

``mapper-driver run SCRIPT_DIR ACTION ARGUMENT...`` runs one action with OpenNebula's arguments and standard input.
Standard output carries the result alone (``deploy``: the name of the container), standard error the log and the error
in the form that OpenNebula's version understands.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mapper_core.errors import MapperError, NotSupported, UsageError

if TYPE_CHECKING:
    from mapper_driver.opennebula.argv import Common
    from mapper_driver.opennebula.config import Config
    from mapper_driver.opennebula.framing import Log
    from mapper_driver.opennebula.xml import Document

    Act = Callable[[Common, Document, Config, Log], tuple[str, float]]

USAGE = """\
usage: mapper-driver run SCRIPT_DIR ACTION ARGUMENT... <XML
       mapper-driver probe PROBE_DIR ARGUMENT... <XML
       mapper-driver boot
       mapper-driver install-remotes [--destdir DIR] [--one-version V] [--part all|frontend|node] [--user NAME] [--programs DIR]
       mapper-driver uninstall [--destdir DIR]
       mapper-driver check [--user NAME] [--json]
       mapper-driver --version | --help

run   Runs an action of OpenNebula's virtual machine driver on this node. It is called by the scripts in remotes/vmm/lxd and
      not by hand. SCRIPT_DIR is their directory; the options of the node are in SCRIPT_DIR/../../etc/vmm/lxd/lxdrc,
      OpenNebula's version is in SCRIPT_DIR/../../VERSION.
probe Runs a probe of OpenNebula's monitoring agent; called by the scripts in remotes/im/lxd-probes.d. Which one it is, the last
      two parts of PROBE_DIR say: vm/status, vm/monitor, vm/execution, host/system, host/monitor.
boot  After the host was booted and before LXD starts: mounts the disks of the containers with boot.autostart.
install-remotes, uninstall
      Puts the scripts and probes into OpenNebula's remotes, where they are, and the node's files (sudo, udev, modules,
      boot) in place; takes exactly those away. --destdir: stands for /. --user: OpenNebula's, oneadmin. --programs: where
      mapper-driver-root is on the node; else where it is here.
check Examines this node; says what to do. Exit status 1: something must be done.

Environment: LXD_SOCKET, INCUS_SOCKET, LXD_DIR or INCUS_DIR (the daemon; the first one counts), MAPPER_LXDRC, MAPPER_ONE_VERSION,
      MAPPER_RUNTIME_DIR, MAPPER_STATE_DIR, MAPPER_LOG_DIR.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--help"] or words[:1] == ["-h"]:
        print(USAGE, end="")
        return 0
    if words == ["--version"]:
        from importlib.metadata import version

        print(f"mapper-driver {version('mapper-driver')}")
        return 0
    if words[:1] in (["install-remotes"], ["uninstall"], ["check"]):
        from mapper_driver.install.commands import run as run_command

        return run_command(words)
    if words == ["boot"]:
        return _boot()
    if len(words) >= 2 and words[0] == "probe":
        from mapper_driver.probes.run import run as run_probe

        return run_probe(words[1], words[2:])
    if len(words) >= 3 and words[0] == "run":
        return run(words[1], words[2], words[3:])
    print(f"mapper-driver: error: {_mistake(words)}\nhint: mapper-driver --help", file=sys.stderr)
    return UsageError.exit_code


def _mistake(words: Sequence[str]) -> str:
    """What is wrong with a command line that is none of ours."""
    if not words:
        return "a command is missing"
    arguments = {"run": "SCRIPT_DIR ACTION ARGUMENT...", "probe": "PROBE_DIR ARGUMENT...", "boot": "no arguments"}
    if words[0] in arguments:
        return f"{words[0]} takes {arguments[words[0]]}"
    return f"{words[0]!r} is no command"


def _boot() -> int:
    from mapper_driver.boot import boot

    try:
        return boot()
    except MapperError as error:
        print(f"mapper-driver: error: {error}", file=sys.stderr)
        return error.exit_code


def run(script_dir: str, action: str, argv: Sequence[str]) -> int:
    """Run one action; return the exit status of its script.

    :param script_dir: directory of the action scripts.
    """
    from mapper_driver.opennebula.framing import Log, find_version, print_result

    started = time.monotonic()
    log = Log(action, find_version(script_dir, os.environ), sys.stderr)
    done = _Done()
    failure: BaseException | None = None
    try:
        _carry_out(script_dir, action, argv, log, done)
    except MapperError as error:
        failure = error
    except KeyboardInterrupt:
        failure = MapperError("interrupted; what was begun has been undone")
        failure.exit_code = 130
    except Exception as error:  # OpenNebula gets one line, the traceback would be its message
        if os.environ.get("MAPPER_DEBUG"):
            raise
        failure = error
    total = time.monotonic() - started
    if done.config is not None and done.config.log.json:
        _keep_record(log, tuple(argv), failure, total, done.api_seconds)
    if failure is not None:
        return log.failure(failure)
    if done.config is not None and done.config.log.durations:
        log.tell_steps()
    log.info(f"done in {total:.2f} s, {done.api_seconds:.2f} s of that in the daemon")
    log.success()
    if done.result:
        print_result(done.result, sys.stdout)
    return 0


class _Done:
    """How far a call has come.

    :ivar config: options of the node, once they are read.
    :ivar result: what is printed.
    :ivar api_seconds: spent in the daemon.
    """

    def __init__(self) -> None:
        self.config: Config | None = None
        self.result = ""
        self.api_seconds = 0.0


def _keep_record(log: Log, argv: tuple[str, ...], failure: BaseException | None, total: float, daemon: float) -> None:
    from mapper_driver import callog

    try:
        callog.write(log, argv, failure, total, daemon)
    except OSError as error:
        log.warning(f"the log as JSON cannot be written: {error}")


def _carry_out(script_dir: str, action: str, argv: Sequence[str], log: Log, done: _Done) -> None:
    """Check what was asked for and do it."""
    from mapper_driver.opennebula.argv import arguments_of, parse_argv
    from mapper_driver.opennebula.config import find_config, load_config
    from mapper_driver.opennebula.xml import read_document, read_input

    given = parse_argv(arguments_of(action), action, argv)
    if action not in _ACTIONS:
        raise NotSupported(f"the action {action} is not supported", subject=action)
    document = read_document(read_input(sys.stdin.buffer))
    done.config = config = load_config(find_config(script_dir, os.environ))
    for warning in config.warnings:
        log.warning(warning)
    done.result, done.api_seconds = _ACTIONS[action](given, document, config, log)


def _in(module: str, name: str) -> Act:
    """A function that is imported when it is called: only one of them ever is."""

    def act(given: Common, document: Document, config: Config, log: Log) -> tuple[str, float]:
        found: Act = getattr(importlib.import_module(f"mapper_driver.{module}"), name)
        return found(given, document, config, log)

    return act


_ACTIONS: dict[str, Act] = {
    "deploy": _in("lifecycle", "deploy"),
    "shutdown": _in("lifecycle", "shutdown"),
    "cancel": _in("lifecycle", "shutdown"),
    "reboot": _in("lifecycle", "reboot"),
    "reset": _in("lifecycle", "reboot"),
    "save": _in("lifecycle", "save"),
    "restore": _in("lifecycle", "restore"),
    "migrate": _in("lifecycle", "migrate"),
    "migrate_local": _in("lifecycle", "migrate"),
    "poll": _in("lifecycle", "poll"),
    "exec": _in("lifecycle", "execute"),
    "exec_cancel": _in("lifecycle", "cancel_execution"),
    "attach_disk": _in("hotplug", "add"),
    "detach_disk": _in("hotplug", "remove"),
    "attach_nic": _in("hotplug", "add"),
    "detach_nic": _in("hotplug", "remove"),
    "prereconfigure": _in("hotplug", "remove"),
    "reconfigure": _in("hotplug", "add"),
    "resize": _in("hotplug", "add"),
    "resize_disk": _in("hotplug", "add"),
    "snapshot_create": _in("hotplug", "add"),
    "snapshot_revert": _in("hotplug", "add"),
    "snapshot_delete": _in("hotplug", "add"),
}


if __name__ == "__main__":
    sys.exit(main())
