"""The vmdk inspector on images that qemu-img made, and what qemu reads and writes through the graph."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mapper_vmdk.header import inspect_image

from mapper_core.errors import BackingFileMissing, CorruptImage, TruncatedImage
from mapper_core.model import Access, ImageInfo
from mapper_core.testing.images import vmdk_descriptor, vmdk_sparse, vmdk_stream
from mapper_core.transports.blockgraph import graph_of, to_file_name

pytestmark = pytest.mark.root

MIB = 1 << 20
SPARSE = ("monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized")
FLAT = ("monolithicFlat", "twoGbMaxExtentFlat")
WRITABLE = ("monolithicSparse", "twoGbMaxExtentSparse", *FLAT)


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    assert "verification failed" not in done.stdout, f"{argv}: {done.stdout}"
    return done.stdout


def qemu_info(path: Path) -> dict[str, Any]:
    found = json.loads(run("qemu-img", "info", "-f", "vmdk", "--output=json", str(path)))
    assert isinstance(found, dict)
    return found


def through_graph(image: ImageInfo, access: Access, *commands: str) -> str:
    name = to_file_name(graph_of(image), access)
    read_only = ("-r",) if access is Access.READ_ONLY else ()
    return run("qemu-io", *read_only, *(part for command in commands for part in ("-c", command)), name)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """What is in the images that :func:`convert` makes."""
    data = os.urandom(2 * MIB) + bytes(3 * MIB) + b"text" * 300_000
    (tmp_path / "raw").write_bytes(data)
    return data


def convert(directory: Path, subformat: str) -> Path:
    path = directory / "disk.vmdk"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", f"{directory}/raw", str(path))
    return path


@pytest.mark.parametrize("subformat", SPARSE + FLAT)
@pytest.mark.parametrize("size", [512, MIB, 5 * (1 << 30) + 512])
def test_every_variant_is_seen_as_qemu_sees_it(tmp_path: Path, subformat: str, size: int) -> None:
    path = tmp_path / "disk.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(path), str(size))
    expected = qemu_info(path)
    special = expected["format-specific"]["data"]
    info = inspect_image(str(path), ())
    assert info.virtual_size == expected["virtual-size"] == size
    assert info.variant == special["create-type"] == subformat
    assert info.writable == (subformat in WRITABLE)
    files = [extent["filename"] for extent in special["extents"]]
    assert [reference.path for reference in info.references] == (files if files != [str(path)] else [])
    if "cluster-size" in expected:
        assert dict(info.detail).get("grain size", "65536") == str(expected["cluster-size"])


@pytest.mark.parametrize("subformat", SPARSE + FLAT)
def test_converted_images_read_back(tmp_path: Path, subformat: str, content: bytes) -> None:
    info = inspect_image(str(convert(tmp_path, subformat)), ())
    run("qemu-img", "convert", "-O", "raw", to_file_name(graph_of(info), Access.READ_ONLY), f"{tmp_path}/flat")
    assert (tmp_path / "flat").read_bytes()[: len(content)] == content


@pytest.mark.parametrize("subformat", WRITABLE)
def test_writes_arrive(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "disk.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(path), "2200M")
    before = inspect_image(str(path), ())
    through_graph(before, Access.READ_WRITE, "write -P 1 0 64k", "write -P 2 2100M 1M")
    # qemu has changed the content id, and moved text in the descriptor
    info = inspect_image(str(path), ())
    assert (info.variant, info.virtual_size) == (before.variant, before.virtual_size)
    through_graph(info, Access.READ_ONLY, "read -P 1 0 64k", "read -P 0 64k 64k", "read -P 2 2100M 1M")


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_a_renamed_image(tmp_path: Path, subformat: str, content: bytes) -> None:
    """M-24: the embedded descriptor still names the old file."""
    path = convert(tmp_path, subformat)
    renamed = path.rename(tmp_path / "new name, (1).vmdk")
    assert b'"disk.vmdk"' in renamed.read_bytes()[:4096]
    info = inspect_image(str(renamed), ())
    assert through_graph(info, Access.READ_ONLY, "read 0 64k")


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_a_moved_descriptor_without_its_extents(tmp_path: Path, subformat: str) -> None:
    """M-24: the error names the extent that is missing."""
    path = tmp_path / "disk.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(path), "2200M")
    first = Path(inspect_image(str(path), ()).references[-1].path)
    first.rename(tmp_path / "gone")
    with pytest.raises(BackingFileMissing) as caught:
        inspect_image(str(path), ())
    assert repr(first.name) in str(caught.value)


@pytest.mark.parametrize("subformat", SPARSE)
def test_a_copy_that_did_not_finish(tmp_path: Path, subformat: str, content: bytes) -> None:
    path = convert(tmp_path, subformat)
    cut = path if subformat != "twoGbMaxExtentSparse" else tmp_path / "disk-s001.vmdk"
    whole = cut.read_bytes()
    for length in range(0, len(whole) - 70_000, 55_555):
        cut.write_bytes(whole[:length])
        with pytest.raises(TruncatedImage):
            inspect_image(str(path), ())


def test_a_flat_extent_that_was_cut(tmp_path: Path, content: bytes) -> None:
    path = convert(tmp_path, "monolithicFlat")
    os.truncate(tmp_path / "disk-flat.vmdk", len(content) - 1)
    with pytest.raises(TruncatedImage):
        inspect_image(str(path), ())


def test_qemu_cannot_write_what_is_called_read_only(tmp_path: Path, content: bytes) -> None:
    """Why: writes to grains that exist fail with an I/O error in the middle of the work."""
    path = convert(tmp_path, "streamOptimized")
    failed = subprocess.run(("qemu-io", "-f", "vmdk", "-c", "write 0 64k", str(path)), capture_output=True, text=True)
    assert "Input/output error" in failed.stdout + failed.stderr
    assert not inspect_image(str(path), ()).writable


# --- parents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"])
@pytest.mark.parametrize("parent", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse"])
def test_a_chain(tmp_path: Path, subformat: str, parent: str) -> None:
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={parent}", f"{tmp_path}/base.vmdk", "10M")
    run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 4M", f"{tmp_path}/base.vmdk")
    run(
        *("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}"),
        *("-b", f"{tmp_path}/base.vmdk", "-F", "vmdk", f"{tmp_path}/top.vmdk"),
    )
    info = inspect_image(f"{tmp_path}/top.vmdk", ())
    assert [layer.path for layer in info.chain()] == [f"{tmp_path}/top.vmdk", f"{tmp_path}/base.vmdk"]
    through_graph(info, Access.READ_ONLY, "read -P 1 0 4M", "read -P 0 4M 1M")
    if info.writable:
        through_graph(info, Access.READ_WRITE, "write -P 2 100k 4k", "read -P 1 0 100k", "read -P 2 100k 4k")


def test_a_parent_that_was_written_to(tmp_path: Path) -> None:
    """qemu finds out at the first read (EINVAL); we before anything is mapped."""
    run("qemu-img", "create", "-q", "-f", "vmdk", f"{tmp_path}/base.vmdk", "10M")
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", f"{tmp_path}/top.vmdk")
    inspect_image(f"{tmp_path}/top.vmdk", ())
    run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 64k", f"{tmp_path}/base.vmdk")
    with pytest.raises(CorruptImage):
        inspect_image(f"{tmp_path}/top.vmdk", ())


# --- qemu reads what our own builder makes ------------------------------------------------------------------


def test_images_of_the_builder_are_images(tmp_path: Path) -> None:
    (tmp_path / "e.vmdk").write_bytes(vmdk_sparse(descriptor=b""))
    split = vmdk_descriptor(create_type="twoGbMaxExtentSparse", extents=['RW 2048 SPARSE "e.vmdk"'])
    for number, content in enumerate((vmdk_sparse(), vmdk_stream(), split)):
        path = tmp_path / f"{number}.vmdk"
        path.write_bytes(content)
        info = inspect_image(str(path), ())
        assert info.virtual_size == qemu_info(path)["virtual-size"] == MIB
        through_graph(info, Access.READ_ONLY, "read -P 0 0 1M")


@pytest.mark.parametrize(("blank", "factor"), [("", 1), ("\n", 2), (" \r\n", 2)])
def test_what_qemu_makes_of_a_blank_line(tmp_path: Path, blank: str, factor: int) -> None:
    """Why the inspector refuses it. When this fails, qemu has been repaired."""
    (tmp_path / "a").write_bytes(bytes(MIB))
    path = tmp_path / "disk.vmdk"
    path.write_bytes(vmdk_descriptor(create_type="monolithicFlat", extents=[blank + 'RW 2048 FLAT "a" 0']))
    assert qemu_info(path)["virtual-size"] == factor * MIB
