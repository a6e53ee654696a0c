"""Reading ISO images: what a hostile one can contain."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pycdlib
import pytest
from mapper_driver import iso

from mapper_core.errors import BadImage

pytestmark = pytest.mark.unit


def test_two_files_of_one_name(tmp_path: Path) -> None:
    image, out = tmp_path / "disk.1", tmp_path / "out"
    made = pycdlib.PyCdlib()
    made.new(rock_ridge="1.09")
    for short, name in (("/A.;1", "same"), ("/B.;1", "both")):
        made.add_fp(io.BytesIO(b"x"), 1, short, rr_name=name)
    made.write(str(image))
    made.close()
    image.write_bytes(image.read_bytes().replace(b"both", b"same"))
    out.mkdir()
    fd = os.open(out, os.O_RDONLY)
    try:
        with pytest.raises(BadImage, match="cannot be unpacked: File exists"):
            iso.extract(str(image), fd, owner=iso.Owner(os.geteuid(), os.getegid()))
    finally:
        os.close(fd)
