"""Hostile partition tables, superblocks and fstab files: random and mutated bytes, by the thousand.

Each parser must answer, or raise a typed error; it must read little, and soon be done. A canary lies on the host, and
nothing that an image says may touch it.
"""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mapper_core.errors import BadImage, BadPartitionTable, MapperError
from mapper_core.model import Filesystem, Partition, PartitionTable, Volume
from mapper_core.partitions import ReadAt, window
from mapper_core.partitions.discover import discover
from mapper_core.testing import superblocks, tables
from mapper_core.testing.tables import Gpt, Mbr
from mapper_core.tree import fstab
from mapper_core.tree.options import ALLOWED_FILESYSTEMS
from mapper_core.tree.plan import PlanPolicy, plan
from mapper_core.tree.superblock import probe

pytestmark = pytest.mark.security

SIZE = 2 << 20
#: What may be read of an image, bytes: both GPTs with the largest table, a label, and every superblock.
READ_LIMIT = 8 << 20
ROUNDS = 3000

POLICY = PlanPolicy(ALLOWED_FILESYSTEMS)


class Meter:
    """A reader that counts, and refuses what the contract of a reader does not allow."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.image = image
        self.total = 0

    def __call__(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < 1 << 63, offset  # pread(2) takes no more
        assert 0 <= length <= 1 << 20, length
        self.total += length
        assert self.total <= READ_LIMIT
        return bytes(self.image[offset : offset + length])


def check_table(image: bytes | bytearray) -> PartitionTable | None:
    """Discover, and check that what comes back may be handed to the kernel."""
    try:
        table = discover(Meter(image), len(image))
    except BadPartitionTable as error:
        assert error.message
        assert str(error).isprintable()
        return None
    end = 0
    assert len(table.partitions) <= 128
    for item in sorted(table.partitions, key=lambda item: item.start):
        assert 0 <= item.number <= 255
        if table.scheme == "none":
            assert (item.number, item.start, item.size) == (0, 0, len(image))
            continue
        assert item.start >= max(end, table.sector_size)
        assert item.size > 0
        end = item.start + item.size
        assert end <= len(image)
        assert item.label.isprintable() or "\x1b" not in item.label
    assert len({item.number for item in table.partitions}) == len(table.partitions)
    for item in table.partitions:
        check_superblock(image, item)
    return table


def check_superblock(image: bytes | bytearray, item: Partition) -> Filesystem:
    found = probe(window(Meter(image), item.start, item.size), item.size)
    for name in (found.type, found.uuid, found.label):
        name.encode()
        assert not any(ord(char) < 0x20 for char in name)
    return found


def mutate(dice: random.Random, image: bytearray, hot: tuple[tuple[int, int], ...]) -> None:
    """Change a few numbers, most of them where the structures are."""
    for _ in range(dice.randint(1, 6)):
        start, end = dice.choice(hot)
        at = dice.randrange(start, end)
        kind = dice.randrange(4)
        if kind == 0:
            image[at] = dice.randrange(256)
        elif kind == 1:
            image[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            piece = dice.choice((b"\0", b"\xff")) * dice.choice((1, 2, 4, 8))
            image[at : at + len(piece)] = piece[: len(image) - at]
        else:
            value = dice.choice(
                (0, 1, 2, 127, 128, 129, 511, 512, 2**31, 2**32 - 1, 2**63, 2**64 - 1, dice.getrandbits(64))
            )
            piece = struct.pack("<Q", value)[: dice.choice((2, 4, 8))]
            image[at : at + len(piece)] = piece[: len(image) - at]


#: The smallest disks that have a bit of everything.
LAST = 511
GPT = tables.gpt_image((LAST + 1) * 512, (Gpt(1, 64, 127), Gpt(3, 300, 400, name="name"), Gpt(7, 200, 250)))
MBR = tables.mbr_image(
    (LAST + 1) * 512,
    (Mbr(1, 0x83, 64, 64), Mbr(2, 0x05, 150, 350)),
    tables.logical_chain(150, ((0x83, 151, 40), (0x82, 201, 40), (0x83, 301, 40))),
)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_gpt(seed: int) -> None:
    """S-14, S-15: with right checksums, so that the numbers behind them are reached."""
    dice = random.Random(seed)
    outcomes = set()
    for _ in range(ROUNDS):
        image = bytearray(GPT)
        mutate(dice, image, ((440, 512), (512, 604), (512 + 72, 512 + 92), (1024, 1024 + 128 * 8)))
        if dice.random() < 0.8:
            tables.sign(image, 1)
        if dice.random() < 0.5:
            image[LAST * 512 :] = bytes(512)
        table = check_table(image)
        outcomes.add(table.scheme if table else "error")
    assert outcomes == {"gpt", "none", "dos", "error"}


@pytest.mark.parametrize("seed", range(4))
def test_mutated_mbr(seed: int) -> None:
    """S-15: loops, overlaps, and chains that lead anywhere."""
    dice = random.Random(seed)
    outcomes = set()
    for _ in range(ROUNDS):
        image = bytearray(MBR)
        mutate(dice, image, tuple((sector * 512 + 446, sector * 512 + 512) for sector in (0, 150, 200, 300)))
        table = check_table(image)
        outcomes.add(table.scheme if table else "error")
    assert outcomes == {"dos", "none", "error"}


def test_random_mbr_chains() -> None:
    """S-15: EBRs that point at each other at random always come to an end."""
    dice = random.Random(1)
    for _ in range(500):
        image = bytearray(512 * 512)
        places = dice.sample(range(100, 500), 30)
        image[:512] = tables.table_sector((Mbr(1, 5, 100, 400),))
        for place in (100, *places):
            target = dice.choice(places) - 100
            image[place * 512 : place * 512 + 512] = tables.table_sector((Mbr(1, 0x83, 1, 1), Mbr(2, 5, target, 10)))
        check_table(image)


@pytest.mark.parametrize("name", [name for _, name, _ in superblocks.CORPUS])
def test_mutated_superblock(name: str) -> None:
    """S-14: lies about sizes, counts and positions give plain data or nothing."""
    dice = random.Random(name)
    original = next(build for _, other, build in superblocks.CORPUS if other == name)()[:SIZE]
    # where the image is not zero, and a little around it
    blocks = {at // 512 for at, byte in enumerate(original) if byte}
    hot = tuple((block * 512, min(block * 512 + 512, len(original))) for block in sorted(blocks))
    survived = 0
    for _ in range(ROUNDS // 10):
        image = bytearray(original)
        mutate(dice, image, hot)
        survived += bool(check_superblock(image, Partition(0, 0, len(image))).type)
        length = dice.randrange(len(image))
        check_superblock(image[:length], Partition(0, 0, length))
    assert survived


def test_random_bytes() -> None:
    """Noise, with and without the signatures that lead a parser on."""
    dice = random.Random(2)
    magics: tuple[tuple[int, bytes], ...] = (
        (0, b"XFSB"), (0, b"hsqs"), (0, b"LUKS\xba\xbe"), (3, b"NTFS    "), (3, b"EXFAT   "), (512, b"EFI PART"),
        (512, b"LABELONE"), (1080, b"\x53\xef"), (1024, b"\xe2\xe1\xf5\xe0"), (1024, b"\x10\x20\xf5\xf2"), (4086, b"SWAPSPACE2"),
        (32768, b"\x01CD001\x01"), (65600, b"_BHRfS_M"), (4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    )  # fmt: skip
    for _ in range(ROUNDS // 10):
        image = bytearray(dice.randbytes(80000))
        for at, magic in dice.sample(magics, dice.randrange(4)):
            image[at : at + len(magic)] = magic
        if dice.random() < 0.7:
            image[510:512] = b"\x55\xaa"
        if dice.random() < 0.5:
            for slot in range(4):
                image[446 + 16 * slot] = dice.choice((0, 0x80))
        check_table(image)
        check_superblock(image, Partition(0, 0, len(image)))


@pytest.mark.parametrize(
    ("offset", "layout", "values"),
    [
        (80, "<I", (2**32 - 1, 2**31, 1 << 20, 8193)),  # number of entries
        (84, "<I", (2**32 - 1, 2**31, 1 << 30)),  # size of an entry
        (72, "<Q", (2**64 - 1, 2**63, 2**55)),  # where they are
        (12, "<I", (2**32 - 1, 0, 91)),  # size of the header
    ],
)
def test_absurd_gpt_header_costs_nothing(offset: int, layout: str, values: tuple[int, ...]) -> None:
    """S-14: no memory, no time, no matter what the header says."""
    for value in values:
        image = bytearray(GPT)
        struct.pack_into(layout, image, 512 + offset, value)
        tables.sign(image, 1)
        image[LAST * 512 :] = bytes(512)
        started = time.monotonic()
        tracemalloc.start()
        try:
            with pytest.raises(BadPartitionTable):
                discover(Meter(image), len(image))
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
        assert time.monotonic() - started < 2


def test_largest_table_is_parsed_quickly() -> None:
    """S-14, S-19: a full mebibyte of entries, none of which is used but the last."""
    size = 4 << 20
    image = tables.gpt_image(size, (Gpt(8192, 3000, 3001),), count=8192)
    started = time.monotonic()
    with pytest.raises(BadPartitionTable, match="255"):
        discover(Meter(image), size)
    assert time.monotonic() - started < 2


def test_directories_without_end() -> None:
    """S-14: FAT and exFAT directories that loop, with the largest clusters."""
    image = bytearray(superblocks.fat32(next_cluster=2))
    image[13] = 128
    at = (32 + 2 * 32) * 512
    image[at:] = (b"FILE    TXT\x20" + bytes(14) + b"\x07" + bytes(5)) * ((SIZE - at) // 32)
    assert check_superblock(image, Partition(0, 0, SIZE)).type == "vfat"
    image = bytearray(superblocks.exfat(next_cluster=4))
    image[109] = 16
    image[66 * 512 :] = b"\x85" * (SIZE - 66 * 512)
    assert check_superblock(image, Partition(0, 0, SIZE)).type == "exfat"


# --- fstab ------------------------------------------------------------------------------------------------------

DISK = tuple(
    Volume(Partition(number, number << 20, 1 << 20), Filesystem(kind, f"uuid-{number}", f"label-{number}"))
    for number, kind in enumerate(("ext4", "xfs", "btrfs", "vfat", "swap", "ntfs", ""), start=1)
)

SEED_FSTAB = rb"""# /etc/fstab
UUID=uuid-1 / ext4 errors=remount-ro 0 1
LABEL=label-2 /with\040space xfs defaults,noatime 0 2
/dev/vda3 /home btrfs subvol=@home,compress=zstd 0 0
UUID=uuid-4 /boot/efi vfat umask=0077 0 1
/dev/vda5 none swap sw 0 0
tmpfs /tmp tmpfs size=1g 0 0
"""

TOKENS = (
    b"/", b"..", b"../..", b"\\000", b"\\040", b"\\012", b"\\", b"\"", b"'", b",", b"=", b"#", b"\t", b"\r", b"\n", b"\0",
    b"\x1b[2J", b"$(touch /canary)", b";reboot", b"%s%n", b"UUID=", b"LABEL=", b"/dev/vda1", b"/dev/disk/by-path/x-part1",
    b"nofail", b"bind", b"subvol=..", b"loop", b"\xff\xfe", "\u202e".encode(), b"A" * 5000, b"/proc/self/root", b"-o",
)  # fmt: skip


def mutated_fstabs(count: int) -> Iterator[bytes]:
    dice = random.Random(3)
    for _ in range(count):
        content = bytearray(SEED_FSTAB)
        for _ in range(dice.randint(1, 8)):
            at = dice.randrange(len(content) + 1)
            piece = dice.choice(TOKENS) if dice.random() < 0.7 else dice.randbytes(dice.randint(1, 4))
            content[at : at + dice.choice((0, 0, 1, len(piece)))] = piece
        yield bytes(content)


def test_mutated_fstab(tmp_path: Path) -> None:
    """S-09, S-12, S-16: every plan stays inside of the tree and on the disk, every failure has a type."""
    canary = tmp_path / "canary"
    canary.write_text("secret")
    before = sorted(Path("/").iterdir())
    planned = refused = 0
    for content in mutated_fstabs(ROUNDS):
        try:
            made = plan(DISK, fstab.parse(content), POLICY, DISK[0])
        except MapperError as error:
            assert "\x1b" not in f"{error}{error.hint}{error.subject}"
            assert len(str(error)) < 1000
            refused += 1
            continue
        planned += 1
        for mount in made.mounts:
            names = mount.target.split("/")[1:]
            assert mount.target == "/" or not {"", ".", ".."} & set(names)
            assert names[0] not in ("proc", "sys", "dev", "run")
            assert mount.volume in DISK
            assert mount.fstype in ALLOWED_FILESYSTEMS
            assert "\0" not in mount.target + mount.subvolume + "".join(mount.options)
            assert not any("," in option for option in mount.options)
        assert "\x1b" not in repr((made.skipped, made.warnings))
    assert min(planned, refused) > ROUNDS // 20
    assert canary.read_text() == "secret"
    assert sorted(Path("/").iterdir()) == before


@pytest.mark.parametrize(
    "content",
    [
        b"A" * (1 << 20),
        b" " * (1 << 20),
        b"\n" * (1 << 20),
        b"\\" * (1 << 20),
        b"\\040" * (1 << 18),
        b"a b c " + b"," * ((1 << 20) - 6),
        b"a b c " + b'"' * ((1 << 20) - 6),
        b"a /b c " + b"x," * ((1 << 19) - 4),
        b"LABEL=x /b ext4\n" * 1024,
        b"x" * ((1 << 20) + 1),
    ],
    ids=["letters", "blanks", "lines", "backslashes", "escapes", "commas", "quotes", "options", "entries", "too long"],
)
def test_large_fstab(content: bytes) -> None:
    """S-14: the limits keep time and memory small."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(BadImage):
            plan(DISK, fstab.parse(content + b"\nend"), POLICY, DISK[0])
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 10


def test_a_reader_that_ends_early() -> None:
    """A device that shrinks while it is read (or lies about its size) gives short reads, anywhere."""

    def short(image: bytes, limit: int) -> ReadAt:
        return lambda offset, length: image[offset : min(offset + length, limit)]

    builders: list[Callable[[], bytes]] = [lambda: bytes(GPT), lambda: bytes(MBR)]
    builders += [build for _, _, build in superblocks.CORPUS]
    for build in builders:
        image = build()
        for limit in (0, 511, 512, 700, 1024, 1100, 4096, 17000, 33000, 66000, 131072, 260000):
            with suppress(BadPartitionTable):
                discover(short(image, limit), len(image))
            probe(short(image, limit), len(image))
