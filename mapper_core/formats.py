"""What a file is, told by its first bytes. Advice for people and for error messages, never a way to choose a plugin.

A raw disk is whatever its guest writes, so that bytes which look like a format prove nothing about a file that was
declared raw (CVE-2013-1922). Sources of the numbers: the format specifications, and the magic files of ``file(1)``.
"""

from __future__ import annotations

from mapper_core.errors import FormatMismatch, MapperError, TruncatedImage, UnsupportedFormat

#: Bytes of a file that :func:`identify` wants to see.
HEADER_SIZE = 4096

#: What is returned for everything that is not recognised.
RAW = "raw"

_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb\x00\x00\x00\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\x00", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"\x89LZO\x00\r\n\x1a\n", "lzop"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\x07", "rar"),
    (257, b"ustar", "tar"),
)

_AT_ZERO = tuple(magic for offset, magic, _ in _MAGICS if offset == 0)
_BEHIND = tuple(item for item in _MAGICS if item[0] > 0)

#: Formats with a magic; a file without it has none of them.
KNOWN = frozenset(name for _, _, name in _MAGICS)

#: Formats that hold a file, which may be a disk image, and the command that takes it out.
_PACKED: dict[str, str] = {
    "gzip": "gunzip",
    "xz": "unxz",
    "zstd": "unzstd",
    "bzip2": "bunzip2",
    "lz4": "unlz4",
    "lzop": "lzop -d",
    "zip": "unzip",
    "7z": "7z x",
    "rar": "unrar x",
    "tar": "tar -xf",
}


def identify(first_bytes: bytes) -> str:
    """Name the format of a file that begins like this.

    :param first_bytes: the first :data:`HEADER_SIZE` bytes of the file, fewer if it is shorter.
    :returns: ``qcow2``, ``vmdk``, ``gzip`` ...; :data:`RAW` when nothing is recognised.
    """
    if not first_bytes.startswith(_AT_ZERO) and not any(first_bytes.startswith(magic, at) for at, magic, _ in _BEHIND):
        return RAW  # as most are
    for offset, magic, name in _MAGICS:
        if first_bytes.startswith(magic, offset):
            return name
    return RAW


def is_packed(name: str) -> bool:
    """Say whether a format is a compressed stream or an archive: no disk, but perhaps one inside."""
    return name in _PACKED


def refusal(declared: str, first_bytes: bytes, subject: str) -> MapperError:
    """Return the error for a file that is not what the caller declared.

    :param declared: name of the plugin.
    :param first_bytes: as for :func:`identify`.
    :param subject: path of the file.
    :returns: :class:`UnsupportedFormat` for a packed file (M-22), :class:`TruncatedImage` for an empty one, else
        :class:`FormatMismatch`.
    """
    if not first_bytes:
        return TruncatedImage(
            "the file is empty", subject=subject, hint="the copy or download did not finish; fetch the image again"
        )
    found = identify(first_bytes)
    if is_packed(found):
        return UnsupportedFormat(
            f"declared {declared}, but the file is packed with {found}",
            subject=subject,
            hint=f"unpack it first ({_PACKED[found]}), then register the image again",
        )
    if found == RAW:
        return FormatMismatch(
            f"declared {declared}, but the first bytes of the file are of no known format",
            subject=subject,
            hint="declare the format raw, if this is a raw disk",
        )
    return FormatMismatch(
        f"declared {declared}, but the file is a {found} image",
        subject=subject,
        hint=f"declare the format {found}, or convert it: qemu-img convert -f {found} -O {declared} SOURCE TARGET",
    )
