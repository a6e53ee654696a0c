"""What is printed, and where."""

from __future__ import annotations

import io
import json

import pytest

from mapper_core.cli.output import Output, Style, Talk, human_size, parse_size, plain
from mapper_core.errors import CommandFailed, ImageNotFound, UsageError
from mapper_core.model import Access, Disk, MapOptions

pytestmark = pytest.mark.unit


class Streams:
    """An Output that writes into memory."""

    def __init__(self, style: Style = Style.TEXT, talk: Talk = Talk.NORMAL) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.output = Output(style, talk, stdout=self.out, stderr=self.err)

    @property
    def data(self) -> str:
        self.output.flush()
        return self.out.getvalue()

    @property
    def talk(self) -> str:
        return self.err.getvalue()


def test_data_goes_to_stdout_at_the_end_and_talk_to_stderr_at_once() -> None:
    streams = Streams()
    streams.output.line("/dev/loop0")
    streams.output.note("hello")
    assert (streams.out.getvalue(), streams.talk) == ("", "mapper-cli: hello\n")
    assert streams.data == "/dev/loop0\n"
    assert streams.data == "/dev/loop0\n", "printed once"


def test_remarks_come_after_the_data_and_not_without_them() -> None:
    streams = Streams()
    streams.output.line("data")
    streams.output.remark("about it")
    assert streams.talk == ""
    assert (streams.data, streams.talk) == ("data\n", "mapper-cli: about it\n")
    streams.output.remark("about nothing")
    streams.output.drop()
    assert (streams.data, streams.talk) == ("data\n", "mapper-cli: about it\n")


def test_a_table_is_as_wide_as_it_must_be() -> None:
    streams = Streams()
    streams.output.table(("NAME", ">SIZE", "WHAT"), [("a", "1K", ""), ("long name", "100M", "x")])
    assert streams.data == "NAME       SIZE  WHAT\na            1K  -\nlong name  100M  x\n"


def test_an_empty_table_prints_nothing() -> None:
    streams = Streams()
    streams.output.table(("NAME",), [])
    assert streams.data == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("red\x1b[31m", r"red\x1b[31m"),
        ("two\nlines", r"two\x0alines"),
        ("bell\x07", r"bell\x07"),
        ("c1\x9b31m", r"c1\x9b31m"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        (b"b\xff".decode("utf-8", "surrogateescape"), r"b\xff"),
        ("grün 日本", "grün 日本"),
    ],
)
def test_names_of_an_image_cannot_steer_the_terminal(name: str, shown: str) -> None:
    streams = Streams()
    streams.output.table(("LABEL",), [(name,)])
    streams.output.note(name)
    streams.output.error(ImageNotFound(name, hint=name))
    assert streams.data == f"LABEL\n{shown}\n"
    assert streams.talk == f"mapper-cli: {shown}\nmapper-cli: error: {shown}\nhint: {shown}\n"


def test_json_keeps_names_and_has_values_of_enumerations() -> None:
    streams = Streams(Style.JSON)
    streams.output.json({"disk": Disk("/a\x1b", "raw", ("/b",)), "options": (MapOptions(Access.READ_ONLY),)})
    assert json.loads(streams.data) == {
        "disk": {"source": "/a\x1b", "format": "raw", "allowed_dirs": ["/b"], "settings": []},
        "options": [{"access": "ro", "transport": None, "max_virtual_size": None}],
    }


def test_plain_leaves_what_json_knows() -> None:
    assert plain({"a": [1, None, "x", True]}) == {"a": [1, None, "x", True]}


def test_an_error_is_two_lines() -> None:
    streams = Streams()
    streams.output.error(ImageNotFound("the image does not exist", subject="/a", hint="check the path"))
    assert streams.talk == "mapper-cli: error: /a: the image does not exist\nhint: check the path\n"
    assert streams.data == ""


def test_an_error_in_json_is_one_line_on_stderr() -> None:
    streams = Streams(Style.JSON)
    streams.output.error(ImageNotFound("the image does not exist", subject="/a", hint="check the path"))
    assert json.loads(streams.talk) == {
        "error": {
            "type": "ImageNotFound",
            "message": "/a: the image does not exist",
            "subject": "/a",
            "hint": "check the path",
            "exit_code": 3,
        }
    }
    assert streams.talk.count("\n") == 1


def test_verbose_shows_the_command_and_what_lies_behind() -> None:
    failed = CommandFailed(("/usr/bin/qemu-img", "info", "x"), 1, "first\nlast")
    error = ImageNotFound("nothing there")
    error.__cause__ = failed
    quiet, verbose = Streams(), Streams(talk=Talk.VERBOSE)
    quiet.output.error(error)
    verbose.output.error(error)
    assert "qemu-img" not in quiet.talk
    assert "command: /usr/bin/qemu-img info x" in verbose.talk
    assert "its stderr: first\n" in verbose.talk and "its stderr: last\n" in verbose.talk


def test_debug_is_only_said_when_asked_for() -> None:
    quiet, verbose = Streams(), Streams(talk=Talk.VERBOSE)
    for streams in (quiet, verbose):
        streams.output.debug("a step")
    assert (quiet.talk, verbose.talk) == ("", "mapper-cli: debug: a step\n")


def test_a_closed_stderr_changes_nothing() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(32, "Broken pipe")

    out = io.StringIO()
    output = Output(stdout=out, stderr=Closed())
    output.note("nobody hears this")
    output.line("data")
    output.flush()
    assert out.getvalue() == "data\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (1023, "1023B"),
        (1024, "1K"),
        (1536, "1.5K"),
        (10 << 30, "10G"),
        (1 << 40, "1T"),
        (1 << 60, "1E"),
        (1 << 70, "1024E"),
    ],
)
def test_sizes_are_written_like_lsblk(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("1K", 1024),
        ("1k", 1024),
        ("10G", 10 << 30),
        ("1.5T", 3 << 39),
        ("4MiB", 4 << 20),
        ("7B", 7),
        ("2GB", 2 << 30),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5.2G", "G", "1X", "1e9", "٣", "9" * 19, "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)
