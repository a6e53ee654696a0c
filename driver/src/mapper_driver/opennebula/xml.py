"""The XML of an action script, read as hostile input.

OpenNebula sends it on the standard input: as it is over ssh, in base64 when the action runs on the front-end
(``-l`` of one_vmm_exec). Its root is ``<VM>`` for ``deploy`` and ``<VMM_DRIVER_ACTION_DATA>`` for the other actions.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from mapper_core.errors import UsageError

MAX_BYTES = 8 * 1024 * 1024
"""Largest document, bytes. A machine with 100 disks and a long context takes well under 1 MiB."""
MAX_BASE64_BYTES = MAX_BYTES // 3 * 4 + 4
MAX_DEPTH = 32
MAX_ELEMENTS = 100_000

MAX_TAG = 1 << 16
"""Longest tag with its attributes, or comment, bytes. OpenNebula's have no attributes; half a million would take 200 MiB."""

ACTION_DATA = "VMM_DRIVER_ACTION_DATA"

# Numbers of expat's enum XML_Error (expat.h): the document ends before it is complete.
_NO_ELEMENTS = 3
_UNCLOSED_TOKEN = 5
_UNCLOSED_CDATA_SECTION = 20
_CUT_OFF = frozenset({_NO_ELEMENTS, _UNCLOSED_TOKEN, _UNCLOSED_CDATA_SECTION})


@dataclass(frozen=True, slots=True)
class Document:
    """What an action script was told.

    :param vm: the element ``<VM>``.
    :param datastore: the element ``<DATASTORE>``, the system datastore; ``deploy`` is not given one.
    """

    vm: Element
    datastore: Element | None = None


def read_input(stream: BinaryIO) -> bytes:
    """Read an action script's standard input to its end, at most the size that is accepted.

    :raises UsageError: when there is more.
    """
    data = stream.read(MAX_BASE64_BYTES + 1)
    if len(data) > MAX_BASE64_BYTES:
        raise UsageError(f"the input is larger than {MAX_BYTES} bytes", subject="standard input")
    return data


def read_document(data: bytes) -> Document:
    """Decode and parse what OpenNebula sent.

    :param data: the XML, or its base64.
    :raises UsageError: when it is neither, is cut off, has a document type, is too large, or has another root.
    """
    root = _parse(_decode(data))
    if root.tag == "VM":
        return Document(root)
    if root.tag != ACTION_DATA:
        raise UsageError(
            f"the root element is <{_short(root.tag)}>, not <VM> or <{ACTION_DATA}>", subject="standard input"
        )
    machines = root.findall("VM")
    datastores = root.findall("DATASTORE")
    if len(machines) != 1 or len(datastores) > 1:
        raise UsageError(
            f"<{ACTION_DATA}> has {len(machines)} <VM> and {len(datastores)} <DATASTORE>, expected one and at most one",
            subject="standard input",
        )
    return Document(machines[0], datastores[0] if datastores else None)


def _decode(data: bytes) -> str:
    content = data.strip().removeprefix(b"\xef\xbb\xbf")
    if not content:
        raise UsageError("there is no input, expected the XML of a virtual machine", subject="standard input")
    if not content.startswith(b"<"):
        try:
            content = base64.b64decode(content, validate=True).strip()
        except (binascii.Error, ValueError) as error:
            raise UsageError("the input is neither XML nor base64", subject="standard input") from error
        if not content.startswith(b"<"):
            raise UsageError("the input is base64, but not of XML", subject="standard input")
    if len(content) > MAX_BYTES:
        raise UsageError(f"the input is larger than {MAX_BYTES} bytes", subject="standard input")
    if b"\0" in content:
        raise UsageError("the input contains NUL bytes", subject="standard input")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the input is not UTF-8 (byte {error.start})", subject="standard input") from error


class _BoundedBuilder(TreeBuilder):
    """Builds the tree, counts elements, attributes and depth, and knows in which element the input ended."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self._count = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self.open_tags.append(tag)
        self._count += 1 + len(attrs)
        if len(self.open_tags) > MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise UsageError(
                f"the XML has more than {MAX_DEPTH} levels or {MAX_ELEMENTS} elements and attributes",
                subject="standard input",
            )
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.open_tags.pop()
        return super().end(tag)


def _parse(text: str) -> Element:
    builder = _BoundedBuilder()
    # A str is handed to expat as UTF-8, whatever encoding its XML declaration claims.
    parser = DefusedXMLParser(target=builder, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        _feed(parser, text)
        root = parser.close()
    except DefusedXmlException as error:
        raise UsageError("the XML has a document type or entities, which are refused", subject="standard input") from (
            error
        )
    except ParseError as error:
        raise _parse_error(error, builder.open_tags, len(text)) from error
    assert isinstance(root, Element)
    return root


def _feed(parser: DefusedXMLParser, text: str) -> None:
    """Feed piece by piece: expat keeps a tag until it is complete, and says where the last complete thing has begun."""
    fed = 0
    step = MAX_TAG // 4  # characters, of up to four bytes each
    for at in range(0, len(text), step):
        piece = text[at : at + step]
        parser.feed(piece)
        fed += len(piece.encode())
        if fed - parser.parser.CurrentByteIndex > MAX_TAG:
            raise UsageError(f"the XML has a tag or comment of more than {MAX_TAG} bytes", subject="standard input")


def _parse_error(error: ParseError, open_tags: list[str], length: int) -> UsageError:
    place = "/".join(_short(tag) for tag in open_tags) or "the start"
    if error.code in _CUT_OFF:
        return UsageError(
            f"the XML is cut off after {length} characters, inside {place}",
            subject="standard input",
            hint="a value with a line that is exactly EOT ends the transfer from the front-end: change that line",
        )
    line, column = error.position
    return UsageError(
        f"the XML is not well-formed in line {line}, column {column}, inside {place}", subject="standard input"
    )


def _short(tag: str) -> str:
    return tag if len(tag) <= 40 else tag[:40] + "..."
