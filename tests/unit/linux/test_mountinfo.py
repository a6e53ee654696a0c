"""The parser of /proc/PID/mountinfo."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper_core.errors import KernelError
from mapper_core.linux import mountinfo

pytestmark = pytest.mark.unit

PLAIN = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue"


def test_all_fields() -> None:
    entry = mountinfo.parse_line(PLAIN)
    assert entry == mountinfo.MountEntry(
        id=36,
        parent=35,
        device=(98, 0),
        root="/mnt1",
        target="/mnt2",
        options=("rw", "noatime"),
        propagation=("master:1", "shared:7"),
        fstype="ext3",
        source="/dev/root",
        super_options=("rw", "errors=continue"),
    )


def test_no_optional_fields() -> None:
    assert mountinfo.parse_line(b"22 27 0:21 / /proc rw - proc proc rw").propagation == ()


def test_empty_source() -> None:
    """fsconfig(2) accepts an empty source; the field is then nothing between two blanks."""
    entry = mountinfo.parse_line(b"22 27 0:21 / /x rw - tmpfs  rw,size=4k")
    assert (entry.source, entry.super_options) == ("", ("rw", "size=4k"))


def test_a_dash_is_also_a_name() -> None:
    """A mount point or source called ``-`` must not be taken for the separator."""
    entry = mountinfo.parse_line(b"22 27 0:21 / - rw - tmpfs - rw")
    assert (entry.target, entry.fstype, entry.source) == ("-", "tmpfs", "-")


def test_subtype() -> None:
    assert mountinfo.parse_line(b"22 27 0:50 / /x rw - fuse.sshfs host:/a\\040b rw").source == "host:/a b"


def test_not_utf8_survives() -> None:
    """Names are bytes; what cannot be decoded comes back unchanged through os.fsencode()."""
    assert mountinfo.parse_line(b"22 27 0:21 / /\xff rw - t s rw").target == "/\udcff"


def test_order_is_kept_and_empty_lines_are_not_entries() -> None:
    text = PLAIN + b"\n" + PLAIN.replace(b"36", b"37", 1) + b"\n"
    assert [entry.id for entry in mountinfo.parse(text)] == [36, 37]
    assert mountinfo.parse(b"") == ()


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"36 35 98:0 /mnt1 /mnt2 rw shared:7 ext3 /dev/root rw",  # no separator
        b"36 35 98 /mnt1 /mnt2 rw - ext3 /dev/root rw",  # device without minor
        b"36 35 98:0 /mnt1 /mnt2 rw - ext3",
        b"x 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw",
    ],
)
def test_garbage_is_a_typed_error(line: bytes) -> None:
    with pytest.raises(KernelError):
        mountinfo.parse_line(line)


def escape(name: bytes) -> bytes:
    """As the kernel does it: mangle() in fs/proc_namespace.c."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes((byte,)) for byte in name)


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_name_comes_back(name: bytes) -> None:
    """P-07: blanks, tabs, newlines, backslashes, and texts that look like escapes."""
    entry = mountinfo.parse(b"36 35 98:0 / /" + escape(name) + b" rw - ext3 /dev/root rw\n")[0]
    assert entry.target.encode(errors="surrogateescape") == b"/" + name


@pytest.mark.parametrize(
    ("path", "directory", "expected"),
    [
        ("/x/disk.10", "/x/disk.1", False),
        ("/x/disk.1/a", "/x/disk.1", True),
        ("/x/disk.1", "/x/disk.1", False),
        ("/x", "/x/disk.1", False),
        ("/x", "/", True),
        ("/", "/", False),
    ],
)
def test_below_compares_whole_components(path: str, directory: str, expected: bool) -> None:
    """U-04."""
    assert mountinfo.is_below(path, directory) is expected
