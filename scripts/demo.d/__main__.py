"""The command ``scripts/demo``: what it was told, signals, and the end. The demonstration itself is in ``story.py``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

from commands import Commands
from console import Console
from place import DEFAULT_DIR, DemoError, Place
from story import Story
from watchdog import Watchdog


class Interrupted(BaseException):
    """Is raised by the first signal that asks for an end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """Turns the first SIGINT, SIGTERM or SIGHUP into an exception; those that follow don't disturb the clean-up."""

    def __init__(self) -> None:
        self._seen = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)  # and not SIG_IGN, which commands would inherit

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._seen:
            self._seen = True
            raise Interrupted(number)

    def ignore(self) -> None:
        """From now on no signal interrupts anything."""
        self._seen = True


def main() -> int:
    """Run the demo; return the exit status."""
    arguments = _arguments()
    console = Console(sys.stdout, verbose=arguments.verbose)
    place = Place(os.path.realpath(arguments.dir))
    signals = _Signals()
    try:
        lock_fd = place.lock()
        if os.path.lexists(place.kept) and not arguments.down:
            raise DemoError("an earlier demo was kept; end it first: scripts/demo --down")
        watchdog = Watchdog(place, lock_fd)
    except DemoError as error:
        return _failed(console, error)
    except Interrupted as error:
        return 128 + error.number
    story = Story(place, lock_fd, Commands(place, console), console)
    status = 1
    try:
        try:
            _tell(story, arguments)
            status = 0
        finally:
            signals.ignore()
    except Interrupted as error:
        status = 128 + error.number
        console.line(f"interrupted by {signal.Signals(error.number).name}")
    except DemoError as error:
        _failed(console, error)
    if status != 0 and not story.undo():
        status = 1
    watchdog.dismiss()
    return status


def _tell(story: Story, arguments: _Arguments) -> None:
    if arguments.down:
        story.resume()
        story.end()
        return
    story.begin()
    if arguments.keep:
        story.keep()
    else:
        story.end()


def _failed(console: Console, error: DemoError) -> int:
    console.line(f"error: {error}")
    return 1


class _Arguments(argparse.Namespace):
    """What was typed."""

    verbose: bool
    keep: bool
    down: bool
    dir: str


def _arguments() -> _Arguments:
    parser = argparse.ArgumentParser(
        prog="demo", usage="scripts/demo [--help] [--verbose] [--keep | --down] [--dir DIR]", add_help=False
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--keep", action="store_true")
    what.add_argument("--down", action="store_true")
    parser.add_argument("--dir", default=DEFAULT_DIR)
    return parser.parse_args(namespace=_Arguments())


if __name__ == "__main__":
    sys.exit(main())
