"""Disks that are files: their headers without any other program, their names, and what they must not be taken for."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from mapper_core import formats
from mapper_core.errors import BadImage, ImageNotFound, MapperError, PluginFault, UnsafePath
from mapper_core.frozen import replace
from mapper_core.model import Access, Disk, ImageInfo
from mapper_core.testing.conformance.bench import MIB, Bench, OnBench, difference, pattern, proves, read
from mapper_core.testing.guard import Guard

#: Names that have been taken for something else by a shell, an option list, a parser of URLs, a C function.
ODD_NAMES = {
    "space": b"a disk",
    "newline": b"a\ndisk",
    "not UTF-8": b"a\xff\xfedisk",
    "long": b"x" * 255,
    "leading dash": b"-disk",
    "comma": b"a,size=1,disk",
    "colon": b"nbd:unix:disk",
    "percent": b"%d%s%n",
    "quotes": b"a'\"$(disk)`",
    "backslash": b"a\\x41\\disk",
    "json": b'json:{"driver":"raw"}',
    "deep": b"/".join([b"d" * 200] * 12),
}

#: The first bytes of files that are something else.
HEADERS = {
    "zeros": bytes(MIB),
    "text": b"this is no disk\n" * 4096,
    "qcow2": b"QFI\xfb\0\0\0\3" + bytes(MIB),
    "vmdk": b"KDMV\1\0\0\0" + bytes(MIB),
    "vdi": bytes(64) + b"\x7f\x10\xda\xbe" + bytes(MIB),
    "vhdx": b"vhdxfile" + bytes(MIB),
    "gzip": b"\x1f\x8b\x08\0" + bytes(MIB),
    "xz": b"\xfd7zXZ\0" + bytes(MIB),
}
#: What a header may be changed in: enough for all fields of the formats there are.
HEADER_BYTES = 4096
FLIPS = 120


class OnHeaders(OnBench):
    """Root-free: the hooks ``inspect`` and ``recognize``."""

    @proves("header", "inspect")
    def test_the_header_says_the_size(self, desk: Bench, program_guard: Guard) -> None:
        """Without any other program; no descriptor stays open."""
        for size in (MIB, 4 * MIB, 5 * MIB):
            disk = desk.disk(pattern(size))
            image = self._inspect(desk, program_guard, disk)
            if image is None:
                return  # it has no such hook
            assert (image.virtual_size, image.format, image.path) == (size, self.format, disk.source)
            assert image.file_size > 0
            assert image.writable == (self.access is Access.READ_WRITE)

    @proves("header", "recognize")
    def test_it_recognizes_its_own_images_only(self, desk: Bench, program_guard: Guard) -> None:
        """Whatever the first bytes are, the answer is yes or no."""
        if not desk.mapper.registry.can(self.format, "recognize"):
            return
        own = Path(desk.disk(pattern(MIB)).source).read_bytes()[: formats.HEADER_SIZE]
        others = [content[: formats.HEADER_SIZE] for name, content in HEADERS.items() if name != self.format]
        headers = (own, *others, b"", b"\0", own[:1], os.urandom(formats.HEADER_SIZE))
        with program_guard.watch():
            answers = [desk.mapper.registry._ask(self.format, "recognize", header=header) for header in headers]
        assert answers == [True] + [False] * (len(answers) - 1)

    @proves("header", "inspect")
    def test_a_file_that_ends_too_early(self, desk: Bench, program_guard: Guard) -> None:
        """Wherever the copy stopped: refused, or described; never another exception."""
        disk = desk.disk(pattern(4 * MIB))
        length = os.stat(disk.source).st_size
        ends = sorted({0, 1, 511, 512, 513, 4096, 65536, *(length * part // 16 for part in range(16))}, reverse=True)
        refused = 0
        for end in ends:
            if end < length:
                os.truncate(disk.source, end)
                refused += self._refused(desk, program_guard, disk)
        assert refused >= 2 or not desk.mapper.registry.can(self.format, "inspect")
        desk.note("files cut off", len(ends))

    @proves("header", "inspect")
    def test_a_header_with_any_byte_changed(self, desk: Bench, program_guard: Guard) -> None:
        """Refused or described; never another exception, and never for long."""
        disk = desk.disk(pattern(MIB))
        header = Path(disk.source).read_bytes()[:HEADER_BYTES]
        order = random.Random(7)  # noqa: S311  the same every time
        fd = os.open(disk.source, os.O_RDWR)
        try:
            for number in range(FLIPS):
                at = number * 3 % 768 if number < FLIPS * 3 // 4 else order.randrange(len(header))
                value = order.choice((0, 1, 0x7F, 0x80, 0xFF, header[at] ^ 1))
                os.pwrite(fd, bytes([value]), at)
                self._refused(desk, program_guard, disk)
                os.pwrite(fd, header[at : at + 1], at)
        finally:
            os.close(fd)
        desk.note("headers changed", FLIPS)

    @proves("wrong format", "inspect")
    def test_files_of_other_formats(self, desk: Bench, program_guard: Guard, tmp_path: Path) -> None:
        """The declared format is not what the file has: refused, not reinterpreted."""
        others = {name: content for name, content in HEADERS.items() if name != self.format}
        if self.format == formats.RAW:  # has any content, but none that looks like another format
            others = {name: content for name, content in others.items() if formats.identify(content) != formats.RAW}
        for name, content in others.items():
            with desk.case(name):
                (tmp_path / "other").write_bytes(content)
                assert self._refused(desk, program_guard, Disk(str(tmp_path / "other"), self.format))

    @proves("identity", "map")
    def test_two_names_of_one_file_are_one_disk(self, desk: Bench, tmp_path: Path) -> None:
        """A symbolic link, a link to a directory, a second name, a way around."""
        disk = desk.disk(pattern(MIB))
        (tmp_path / "link").symlink_to(disk.source)
        (tmp_path / "directory").symlink_to(tmp_path)
        os.link(disk.source, tmp_path / "second")
        name = os.path.basename(disk.source)
        paths = ("link", "second", f"directory/{name}", f"directory/../{tmp_path.name}/{name}")
        identities = {desk.mapper.identify(replace(disk, source=f"{tmp_path}/{path}")).id for path in paths}
        assert identities == {desk.mapper.identify(disk).id}

    @staticmethod
    def _inspect(desk: Bench, program_guard: Guard, disk: Disk) -> ImageInfo | None:
        before = os.listdir("/proc/self/fd")
        with program_guard.watch():
            image = desk.mapper.inspect(disk)
        assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor stays open"
        return image

    def _refused(self, desk: Bench, program_guard: Guard, disk: Disk) -> bool:
        try:
            self._inspect(desk, program_guard, disk)
        except PluginFault:
            raise  # it has not noticed what is wrong
        except MapperError:
            return True
        return False


class OnImages(OnBench):
    """As root: mapping files."""

    @proves("odd paths", "map", "unmap")
    def test_a_name_means_nothing_to_programs(self, bench: Bench, tmp_path: Path) -> None:
        """Mapped as it is called, or refused (qemu takes UTF-8 only); no file of another name is made or touched."""
        content = pattern(MIB)
        disk = bench.disk(content)
        for title, name in ODD_NAMES.items():
            with bench.case(title):
                path = os.path.join(os.fsencode(tmp_path), title.encode(), name)
                os.makedirs(os.path.dirname(path))
                os.rename(disk.source, path)
                disk = replace(disk, source=os.fsdecode(path))
                before = _names_below(tmp_path)
                try:
                    with bench.mapped(disk, Access.READ_ONLY) as found:
                        assert bench.mapper.find(disk.source) == found
                        assert not difference(read(found.device), content)
                except UnsafePath:
                    assert title == "not UTF-8"
                bench.check_nothing_left()
                assert _names_below(tmp_path) == before
        bench.note("names", len(ODD_NAMES))

    @proves("idempotency", "unmap")
    def test_unmapping_when_the_image_is_gone(self, bench: Bench) -> None:
        """Nothing is detected again: what was recorded is released."""
        disk = bench.disk(pattern(MIB))
        bench.map(disk, Access.READ_ONLY)
        os.unlink(disk.source)
        bench.unmap(disk.source)
        bench.check_nothing_left()

    @proves("read-only", "map")
    def test_reading_changes_not_a_byte(self, bench: Bench, tmp_path: Path) -> None:
        """Of no file of the image, nor its owner and mode."""
        disk = bench.disk(pattern(MIB))
        os.chmod(disk.source, 0o440)
        before = _contents_below(tmp_path)
        bench.content(disk)
        assert _contents_below(tmp_path) == before

    @proves("wrong format", "map")
    def test_its_own_images_under_another_name_of_format(self, bench: Bench) -> None:
        """Declared raw, the bytes of the file would be the disk: refused when they are known to be a format."""
        disk = bench.disk(pattern(MIB))
        header = Path(disk.source).read_bytes()[: formats.HEADER_SIZE]
        if formats.identify(header) in (formats.RAW, "raw") or "raw" not in bench.mapper.registry.formats():
            return
        with pytest.raises(BadImage):
            bench.mapper.map(Disk(disk.source, "raw"), bench.options(Access.READ_ONLY), user="kit")
        bench.check_nothing_left()

    @proves("wrong format", "map")
    def test_what_is_no_image_is_refused_and_leaves_nothing(self, bench: Bench, tmp_path: Path) -> None:
        """No file, an empty one, a directory, a pipe, a device without content."""
        (tmp_path / "empty").touch()
        os.mkfifo(tmp_path / "pipe")
        wrong: list[tuple[str, type[MapperError]]] = [
            (f"{tmp_path}/missing", ImageNotFound),
            (f"{tmp_path}/empty", BadImage),
            (str(tmp_path), UnsafePath),
            (f"{tmp_path}/pipe", UnsafePath),
            ("/dev/null", UnsafePath),
        ]
        for path, error in wrong:
            with pytest.raises(error):
                bench.map(Disk(path, self.format), Access.READ_ONLY)
        bench.check_nothing_left()


def _names_below(directory: Path) -> set[bytes]:
    return {os.path.join(path, name) for path, _, names in os.walk(os.fsencode(directory)) for name in names}


def _contents_below(directory: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in directory.iterdir():
        if path.is_file():
            state = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.name] = (state.st_mode, state.st_uid, state.st_gid, state.st_size, state.st_mtime_ns, digest)
    return found
