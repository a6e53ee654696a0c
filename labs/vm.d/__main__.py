"""Runs a job as root in a virtual machine: a full kernel of Debian 12 with its modules, emulated, so KVM is not needed.

    labs/vm build                          make the machine's disk, unless it is there
    labs/vm run [OPTION...] JOB [ARG...]   start a machine, run the program JOB in it, exit with its exit status
    labs/vm status                         one line; exit status 0: built, 3: not built
    labs/vm clean                          remove everything

JOB is a file of the host. It runs as root, its output appears here as it is printed, and what it leaves in $RESULTS comes
back with --results. Nothing of a run is kept: each machine starts from the same disk. The machine ends with this command,
also when that is killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from types import FrameType

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import bootstrap  # noqa: E402
import image  # noqa: E402
import machine  # noqa: E402
from common import NOT_RUNNING, LabError, ignore_interrupts  # noqa: E402

DEFAULT_CACHE = f"{os.path.dirname(os.path.dirname(HERE))}/.mapper-lab/vm"
CACHE_VARIABLE = "MAPPER_LAB_CACHE"
NO_RESULT = 125  # as timeout(1), env(1) and others: not the job failed, but what should have run it


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="labs/vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache",
        default=os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE,
        metavar="DIR",
        help=f"where the disk is kept (default: ${CACHE_VARIABLE}, or .mapper-lab/vm in this tree)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("build", help="make the machine's disk")
    commands.add_parser("status", help="say what is there")
    commands.add_parser("clean", help="remove everything")
    run = commands.add_parser("run", help="run a job")
    run.add_argument("--put", action="append", default=[], metavar="SOURCE[:TARGET]", help="file or directory it needs")
    run.add_argument("--results", default="", metavar="DIR", help="where to put what it leaves in $RESULTS")
    run.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="default 300")
    run.add_argument("--memory", type=int, default=2048, metavar="MIB", help="default 2048")
    run.add_argument("--cpus", type=int, default=2, help="default 2")
    run.add_argument("--logs", default="", metavar="DIR", help="where to put the console's log")
    run.add_argument("job", metavar="JOB", help="executable file")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG")
    options = parser.parse_args()
    cache = os.path.abspath(options.cache)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        if options.command == "build":
            return build(cache)
        if options.command == "status":
            return status(cache)
        if options.command == "clean":
            return clean(cache)
        return run_in(cache, options)
    except LabError as error:
        print(f"labs/vm: error: {error}", file=sys.stderr)
        return NO_RESULT if options.command == "run" else 1
    except KeyboardInterrupt:
        print("labs/vm: interrupted", file=sys.stderr)
        return 130


def build(cache: str) -> int:
    """Make the disk, and say how long that took."""
    if image.image_in(cache).is_built:
        print("labs/vm: already built", file=sys.stderr)
        return 0
    began = time.monotonic()
    built = image.build(cache)
    print(f"labs/vm: built in {time.monotonic() - began:.0f} s, {built.allocated >> 20} MiB", file=sys.stderr)
    return 0


def status(cache: str) -> int:
    """Say what is there."""
    built = image.image_in(cache)
    running = f", {len(image.in_use(cache))} in use" if image.in_use(cache) else ""
    if built.is_built:
        print(f"built: {built.directory}, {built.allocated >> 20} MiB{running}")
        return 0
    print(f"not built{running}")
    return NOT_RUNNING


def clean(cache: str) -> int:
    """Remove all that was built."""
    if image.in_use(cache):
        raise LabError(f"a command is still at work in {', '.join(image.in_use(cache))}")
    image.remove_abandoned(cache)
    for name in os.listdir(cache) if os.path.isdir(cache) else ():
        if name.startswith("image-"):
            shutil.rmtree(f"{cache}/{name}")
    return 0


def run_in(cache: str, options: argparse.Namespace) -> int:
    """Run a job."""
    puts = []
    for text in options.put:
        source, _, target = text.partition(":")
        puts.append(machine.Put(source, target or os.path.abspath(source)))
    job = machine.Job(
        program=(options.job, *options.arguments),
        puts=tuple(puts),
        results=options.results,
        seconds=options.timeout,
        memory=options.memory,
        cpus=options.cpus,
    )
    for path in (options.job, *(put.source for put in puts)):
        if not os.path.exists(path):
            raise LabError(f"{path}: there is no such file")
    built = image.build(cache)
    with bootstrap.workplace(cache, "run-") as directory:
        try:
            return machine.run_job(built, job, directory)
        finally:
            if options.logs:
                machine.keep_logs(directory, options.logs)


def _interrupt(number: int, frame: FrameType | None) -> None:
    ignore_interrupts()  # once is enough; what follows is cleaning up
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
