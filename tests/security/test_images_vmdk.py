"""Hostile vmdk images: the corpus of attacks that others suffered, and ten thousand random ones."""

import json
import random
import struct
import subprocess
import time
from pathlib import Path

import pytest
from mapper_vmdk.header import inspect_image

from mapper_core.errors import ForbiddenReference, MapperError
from mapper_core.model import ImageInfo
from mapper_core.testing.images import SECTOR, VMDK_FIELDS, vmdk_descriptor, vmdk_sparse, vmdk_stream

pytestmark = pytest.mark.security

MIB = 1 << 20
ROUNDS = 10_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A datastore with extents; beside it a file of the host that no image may reach."""
    directory = tmp_path / "store"
    (directory / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/a"):
        (directory / name).write_bytes(b"A" * 4 * MIB)
    for name in ("s1", "s2"):
        (directory / name).write_bytes(vmdk_sparse(descriptor=b""))
    (directory / "parent.vmdk").write_bytes(vmdk_sparse(descriptor=vmdk_descriptor(cid=0x1000)))
    (tmp_path / "secret").write_bytes(b"S" * MIB)
    (directory / "link").symlink_to(tmp_path / "secret")
    (directory / "null").symlink_to("/dev/null")
    (directory / "zero").symlink_to("/dev/zero")
    return directory


EXTENTS = [
    "/etc/shadow",
    "../secret",
    "./a",
    "sub/a",
    "sub/../a",
    "link",
    "null",
    "zero",
    ".",
    "..",
    "/dev/sda",
    "/dev/zero",
    "/proc/self/environ",
    "/proc/self/fd/3",
    "nbd:127.0.0.1:10809",
    "nbd+unix:///?socket=x",
    'json:{"driver":"null-co"}',
    "json:{}",
    "file:a",
    "host_device:/dev/sda",
    "fat:rw:/etc",
    "http://127.0.0.1/a",
    "C:\\a.vmdk",
    "a\x1b[2J",
    "\x7f",
]


@pytest.mark.parametrize("kind", ["FLAT", "SPARSE"])
def test_extents_on_the_host(store: Path, kind: str) -> None:
    """S-04 (CVE-2022-47951), with every directory of the host allowed: an extent lies beside its descriptor."""
    image = store / "disk"
    create_type = {"FLAT": "monolithicFlat", "SPARSE": "twoGbMaxExtentSparse"}[kind]
    for name in EXTENTS:
        if '"' in name:
            continue  # it ends the name; see the broken lines in the tests of the plugin
        line = f'RW 2048 {kind} "{name}"' + (" 0" if kind == "FLAT" else "")
        image.write_bytes(vmdk_descriptor(create_type=create_type, extents=[line]))
        for allowed in ((), ("/",)):
            if allowed and name == "link":
                continue  # a link that the caller allows to follow
            with pytest.raises(ForbiddenReference) as caught:
                inspect_image(str(image), allowed)
            assert str(caught.value).isprintable(), name


@pytest.mark.parametrize("kind", ["VMFS", "VMFSSPARSE", "SESPARSE", "VMFSRAW", "VMFSRDM", "ZERO", "flat"])
def test_extents_of_other_kinds(store: Path, kind: str) -> None:
    """S-04: qemu opens the file also for these."""
    for create_type in ("monolithicFlat", "twoGbMaxExtentSparse", "vmfs", "vmfsSparse", "seSparse"):
        text = vmdk_descriptor(create_type=create_type, extents=[f'RW 2048 {kind} "/etc/shadow"'])
        for content in (text, vmdk_sparse(descriptor=text)):
            (store / "disk").write_bytes(content)
            with pytest.raises(MapperError):
                inspect_image(str(store / "disk"), ())


def test_parents_on_the_host(store: Path) -> None:
    """S-04: parentFileNameHint."""
    image = store / "disk"
    for name in (*(name for name in EXTENTS if name not in ("./a", "sub/a", "sub/../a")), "../store/../secret"):
        if '"' in name:
            continue
        image.write_bytes(vmdk_sparse(descriptor=vmdk_descriptor(parent=name, parent_cid=0x1000)))
        with pytest.raises(ForbiddenReference):
            inspect_image(str(image), ())
    image.write_bytes(vmdk_sparse(descriptor=vmdk_descriptor(parent="parent.vmdk", parent_cid=0x1000)))
    assert inspect_image(str(image), ()).backing is not None


def test_a_descriptor_hidden_in_a_sparse_file(store: Path) -> None:
    """S-04: with a capacity of 0 qemu takes the embedded text for a descriptor file, also inside of an extent."""
    inside = vmdk_descriptor(create_type="monolithicFlat", extents=['RW 1 FLAT "/etc/shadow" 0'])
    hidden = vmdk_sparse(descriptor=inside, capacity_field=0)
    (store / "disk").write_bytes(hidden)
    with pytest.raises(MapperError):
        inspect_image(str(store / "disk"), ())
    (store / "s1").write_bytes(hidden)
    (store / "disk").write_bytes(
        vmdk_descriptor(create_type="twoGbMaxExtentSparse", extents=['RW 2048 SPARSE "s1"', 'RW 2048 SPARSE "s2"'])
    )
    with pytest.raises(MapperError):
        inspect_image(str(store / "disk"), ())


# --- random ones --------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 3, 4, 5, 20, 21, 22, 64, 127, 128, 129, 255, 512, 2047, 2048, 4096, 1 << 16, 1 << 31, (1 << 32) - 1)
LARGE = (*NUMBERS, 1 << 32, 1 << 40, 1 << 54, 1 << 55, 1 << 63, (1 << 63) - 1, (1 << 64) - 1)

PIECES = (
    b"\n", b"\r\n", b"\n\n", b" ", b"\t", b"\0", b"\x0b", b'"', b"#", b"=", b"RW", b"RDONLY", b"0", b"9", b"-1",
    b"FLAT", b"SPARSE", b"VMFS", b"ZERO", b'"a"', b'"b"', b'"/etc/passwd"', b'"../secret"', b'"nbd:x"', b'"sub/a"',
    b'RW 2048 FLAT "a" 0\n', b'RW 2048 FLAT "b" 0\n', b'RW 2048 SPARSE "s1"\n', b'RW 1 FLAT "/etc/passwd" 0\n',
    b'\nRW\n2048\nFLAT\n"/etc/passwd"\n0\n', b'createType="vmfs"', b'createType="monolithicFlat"\n', b"CID=1\n",
    b"parentCID=1000\n", b'parentFileNameHint="parent.vmdk"\n', b'parentFileNameHint="/etc/passwd"\n', b"# comment\n",
)  # fmt: skip


def mutate_text(chance: random.Random, original: bytes) -> bytes:
    """Insert, remove, double and swap pieces of a descriptor."""
    text = original
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(text) + 1)
        if chance.random() < 0.5:  # at the start of a line, where it matters
            at = text.rfind(b"\n", 0, at) + 1
        match chance.randrange(4):
            case 0 | 1:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            case 2:
                text = text[:at] + text[at + chance.randrange(1, 12) :]
            case 3:
                lines = text.split(b"\n")
                one, two = chance.randrange(len(lines)), chance.randrange(len(lines))
                lines[one], lines[two] = lines[two], lines[one]
                text = b"\n".join(lines)
    return text


def mutate_bytes(chance: random.Random, original: bytes) -> bytes:
    """Change fields of the header or the footer to interesting numbers, bytes at random, or the length."""
    content = bytearray(original)
    for _ in range(chance.choice((1, 1, 2, 3))):
        match chance.randrange(6):
            case 0 | 1 | 2:
                offset, form = chance.choice(list(VMDK_FIELDS.values()))
                number = chance.choice(LARGE) if chance.random() < 0.8 else chance.getrandbits(64)
                base = len(content) - 2 * SECTOR if chance.random() < 0.3 else 0
                struct.pack_into(form, content, base + offset, number % (1 << 8 * struct.calcsize(form)))
            case 3:
                content[chance.randrange(min(len(content), 1000))] = chance.randrange(256)
            case 4:
                struct.pack_into("<I", content, chance.randrange(20, 28) * SECTOR, chance.choice(LARGE) & 0xFFFFFFFF)
            case 5:
                if chance.random() < 0.2:
                    del content[chance.randrange(min(15_000, len(content)), len(content)) :]
                    content += bytes(2 * SECTOR)  # room for the footer
    return bytes(content)


def random_image(chance: random.Random) -> bytes:
    flat = vmdk_descriptor(create_type="monolithicFlat", extents=['RW 2048 FLAT "a" 0'])
    text = chance.choice(
        [
            flat,
            vmdk_descriptor(
                create_type="twoGbMaxExtentFlat", extents=['RW 2048 FLAT "a" 0', 'RW 8 FLAT "b" 1'], newline="\r\n"
            ),
            vmdk_descriptor(create_type="twoGbMaxExtentSparse", extents=['RW 2048 SPARSE "s1"', 'RW 2048 SPARSE "s2"']),
            vmdk_descriptor(
                create_type="twoGbMaxExtentSparse",
                extents=['RW 2048 SPARSE "s1"'],
                parent="parent.vmdk",
                parent_cid=0x1000,
            ),
        ]
    )
    match chance.randrange(5):
        case 0 | 1:
            return mutate_text(chance, text)
        case 2:
            inside = (
                vmdk_descriptor(parent="parent.vmdk", parent_cid=0x1000) if chance.random() < 0.5 else vmdk_descriptor()
            )
            return vmdk_sparse(descriptor=mutate_text(chance, inside))
        case 3:
            return mutate_bytes(chance, vmdk_sparse())
        case _:
            return mutate_bytes(chance, vmdk_stream())


@pytest.mark.parametrize("seed", range(4))
def test_random_images(store: Path, seed: int) -> None:
    """S-20: no exception but ours, no hang, nothing outside of the store; 10,000 rounds in all."""
    chance = random.Random(seed)
    image = store / "disk"
    outcomes: dict[str, int] = {}
    for _ in range(ROUNDS // 4):
        image.write_bytes(random_image(chance))
        started = time.monotonic()
        try:
            info = inspect_image(str(image), ())
        except MapperError as error:
            outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
            assert str(error).isprintable()
        else:
            outcomes["accepted"] = outcomes.get("accepted", 0) + 1
            assert 0 < info.virtual_size < 1 << 63
            for layer in info.chain():
                for path in (layer.path, *(reference.path for reference in layer.references)):
                    assert Path(path).parent == store
        assert time.monotonic() - started < 2
    # the mutations must reach all kinds of checks, or they test nothing
    assert outcomes["accepted"] > 100
    expected = {"CorruptImage", "UnsupportedFormat", "TruncatedImage", "FormatMismatch", "ForbiddenReference"}
    assert expected | {"BackingFileMissing"} <= set(outcomes)


def test_qemu_sees_the_same_in_what_we_accept(store: Path) -> None:
    """S-04: it is qemu that opens the extents, by the names that it reads itself."""
    chance = random.Random(4)
    image = store / "disk"
    compared = 0
    while compared < 250:
        image.write_bytes(random_image(chance))
        try:
            info = inspect_image(str(image), ())
        except MapperError:
            continue
        compared += _compare(info)
    assert compared == 250


def _compare(info: ImageInfo) -> bool:
    argv = ("qemu-img", "info", "--output=json", "-f", "vmdk", info.path)
    done = subprocess.run(argv, capture_output=True, timeout=60)
    if done.returncode:  # qemu is stricter somewhere; it must be for the content, not for a crash
        assert done.returncode == 1, done.stderr
        return False
    found = json.loads(done.stdout)
    assert found["virtual-size"] == info.virtual_size
    special = found["format-specific"]["data"]
    assert special["create-type"] == info.variant
    files = [extent["filename"] for extent in special["extents"]]
    references = {kind: [r for r in info.references if r.kind.value == kind] for kind in ("extent", "backing")}
    assert files == ([reference.path for reference in references["extent"]] or [info.path])
    assert found.get("backing-filename", "") == "".join(reference.written for reference in references["backing"])
    return True
