"""The qcow2 inspector on images that qemu-img made, and what qemu reads through the graph."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mapper_qcow2.header import inspect_image

from mapper_core.errors import BackingFileMissing, TruncatedImage
from mapper_core.model import Access, ImageInfo
from mapper_core.transports.blockgraph import graph_of, to_file_name

pytestmark = pytest.mark.root

MIB = 1 << 20


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def qemu_info(path: Path) -> dict[str, Any]:
    found = json.loads(run("qemu-img", "info", "--output=json", str(path)))
    assert isinstance(found, dict)
    return found


def flattened(image: ImageInfo, target: Path) -> bytes:
    """Read the whole disk as qemu sees it through the graph."""
    name = to_file_name(graph_of(image), Access.READ_ONLY)
    run("qemu-img", "convert", "-O", "raw", name, str(target))
    return target.read_bytes()


def pattern(path: Path, *writes: tuple[int, int, int]) -> None:
    """Write (pattern, offset, length) into an image."""
    commands = [part for value, at, length in writes for part in ("-c", f"write -P {value} {at} {length}")]
    run("qemu-io", "-f", "qcow2", *commands, str(path))


@pytest.mark.parametrize(
    "options",
    [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=128k",
        "compression_type=zstd",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "data_file=DIR/data",
        "data_file=DIR/data,data_file_raw=on",
        "data_file=DIR/data,preallocation=metadata",
    ],
)
@pytest.mark.parametrize("size", [0, 512, 5 * MIB + 512, 40 * MIB])
def test_every_variant_is_seen_as_qemu_sees_it(tmp_path: Path, options: str, size: int) -> None:
    path = tmp_path / "disk"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options.replace("DIR", str(tmp_path)), str(path), str(size))
    if size:
        pattern(path, (1, 0, 512), (2, size - 512, 512))
    expected = qemu_info(path)
    special = expected["format-specific"]["data"]
    info = inspect_image(str(path), ())
    detail = dict(info.detail)
    assert info.virtual_size == expected["virtual-size"] == size
    assert detail["cluster size"] == str(expected["cluster-size"])
    assert info.variant == {"0.10": "v2", "1.1": "v3"}[special["compat"]]
    assert detail["compression"] == special.get("compression-type", "zlib")
    assert detail["refcount bits"] == str(special["refcount-bits"])
    assert [r.written for r in info.references] == ([special["data-file"]] if "data-file" in special else [])
    if size:
        data = flattened(info, tmp_path / "flat")
        assert len(data) == size
        assert (data[:512], data[-512:]) == (bytes([1] if size > 512 else [2]) * 512, b"\2" * 512)


@pytest.mark.parametrize("arguments", [("-c",), ("-c", "-o", "compression_type=zstd"), ()])
def test_converted_images(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    content = os.urandom(3 * MIB) + bytes(2 * MIB) + b"text" * 100_000
    (tmp_path / "raw").write_bytes(content.ljust(6 * MIB, b"\0"))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *arguments, f"{tmp_path}/raw", f"{tmp_path}/disk")
    info = inspect_image(f"{tmp_path}/disk", ())
    assert flattened(info, tmp_path / "flat") == (tmp_path / "raw").read_bytes()


def test_images_with_a_past(tmp_path: Path) -> None:
    """Snapshots, bitmaps, growing, shrinking: what is in use lies within the file."""
    path = tmp_path / "disk"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "20M")
    steps = (
        ("snapshot", "-c", "one", str(path)),
        ("resize", "-q", "-f", "qcow2", str(path), "80M"),
        ("bitmap", "--add", str(path), "map"),
        ("snapshot", "-c", "two", str(path)),
        ("snapshot", "-d", "one", str(path)),
        ("bitmap", "--remove", str(path), "map"),
        ("snapshot", "-a", "two", str(path)),
        ("snapshot", "-d", "two", str(path)),
        ("resize", "-q", "-f", "qcow2", "--shrink", str(path), "10M"),
    )
    for number, step in enumerate(steps):
        pattern(path, (number + 1, number * MIB, MIB))
        run("qemu-img", *step)
        assert inspect_image(str(path), ()).virtual_size == qemu_info(path)["virtual-size"]


def test_a_copy_that_did_not_finish(tmp_path: Path) -> None:
    """Wherever it ends, at least one cluster short: refused, never read as zeros."""
    (tmp_path / "raw").write_bytes(os.urandom(4 * MIB))
    for arguments in ((), ("-c",), ("-o", "cluster_size=4096")):
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *arguments, f"{tmp_path}/raw", f"{tmp_path}/disk")
        whole = (tmp_path / "disk").read_bytes()
        for length in range(0, len(whole) - 70_000, 111_111):
            (tmp_path / "cut").write_bytes(whole[:length])
            with pytest.raises(TruncatedImage):
                inspect_image(f"{tmp_path}/cut", ())


def test_a_disk_that_was_not_closed_is_usable(tmp_path: Path) -> None:
    """Lazy refcounts after a crash: qemu repairs them at the next write."""
    path = tmp_path / "disk"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", str(path), "4M")
    crash = subprocess.run(
        ("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", "-c", "flush", "-c", "abort", str(path)),
        capture_output=True,
        timeout=60,
    )
    assert crash.returncode < 0
    info = inspect_image(str(path), ())
    assert "out of date" in dict(info.detail)["refcounts"]
    run("qemu-io", "-c", "read -P 7 1M 1M", to_file_name(graph_of(info), Access.READ_WRITE))
    assert "refcounts" not in dict(inspect_image(str(path), ()).detail)


# --- M-01: links --------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A system datastore in the way of OpenNebula's qcow2 driver: ``disk.0`` -> ``disk.0.snap/2``, names relative."""
    images, vm = tmp_path / "ds" / "1", tmp_path / "ds" / "0" / "42"
    images.mkdir(parents=True)
    vm.mkdir(parents=True)
    (images / "image").write_bytes(b"B" * 4 * MIB)
    snaps = vm / "disk.0.snap"
    snaps.mkdir()
    (snaps / "disk.0.snap").symlink_to(".")
    for number, backing, form in (
        (0, str(images / "image"), "raw"),
        (1, "disk.0.snap/0", "qcow2"),
        (2, "disk.0.snap/1", "qcow2"),
    ):
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", form, str(snaps / str(number)), "4M")
        pattern(snaps / str(number), (number + 1, number * 65536, 65536))
    (vm / "disk.0").symlink_to("disk.0.snap/2")
    return vm


EXPECTED = b"".join(bytes([value]) * 65536 for value in (1, 2, 3)) + b"B" * (4 * MIB - 3 * 65536)


@pytest.mark.parametrize("via", ["disk.0", "disk.0.snap/2", "disk.0.snap/disk.0.snap/2"])
def test_the_layout_of_opennebula(store: Path, via: str, tmp_path: Path) -> None:
    """M-01, (a) and (c): through a symbolic link to the file, with a chain of snapshots."""
    info = inspect_image(str(store / via), (str(tmp_path / "ds"),))
    assert [layer.format for layer in info.chain()] == ["qcow2", "qcow2", "qcow2", "raw"]
    assert flattened(info, tmp_path / "flat") == EXPECTED


def test_a_linked_datastore(store: Path, tmp_path: Path) -> None:
    """M-01, (b)."""
    (tmp_path / "link").symlink_to(tmp_path / "ds")
    info = inspect_image(f"{tmp_path}/link/0/42/disk.0", (f"{tmp_path}/link",))
    assert flattened(info, tmp_path / "flat") == EXPECTED


def test_a_link_from_a_directory_where_the_name_means_nothing(store: Path, tmp_path: Path) -> None:
    """M-01: here qemu, given the link, looks for the backing file beside the link and fails."""
    (tmp_path / "elsewhere").symlink_to(store / "disk.0")
    with pytest.raises(AssertionError, match="Could not open"):
        run("qemu-img", "info", "--backing-chain", f"{tmp_path}/elsewhere")
    info = inspect_image(f"{tmp_path}/elsewhere", (str(tmp_path / "ds"),))
    assert flattened(info, tmp_path / "flat") == EXPECTED


def test_a_link_beside_another_file_of_that_name(tmp_path: Path) -> None:
    """M-01: the image decides, not the name by which it was called: qemu alone would silently take the wrong file."""
    for name, value in (("right", b"R"), ("wrong", b"W")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base").write_bytes(value * MIB)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", f"{tmp_path}/right/disk")
    (tmp_path / "wrong" / "disk").symlink_to("../right/disk")
    info = inspect_image(f"{tmp_path}/wrong/disk", ())
    assert flattened(info, tmp_path / "flat") == b"R" * MIB


def test_a_backing_file_that_is_only_beside_the_link(tmp_path: Path) -> None:
    for name in ("image", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "image" / "base").write_bytes(b"x" * MIB)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", f"{tmp_path}/image/disk")
    (tmp_path / "image" / "base").rename(tmp_path / "link" / "base")
    (tmp_path / "link" / "disk").symlink_to("../image/disk")
    with pytest.raises(BackingFileMissing) as caught:
        inspect_image(f"{tmp_path}/link/disk", (str(tmp_path),))
    assert f"a relative name starts at {tmp_path}/image" in caught.value.hint


def test_the_graph_is_what_is_opened_and_not_the_header(tmp_path: Path) -> None:
    """S-02, S-06: the header is changed after the check."""
    for name, value in (("base", b"B"), ("evil", b"E")):
        (tmp_path / name).write_bytes(value * MIB)
    path = tmp_path / "disk"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{tmp_path}/base", "-F", "raw", str(path))
    info = inspect_image(str(path), ())
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", f"{tmp_path}/evil", "-F", "raw", str(path))
    assert flattened(info, tmp_path / "flat") == b"B" * MIB
