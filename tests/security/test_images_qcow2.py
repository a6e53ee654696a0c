"""Hostile qcow2 images: the corpus of attacks that others suffered, and ten thousand random ones."""

import json
import random
import resource
import struct
import subprocess
import time
from pathlib import Path

import pytest
from mapper_qcow2.header import inspect_image

from mapper_core.errors import CorruptImage, ForbiddenReference, MapperError, UnsafePath
from mapper_core.imagefile import METADATA_LIMIT
from mapper_core.model import Access, ImageInfo
from mapper_core.testing.images import FEATURE_NAMES, QCOW2_FIELDS, qcow2
from mapper_core.transports.blockgraph import graph_of, to_file_name

pytestmark = pytest.mark.security

MIB = 1 << 20
ROUNDS = 10_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A datastore with a base image; beside it a file of the host that no image may reach."""
    directory = tmp_path / "store"
    directory.mkdir()
    (directory / "base").write_bytes(b"B" * MIB)
    (tmp_path / "secret").write_bytes(b"S" * MIB)
    (directory / "link").symlink_to(tmp_path / "secret")
    (directory / "up").symlink_to("..")
    (directory / "null").symlink_to("/dev/null")
    (directory / "zero").symlink_to("/dev/zero")
    (directory / "environ").symlink_to("/proc/self/environ")
    return directory


HOST_FILES = [
    "/etc/shadow",
    "/etc/passwd",
    "../secret",
    "./../secret",
    "base/../../secret",
    "link",
    "up/secret",
    "up/store/../secret",
    "null",
    "zero",
    "environ",
    "/dev/sda",
    "/dev/null",
    "/dev/disk/../null",
    "//dev/null",
    "/proc/self/environ",
    "/proc/self/fd/3",
    "/proc/self/root/etc/shadow",
    "/proc/self/cwd/secret",
    "/sys/kernel/notes",
    'json:{"driver":"file","filename":"/etc/shadow"}',
    "nbd://127.0.0.1:10809/x",
    "nbd:unix:/run/x.sock",
    "http://169.254.169.254/latest/meta-data",
    "https://127.0.0.1/",
    "ftp://127.0.0.1/",
    "ssh://127.0.0.1/etc/shadow",
    "rbd:pool/image:id=admin",
    "iscsi://127.0.0.1/x/0",
    "gluster://127.0.0.1/x/y",
    "file:/etc/shadow",
    "file:base",
    "host_device:/dev/sda",
    "fat:/etc",
    "fat:rw:/etc",
    "blkdebug::/etc/shadow",
    "blkverify:base:/etc/shadow",
    "null-co://",
    "vvfat:/etc",
    "exec:id",
    "/etc/shadow\n",
    "base\x1b]0;owned\x07",
    "~/../etc/shadow",
    "\ufeffbase",
]


@pytest.mark.parametrize("where", ["backing file", "data file", "backing file below", "data file below"])
def test_host_files_are_not_reached(store: Path, where: str) -> None:
    """S-02 (CVE-2011-3147, CVE-2026-27211), S-03 (CVE-2024-32498), also one layer down."""
    image = store / "disk"
    for name in HOST_FILES:
        hostile = (
            qcow2(data_file=name.encode())
            if where.startswith("data")
            else qcow2(backing=name.encode(), backing_format=b"raw")
        )
        if where.endswith("below"):
            (store / "middle").write_bytes(hostile)
            hostile = qcow2(backing=b"middle", backing_format=b"qcow2")
        image.write_bytes(hostile)
        with pytest.raises(MapperError) as caught:
            inspect_image(str(image), ())
        # "~" is a directory name here, as it is for qemu; nothing of that name exists
        assert isinstance(caught.value, ForbiddenReference) or name.startswith("~"), name
        assert str(store) in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "link", "up/secret"])
def test_the_caller_can_allow_a_directory_and_no_more(store: Path, name: str) -> None:
    image = store / "disk"
    image.write_bytes(qcow2(backing=name.encode(), backing_format=b"raw"))
    for allowed in (("/usr",), (str(store),), (f"{store.parent}/sec",), ("relative",), ("",)):
        with pytest.raises(ForbiddenReference):
            inspect_image(str(image), allowed)
    info = inspect_image(str(image), ("/etc", str(store.parent)))
    assert info.backing is not None


@pytest.mark.parametrize("kind", ["backing", "data"])
def test_a_name_outside_of_the_first_cluster(store: Path, kind: str) -> None:
    """S-06: there the guest could change it after the check."""
    image = store / "disk"
    for offset in (65536 - 2, 65536, 3 * 65536, 4 * 65536, 1 << 63):
        content = bytearray(qcow2(backing=b"base", backing_format=b"raw", backing_offset=offset)).ljust(
            5 * 65536, b"\0"
        )
        content[4 * 65536 : 4 * 65536 + 4] = b"base"
        image.write_bytes(content)
        with pytest.raises(CorruptImage):
            inspect_image(str(image), ())


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem", "/proc/kmsg", "/proc/kcore", "/sys"]
)
def test_what_is_no_image(path: str) -> None:
    """S-26 (CVE-2026-44919)."""
    if not Path(path).exists():
        path = "/dev/full"
    with pytest.raises(UnsafePath):
        inspect_image(path, ())


# --- cost ---------------------------------------------------------------------------------------------------


def test_a_deep_chain_of_full_headers_stays_within_the_budget(tmp_path: Path) -> None:
    """What is read in all is limited, and the limit is enough for any chain that is allowed."""
    extensions = [(FEATURE_NAMES, bytes(48 * 256))]
    for number in range(64):
        content = qcow2(size=1 << 40, backing=b"%d" % (number + 1), backing_format=b"qcow2", extensions=extensions)
        (tmp_path / f"{number}").write_bytes(content)
    (tmp_path / "63").write_bytes(qcow2(size=1 << 40, extensions=extensions))
    started = time.monotonic()
    assert len(inspect_image(str(tmp_path / "0"), ()).chain()) == 64
    assert time.monotonic() - started < 2
    assert METADATA_LIMIT == 4 * MIB


# --- random ones --------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 21, 22, 72, 104, 112, 511, 512, 65535, 65536, 65537, 1 << 20, 1 << 31, (1 << 32) - 1)
LARGE = (*NUMBERS, 1 << 32, 1 << 40, 1 << 62, 1 << 63, (1 << 63) - 1, (1 << 64) - 1)


def mutate(chance: random.Random, original: bytes) -> bytes:
    """Change some fields to interesting numbers, some bytes of the metadata at random, or the length."""
    content = bytearray(original)
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        match chance.randrange(5):
            case 0 | 1:
                offset, form = chance.choice(list(QCOW2_FIELDS.values()))
                number = chance.choice(LARGE) if chance.random() < 0.8 else chance.getrandbits(64)
                struct.pack_into(form, content, offset, number % (1 << 8 * struct.calcsize(form)))
            case 2:
                content[chance.randrange(min(len(content), 400))] = chance.randrange(256)
            case 3:
                at = chance.randrange(0, len(content) - 8, 8)
                struct.pack_into(">Q", content, at, chance.choice(LARGE))
            case 4:
                if chance.random() < 0.1:
                    del content[chance.randrange(len(content)) :]
                    content += bytes(8)
        if len(content) < 400:
            break
    return bytes(content)


def originals() -> list[bytes]:
    # small clusters, so that random places hit tables
    return [
        qcow2(cluster_bits=9, size=64 << 10),
        qcow2(cluster_bits=9, size=64 << 10, version=2, backing=b"base"),
        qcow2(cluster_bits=9, size=64 << 10, backing=b"base", extensions=[(FEATURE_NAMES, bytes(48))]),
        qcow2(cluster_bits=9, size=64 << 10, data_file=b"base"),
        qcow2(cluster_bits=9, size=64 << 10, backing=b"middle", backing_format=b"qcow2"),
        qcow2(cluster_bits=14, size=1 << 20, incompatible=16),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_random_images(store: Path, seed: int) -> None:
    """S-20 (CVE-2014-0145, -0146): no exception but ours, no hang, nothing outside of the store; 10,000 rounds in all."""
    chance = random.Random(seed)
    image = store / "disk"
    (store / "middle").write_bytes(qcow2())
    valid, outcomes = originals(), dict[str, int]()
    for _ in range(ROUNDS // 4):
        image.write_bytes(mutate(chance, chance.choice(valid)))
        started = time.monotonic()
        try:
            info = inspect_image(str(image), ())
        except MapperError as error:
            outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
            assert str(error).isprintable()
        else:
            outcomes["accepted"] = outcomes.get("accepted", 0) + 1
            assert 0 <= info.virtual_size < 1 << 63
            for layer in info.chain():
                for path in (layer.path, *(reference.path for reference in layer.references)):
                    assert Path(path).parent == store
        assert time.monotonic() - started < 2
    # the mutations must reach all kinds of checks, or they test nothing
    assert outcomes["accepted"] > 100
    assert {"CorruptImage", "UnsupportedFormat", "TruncatedImage", "FormatMismatch", "ForbiddenReference"} <= set(
        outcomes
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20


def test_qemu_sees_the_same_in_what_we_accept(store: Path) -> None:
    """A difference between two readers of the same header is where attacks live."""
    chance = random.Random(20)
    image = store / "disk"
    (store / "middle").write_bytes(qcow2(size=64 << 10))
    compared = 0
    while compared < 150:
        image.write_bytes(mutate(chance, chance.choice(originals())))
        try:
            info = inspect_image(str(image), ())
        except MapperError:
            continue
        compared += _compare(info)
    assert compared == 150


def _compare(info: ImageInfo) -> bool:
    argv = ("qemu-img", "info", "--output=json", "-f", "qcow2", info.path)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if done.returncode:  # qemu is stricter somewhere; it must be for the content, not for a crash
        assert done.returncode == 1, done.stderr
        return False
    found = json.loads(done.stdout)
    assert found["virtual-size"] == info.virtual_size
    names = [reference.written for reference in info.references]
    special = found["format-specific"]["data"]
    assert [name for name in (special.get("data-file"), found.get("backing-filename")) if name] == names
    assert found.get("backing-filename-format", "") == "".join(
        r.format for r in info.references if r.kind.value == "backing"
    )
    # and our graph opens
    name = to_file_name(graph_of(info), Access.READ_ONLY)
    done = subprocess.run(("qemu-io", "-r", "-c", "length", name), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return True
