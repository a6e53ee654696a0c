"""Mount points of an image: the textual half of the check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper_core.errors import UnsafePath
from mapper_core.tree.targets import depth, normalise

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/./", "/"),
        ("/home", "/home"),
        ("//home//user///", "/home/user"),
        ("/./var/./log/.", "/var/log"),
        ("/with space", "/with space"),
        ("/...", "/..."),
        ("/..hidden", "/..hidden"),
        ("/$(id)", "/$(id)"),
        ("/-rf", "/-rf"),
        ("/procedures", "/procedures"),
        ("/mnt/proc", "/mnt/proc"),
        ("/\udcff", "/\udcff"),
        ("/" + "a" * 255, "/" + "a" * 255),
        (("/" + "a" * 254) * 16 + "/" + "b" * 14, ("/" + "a" * 254) * 16 + "/" + "b" * 14),
    ],
)
def test_harmless(target: str, expected: str) -> None:
    assert normalise(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        "",
        "home",
        "./home",
        "../home",
        "~/home",
        " /home",
        "/..",
        "/../../../../etc",
        "/home/../../etc",
        "/home/..",
        "/./..",
        "/home/..//",
        "/a\0b",
        "/" + "a" * 256,
        "/" + "ä" * 128,
        ("/" + "a" * 254) * 16 + "/" + "b" * 15,
        "/a" * 2500,
        "/" * 5000,
        "/proc",
        "/proc/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/shm",
        "//dev/",
        "/./run/lock",
        "/run",
    ],
)
def test_refused(target: str) -> None:
    """S-09."""
    with pytest.raises(UnsafePath) as caught:
        normalise(target)
    assert len(str(caught.value)) < 200
    assert caught.value.subject


@given(st.text(st.sampled_from("/.ab\0 "), max_size=30) | st.text(max_size=300))
def test_never_outside(target: str) -> None:
    """S-09: a path that passes has no part that could lead upwards, and is the same when normalised again."""
    try:
        path = normalise(target)
    except UnsafePath:
        return
    assert path.startswith("/")
    assert path == "/" or not {"", ".", ".."} & set(path[1:].split("/"))
    assert normalise(path) == path


def test_depth() -> None:
    assert [depth(path) for path in ("/", "/a", "/a/b")] == [0, 1, 2]
