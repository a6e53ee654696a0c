"""What is printed, and where: data on stdout, talk on stderr.

Names from images and file systems are shown with control characters escaped, so that they cannot steer a terminal;
JSON output has them as they are (bytes that are not UTF-8 as lone surrogates, like Python's ``surrogateescape``).
"""

from __future__ import annotations

import contextlib
import enum
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mapper_core.errors import MapperError

PROGRAM = "mapper-cli"

_UNITS = "BKMGTPE"


class Style(enum.Enum):
    """How data is printed."""

    TEXT = "text"
    JSON = "json"


class Talk(enum.Enum):
    """How much is said on stderr."""

    NORMAL = "normal"
    VERBOSE = "verbose"


class Output:
    """The two streams of one run.

    Data is kept until :meth:`flush`: a command that fails half-way prints no half data, and a failure to print cannot be
    taken for a failure of the work.

    :param style: form of the data, and of errors.
    :param talk: how much to say.
    :param stdout: for data; the process' own by default.
    :param stderr: for talk.
    :param program: who talks.
    """

    def __init__(
        self,
        style: Style = Style.TEXT,
        talk: Talk = Talk.NORMAL,
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        program: str = PROGRAM,
    ) -> None:
        self._program = program
        self.style = style
        self.talk = talk
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        self._data: list[str] = []
        self._remarks: list[str] = []

    # --- data ---

    def line(self, text: str) -> None:
        """Print one line of data."""
        self._data.append(f"{printable(text)}\n")

    def block(self, text: str) -> None:
        """Print prepared text as it is, such as a generated script."""
        self._data.append(text)

    def json(self, value: object) -> None:
        """Print a value as JSON; dataclasses become objects, enumerations their values."""
        import json

        self._data.append(json.dumps(plain(value), indent=2) + "\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows in columns as wide as they need; nothing at all when there are no rows.

        A column whose name begins with ``>`` is aligned to the right.
        """
        cells = [[printable(cell) or "-" for cell in row] for row in rows]
        if not cells:
            return
        right = [column.startswith(">") for column in columns]
        cells.insert(0, [column.removeprefix(">") for column in columns])
        widths = [max(len(row[number]) for row in cells) for number in range(len(columns))]
        for row in cells:
            aligned = (
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(row, widths, right, strict=True)
            )
            self._data.append("  ".join(aligned).rstrip() + "\n")

    def drop(self) -> None:
        """Forget data, and remarks about them, that are not printed yet."""
        self._data.clear()
        self._remarks.clear()

    def flush(self) -> None:
        """Print the data.

        :raises OSError: it cannot be written: the disk is full, nobody reads the pipe.
        """
        data, self._data = "".join(self._data), []
        self._stdout.write(data)
        self._stdout.flush()
        remarks, self._remarks = self._remarks, []
        for remark in remarks:
            self.note(remark)

    # --- talk ---

    def note(self, text: str) -> None:
        """Say something that a person should know; also in JSON mode, where it is no part of the data."""
        self._say(f"{self._program}: {printable(text)}\n")

    def remark(self, text: str) -> None:
        """Say something about the data, on stderr, once they are printed."""
        self._remarks.append(text)

    def debug(self, text: str) -> None:
        """Say what is going on, with ``--verbose`` only."""
        if self.talk is Talk.VERBOSE:
            self.note(f"debug: {text}")

    def error(self, error: MapperError) -> None:
        """Print a failure: two lines for people, one JSON object in JSON mode."""
        if self.style is Style.JSON:
            import json

            self._say(json.dumps({"error": error.to_json()}) + "\n")
        else:
            self.note(f"error: {error}")
            if error.hint:
                self._say(f"hint: {printable(error.hint)}\n")
        if self.talk is Talk.VERBOSE:
            self._explain(error)

    def _explain(self, error: BaseException) -> None:
        """Say what lies behind an error."""
        from mapper_core.errors import CommandFailed

        cause: BaseException | None = error
        while cause is not None:
            if cause is not error:
                self.debug(f"caused by {type(cause).__name__}: {cause}")
            if isinstance(cause, CommandFailed):
                self.debug(f"command: {' '.join(cause.argv)}")
                for line in cause.stderr.splitlines():
                    self.debug(f"its stderr: {line}")
            cause = cause.__cause__

    def traceback(self, error: BaseException) -> None:
        """Print a traceback, with ``--verbose`` only."""
        if self.talk is Talk.VERBOSE:
            import traceback

            self._say("".join(traceback.format_exception(error)))

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a closed stderr must not change what is done
            self._stderr.write(text)
            self._stderr.flush()


def printable(text: str) -> str:
    """Escape what could steer a terminal or cannot be encoded."""
    if text.isprintable():
        return text
    from mapper_core.partitions.reader import escape_controls

    return escape_controls(text)


def plain(value: object) -> object:
    """Turn the nouns of the model into what JSON knows."""
    if isinstance(value, enum.Enum):
        return value.value
    import dataclasses  # 1 ms, for JSON only

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def human_size(size: int) -> str:
    """Write a size in bytes the way ``lsblk`` does: ``512B``, ``1.5G``."""
    power = min((max(size, 1).bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"{size / 1024**power:.1f}".removesuffix(".0") + _UNITS[power]


def parse_size(text: str) -> int:
    """Read a size: bytes, or a number with K, M, G, T, P or E (powers of 1024, as ``qemu-img`` and ``truncate``).

    :raises UsageError: it is no size, or not positive.
    """
    import re

    from mapper_core.errors import UsageError

    match = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,6}))?([KMGTPE]?)(?:iB|B)?", text.strip(), re.IGNORECASE)
    if match:
        whole, fraction, unit = match[1], match[2] or "", match[3].upper()
        factor = 1 << 10 * _UNITS.index(unit or "B")
        size = int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
        if size > 0:
            return size
    raise UsageError(f"{text!r} is not a size", hint="write bytes or a number with K, M, G, T: 512M, 10G, 1.5T")
