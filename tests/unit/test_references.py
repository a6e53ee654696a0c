"""How names that are written in an image are followed, and where they may lead."""

import os
from pathlib import Path

import pytest

from mapper_core.errors import (
    BackingFileMissing,
    CorruptImage,
    ForbiddenReference,
    ImageNotFound,
    MapperError,
    TruncatedImage,
    UnsafePath,
    UnsupportedFormat,
)
from mapper_core.imagefile import METADATA_LIMIT, Budget, open_image
from mapper_core.model import ReferenceKind
from mapper_core.references import DEPTH_LIMIT, Walk

pytestmark = pytest.mark.unit


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A datastore with an image and a neighbour, and files outside of it."""
    directory = tmp_path / "store"
    (directory / "sub").mkdir(parents=True)
    (directory / "top").write_bytes(b"top")
    (directory / "base").write_bytes(b"base")
    (directory / "sub" / "base").write_bytes(b"sub")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "base").write_bytes(b"other")
    (tmp_path / "store-evil").write_bytes(b"evil")
    return directory


def follow(top: Path, written: bytes | str, *allowed: Path) -> str:
    """Follow one name from an image; return the path to which it leads."""
    walk = Walk(tuple(str(directory) for directory in allowed))
    with walk.open_top(str(top)) as image:
        name = written.encode() if isinstance(written, str) else written
        with walk.follow(name, image, ReferenceKind.BACKING) as (_name, found):
            return found.path


@pytest.mark.parametrize("name", ["base", "./base", "sub/../base", "sub/base", "../store/base"])
def test_names_within_the_directory_of_the_image(images: Path, name: str) -> None:
    expected = images / "sub/base" if name == "sub/base" else images / "base"
    assert follow(images / "top", name) == str(expected)


def test_an_absolute_name_within_the_directory(images: Path) -> None:
    assert follow(images / "top", str(images / "base")) == str(images / "base")


def test_relative_names_start_at_the_real_directory_of_the_image(images: Path) -> None:
    """M-01: a link to the image lies in a directory that has another file of that name."""
    (images.parent / "other" / "link").symlink_to(images / "top")
    assert follow(images.parent / "other" / "link", "base") == str(images / "base")


def test_only_allowed_directories(images: Path) -> None:
    """S-02: absolute, with .., through a symbolic link; and a directory whose name merely starts the same."""
    other = images.parent / "other"
    (images / "link").symlink_to(other / "base")
    (images / "dir").symlink_to(other)
    for name in (str(other / "base"), "../other/base", "link", "dir/base", "../store-evil", "/etc/passwd", ".."):
        with pytest.raises(ForbiddenReference) as caught:
            follow(images / "top", name)
        assert str(images / "top") in str(caught.value)
    for name in (str(other / "base"), "../other/base", "link", "dir/base"):
        assert follow(images / "top", name, other) == str(other / "base")


def test_an_allowed_directory_may_be_a_link(images: Path) -> None:
    (images.parent / "ds").symlink_to(images.parent / "other")
    assert follow(images / "top", "../ds/base", images.parent / "ds") == str(images.parent / "other/base")


@pytest.mark.parametrize(
    "name",
    [
        b'json:{"driver":"raw"}',
        b"nbd://127.0.0.1/x",
        b"nbd:unix:/run/x",
        b"file:base",
        b"fat:/etc",
        b"rbd:pool/image",
        b"C:\\images\\base.vmdk",
        b"/dev/sda",
        b"/dev/../dev/null",
        b"//dev/null",
        b"/proc/self/environ",
        b"/proc/self/fd/0",
        b"/sys/kernel/notes",
        b"base\nfile",
        b"ba\x1b[2Jse",
        b"base\x00",
        b"\xff\xfe",
        "ba\u202ese".encode(),
        b"",
    ],
)
def test_what_is_no_plain_path_is_refused(images: Path, name: bytes) -> None:
    with pytest.raises(ForbiddenReference):
        follow(images / "top", name, Path("/"))


def test_a_colon_behind_a_slash_is_no_protocol(images: Path) -> None:
    (images / "10:30").write_bytes(b"x")
    assert follow(images / "top", "./10:30") == str(images / "10:30")


def test_a_missing_file_says_where_it_was_looked_for(images: Path) -> None:
    with pytest.raises(BackingFileMissing) as caught:
        follow(images / "top", "gone")
    assert str(images / "gone") in str(caught.value)
    assert str(images) in caught.value.hint


def test_existence_outside_of_the_boundary_is_not_told(images: Path) -> None:
    messages = []
    for name in ("../other/base", "../other/gone"):
        with pytest.raises(ForbiddenReference) as caught:
            follow(images / "top", name)
        messages.append(str(caught.value).replace("base", "X").replace("gone", "X"))
    assert messages[0] == messages[1]


def test_only_regular_files(images: Path) -> None:
    """S-26."""
    os.mkfifo(images / "fifo")
    (images / "null").symlink_to("/dev/null")
    (images / "loop").symlink_to("loop")
    for name in ("fifo", "sub", "null", "loop"):
        with pytest.raises(ForbiddenReference):
            follow(images / "top", name, Path("/"))


def test_a_circle_and_a_second_name_of_the_same_file(images: Path) -> None:
    os.link(images / "top", images / "hard")
    for name in ("top", "hard"):
        with pytest.raises(CorruptImage):
            follow(images / "top", name)


def test_the_depth_of_a_chain_is_limited(images: Path) -> None:
    walk = Walk(())
    with walk.open_top(str(images / "top")) as top:
        for number in range(DEPTH_LIMIT - 1):
            (images / f"{number}").write_bytes(b"")
            with walk.follow(b"%d" % number, top, ReferenceKind.BACKING):
                pass
        (images / "last").write_bytes(b"")
        with pytest.raises(UnsupportedFormat), walk.follow(b"last", top, ReferenceKind.BACKING):
            pass


def test_the_root_directory_is_no_place_for_images() -> None:
    """An image that lies directly in / must not be allowed to name every file of the host."""
    from mapper_core.imagefile import ImageFile
    from mapper_core.references import Boundary

    on_root = ImageFile("/disk", 0, (0, 0), False, -1, Budget())
    on_device = ImageFile("/dev/vg/disk", 0, (0, 0), True, -1, Budget())
    for image in (on_root, on_device):
        assert Boundary.around(image, ()).directories == ()
        assert Boundary.around(image, ("/dev",)).directories == ("/dev",)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/proc/self/maps", "/proc/version", "/", "/tmp"])
def test_special_files_are_not_opened(path: str) -> None:
    """S-26: an endless file, and kernel interfaces that look like files."""
    with pytest.raises(UnsafePath), open_image(path, Budget()):
        pass


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnsafePath), open_image(str(tmp_path / "fifo"), Budget()):
        pass


@pytest.mark.parametrize("name", ["gone", "gone/deeper", "file/deeper"])
def test_a_missing_image(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageNotFound), open_image(str(tmp_path / name), Budget()):
        pass


@pytest.mark.parametrize("path", ["/" + "x" * 300, "/a\0b", "loop"])
def test_paths_that_cannot_be_followed(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MapperError), open_image(str(tmp_path / path), Budget()):
        pass


def test_reading_is_exact_and_limited(tmp_path: Path) -> None:
    """S-19."""
    with open(tmp_path / "big", "wb") as file:
        file.write(b"head")
        file.truncate(1 << 40)
    with open_image(str(tmp_path / "big"), Budget()) as image:
        assert image.read(0, 4, "x") == b"head"
        assert image.read_start(2) == b"he"
        with pytest.raises(TruncatedImage):
            image.read((1 << 40) - 2, 4, "x")
        with pytest.raises(UnsupportedFormat):
            image.read(0, METADATA_LIMIT, "x")
        assert not image.affords(METADATA_LIMIT - 10)
