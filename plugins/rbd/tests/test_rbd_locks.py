"""Locks and bindings: the messages of the class ``lock`` byte by byte, as a cluster of Ceph 16 sent them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mapper_rbd import bindings, claims, cls_lock
from mapper_rbd.claims import Use
from mapper_rbd.cls_lock import Locker, LockInfo

from mapper_core.errors import MapperError, ToolMissing
from mapper_core.model import Access

pytestmark = pytest.mark.unit

#: The answer to ``get_info`` for a lock "mapper" with the cookie "cookie1" and the description "host a".
ANSWER = (
    b"\x01\x01^\x00\x00\x00\x01\x00\x00\x00\x01\x01\x14\x00\x00\x00\x08\x0f\x10\x00\x00\x00\x00\x00\x00\x07\x00\x00"
    b"\x00cookie1\x01\x015\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01\x1c\x00\x00\x00\x01\x00\x00\x00\x06="
    b"\xedX\x10\x00\x00\x00\x02\x00\x00\x00\x7f\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00host a\x01"
    b"\x00\x00\x00\x00"
)


def test_an_answer_is_understood() -> None:
    assert cls_lock.decode_info(ANSWER) == LockInfo(True, (Locker(4111, "cookie1", "host a"),))


def test_an_address_in_the_old_form_is_skipped() -> None:
    """Before version 10 an address had no length: 3 bytes, type, nonce, ``struct sockaddr_storage``."""
    old = ANSWER.replace(
        b"\x01\x01\x01\x1c\x00\x00\x00" + ANSWER.split(b"\x01\x01\x01\x1c\x00\x00\x00")[1][:28], bytes(136)
    )
    grown = len(old) - len(ANSWER)
    old = old.replace(b"\x01\x01^\x00", bytes((1, 1, 0x5E + grown, 0))).replace(
        b"\x01\x015\x00", bytes((1, 1, 0x35 + grown, 0))
    )
    assert cls_lock.decode_info(old) == LockInfo(True, (Locker(4111, "cookie1", "host a"),))


@pytest.mark.parametrize("length", range(0, len(ANSWER), 7))
def test_an_answer_that_is_cut_off(length: int) -> None:
    with pytest.raises(MapperError, match="cannot be understood"):
        cls_lock.decode_info(ANSWER[:length])


def test_a_free_lock() -> None:
    assert cls_lock.decode_info(b"\x01\x01\x09\0\0\0\0\0\0\0\0\0\0\0\0").lockers == ()


def test_the_requests() -> None:
    assert cls_lock.encode_get_info("mapper") == b"\x01\x01\x0a\0\0\0\x06\0\0\0mapper"
    assert cls_lock.encode_break("mapper", Locker(4111, "c", "")) == (
        b"\x01\x01\x18\0\0\0\x06\0\0\0mapper\x08\x0f\x10\0\0\0\0\0\0\x01\0\0\0c"
    )


# --- claims -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "snapshot", "use"),
    [
        (Access.READ_WRITE, "", Use.WRITE),
        (Access.READ_ONLY, "", Use.READ),
        (Access.READ_ONLY, "snap", Use.SNAPSHOT),
    ],
)
def test_a_claim_is_read_from_its_cookie(access: Access, snapshot: str, use: Use) -> None:
    claim = claims.new(access, snapshot, "node.1", "boot", "n-1")
    assert claim.use is use
    assert claims.parse(claim.cookie) == claim
    assert claims.new(access, snapshot, "node.1", "boot", "n-1") != claim


@pytest.mark.parametrize("cookie", ["", "auto 139970501154016", "rw", "rw/a/b/c", "rw/a/b/c/d/e", "xx/a/b/c/d"])
def test_cookies_of_others_are_no_claims(cookie: str) -> None:
    assert claims.parse(cookie) is None


@pytest.mark.parametrize(
    ("cookie", "stale"),
    [
        ("rw/a/boot1/n-1/t", True),
        ("ro/a/boot1/n-2/t", True),
        ("rw/a/boot2/n-1/t", False),
        ("rw/b/boot1/n-1/t", False),
        ("something", False),
    ],
)
def test_only_locks_of_an_earlier_boot_of_this_host_are_stale(cookie: str, stale: bool) -> None:
    """Whoever has another name may live; and in this boot, what the journal does not know may be mapped all the same."""
    claim = claims.new(Access.READ_WRITE, "", "a", "boot2", "n-1")
    assert claims.is_stale(Locker(1, cookie, ""), claim) is stale


# --- bindings -----------------------------------------------------------------------------------------------


def test_without_the_bindings_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing) as found:
        bindings.load("rados_that_is_not_there", (str(tmp_path),))
    assert "install the package python3-rados_that_is_not_there" in found.value.hint


def test_bindings_that_cannot_be_loaded_leave_nothing_behind(tmp_path: Path) -> None:
    import importlib.machinery

    (tmp_path / f"broken_binding{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"not an object file")
    with pytest.raises(ToolMissing, match="cannot be loaded"):
        bindings.load("broken_binding", (str(tmp_path),))
    assert "broken_binding" not in sys.modules


def test_only_the_named_module_is_taken_from_the_directory(tmp_path: Path) -> None:
    """The distribution's directory does not get onto ``sys.path``."""
    before = list(sys.path)
    with pytest.raises(ToolMissing):
        bindings.load("rados_that_is_not_there", (str(tmp_path),))
    assert sys.path == before


def test_importing_the_plugin_imports_no_bindings() -> None:
    """As in all plugins, what is not used is not loaded."""
    import mapper_rbd

    assert mapper_rbd.MAPPER_API == (1, 1)
    assert "rbd" not in mapper_rbd.__dict__
