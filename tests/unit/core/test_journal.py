"""The journal: atomic, versioned, and never a guess."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import pytest

from mapper_core.errors import KernelError, StateCorrupt
from mapper_core.journal import VERSION, Journal, Record, State
from mapper_core.model import Access, Attachment, Disk, MapOptions, Partition, PartitionTable
from mapper_core.resources import DaemonResource, LoopResource, NbdResource

pytestmark = pytest.mark.unit

RECORD = Record(
    id="f-1-2",
    disk=Disk("/srv/a b.qcow2", "qcow2", ("/srv/base",)),
    plugin="qcow2",
    options=MapOptions(Access.READ_ONLY, "loop", 1 << 40),
    boot="b",
    state=State.MAPPED,
    resources=(LoopResource("mapper:f-1-2"), DaemonResource("/run/x"), NbdResource("/dev/nbd0", "/run/y")),
    attachment=Attachment("/dev/loop0", "loop"),
    size=512,
    table=PartitionTable("gpt", 512, (Partition(1, 1024, 512, "t", "u", "l", "/dev/loop0p1"),), "disk", ("odd",)),
    users=("cli", "tree:/mnt"),
    resize_to=1024,
    snapshot="before",
)


def test_a_record_survives_the_way_to_the_disk_and_back(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.write(RECORD)
    assert journal.read("f-1-2") == RECORD
    assert journal.records() == (RECORD,)


def test_a_record_from_before_an_upgrade_is_read(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.write(RECORD)
    path = tmp_path / "f-1-2.json"
    data = json.loads(path.read_text())
    del data["resize_to"], data["snapshot"]
    path.write_text(json.dumps(data))
    assert journal.read("f-1-2") == dataclasses.replace(RECORD, resize_to=0, snapshot="")


def test_a_fresh_record_has_nothing_but_the_intent(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    fresh = Record("f-1-2", RECORD.disk, "qcow2", MapOptions(), "b")
    journal.write(fresh)
    assert journal.read("f-1-2") == fresh


def test_a_record_is_replaced_and_not_appended(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.write(RECORD)
    journal.write(dataclasses.replace(RECORD, users=("cli",)))
    found = journal.read("f-1-2")
    assert found is not None
    assert found.users == ("cli",)
    assert os.listdir(tmp_path) == ["f-1-2.json"]


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """S-23."""
    Journal(str(tmp_path)).write(RECORD)
    assert (tmp_path / "f-1-2.json").stat().st_mode & 0o777 == 0o600


def test_removing_twice_is_fine(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.write(RECORD)
    journal.remove("f-1-2")
    journal.remove("f-1-2")
    assert journal.read("f-1-2") is None
    assert journal.ids() == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"version": 1}',
        json.dumps({"version": VERSION, "id": "x", "disk": 5, "plugin": "p", "options": {}}).encode(),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StateCorrupt, match=r"x\.json") as caught:
        Journal(str(tmp_path)).read("x")
    assert caught.value.hint


def test_a_record_of_a_newer_version_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"version": VERSION + 1, "id": "x"}))
    with pytest.raises(StateCorrupt, match="another version"):
        Journal(str(tmp_path)).read("x")


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path))
    journal.write(RECORD)

    def full(fd: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(KernelError, match="No space"):
        journal.write(dataclasses.replace(RECORD, users=()))
    monkeypatch.undo()
    assert journal.read("f-1-2") == RECORD
    assert os.listdir(tmp_path) == ["f-1-2.json"]


@pytest.mark.parametrize("in_memory", [False, True])
def test_on_a_disk_a_record_is_synced_before_it_gets_its_name_and_the_name_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def noted_rename(source: str, target: str) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr("mapper_core.state_files.is_in_memory", lambda fd: in_memory)
    Journal(str(tmp_path)).write(RECORD)
    assert done == (["rename"] if in_memory else ["file", "rename", "directory"])
