# mypy: disable-error-code="arg-type"
"""Partition tables (S-14, S-15, P-15, P-16, P-17)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from mapper_core.testing import superblocks, tables
from mapper_core.testing.tables import Gpt, Mbr

from .case import HEADER, MAPPED, Case, content

SECTORS = 4096


def _gpt(*entries: Gpt, **values: int) -> bytearray:
    return tables.gpt_image(SECTORS * 512, entries, **values)


def _header(offset: int, layout: str, value: int) -> bytearray:
    """A GPT with one number changed in both headers, and the checksums made right again."""
    image = _gpt(Gpt(1, 64, 127))
    for lba in (1, SECTORS - 1):
        struct.pack_into(layout, image, lba * 512 + offset, value)
        tables.sign(image, lba)
    return image


def _mbr(*entries: Mbr, chain: tuple[tuple[int, tuple[Mbr, ...]], ...] = ()) -> bytearray:
    return tables.mbr_image(SECTORS * 512, entries, chain)


def partition_tables() -> Iterator[Case]:
    """Raw disks whose partition table is wrong."""
    bad = ("BadPartitionTable", "PartitionBeyondDevice")
    broken: dict[str, bytes | bytearray] = {
        "GPT of 2^32 entries": _header(80, "<I", 0xFFFFFFFF),
        "GPT of 2^20 entries": _header(80, "<I", 1 << 20),
        "GPT entries of 1 byte": _header(84, "<I", 1),
        "GPT entries of 2^30 bytes": _header(84, "<I", 1 << 30),
        "GPT entries behind the end": _header(72, "<Q", 1 << 60),
        "GPT header of 2^32 bytes": _header(12, "<I", 0xFFFFFFFF),
        "GPT: overlapping": _gpt(Gpt(1, 64, 200), Gpt(2, 100, 300)),
        "GPT: one inside of another": _gpt(Gpt(1, 64, 2000), Gpt(2, 100, 300)),
        "GPT: it ends before it begins": _gpt(Gpt(1, 200, 100)),
        "GPT: over the table": _gpt(Gpt(1, 0, 100)),
        "GPT: behind the end": _gpt(Gpt(1, 64, SECTORS * 2)),
        "GPT: the last sector of all": _gpt(Gpt(1, 64, (1 << 64) - 1)),
        "MBR: overlapping": _mbr(Mbr(1, 0x83, 64, 200), Mbr(2, 0x83, 100, 200)),
        "MBR: over itself": _mbr(Mbr(1, 0x83, 0, SECTORS)),
        "MBR: behind the end": _mbr(Mbr(1, 0x83, 64, 0xFFFFFFFF)),
        "MBR: two extended that overlap": _mbr(Mbr(1, 5, 64, 2000), Mbr(2, 5, 1000, 2000)),
        "EBR that is its own next": _mbr(Mbr(1, 5, 100, 1000), chain=((100, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 0, 10))),)),
        "EBRs in a circle": _mbr(
            Mbr(1, 5, 100, 1000),
            chain=((100, (Mbr(1, 0x83, 1, 9), Mbr(2, 5, 50, 9))), (150, (Mbr(1, 0x83, 1, 9), Mbr(2, 5, 0, 9)))),
        ),
        "EBR behind the end": _mbr(Mbr(1, 5, 100, 1000), chain=((100, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 1 << 31, 10))),)),
        "EBR inside of a neighbour": _mbr(
            Mbr(1, 0x83, 500, 500), Mbr(2, 5, 100, 300), chain=((100, (Mbr(1, 0x83, 450, 100),)),)
        ),
    }
    # P-15: a disk that was cut off, its second header with it
    cut = bytes(_gpt(Gpt(1, 64, 200), Gpt(2, 300, SECTORS - 64)))[: SECTORS // 2 * 512]
    broken["GPT that was cut off"] = cut
    broken["MBR that was cut off"] = bytes(_mbr(Mbr(1, 0x83, 64, SECTORS - 64)))[: SECTORS // 2 * 512]
    wrong = _gpt(Gpt(1, 64, 127))
    wrong[512 + 16] ^= 1
    wrong[(SECTORS - 1) * 512 + 16] ^= 1
    broken["GPT with two wrong checksums"] = wrong
    for name, image in broken.items():
        yield Case(name, "raw", content(image), (*bad, "NoRootFound"), HEADER)
    none = ("NoRootFound", *bad)
    yield Case("GPT for sectors of 4096", "raw", content(_gpt(Gpt(1, 8, 9), sector_size=4096)), none, MAPPED)
    reversed_slots = _gpt(Gpt(1, 900, 999), Gpt(3, 500, 599), Gpt(7, 64, 99))
    yield Case("GPT slots 1, 3, 7, reversed", "raw", content(reversed_slots), none, MAPPED)  # P-17
    protective = bytes(_mbr(Mbr(1, 0xEE, 1, SECTORS - 1)))
    yield Case("a protective MBR and nothing else", "raw", content(protective), none, MAPPED)
    # P-16: a hybrid image of a CD whose second GPT is nonsense
    hybrid = bytearray(superblocks.iso9660(size=SECTORS * 512))
    hybrid[:512] = tables.table_sector((Mbr(1, 0xEE, 1, 63), Mbr(2, 0x00, 0, SECTORS, 0x80), Mbr(3, 0xEF, 100, 200)))
    hybrid[512 : 512 + 8] = b"EFI PART"
    hybrid[(SECTORS - 1) * 512 : (SECTORS - 1) * 512 + 92] = b"EFI PART" + os.urandom(84)
    yield Case("hybrid ISO", "raw", content(hybrid), (*none, "UnknownFilesystem", "KernelError"), MAPPED)
