"""The table of filesystems that an image brings along: fstab(5).

The file is hostile. It is parsed as bytes, within limits, and nothing in it is acted on here.
"""

from __future__ import annotations

import os

from mapper_core.errors import BadFstab
from mapper_core.frozen import dataclass
from mapper_core.partitions.reader import text

#: Longest file that is read, bytes, and most entries in it.
MAX_SIZE = 1 << 20
MAX_ENTRIES = 1024

_BOM = b"\xef\xbb\xbf"
_OCTAL = frozenset(b"01234567")
_ESCAPED = frozenset(b" \t\n\r\\")


@dataclass(frozen=True, slots=True)
class FstabEntry:
    """One line that names a filesystem. Octal escapes are resolved; odd bytes are kept by ``surrogateescape``.

    :param line: number of the line, from 1.
    :param spec: what is mounted (``UUID=...``, ``/dev/sda1``, ``tmpfs``); quotes are kept.
    :param target: where.
    :param fstype: type, or several with commas between them.
    :param options: without empty ones; ``("defaults",)`` when the line has none.
    :param freq: for dump(8).
    :param passno: for fsck(8).
    :param raw: the line as it is written, fit to be printed.
    """

    line: int
    spec: str
    target: str
    fstype: str
    options: tuple[str, ...] = ("defaults",)
    freq: int = 0
    passno: int = 0
    raw: str = ""


@dataclass(frozen=True, slots=True)
class FstabTable:
    """The entries, in the order of the file."""

    entries: tuple[FstabEntry, ...] = ()


def parse(content: bytes) -> FstabTable:
    """Parse the file.

    Lines may end in CRLF, the last one in nothing. A line has three to six fields; what follows the third may also be a
    comment.

    :param content: the whole file.
    :raises BadFstab: it is too long, or a line makes no sense; the line number is in ``subject``.
    """
    if len(content) > MAX_SIZE:
        raise BadFstab(f"the file has {len(content)} bytes; more than {MAX_SIZE} are not read", subject="/etc/fstab")
    entries: list[FstabEntry] = []
    for number, line in enumerate(content.removeprefix(_BOM).split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        fields = [field for field in line.replace(b"\t", b" ").split(b" ") if field]
        if not fields or fields[0].startswith(b"#"):
            continue
        if len(entries) == MAX_ENTRIES:
            raise bad_line(number, f"there are more than {MAX_ENTRIES} entries")
        entries.append(_entry(number, line, fields))
    return FstabTable(tuple(entries))


def bad_line(number: int, message: str, *, hint: str = "") -> BadFstab:
    """Make the error for a line."""
    return BadFstab(message, subject=f"/etc/fstab line {number}", hint=hint)


def _entry(number: int, line: bytes, fields: list[bytes]) -> FstabEntry:
    for index in range(3, len(fields)):
        if fields[index].startswith(b"#"):
            del fields[index:]
            break
    if not 3 <= len(fields) <= 6:
        raise bad_line(number, f"the line has {len(fields)} fields, where 3 to 6 are expected")
    decoded = [_unescape(field) for field in fields]
    if any(b"\0" in field for field in decoded):
        raise bad_line(number, "the line contains a NUL character")
    spec, target, fstype = map(os.fsdecode, decoded[:3])
    options = _split_options(os.fsdecode(decoded[3])) if len(decoded) > 3 else ()
    freq, passno = (_number(number, fields[at]) if len(fields) > at else 0 for at in (4, 5))
    return FstabEntry(number, spec, target, fstype, options or ("defaults",), freq, passno, text(line.strip()))


def _number(line: int, field: bytes) -> int:
    if not field.isdigit() or len(field) > 9:
        raise bad_line(line, f"the field {text(field)[:40]!r} should be a number")
    return int(field)


def _unescape(field: bytes) -> bytes:
    r"""Resolve ``\NNN``, as :manpage:`getmntent(3)` does; any other backslash is an ordinary character."""
    head, *rest = field.split(b"\\")
    pieces = [head]
    for piece in rest:
        digits = piece[:3]
        if len(digits) == 3 and _OCTAL.issuperset(digits) and digits[0] < ord("4"):
            pieces.append(bytes([int(digits, 8)]) + piece[3:])
        else:
            pieces.append(b"\\" + piece)
    return b"".join(pieces)


def _split_options(options: str) -> tuple[str, ...]:
    """Split at commas, but not inside of double quotes: ``context="system_u:object_r:tmp_t:s0:c1,c2"``."""
    pieces = options.split('"')
    if len(pieces) % 2 == 0:  # an odd quote quotes nothing
        return tuple(filter(None, options.split(",")))
    pieces[::2] = [piece.replace(",", "\0") for piece in pieces[::2]]
    return tuple(filter(None, '"'.join(pieces).split("\0")))


def render(table: FstabTable) -> bytes:
    """Write a table so that :func:`parse` reads the same entries."""
    return b"".join(_render_entry(entry) for entry in table.entries)


def _render_entry(entry: FstabEntry) -> bytes:
    names = (entry.spec, entry.target, entry.fstype, ",".join(entry.options) or "defaults")
    return b" ".join((*map(_escape, names), b"%d %d\n" % (entry.freq, entry.passno)))


def _escape(field: str) -> bytes:
    raw = os.fsencode(field)
    escaped = b"".join(b"\\%03o" % byte if byte in _ESCAPED else bytes([byte]) for byte in raw)
    if escaped.startswith((b"#", _BOM)):
        escaped = b"\\%03o" % escaped[0] + escaped[1:]
    return escaped
