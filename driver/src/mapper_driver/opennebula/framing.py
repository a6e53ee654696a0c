"""How an action script speaks to OpenNebula: one line on the standard output, the log and one error on stderr.

What OpenNebula takes for the error message has changed twice:

- up to 6.0.2: the text between two marker lines;
- 6.0.3 to 6.10: all of stderr, so that every other line would be part of the message;
- from 7.0 (its betas, 6.99): the lines that are no log lines (``INFO: ...``), joined without anything between.

Over ssh, markers in stderr tell one_vmm_exec that the script has ended and how (``ExitCode: 0 EOF_ERR``), and oned
puts the message into the machine's XML without escaping it. Messages quote images and templates, so both are defused.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TextIO

from mapper_core.errors import MapperError

ENVIRONMENT = "MAPPER_ONE_VERSION"
"""OpenNebula's version, such as ``6.10.5``, instead of the one in the file beside the scripts."""
VERSION_FILE = "/var/tmp/one/VERSION"  # noqa: S108  OpenNebula's SCRIPTS_REMOTE_DIR; the content is only compared
MAX_MESSAGE = 700
MAX_HELD_LINES = 200

_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,3}))?")
_BLOCK_BEGIN = "ERROR MESSAGE --8<------"
_BLOCK_END = "ERROR MESSAGE ------>8--"
_LOG_LINE = re.compile(r"(ERROR|INFO|WARN|DEBUG):")
# A space in the middle keeps them readable and makes them harmless.
_MARKERS = (
    ("EOF_ERR", "EOF _ERR"),
    ("EOF_OUT", "EOF _OUT"),
    ("ExitCode:", "ExitCode :"),
    ("ExitSSHCode:", "ExitSSHCode :"),
    ("]]>", "]] >"),
)


class Framing(enum.Enum):
    """How the error message is told from the rest of stderr."""

    BLOCK = "block"  # between marker lines
    WHOLE = "whole"  # all of it
    LINES = "lines"  # lines without a severity


def number_of(version: str) -> tuple[int, ...] | None:
    """The number of a version, such as ``(6, 10, 5)``; ``None`` when it is none."""
    match = _VERSION.match(version)
    return None if match is None else tuple(int(part or 0) for part in match.groups())


def framing_of(version: str) -> Framing:
    """The framing that a version of OpenNebula understands.

    An unknown version gets the one that says least: it is right from 6.0.3 on.
    """
    number = number_of(version)
    if number is None:
        return Framing.WHOLE
    if number < (6, 0, 3):
        return Framing.BLOCK
    return Framing.WHOLE if number < (6, 99, 0) else Framing.LINES


def find_version(script_dir: str, environ: Mapping[str, str]) -> str:
    """OpenNebula's version: from the environment, else from the file VERSION that it copies with the scripts.

    :param script_dir: directory of the action scripts, such as ``/var/tmp/one/vmm/lxd``.
    :return: empty when it cannot be told.
    """
    named = environ.get(ENVIRONMENT, "")
    if named:
        return named
    for path in (os.path.normpath(os.path.join(script_dir, "../../VERSION")), VERSION_FILE):
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe nobody may ever write an end
            try:
                return os.read(fd, 64).decode("ascii", "replace").strip()
            finally:
                os.close(fd)
    return ""


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Make any text one harmless line of printable characters, at most ``limit`` of them."""
    spaced = " ".join(text.split())
    clean = "".join(character if character.isprintable() else "?" for character in spaced)
    for marker, harmless in _MARKERS:
        clean = clean.replace(marker, harmless)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def error_message(error: BaseException, action: str) -> str:
    """The message for a person who looks at the machine in OpenNebula: one line that ends with a full stop.

    It never starts with a dash (OpenNebula takes that for "no message") nor like a log line (7.x drops those).
    """
    if isinstance(error, MapperError):
        text = f"{error} ({error.hint})" if error.hint else str(error)
    else:
        text = f"internal error: {type(error).__name__}: {error}"
    line = one_line(text, MAX_MESSAGE)
    if not line or line.startswith("-") or _LOG_LINE.match(line):
        line = f"{action}: {line}"
    # 7.x glues the next line, "ExitCode: 1", to it.
    return line if line.endswith((".", "!", "?")) else f"{line}."


class Log:
    """The log of one run of an action script.

    The lines appear in the log of the machine. Where all of stderr is the error message, they are held back until
    the action has succeeded, and dropped when it fails.

    :param action: name of the script; every line begins with it. (7.x takes a number there for that of a machine.)
    :param version: OpenNebula's, see :func:`find_version`.
    :param stream: the standard error.
    :ivar said: severity and text of each line.
    :ivar steps: name and seconds of each step that has ended, as it may have with a failure.
    """

    def __init__(self, action: str, version: str, stream: TextIO) -> None:
        self.action = action
        self.version = version
        self._framing = framing_of(version)
        self._stream = stream
        self._held: list[str] = []
        self.said: list[tuple[str, str]] = []
        self.steps: list[tuple[str, float]] = []

    def info(self, text: str) -> None:
        """Say what was done."""
        self._line("INFO", text)

    def warning(self, text: str) -> None:
        """Say what is odd. Versions before 7 know no such severity."""
        self._line("INFO", f"warning: {text}")

    def debug(self, text: str) -> None:
        """Say what only a developer wants to know."""
        self._line("DEBUG", text)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure one step of the action.

        :param name: what is done, such as ``start the container``.
        """
        began = time.monotonic()
        try:
            yield
        finally:
            self.steps.append((name, time.monotonic() - began))

    def tell_steps(self) -> None:
        """Say how long each step has taken."""
        for name, seconds in self.steps:
            self.info(f"{seconds:.3f} s: {name}")

    def success(self) -> None:
        """Let go what was held back."""
        held, self._held = self._held, []
        _write(self._stream, held)

    def failure(self, error: BaseException) -> int:
        """Say why the action failed.

        :return: the exit status for the script, never 0.
        """
        self._held.clear()
        message = error_message(error, self.action)
        _write(self._stream, [_BLOCK_BEGIN, message, _BLOCK_END] if self._framing is Framing.BLOCK else [message])
        return (error.exit_code if isinstance(error, MapperError) else 1) or 1

    def _line(self, severity: str, text: str) -> None:
        self.said.append((severity, text))
        line = f"{severity}: {self.action}: {one_line(text)}"
        if self._framing is not Framing.WHOLE:
            _write(self._stream, [line])
        elif len(self._held) < MAX_HELD_LINES:
            self._held.append(line)


def report_failure(error: BaseException, action: str, version: str, stream: TextIO) -> int:
    """Say why an action failed, when there is no log yet.

    :param version: OpenNebula's, see :func:`find_version`.
    :param stream: the standard error.
    :return: the exit status for the script, never 0.
    """
    return Log(action, version, stream).failure(error)


def print_result(value: str, stream: TextIO) -> None:
    """Print what OpenNebula takes over: exactly one line, such as the deploy id, or what ``poll`` says.

    :param stream: the standard output. Nothing else may ever be written there.
    """
    if not value.isprintable() or not value or value != " ".join(value.split()):
        raise ValueError(f"not one line: {value!r}")
    stream.write(f"{value}\n")
    stream.flush()


def _write(stream: TextIO, lines: list[str]) -> None:
    # Nobody is left to tell when the reader has gone; the exit status still says it.
    with suppress(OSError, ValueError):
        for line in lines:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
