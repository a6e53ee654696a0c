"""The raw plugin alone: what it says about an image, without a device."""

from pathlib import Path

import mapper_raw
import pytest

from mapper_core.errors import TruncatedImage
from mapper_core.model import Disk

pytestmark = pytest.mark.unit


def test_an_end_that_is_no_sector_is_not_part_of_the_disk(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1000))
    assert mapper_raw.inspect(Disk(str(image), "raw")).virtual_size == 512


def test_a_huge_sparse_disk_costs_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(1 << 42)
    assert mapper_raw.inspect(Disk(str(image), "raw")).virtual_size == 1 << 42


@pytest.mark.parametrize("size", [0, 1, 511])
def test_less_than_a_sector_is_no_disk(tmp_path: Path, size: int) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(size))
    with pytest.raises(TruncatedImage, match=str(size)):
        mapper_raw.inspect(Disk(str(image), "raw"))
