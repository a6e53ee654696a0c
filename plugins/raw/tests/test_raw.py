"""The raw plugin alone: what it says about an image, without a device."""

from pathlib import Path

import mapper_raw
import pytest

from mapper_core import BlockNode, Transports
from mapper_core.errors import TruncatedImage
from mapper_core.model import Access, Attachment, Disk, MapOptions
from mapper_core.transports.base import OwnTransport

pytestmark = pytest.mark.unit


class _Transports(Transports):
    """Stands where the core puts its transports; says what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[BlockNode, MapOptions]] = []
        self.releases = 0

    def attach(self, node: BlockNode, options: MapOptions, own: tuple[OwnTransport, ...] = ()) -> Attachment:
        self.asked.append((node, options))
        return Attachment("/dev/loop0", "loop")

    def release(self) -> None:
        self.releases += 1


def test_its_size_is_all_there_is_to_know(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    info = mapper_raw.inspect(Disk(str(image), "raw"))
    assert (info.format, info.virtual_size, info.file_size, info.writable) == ("raw", 4096, 4096, True)
    assert info.references == ()


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


def test_it_asks_the_transports_for_exactly_these_bytes() -> None:
    """S-01: the driver is said explicitly, nothing is probed."""
    transports = _Transports()
    options = MapOptions(Access.READ_ONLY)
    attachment = mapper_raw.map(Disk("/srv/disk", "raw"), options, transports)
    assert attachment.device == "/dev/loop0"
    [(node, given)] = transports.asked
    assert (node.driver, node.filename, node.backing, node.data_file) == ("raw", "/srv/disk", None, None)
    assert given is options
    mapper_raw.unmap(transports)
    assert transports.releases == 1
