"""How the leak oracle compares; what it sees is tested in tests/root/test_leaks.py."""

from __future__ import annotations

import pytest

from mapper_core.testing.leaks import Snapshot, diff
from mapper_core.testing.observe import Item, lies_in

pytestmark = pytest.mark.unit

HOST, CONTAINER = 4026531840, 4026532000


def mount(number: int, target: str, namespace: int = HOST) -> Item:
    return Item(
        kind="mount",
        key=f"mount {namespace} {number}",
        text=f"/dev/loop0 on {target} type ext4",
        touches=(target, "/dev/loop0"),
        alias=f"7:0 / {target} ext4 /dev/loop0",
        namespace=namespace,
        pid=1,
    )


def loop(name: str, file: str) -> Item:
    return Item("loop", f"loop {name} 1 {file}", f"/dev/{name} on {file}", (file,))


def test_what_was_there_before_is_no_leak() -> None:
    before = Snapshot((loop("loop0", "/a"), mount(1, "/x")))
    assert not diff(before, before)
    assert not diff(before, Snapshot(()))
    assert str(diff(before, before)) == "leaks: 0"


def test_a_new_item_is_a_leak_and_is_named() -> None:
    found = diff(Snapshot((loop("loop0", "/a"),)), Snapshot((loop("loop0", "/a"), loop("loop1", "/b"))))
    assert len(found) == 1
    assert str(found) == "leak: loop: /dev/loop1 on /b\nleaks: 1"


def test_the_same_device_with_another_file_is_a_leak() -> None:
    assert len(diff(Snapshot((loop("loop0", "/a"),)), Snapshot((loop("loop0", "/b"),)))) == 1


def test_a_new_namespace_may_have_what_it_inherited_and_no_more() -> None:
    before = Snapshot((mount(1, "/x"),))
    assert not diff(before, Snapshot((mount(1, "/x"), mount(9, "/x", CONTAINER))))
    found = diff(before, Snapshot((mount(1, "/x"), mount(9, "/x", CONTAINER), mount(10, "/y", CONTAINER))))
    assert [item.touches[0] for item in found.items] == ["/y"]


def test_a_second_mount_at_the_same_place_is_a_leak() -> None:
    before = Snapshot((mount(1, "/x"),))
    assert len(diff(before, Snapshot((mount(1, "/x"), mount(2, "/x"))))) == 1


def test_one_mount_in_two_namespaces_is_one_leak() -> None:
    before = Snapshot((mount(1, "/x"), mount(2, "/x", CONTAINER)))
    after = Snapshot((*before.items, mount(3, "/y"), mount(4, "/y", CONTAINER)))
    assert len(diff(before, after)) == 1


def test_scope_leaves_out_what_belongs_to_others_but_not_what_is_this_process() -> None:
    fd = Item("fd", "fd 7 /dev/loop0", "descriptor 7 -> /dev/loop0", ("/dev/loop0",))
    child = Item("child", "process 5 100", "pid 5: sleep 9", ("sleep 9",), pid=5)
    daemon = Item("process", "process 6 100", "pid 6: qemu-nbd /mine/disk", ("qemu-nbd /mine/disk",), pid=6)
    other = Item("process", "process 8 100", "pid 8: qemu-nbd /others/disk", ("qemu-nbd /others/disk",), pid=8)
    after = Snapshot((loop("loop0", "/mine/a"), loop("loop1", "/mineral/b"), fd, child, daemon, other))
    found = diff(Snapshot(()), after, scope=("/mine",))
    assert [item.key for item in found.items] == ["loop loop0 1 /mine/a", fd.key, child.key, daemon.key]
    assert len(diff(Snapshot(()), after)) == 6


@pytest.mark.parametrize(
    ("text", "directory", "expected"),
    [
        ("/run/m", "/run/m", True),
        ("/run/m/disks/1", "/run/m", True),
        ("/run/mm/disks/1", "/run/m", False),
        ("qemu-nbd --pid-file=/run/m/pid disk", "/run/m", True),
        ("/run", "/run/m", False),
    ],
)
def test_lies_in(text: str, directory: str, expected: bool) -> None:
    assert lies_in(text, directory) is expected
