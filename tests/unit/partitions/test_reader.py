"""Text and GUIDs of an image, and reading through windows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper_core.partitions.reader import dashed, escape_controls, file_reader, guid, text, window
from mapper_core.testing.tables import reader

pytestmark = pytest.mark.unit


def test_file_reader(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"0123456789")
    with (tmp_path / "image").open("rb") as file:
        read = file_reader(file.fileno())
        assert read(3, 4) == b"3456"
        assert read(8, 4) == b"89"
        assert read(10, 4) == b""
        assert file.tell() == 0


def test_window() -> None:
    read = window(reader(b"0123456789"), 2, 5)
    assert read(0, 3) == b"234"
    assert read(3, 100) == b"56"
    assert read(5, 1) == b""
    assert read(-1, 3) == b""


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"root", "root"),
        ("Größe".encode(), "Größe"),
        (b"a b", "a b"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"two\nlines", "two\\x0alines"),
        ("\u202egnp".encode(), "\\u202egnp"),
    ],
)
def test_text(raw: bytes, expected: str) -> None:
    assert text(raw) == expected


@given(st.binary())
def test_text_can_always_be_printed(raw: bytes) -> None:
    """S-12: nothing an image says can steer a terminal or break the encoding of the output."""
    shown = text(raw)
    shown.encode()
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) <= 0x9F for char in shown)


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_names_can_be_printed(name: str) -> None:
    escape_controls(name).encode()


def test_guid_is_mixed_endian() -> None:
    raw = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
    assert guid(raw) == "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
    assert guid(bytes(16)) == ""


def test_dashed() -> None:
    assert dashed(bytes(range(16))) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert dashed(bytes(16)) == ""
