"""Our parsers against the tools of util-linux, gdisk and the mkfs family, on real images: the same answer, every time.

Everything happens on plain files; nothing is attached or mounted.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mapper_core.errors import BadPartitionTable, PartitionBeyondDevice
from mapper_core.model import Filesystem, PartitionTable
from mapper_core.partitions.discover import discover
from mapper_core.partitions.reader import file_reader, window
from mapper_core.testing import superblocks, tables
from mapper_core.testing.tables import Gpt, Mbr
from mapper_core.tree import dps, fstab, superblock

pytestmark = pytest.mark.root

MIB = 1 << 20
EXTENDED = ("f", "5", "85")


def run(*argv: str | Path, stdin: str = "") -> str:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 0, f"{argv}: {result.stderr}"
    return result.stdout


def sparse(path: Path, size: int) -> Path:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)
    return path


def ours(path: Path, sector_size: int = 512) -> PartitionTable:
    with path.open("rb") as file:
        return discover(file_reader(file.fileno()), path.stat().st_size, sector_size)


def ours_superblock(path: Path) -> Filesystem:
    with path.open("rb") as file:
        return superblock.probe(file_reader(file.fileno()), path.stat().st_size)


# --- superblocks --------------------------------------------------------------------------------------------


def blkid(path: Path) -> Filesystem:
    """What blkid finds; its encoding of names is undone."""
    result = subprocess.run(
        ["blkid", "-p", "-u", "filesystem,raid,crypto,other", "-o", "udev", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    values = dict(line.split("=", 1) for line in result.stdout.splitlines())
    names = (values.get(f"ID_FS_{name}", "") for name in ("TYPE", "UUID_ENC", "LABEL_ENC"))
    return Filesystem(*(re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name) for name in names))


@pytest.mark.parametrize(
    "argv",
    [
        "mkfs.ext2 -q",
        "mkfs.ext2 -q -L two",
        "mkfs.ext2 -q -b 1024 -O none,filetype",
        "mkfs.ext2 -q -O meta_bg,^resize_inode",
        "mkfs.ext3 -q -L three",
        "mkfs.ext3 -q -O meta_bg,^resize_inode",
        "mkfs.ext4 -q -L four",
        "mkfs.ext4 -q -L sixteen-letters!",
        "mkfs.ext4 -q -O ^has_journal",
        "mkfs.ext4 -q -O ^metadata_csum",
        "mkfs.ext4 -q -O ^metadata_csum,^64bit,^extents,^flex_bg,^huge_file,^dir_nlink,^extra_isize",
        "mkfs.ext4 -q -O journal_dev",
        "mkfs.xfs -q -L data",
        "mkfs.xfs -q -s size=4096 -b size=4096",
        "mkfs.xfs -q -b size=1024",
        "mkfs.btrfs -q -L pool",
        "mkfs.btrfs -q --mixed --csum sha256",
        "mkfs.vfat -n EFI",
        "mkfs.vfat -F 12 -n TWELVE",
        "mkfs.vfat -F 16 -i 0badcafe",
        "mkfs.vfat -F 32 -n THIRTYTWO",
        "mkfs.vfat -F 32 -S 4096 -s 2 -n BIGSECTOR",
        "mkfs.vfat -F 16 --mbr=y -n FAKEMBR",
        "mkfs.vfat -i 00000000",
        "mkswap -q -L swap",
        "mkswap -q -p 65536",
    ],
)
def test_superblock_of_a_real_filesystem(argv: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / "image", (12 if "-F 12" in argv else 320) * MIB)
    subprocess.run([*argv.split(), path], check=True, capture_output=True, timeout=60)
    expected = blkid(path)
    assert expected.type
    assert ours_superblock(path) == expected
    # A whole disk with a filesystem has no partitions, even when the boot sector carries the signature of an MBR.
    assert ours(path).scheme == "none"


@pytest.mark.parametrize("label", ["CONTEXT", "Mixed Case", "longer than sixteen letters", "Übergröße"])
@pytest.mark.parametrize("joliet", [True, False])
def test_superblock_of_a_cd_image(label: str, joliet: bool, tmp_path: Path) -> None:
    """The context disk of OpenNebula is such an image."""
    if not label.isascii() and not joliet:
        label = "PLAIN"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "context.sh").write_text("A=1")
    image = tmp_path / "image"
    run("genisoimage", "-quiet", *(["-J", "-R"] if joliet else []), "-V", label, "-o", image, tmp_path / "tree")
    expected = blkid(image)
    assert (expected.type, expected.label) == ("iso9660", label)
    assert ours_superblock(image) == expected


def test_superblock_of_squashfs(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    run("mksquashfs", tmp_path / "tree", tmp_path / "image", "-quiet", "-no-progress")
    assert ours_superblock(tmp_path / "image") == blkid(tmp_path / "image") == Filesystem("squashfs")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name, _ in superblocks.CORPUS])
def test_superblock_of_the_corpus(kind: str, name: str, tmp_path: Path) -> None:
    """The images that the unit tests use are what blkid says they are."""
    image = tmp_path / "image"
    image.write_bytes(next(build for _, other, build in superblocks.CORPUS if other == name)())
    if kind == "zfs_member":  # libblkid does not look for it on smaller devices
        os.truncate(image, 64 * MIB)
    assert ours_superblock(image) == blkid(image)
    assert ours_superblock(image).type == kind


# --- partition tables ---------------------------------------------------------------------------------------


def sfdisk_view(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    return table


def assert_same(path: Path) -> PartitionTable:
    """Compare with ``sfdisk --json``, and PARTUUIDs with libblkid's view, which ``partx`` prints for plain files."""
    table, seen = ours(path), sfdisk_view(path)
    sector = table.sector_size
    assert table.scheme == seen["label"]
    assert (table.uuid or "00000000") == seen["id"].lower().removeprefix("0x")  # none, for libblkid
    expected = [
        (
            int(re.findall("[0-9]+$", item["node"])[0]),
            item["start"] * sector,
            item["size"] * sector,
            item["type"].lower() if seen["label"] == "gpt" else f"0x{int(item['type'], 16):02x}",
            item.get("name", ""),
        )
        for item in seen.get("partitions", [])
        if seen["label"] == "gpt" or item["type"] not in EXTENDED
    ]
    assert [(item.number, item.start, item.size, item.type, item.label) for item in table.partitions] == expected
    if expected:
        lines = run("partx", "--raw", "--noheadings", "--output", "NR,UUID", path).splitlines()
        partuuids = {number: "".join(rest) for number, *rest in map(str.split, lines)}
        for item in table.partitions:
            assert item.uuid == partuuids[str(item.number)]
    return table


GPT_SCRIPTS = {
    "empty": "label: gpt",
    "cloud image": "label: gpt\n14 : size=4MiB, type=21686148-6449-6E6F-744E-656564454649\n15 : size=64MiB, type=uefi\n"
    "1 : type=linux, name=root",
    "names": 'label: gpt\nsize=1MiB, name="a b"\nsize=1MiB, name="Größe 大"\n'
    'size=1MiB, name="123456789012345678901234567890123456"',
    "backwards": "label: gpt\n1 : start=40960, size=2048\n2 : start=20480, size=2048\n3 : start=4096, size=2048",
    "short table": "label: gpt\ntable-length: 4\nsize=1MiB\nsize=1MiB",
    "first usable": "label: gpt\nfirst-lba: 34\nstart=34, size=2014, type=21686148-6449-6E6F-744E-656564454649\nsize=1MiB",
    "one sector": "label: gpt\nstart=2048, size=1\nstart=2049, size=1",
}

MBR_SCRIPTS = {
    "empty": "label: dos\nlabel-id: 0x12345678",
    "one": "label: dos\nlabel-id: 0xdeadbeef\nsize=16MiB, type=83, bootable",
    "no signature": "label: dos\nlabel-id: 0x00000000\nsize=16MiB",
    "four": "label: dos\n" + "size=16MiB\n" * 4,
    "slot 3 only": "label: dos\n3 : size=16MiB",
    "backwards": "label: dos\n1 : start=40960, size=2048\n2 : start=4096, size=2048",
    "extended, empty": "label: dos\nsize=8MiB\ntype=5",
    "logical": "label: dos\nsize=8MiB\ntype=5\nsize=4MiB, type=82\nsize=4MiB\nsize=4MiB, type=7",
    "logical, LBA": "label: dos\ntype=f\nsize=4MiB\nsize=4MiB",
    "logical, Linux": "label: dos\nsize=4MiB\n3 : size=50MiB, type=85\n5 : size=4MiB\n6 : size=4MiB",
    "logical, then primary": "label: dos\n1 : start=2048, size=40960, type=5\n5 : size=4MiB\n2 : start=43008, size=2048",
    "twenty logical": "label: dos\ntype=5\n" + "size=2MiB\n" * 20,
    "old alignment": "label: dos\nstart=63, size=16002, type=83\nstart=16065, size=64260, type=5\nstart=16128, size=16002",
}


@pytest.mark.parametrize("name", GPT_SCRIPTS)
def test_gpt_made_by_sfdisk(name: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sfdisk", "--quiet", path, stdin=GPT_SCRIPTS[name])
    assert assert_same(path).warnings == ()


@pytest.mark.parametrize("name", MBR_SCRIPTS)
def test_mbr_made_by_sfdisk(name: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sfdisk", "--quiet", "--no-tell-kernel", path, stdin=MBR_SCRIPTS[name])
    assert_same(path)


def test_gpt_made_by_sgdisk(tmp_path: Path) -> None:
    """P-17: slots 1, 3 and 7, the later ones earlier on the disk, in a table of 200 slots that is not at sector 2."""
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sgdisk", "-S", "200", "-j", "64", "-n", "1:64M:+8M", "-n", "3:32M:+8M", "-n", "7:8M:+8M", path)
    run("sgdisk", "-t", "3:8304", "-c", "7:seventh", "-u", "7:01234567-89AB-CDEF-0123-456789ABCDEF", path)
    table = assert_same(path)
    assert [item.number for item in table.partitions] == [1, 3, 7]
    assert table.partitions[1].type == dps.ROOT_BY_MACHINE["x86_64"]
    assert table.partitions[2].uuid == "01234567-89ab-cdef-0123-456789abcdef"


def test_hybrid_made_by_sgdisk(tmp_path: Path) -> None:
    """A hybrid MBR shows some of the partitions a second time; the GPT is the whole truth."""
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sgdisk", "-n", "1:2M:+8M", "-n", "2:16M:+8M", "-n", "3:32M:+8M", "-h", "2:3", path)
    table = ours(path)
    assert (table.scheme, [item.number for item in table.partitions]) == ("gpt", [1, 2, 3])


def test_primary_gpt_destroyed(tmp_path: Path) -> None:
    """The backup gives the same partitions, and sfdisk agrees."""
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sfdisk", "--quiet", path, stdin=GPT_SCRIPTS["cloud image"])
    intact = ours(path)
    with path.open("r+b") as file:
        file.seek(512)
        file.write(bytes(512 * 33))
    damaged = assert_same(path)
    assert damaged.partitions == intact.partitions
    assert damaged.warnings == ("the primary GPT is damaged; the backup at the end of the disk is used",)


def test_truncated_image(tmp_path: Path) -> None:
    """P-15."""
    path = sparse(tmp_path / "image", 128 * MIB)
    for script in (GPT_SCRIPTS["cloud image"], MBR_SCRIPTS["logical"] + "\nsize=64MiB"):
        os.truncate(path, 128 * MIB)
        run("sfdisk", "--quiet", "--wipe", "always", path, stdin=script)
        os.truncate(path, 64 * MIB)
        with pytest.raises(PartitionBeyondDevice):
            ours(path)


def test_grown_image(tmp_path: Path) -> None:
    """A disk enlarged by OpenNebula keeps its partitions, with the backup header where the end was."""
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sfdisk", "--quiet", path, stdin=GPT_SCRIPTS["cloud image"])
    os.truncate(path, 256 * MIB)
    assert assert_same(path).warnings == ("the disk is larger than its GPT says: the backup GPT is not at the end",)


def test_disk_with_large_sectors(tmp_path: Path) -> None:
    """An image of a 4Kn disk, seen through a device with sectors of 512 bytes and through its own."""
    path = tmp_path / "image"
    path.write_bytes(tables.gpt_image(8 * MIB, (Gpt(1, 256, 511), Gpt(2, 512, 1023)), sector_size=4096))
    seen = run("partx", "--raw", "--noheadings", "-S", "4096", "--output", "NR,START,SECTORS", path)
    for sector_size in (512, 4096):
        table = ours(path, sector_size)
        assert table.sector_size == 4096
        # partx counts in units of 512 bytes, whatever the sector size
        lines = [f"{item.number} {item.start // 512} {item.size // 512}" for item in table.partitions]
        assert lines == [line.strip() for line in seen.splitlines()]


def random_script(dice: random.Random) -> tuple[str, int]:
    """Lay out a disk of 256 MiB at random, and say how many partitions it has."""
    places = sorted(dice.sample(range(1, 40), dice.randint(1, 12)))
    pieces = [
        (start * 3, dice.randint(2, (end - start) * 3)) for start, end in zip(places, [*places[1:], 41], strict=True)
    ]
    if dice.random() < 0.5:
        slots = dice.sample(range(1, 100), len(pieces))
        lines = [
            f"{slot} : start={start}MiB, size={size}MiB" for slot, (start, size) in zip(slots, pieces, strict=True)
        ]
        return "\n".join(["label: gpt", *lines]), len(pieces)
    primaries = pieces[: dice.randint(0, 3)]
    logicals = pieces[len(primaries) :]
    *slots, slot = dice.sample(range(1, 5), len(primaries) + 1)
    lines = [f"{slot} : start={start}MiB, size={size}MiB" for slot, (start, size) in zip(slots, primaries, strict=True)]
    if logicals:
        first = logicals[0][0]
        lines.append(f"{slot} : start={first}MiB, size={200 - first}MiB, type={dice.choice(EXTENDED)}")
        # the first MiB of each piece is for its EBR
        lines += [f"{5 + index} : start={at + 1}MiB, size={size - 1}MiB" for index, (at, size) in enumerate(logicals)]
    return "\n".join(["label: dos", *lines]), len(pieces)


@pytest.mark.parametrize("seed", range(40))
def test_random_tables(seed: int, tmp_path: Path) -> None:
    """Layouts nobody thought of: both schemes, gaps, any order of slots, primary and logical."""
    script, count = random_script(random.Random(seed))
    path = sparse(tmp_path / "image", 256 * MIB)
    run("sfdisk", "--quiet", path, stdin=script)
    assert len(assert_same(path).partitions) == count


def test_ebr_inside_of_a_neighbour(tmp_path: Path) -> None:
    """S-15: sfdisk itself (2.38) makes such a table when it is told to put logical partitions side by side."""
    path = sparse(tmp_path / "image", 64 * MIB)
    script = "label: dos\n1 : start=2048, size=65536, type=5\n5 : start=4096, size=1024\n"
    script += "6 : start=18432, size=1024\n7 : start=20480, size=1024"
    run("sfdisk", "--quiet", path, stdin=script)
    assert [item["start"] for item in sfdisk_view(path)["partitions"]] == [2048, 4096, 18432, 20480]
    with pytest.raises(BadPartitionTable, match="the EBR at byte 9437184 and partition 6 overlap"):
        ours(path)


def test_filesystem_inside_of_a_partition(tmp_path: Path) -> None:
    """A window on a partition is read like a device of its own."""
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sfdisk", "--quiet", path, stdin="label: gpt\nsize=32MiB\nsize=64MiB")
    table = ours(path)
    second = table.partitions[1]
    run("mkfs.ext4", "-q", "-L", "inside", "-E", f"offset={second.start}", path, str(second.size // 1024))
    with path.open("rb") as file:
        read = file_reader(file.fileno())
        found = [superblock.probe(window(read, item.start, item.size), item.size) for item in table.partitions]
    assert [item.type for item in found] == ["", "ext4"]
    assert found[1].label == "inside"
    expected = run("blkid", "-p", "-s", "UUID", "-o", "value", "-O", str(second.start), "-S", str(second.size), path)
    assert found[1].uuid == expected.strip()


def test_filesystem_over_an_old_table(tmp_path: Path) -> None:
    """P-16: mkfs leaves the backup GPT at the end of the disk; it does not count."""
    path = sparse(tmp_path / "image", 128 * MIB)
    run("sfdisk", "--quiet", path, stdin=GPT_SCRIPTS["cloud image"])
    run("mkfs.ext4", "-q", "-F", path)
    assert ours(path).scheme == "none"
    assert ours_superblock(path).type == "ext4"


def test_hybrid_iso_image(tmp_path: Path) -> None:
    """P-16: the MBR of an installation CD covers the image itself; it is a CD, not a disk."""
    (tmp_path / "tree").mkdir()
    image = tmp_path / "image"
    run("genisoimage", "-quiet", "-V", "INSTALL", "-o", image, tmp_path / "tree")
    with image.open("r+b") as file:
        file.write(tables.table_sector((Mbr(1, 0x17, 0, image.stat().st_size // 512, 0x80), Mbr(2, 0xEF, 100, 20))))
    assert ours(image).scheme == "none"
    assert ours_superblock(image) == blkid(image)


def test_overlap_is_refused(tmp_path: Path) -> None:
    """S-15: sfdisk would show both."""
    path = tmp_path / "image"
    path.write_bytes(tables.mbr_image(8 * MIB, (Mbr(1, 0x83, 2048, 4096), Mbr(2, 0x83, 4096, 4096))))
    assert len(sfdisk_view(path)["partitions"]) == 2
    with pytest.raises(BadPartitionTable, match="partition 1 and partition 2 overlap"):
        ours(path)


def test_type_guids() -> None:
    """The GUIDs of the Discoverable Partitions Specification are those that sfdisk knows by name."""
    listed = run("sfdisk", "-X", "gpt", "--list-types")
    names = {line[:36].lower(): line[36:].strip() for line in listed.splitlines() if re.match("[0-9A-F]{8}-", line)}
    expected = {
        "aarch64": "Linux root (ARM-64)",
        "armv7l": "Linux root (ARM)",
        "i386": "Linux root (x86)",
        "i686": "Linux root (x86)",
        "loongarch64": "Linux root (LoongArch-64)",
        "ppc64": "Linux root (PPC64)",
        "ppc64le": "Linux root (PPC64LE)",
        "riscv64": "Linux root (RISC-V-64)",
        "s390x": "Linux root (S390X)",
        "x86_64": "Linux root (x86-64)",
    }
    assert {machine: names[guid] for machine, guid in dps.ROOT_BY_MACHINE.items()} == expected
    assert names[dps.ESP] == "EFI System"
    assert names[dps.XBOOTLDR] == "Linux extended boot"


# --- fstab --------------------------------------------------------------------------------------------------


def test_fstab_against_findmnt(tmp_path: Path) -> None:
    """P-07: libmount reads the same from the same file, escapes, comments and short lines included."""
    path = tmp_path / "fstab"
    path.write_bytes(
        b"# /etc/fstab\n"
        b"UUID=0a1b / ext4 errors=remount-ro 0 1\n"
        b"\n"
        b"   \t# indented comment\n"
        b"LABEL=my\\040disk\t/mnt/with\\040space\\011tab   ext4\tdefaults,noatime\t0\t2\n"
        b"/dev/vda3 /back\\134slash xfs defaults 0\n"
        b"/dev/vda4 /three auto defaults\n"
        b"/dev/vda5 /n\xc3\xa4me ext4 ro,,nofail 1 2\n"
        b"/dev/vda6 none swap sw 0 0\n"
        b"/dev/vda7 /last btrfs subvol=@home,compress=zstd:1"
    )
    columns = ("source", "target", "fstype", "options", "freq", "passno")
    seen = json.loads(run("findmnt", "--fstab", "--tab-file", path, "--list", "--json", "--output", ",".join(columns)))
    expected = [[item[column] for column in columns] for item in seen["filesystems"]]
    parsed = fstab.parse(path.read_bytes()).entries
    got = [[item.spec, item.target, item.fstype, ",".join(item.options), item.freq, item.passno] for item in parsed]
    assert len(got) == 7
    for mine, theirs in zip(got, expected, strict=True):
        theirs[3] = theirs[3].replace(",,", ",")
        assert [str(value) for value in mine] == [str(value) for value in theirs]
