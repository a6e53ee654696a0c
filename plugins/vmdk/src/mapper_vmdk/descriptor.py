"""The text that describes a vmdk image: its type, its parent, its extents.

Source: "Virtual Disk Format 5.0" (VMware), section "The Descriptor"; and qemu's ``block/vmdk.c``, because it is qemu that
reads the text again, and follows the names of the extents in it. Whatever the two could understand differently is refused:
qemu scans the lines with sscanf(3) and finds keys anywhere in the text.
"""

from __future__ import annotations

import re

from mapper_core.frozen import dataclass
from mapper_core.imagefile import ImageFile

#: First bytes of a descriptor file.
START = b"# Disk DescriptorFile"

MAX_BYTES = 256 << 10
MAX_EXTENTS = 2048
MAX_NAME_BYTES = 255  # NAME_MAX; qemu would cut a name after 511 bytes and open what is left

NO_PARENT = 0xFFFFFFFF

_ACCESS = (b"RW", b"RDONLY", b"NOACCESS")
_EXTENT = re.compile(rb'RW[ \t]+([1-9][0-9]{0,15})[ \t]+([A-Z0-9]+)[ \t]+"([^"]*)"(?:[ \t]+([0-9]{1,16}))?[ \t\r]*')


@dataclass(frozen=True, slots=True)
class Extent:
    """One file of an image.

    :param type: ``FLAT`` or ``SPARSE``, or another that is not supported.
    :param sectors: length, in sectors of 512 bytes.
    :param offset: of the data in a flat file, sectors; ``None``: not written.
    """

    type: str
    sectors: int
    name: bytes
    offset: int | None


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor without ambiguities.

    :param create_type: such as ``monolithicSparse``.
    :param cid: content id; changes with the first write after each opening.
    :param parent_cid: content id of the parent when the image was made; ``None``: it has no parent.
    :param parent_name: empty without a parent.
    """

    create_type: str
    cid: int
    parent_cid: int | None
    parent_name: bytes
    extents: tuple[Extent, ...]


def parse(text: bytes, image: ImageFile) -> Descriptor:
    """Parse the text of a descriptor.

    :param text: without the NUL bytes behind it.
    :raises CorruptImage: it is damaged, or ambiguous.
    :raises UnsupportedFormat: it uses what qemu ignores in silence, so that the disk would have a hole.
    """
    if not text.startswith(START):
        raise image.corrupt("the descriptor does not start as it must")
    lines = text.split(b"\n")
    create_type = _value(lines, text, b"createType", rb'createType="([A-Za-z0-9]{1,64})"', image)
    cid = _value(lines, text, b"CID", rb"CID=([0-9A-Fa-f]{1,8})", image)
    parent_cid = int(_value(lines, text, b"parentCID", rb"parentCID=([0-9A-Fa-f]{1,8})", image), 16)
    parent_name = b""
    if b"parentFileNameHint" in text:
        parent_name = _value(lines, text, b"parentFileNameHint", rb'parentFileNameHint="([^"]{1,1023})"', image)
    if (parent_cid == NO_PARENT) != (not parent_name):
        raise image.corrupt(
            "the descriptor contradicts itself: parentCID and parentFileNameHint must both name a parent, or none"
        )
    return Descriptor(
        create_type=create_type.decode(),
        cid=int(cid, 16),
        parent_cid=None if parent_cid == NO_PARENT else parent_cid,
        parent_name=parent_name,
        extents=_extents(lines, image),
    )


def _value(lines: list[bytes], text: bytes, key: bytes, pattern: bytes, image: ImageFile) -> bytes:
    """Return the value of a key that is there once, at the start of a line, where a plain search finds it first too."""
    matches = [found for line in lines if (found := re.fullmatch(pattern, line.rstrip(b" \t\r")))]
    # every "parentCID" contains a "CID": the one that is meant must come first
    first = text.find(key)
    starts_line = first == 0 or text[first - 1 : first] == b"\n"
    once = text.count(key) == 1 or key == b"CID"
    if len(matches) != 1 or not starts_line or not once:
        raise image.corrupt(f"the descriptor needs exactly one line {key.decode()}=...")
    return matches[0][1]


def _extents(lines: list[bytes], image: ImageFile) -> tuple[Extent, ...]:
    extents: list[Extent] = []
    blank_before = extent_before = False
    for line in lines:
        words = line.split(None, 1)
        if not words:
            blank_before = True
            continue
        is_extent = words[0].upper() in _ACCESS
        # sscanf() skips line ends like blanks
        if is_extent and blank_before:
            raise image.corrupt(
                "a blank line before an extent, which qemu would read twice",
                "remove the blank line from the descriptor",
            )
        if extent_before and words[0][:1] in b"+-0123456789":
            raise image.corrupt("a number in the line after an extent, which qemu would take for its offset")
        if is_extent:
            extents.append(_extent(line.strip(), image))
            if len(extents) > MAX_EXTENTS:
                raise image.unsupported(f"the image has more than {MAX_EXTENTS} extents")
        blank_before, extent_before = False, is_extent
    return tuple(extents)


def _extent(line: bytes, image: ImageFile) -> Extent:
    access = line.split(None, 1)[0]
    found = _EXTENT.fullmatch(line)
    if found is None:
        shown = line[:80].decode("ascii", "backslashreplace")
        if access in (b"RDONLY", b"NOACCESS") or b"ZERO" in line.split():
            raise image.unsupported(f"an extent that is not plain data, which qemu leaves out: {shown!a}")
        raise image.corrupt(f"an extent line cannot be understood: {shown!a}")
    sectors, kind, name, offset = found.groups()
    if len(name) > MAX_NAME_BYTES:
        raise image.corrupt("the name of an extent is too long")
    return Extent(kind.decode(), int(sectors), name, None if offset is None else int(offset))
