"""New image files: complete with a name, or not there at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mapper_core.errors import AlreadyExists, KernelError, NotFound
from mapper_core.newfile import new_file

pytestmark = pytest.mark.unit


def test_it_has_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with new_file(str(path)) as file:
        assert not path.exists()
        os.write(file.fd, b"content")
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_that_cannot_be_is_said_with_that_name(tmp_path: Path) -> None:
    path = str(tmp_path / ("a" * 300))
    with pytest.raises(KernelError) as caught, new_file(path):
        pass
    assert (caught.value.errno, caught.value.subject) == (errno.ENAMETOOLONG, path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(NotFound), new_file(f"{tmp_path}/none/new"):
        pass


def test_what_has_taken_the_name_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(AlreadyExists), new_file(str(path)):
        path.write_bytes(b"of another")
    assert path.read_bytes() == b"of another"


def test_a_name_that_is_not_stored_goes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one failure between the name and the end."""
    stored = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        stored(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KernelError, match="Input/output error"), new_file(str(tmp_path / "new")):
        pass
    assert os.listdir(tmp_path) == []
