"""Typed, checked reading of the children of one XML element.

Every value was typed by some user of OpenNebula, so each is checked for what it must be before anything uses it,
and an error names the element and shows the (shortened) value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar
from xml.etree.ElementTree import Element

from mapper_core.errors import UsageError

T = TypeVar("T")

MAX_TEXT = 4096
MAX_INTEGER = 2**63 - 1

_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_TRUE = frozenset({"yes", "true", "1", "on"})
_FALSE = frozenset({"no", "false", "0", "off"})

# dev_valid_name() of the kernel (net/core/dev.c) allows more; these are the names OpenNebula and people use.
INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,14}")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# LXD: 1 to 63 ASCII letters, digits and dashes; no leading digit or dash, no dash at the end.
INSTANCE = re.compile(r"[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
PROFILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
FORMAT = re.compile(r"[a-z0-9][a-z0-9_+.-]{0,31}")
FILESYSTEM = re.compile(r"[a-z0-9][a-z0-9_]{0,15}")
ADDRESS = re.compile(r"[0-9A-Za-z:][0-9A-Za-z:.%_-]{0,63}")
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,63}")
# Of a node: OpenNebula lets it have 128 characters, as the full name of one in a deep domain may need.
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,127}")
UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
# POOL/IMAGE, as it is handed to rbd(8): no snapshot (@) and no namespace.
VOLUME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_.][A-Za-z0-9_.-]{0,95}")
POOL = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,95}")


def shown(value: str) -> str:
    """The value as an error message shows it: quoted, escaped, at most 60 characters of it."""
    return repr(value) if len(value) <= 60 else repr(value[:60]) + "..."


def printable(value: str) -> bool:
    """Whether the value has no control, format, surrogate or other invisible character."""
    return value.isprintable()


def absolute_path(value: str) -> str | None:
    """The path without double or trailing slashes and ``.``; None when it is not absolute or has ``..``.

    OpenNebula writes ``/var/lib/one//datastores``. :func:`posixpath.normpath` is no help: it keeps a leading ``//``
    and resolves ``..`` textually.
    """
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if not value.startswith("/") or ".." in parts or not printable(value):
        return None
    return "/" + "/".join(parts)


@dataclass(frozen=True, slots=True)
class Fields:
    """The children of one element.

    :param element: where to look.
    :param path: its name in error messages, such as ``VM/TEMPLATE/DISK[2]``.
    """

    element: Element
    path: str

    def child(self, tag: str) -> Fields | None:
        """The only child of that name; None when there is none.

        :raises UsageError: when there are two; a value with ``]]>`` can plant elements, as oned does not escape it.
        """
        found = self.element.findall(tag)
        if len(found) > 1:
            raise UsageError(f"there are {len(found)} elements {self.path}/{tag}, expected one", subject=self.path)
        return Fields(found[0], f"{self.path}/{tag}") if found else None

    def children(self, tag: str) -> tuple[Fields, ...]:
        """All children of that name, in the order of the document; their names count from 1, as in XPath."""
        return tuple(
            Fields(element, f"{self.path}/{tag}[{number}]")
            for number, element in enumerate(self.element.findall(tag), start=1)
        )

    def multiline(self, tag: str) -> str:
        """The text as it is, line ends included; empty when there is none."""
        child = self.child(tag)
        if child is None:
            return ""
        if len(child.element):
            raise UsageError(f"{child.path} has elements inside, expected text", subject=child.path)
        return child.element.text or ""

    def text(self, tag: str) -> str:
        """One line of text without blanks around it; empty when there is none."""
        value = self.multiline(tag).strip()
        if len(value) > MAX_TEXT:
            raise self.bad(tag, value, f"longer than {MAX_TEXT} characters")
        if not printable(value):
            raise self.bad(tag, value, "not one line of printable text")
        return value

    def matching(self, tag: str, pattern: re.Pattern[str], what: str) -> str:
        """The text, which must be ``what`` as a whole; empty when there is none."""
        value = self.text(tag)
        if value and not pattern.fullmatch(value):
            raise self.bad(tag, value, f"not {what}")
        return value

    def path_name(self, tag: str) -> str:
        """An absolute path, normalised; empty when there is none."""
        value = self.text(tag)
        if not value:
            return ""
        path = absolute_path(value)
        if path is None:
            raise self.bad(tag, value, "not an absolute path without '..'")
        return path

    def integer(self, tag: str, minimum: int = 0, maximum: int = MAX_INTEGER) -> int | None:
        """A whole number in ASCII digits; None when there is none."""
        value = self.text(tag)
        if not value:
            return None
        if not _INTEGER.fullmatch(value) or not minimum <= int(value) <= maximum:
            limit = f"of at least {minimum}" if maximum == MAX_INTEGER else f"from {minimum} to {maximum}"
            raise self.bad(tag, value, f"not a whole number {limit}")
        return int(value)

    def decimal(self, tag: str) -> float | None:
        """A number such as ``0.5``; None when there is none."""
        value = self.text(tag)
        if not value:
            return None
        if not _DECIMAL.fullmatch(value):
            raise self.bad(tag, value, "not a decimal number")
        return float(value)

    def flag(self, tag: str, default: bool = False) -> bool:
        """YES or NO, in the spellings OpenNebula's tools use."""
        value = self.text(tag)
        if not value:
            return default
        if value.lower() not in _TRUE | _FALSE:
            raise self.bad(tag, value, "neither YES nor NO")
        return value.lower() in _TRUE

    def needed(self, tag: str, value: T | None, hint: str = "") -> T:
        """Pass on a value that was read from ``tag`` and must be there.

        :raises UsageError: when it is None or empty.
        """
        if value is None or value == "":
            raise UsageError(f"{self.path}/{tag} is missing or empty", subject=f"{self.path}/{tag}", hint=hint)
        return value

    def bad(self, tag: str, value: str, why: str) -> UsageError:
        """Make the error about a value that is there, but wrong."""
        return UsageError(f"{self.path}/{tag} is {why}: {shown(value)}", subject=f"{self.path}/{tag}")
