"""image convert and image build."""

from __future__ import annotations

import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from mapper_core.testing import disks
from mapper_core.testing.disks import MIB

from .conftest import PROGRAM, Cli

pytestmark = pytest.mark.root


def test_convert_keeps_every_byte_in_every_format(cli: Cli, system: Path, tmp_path: Path) -> None:
    content = system.read_bytes()
    previous, declared = system, "raw"
    for kind in ("qcow2", "vmdk", "raw"):
        target = tmp_path / f"copy.{kind}"
        answer = cli("image", "convert", previous, target, "-f", declared, "-O", kind, "--json").json
        assert answer["size"] == len(content)
        assert answer["disk"]["source"] == str(target)
        previous, declared = target, kind
    assert previous.read_bytes() == content
    assert previous.stat().st_blocks * 512 < len(content) * 3 // 4, "zeros take no room"
    for kind in ("qcow2", "vmdk"):
        disks.run("qemu-img", "check", "-f", kind, str(tmp_path / f"copy.{kind}"))
        disks.run("qemu-img", "compare", "-f", kind, "-F", "raw", str(tmp_path / f"copy.{kind}"), str(system))
    assert cli.ok("ls") == ""


def test_what_cannot_be_converted_leaves_nothing(cli: Cli, system: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.qcow2"
    there.write_bytes(b"mine")
    cli.fails(7, "AlreadyExists", "image", "convert", system, there, "-f", "raw", "-O", "qcow2")
    assert there.read_bytes() == b"mine"
    cli.fails(3, "ImageNotFound", "image", "convert", tmp_path / "none", tmp_path / "new", "-f", "raw", "-O", "qcow2")
    cli.fails(4, "FormatMismatch", "image", "convert", there, tmp_path / "new", "-f", "qcow2", "-O", "raw")
    cli.fails(3, "PluginMissing", "image", "convert", system, tmp_path / "new", "-f", "raw", "-O", "nosuch")
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.glob("*.qcow2")) == ["there.qcow2"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A system, as small as can be."""
    root = tmp_path / "tree"
    for name in ("sbin", "etc", "proc", "dev"):
        (root / name).mkdir(parents=True)
    (root / "sbin/init").write_text("#!/bin/sh\n")
    (root / "sbin/init").chmod(0o755)
    (root / "etc/secret").write_text("x")
    os.chown(root / "etc/secret", 1000, 1001)
    (root / "etc/secret").chmod(0o2640)
    os.setxattr(root / "etc/secret", "user.note", b"kept")
    (root / "etc/link").symlink_to("/etc/passwd")
    (root / "proc/1").write_text("of the host")
    return root


def pack(tree: Path, *names: str) -> bytes:
    return subprocess.run(
        ["tar", "-C", str(tree), "--xattrs", "--numeric-owner", "-c", *(names or ".")],
        capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip


def _as_from_ssh(argv: list[str], content: bytes) -> tuple[int, bytes]:
    """Run a program whose standard input is a socket."""
    mine, its = socket.socketpair()
    with subprocess.Popen(argv, stdin=its.fileno(), stderr=subprocess.PIPE) as process:
        its.close()
        with mine:
            mine.sendall(content)
        _, err = process.communicate(timeout=100)
    return process.returncode, err


@pytest.mark.parametrize(("filesystem", "is_socket"), [("ext4", False), ("xfs", True)])
def test_build_from_an_archive(cli: Cli, tree: Path, tmp_path: Path, filesystem: str, is_socket: bool) -> None:
    """By standard input, as from a container that runs: by a pipe, with names as tar writes those of a directory; by ssh, with
    names as docker writes them.
    """
    image, target = tmp_path / "new.qcow2", tmp_path / "m"
    size = 320 if filesystem == "xfs" else 32
    argv = [PROGRAM, "image", "build", str(image), "-O", "qcow2", "--size", f"{size}M", "--from-tar", "-"]
    argv += ["--filesystem", filesystem]
    if is_socket:
        status, err = _as_from_ssh(argv, pack(tree, *sorted(os.listdir(tree))))
    else:
        done = subprocess.run(argv, input=pack(tree), capture_output=True, timeout=100, check=False)
        status, err = done.returncode, done.stderr
    assert status == 0, err.decode()
    assert b"unpacking standard input" in err
    target.mkdir()
    cli.ok("mount", image, target, "-f", "qcow2", "-r")
    try:
        found = (target / "etc/secret").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1000, 1001, 0o2640)
        assert os.getxattr(target / "etc/secret", "user.note") == b"kept"
        assert os.readlink(target / "etc/link") == "/etc/passwd"
        assert list((target / "proc").iterdir()) == []
        assert os.access(target / "usr/lib/mapper/context", os.X_OK)
        units = target / "etc/systemd/system"
        for name, part in (("mapper-context", "settings"), ("mapper-context-script", "script")):
            assert os.readlink(units / f"multi-user.target.wants/{name}.service") == f"../{name}.service"
            assert f"ExecStart=/usr/lib/mapper/context {part}\n" in (units / f"{name}.service").read_text()
        early = (units / "mapper-context.service").read_text()
        assert (
            "Before=network-pre.target sysinit.target" in early
            and "sysinit" not in (units / "mapper-context-script.service").read_text()
        )
    finally:
        cli.ok("umount", target)
    table = cli("inspect", image, "-f", "qcow2", "--json").json
    assert table["virtual_size"] == size * MIB


def _remarkable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Give tar something to say about each file, which is not why it fails."""
    member.name, member.mtime, member.pax_headers = f"/{member.name}", 1 << 33, {"LIBARCHIVE.creationtime": "1"}
    return member


def test_what_cannot_be_built_leaves_nothing(cli: Cli, tree: Path, tmp_path: Path) -> None:
    archive, image = tmp_path / "a.tar", tmp_path / "new.raw"
    build = ("image", "build", image, "-O", "raw", "--size", "16M")
    cli.fails(2, "UsageError", *build)
    cli.fails(2, "UsageError", *build, "--suite", "bookworm", "--from-tar", archive)
    assert "standard input" in cli.fails(3, "NotFound", *build, "--from-tar", archive)["hint"]
    assert "tar -C" in cli.fails(2, "UsageError", *build, "--from-tar", tree)["hint"]
    (tree / "sbin/init").unlink()
    archive.write_bytes(pack(tree))
    assert "systemd-sysv" in cli.fails(4, "NoRootFound", *build, "--from-tar", archive)["hint"]
    (tree / "sbin/init").symlink_to("/../../../../bin/sh")  # of the host
    archive.write_bytes(pack(tree))
    cli.fails(4, "NoRootFound", *build, "--from-tar", archive)
    archive.write_bytes(b"no archive")
    cli.fails(1, "CommandFailed", *build, "--from-tar", archive)
    with subprocess.Popen(["gzip", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packer:
        packed, _ = packer.communicate(pack(tree))
    done = subprocess.run([PROGRAM, *map(str, build), "--from-tar", "-"], input=packed, capture_output=True, timeout=60)
    assert (done.returncode, b"must not be compressed" in done.stderr) == (2, True), done.stderr
    (tree / "big").write_bytes(os.urandom(20 * MIB))
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        file.add(tree, "tree", filter=_remarkable)
    # "Cannot write: No space left on device", or how little of it was written, as the pieces fall
    assert "tree/big: " in cli.fails(1, "CommandFailed", *build, "--from-tar", archive)["message"]
    cli.fails(2, "UsageError", *build, "--from-tar", archive, "--filesystem", "vfat")
    assert not image.exists()
    assert cli.ok("ls") == ""
