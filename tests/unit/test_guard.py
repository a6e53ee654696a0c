"""What the guard lets through, and how it judges; that it stops the rest is seen in tests/packaging/test_harness.py."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import termios
from pathlib import Path

import pytest

from mapper_core.testing.guard import judge

pytestmark = pytest.mark.unit


def test_a_unit_test_may_use_files_and_harmless_devices(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for device in ("/dev/null", "/dev/urandom", "/dev/zero"):
        with open(device, "rb") as file:
            file.read(1)


def test_a_unit_test_may_use_unix_sockets(tmp_path: Path) -> None:
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(address)
        server.listen()
        client.connect(address)
        peer, _ = server.accept()
        peer.close()


def test_a_unit_test_may_use_harmless_ioctls_and_c_functions() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"abc")
        waiting = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4))[0]
    finally:
        os.close(reader)
        os.close(writer)
    assert waiting == 3
    assert ctypes.CDLL(None).getpid() == os.getpid()


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("subprocess.Popen", ("true", ["true"], None, None)),
        ("os.fork", ()),
        ("os.exec", ("/bin/true", ["true"], None)),
        ("os.posix_spawn", ("/bin/true", ["true"], None)),
        ("os.system", (b"true",)),
        ("open", ("/dev/loop0", "r", 0)),
        ("open", (b"/dev/loop-control", None, os.O_RDWR)),
        ("open", ("/dev/fuse", None, os.O_RDWR)),
        ("fcntl.ioctl", (3, 0x4C0A, 0)),  # LOOP_CONFIGURE
        ("fcntl.ioctl", (3, 0x4C80, 0)),  # LOOP_CTL_ADD
        ("fcntl.ioctl", (3, 0xAB00, 0)),  # NBD_SET_SOCK
        ("fcntl.ioctl", (3, 0x1269, 0)),  # BLKPG
        ("ctypes.dlsym", (None, "mount")),
        ("ctypes.dlsym", (None, "unshare")),
    ],
)
def test_forbidden_events(event: str, arguments: tuple[object, ...]) -> None:
    assert judge(event, arguments)


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("/etc/passwd", "r", 0)),
        ("open", ("/dev/null", "r", 0)),
        ("open", (7, "r", 0)),
        ("open", ("/tmp/dev/loop0", "r", 0)),
        ("fcntl.ioctl", (3, 0x541B, 0)),  # FIONREAD
        ("ctypes.dlsym", (None, "openat2")),
        ("import", ("subprocess", None, [], [], [])),
    ],
)
def test_harmless_events(event: str, arguments: tuple[object, ...]) -> None:
    assert judge(event, arguments) == ""
