"""What the kernel is told and asked: command lines letter by letter, sysfs as trees of files.

The kernel's client (krbd) and rbd-nbd need modules; what is here holds without them.
"""

from __future__ import annotations

from pathlib import Path

import mapper_rbd
import pytest
from mapper_rbd import features, krbd, rbd_nbd, tool
from mapper_rbd.krbd import Identity, KrbdTransport
from mapper_rbd.names import VolumeName

from mapper_core.model import Access
from mapper_core.transports.blockgraph import BlockNode, Protocol

pytestmark = pytest.mark.unit

FSID = "a4df0766-9127-4ef8-b810-5a63440b21aa"
HEAD = Identity(FSID, "1", "", "100b6f76773e", "-")
#: The features of an image of Ceph 16 by default, and what Linux 6.1 says that it has.
DEFAULT, LINUX_6_1 = 0x3D, 0xBF


# --- features (C-01) ----------------------------------------------------------------------------------------


def test_the_names_of_features() -> None:
    assert features.names(DEFAULT) == ("layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten")
    assert features.names(0) == ()
    assert features.names(1 << 40 | 1) == ("layering", f"{1 << 40:#x}")


def test_c01_default_features_need_no_rbd_default_features_3() -> None:
    assert features.missing(DEFAULT, LINUX_6_1) == ""


@pytest.mark.parametrize(
    ("image", "kernel", "names"),
    [
        (0x7D, LINUX_6_1, "journaling (0x40 of 0x7d)"),
        (DEFAULT, 0x5, "object-map, fast-diff, deep-flatten (0x38 of 0x3d)"),
    ],
)
def test_c01_what_the_kernel_lacks_is_named(image: int, kernel: int, names: str) -> None:
    """C-01: the kernel only says ENXIO."""
    assert names in features.missing(image, kernel)


def test_c01_the_kernel_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "supported_features").write_text("0xbf\n")
    assert features.of_kernel(f"{tmp_path}/supported_features") == LINUX_6_1
    assert features.of_kernel(f"{tmp_path}/none") == features.OLD_KERNEL


# --- command lines (C-02, C-08) -----------------------------------------------------------------------------


def test_c02_the_command_that_maps() -> None:
    """C-02: no positional argument, so no order of arguments; ``rbd`` and not ``rbd-nbd``, whose own changed between releases."""
    assert tool.map_argv("krbd", VolumeName("one", "one-7"), "oneadmin", "/c", Access.READ_WRITE) == (
        "rbd", "device", "map", "--device-type=krbd", "--conf=/c", "--id=oneadmin", "--pool=one", "--image=one-7",
    )  # fmt: skip
    name = VolumeName("one", "disk", "ns", "snap")
    assert tool.map_argv("rbd-nbd", name, "libvirt", "/c", Access.READ_ONLY) == (
        "rbd", "device", "map", "--device-type=nbd", "--conf=/c", "--id=libvirt",
        "--pool=one", "--namespace=ns", "--image=disk", "--snap=snap", "--read-only",
    )  # fmt: skip


def test_names_cannot_become_options() -> None:
    argv = tool.map_argv("krbd", VolumeName("--keyring=/x", "-o", "--", "--force"), "u", "/c", Access.READ_WRITE)
    assert [word for word in argv[3:] if not word.startswith(("--device-type=", "--conf=", "--id="))] == [
        "--pool=--keyring=/x",
        "--namespace=--",
        "--image=-o",
        "--snap=--force",
    ]


@pytest.mark.parametrize(("transport", "kind"), [("krbd", "krbd"), ("rbd-nbd", "nbd")])
def test_c08_the_command_that_unmaps_never_forces(transport: str, kind: str) -> None:
    assert tool.unmap_argv(transport, "/dev/rbd0", "/c") == (
        "rbd", "device", "unmap", f"--device-type={kind}", "--conf=/c", "/dev/rbd0",
    )  # fmt: skip


def test_c08_no_source_says_force() -> None:
    sources = Path(mapper_rbd.__file__).parent.glob("*.py")
    words = ("--force", "-o force", '"force"', "--exclusive")
    code = {path.name: path.read_text(encoding="utf-8") for path in sources}
    assert [name for name, text in code.items() for word in words if word in text] == []


def test_c12_no_list_of_mapped_images_is_read() -> None:
    """C-12: ``rbd showmapped --format json`` was an object up to Luminous and is an array since; sysfs never changed."""
    sources = Path(mapper_rbd.__file__).parent.glob("*.py")
    texts = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines() if '"' in line]
    assert [line for line in texts if '"showmapped"' in line or '"list-mapped"' in line] == []


# --- sysfs (C-11, C-13) -------------------------------------------------------------------------------------


def tree(bus: Path, *devices: tuple[int, Identity]) -> str:
    """A tree as the kernel shows it, for mapped images."""
    (bus / "devices").mkdir()
    for number, identity in devices:
        directory = bus / "devices" / str(number)
        directory.mkdir()
        for name in Identity.__slots__:
            (directory / name).write_text(f"{getattr(identity, name)}\n")
    return str(bus)


def test_c11_images_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """C-11: the same name in another pool, namespace or cluster, and the snapshot, are other images."""
    others = [
        Identity(FSID, "2", "", "100b6f76773e", "-"),
        Identity(FSID, "1", "ns", "100b6f76773e", "-"),
        Identity("b" + FSID[1:], "1", "", "100b6f76773e", "-"),
        Identity(FSID, "1", "", "100b6f76773f", "-"),
        Identity(FSID, "1", "", "100b6f76773e", "snap"),
    ]
    bus = tree(tmp_path, *enumerate(others), (7, HEAD))
    assert krbd.find(HEAD, bus) == ("/dev/rbd7",)
    assert [krbd.find(other, bus) for other in others] == [(f"/dev/rbd{number}",) for number in range(5)]


def test_c13_the_number_is_looked_up_and_not_remembered(tmp_path: Path) -> None:
    """C-13: after the image was mapped again it has another number, and the old number another image."""
    other = Identity(FSID, "1", "", "beef", "-")
    resource = krbd.resource_of(HEAD, "boot", "/c")
    assert krbd.identity_in(resource) == HEAD
    assert "rbd0" not in repr(resource)
    bus = tree(tmp_path, (0, other), (1, HEAD))
    assert krbd.find(krbd.identity_in(resource), bus) == ("/dev/rbd1",)


def test_an_old_kernel_has_no_namespaces(tmp_path: Path) -> None:
    bus = tree(tmp_path, (0, HEAD))
    (tmp_path / "devices" / "0" / "pool_ns").unlink()
    assert krbd.find(HEAD, bus) == ("/dev/rbd0",)


def test_a_device_that_vanishes_while_it_is_looked_at(tmp_path: Path) -> None:
    bus = tree(tmp_path, (0, HEAD))
    (tmp_path / "devices" / "0" / "image_id").unlink()
    assert krbd.find(HEAD, bus) == ()


def test_without_the_module_nothing_is_mapped(tmp_path: Path) -> None:
    assert krbd.find(HEAD, f"{tmp_path}/none") == ()


# --- which transport can (C-01, C-15) -----------------------------------------------------------------------


def transport(bus: Path, image_features: int = DEFAULT) -> KrbdTransport:
    return KrbdTransport(VolumeName("one", "x"), HEAD, image_features, "admin", "/c", 30, str(bus))


def test_krbd_without_the_module(tmp_path: Path) -> None:
    found = transport(tmp_path / "none").availability()
    assert not found.works
    assert found.hint == "run: modprobe rbd"


def test_c15_krbd_in_a_container(tmp_path: Path) -> None:
    """C-15: ``(30) Read-only file system``. Here the control file is missing, which nobody can write either."""
    tree(tmp_path)
    found = transport(tmp_path).availability()
    assert "cannot be written" in found.reason
    assert "read-write" in found.hint


def test_c01_krbd_leaves_an_image_with_unknown_features_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(krbd, "find_program", lambda name: f"/usr/bin/{name}")
    tree(tmp_path)
    (tmp_path / "add_single_major").touch()
    (tmp_path / "supported_features").write_text("0xbf\n")
    assert transport(tmp_path).availability().works
    found = transport(tmp_path, DEFAULT | 0x40).availability()
    assert "journaling" in found.reason


@pytest.mark.parametrize("name", ["krbd", "rbd-nbd"])
def test_both_carry_images_of_rbd_only(tmp_path: Path, name: str) -> None:
    own = transport(tmp_path) if name == "krbd" else rbd_nbd.RbdNbdTransport(VolumeName("one", "x"), "admin", "/c", 30)
    assert own.name == name
    assert own.accepts(BlockNode("raw", "one/x", protocol=Protocol("rbd", ())))
    assert not own.accepts(BlockNode("raw", "/x"))
    assert not own.accepts(BlockNode("raw", "x", protocol=Protocol("nfs", ())))


def test_a_device_of_rbd_nbd_is_that_of_its_own_server() -> None:
    """No process of that command line runs: no device is ours, whatever nbd devices there are."""
    assert rbd_nbd.devices("/nonexistent/conf") == ()
