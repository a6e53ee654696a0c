"""Entry point of ``mapper-cli``: runs one command and turns every outcome into an exit status."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from mapper_core.cli import parser
from mapper_core.cli.output import Output, Style, Talk
from mapper_core.errors import KernelError, MapperError, NeedsRoot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from mapper_core.cli.parser import Arguments

#: Added to the number of the signal that ended the program, as shells do.
EXIT_SIGNAL = 128

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InternalError(MapperError):
    """Is printed for an exception that nobody expected; 70 is EX_SOFTWARE of sysexits.h."""

    exit_code = 70


class OutputError(MapperError):
    """Is printed when the data cannot be written to stdout; 74 is EX_IOERR of sysexits.h."""

    exit_code = 74


class _Ended(BaseException):
    """Is raised by a signal that ends the program, so that what was begun is undone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> NoReturn:
    """Be the program ``mapper-cli``, and end with its exit status.

    The process ends at once: everything is undone and printed by then, and to take the interpreter apart would cost as much
    as the work of a short command. So would looking for garbage in what has just been imported.
    """
    gc.disable()
    status = call(sys.argv[1:])
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)  # it is done: a late signal must not make a failure of a success
    sys.stderr.flush()
    os._exit(status)


def call(words: Sequence[str]) -> int:
    """Run one command from beginning to end.

    :param words: without the program's name.
    :returns: the exit status.
    """
    # looked for here too, for mistakes on the command line itself
    style = Style.JSON if "--json" in words else Style.TEXT
    talk = Talk.VERBOSE if "-v" in words or "--verbose" in words else Talk.NORMAL
    output = Output(style, talk)
    try:
        with _signals_undo() as received:
            status = run(words, output)
            if received and status:  # code in between has made another exception of _Ended
                status = EXIT_SIGNAL + received[0]
            output.flush()
    except _Ended as ended:
        output.note(f"ended by {signal.Signals(ended.number).name}; what was half done is undone")
        status = EXIT_SIGNAL + ended.number
    except BrokenPipeError:
        status = EXIT_SIGNAL + signal.SIGPIPE
        _drop_stdout()
    except OSError as error:
        failure = OutputError(
            f"the output cannot be written: {error.strerror}", hint="the command itself is done; see: mapper-cli ls"
        )
        output.error(failure)
        status = failure.exit_code
        _drop_stdout()
    return status


def run(words: Sequence[str], output: Output) -> int:
    """Run one command and print its errors; data stays in ``output``.

    :returns: the exit status.
    """
    try:
        arguments = parser.parse(words)
        if arguments.version:
            output.line(_version())
            return 0
        if arguments.verbose:  # also where it is one of several letters, as in -rv
            output.talk = Talk.VERBOSE
        return _handler(arguments)(arguments, output)
    except parser.HelpWanted as wanted:
        output.block(wanted.text)
        return 0
    except Exception as error:
        failure = as_mapper_error(error)
        output.drop()
        output.error(failure)
        if failure is not error:
            output.traceback(error)
        return failure.exit_code


def _handler(arguments: Arguments) -> Callable[[Arguments, Output], int]:
    import importlib

    module, _, function = arguments.handler.partition(":")
    handler: Callable[[Arguments, Output], int] = getattr(
        importlib.import_module(f"mapper_core.cli.{module}"), function
    )
    return handler


def as_mapper_error(error: Exception) -> MapperError:
    """Give every failure the form in which failures are printed."""
    if isinstance(error, MapperError):
        return error
    if isinstance(error, OSError):
        path = error.filename if error.filename is not None else ""
        subject = os.fsdecode(path) if isinstance(path, (str, bytes)) else str(path)
        number = error.errno or 0
        reason = f"{error.strerror or error} ({errno.errorcode.get(number, number)})"
        if number in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
            return NeedsRoot(f"this needs root: {reason}", subject=subject, hint="run it with sudo")
        return KernelError(reason, errno=number, subject=subject)
    return InternalError(
        f"internal error: {type(error).__name__}: {error}",
        hint="please report it, with the output of the same command with --verbose",
    )


def _version() -> str:
    from importlib.metadata import version

    from mapper_core.hookspecs import API_VERSION

    return f"mapper-cli {version('mapper-core')} (hook API {API_VERSION})"


@contextlib.contextmanager
def _signals_undo() -> Iterator[list[int]]:
    """Let the signals that end a program raise :class:`_Ended`, once: a second one cannot interrupt the undoing.

    :returns: the signal that came, when it has come.
    """
    received: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for other in previous:
            # a function and not SIG_IGN, which programs that are run for the undoing would inherit
            signal.signal(other, lambda *_: None)
        raise _Ended(number)

    previous = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in list(previous.items()):
        if handler is signal.SIG_IGN:
            del previous[number]  # nohup
        else:
            signal.signal(number, end)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _drop_stdout() -> None:
    """Throw away what is still buffered, else the interpreter complains about it at its end."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())
