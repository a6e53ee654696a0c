"""The standard input of an action script, damaged and hostile."""

from __future__ import annotations

import base64
import io

import pytest
from mapper_driver.opennebula import xml
from mapper_driver.opennebula.xml import read_document, read_input

from mapper_core.errors import UsageError

pytestmark = pytest.mark.unit

VM = b"<VM><ID>7</ID></VM>"
ACTION = b"<VMM_DRIVER_ACTION_DATA><HOST>a</HOST>%s<DATASTORE><ID>1</ID></DATASTORE></VMM_DRIVER_ACTION_DATA>"


@pytest.mark.parametrize(
    "data",
    [VM, b"\n  " + VM + b"\n", b"\xef\xbb\xbf" + VM, base64.b64encode(VM), base64.b64encode(VM) + b"\n", ACTION % VM],
    ids=["as it is", "blanks around", "byte order mark", "base64", "base64 and a line end", "action data"],
)
def test_accepted(data: bytes) -> None:
    assert read_document(data).vm.findtext("ID") == "7"


def test_the_datastore_is_kept() -> None:
    datastore = read_document(ACTION % VM).datastore
    assert datastore is not None and datastore.findtext("ID") == "1"
    assert read_document(VM).datastore is None


def test_values_are_kept_as_they_are() -> None:
    vm = read_document("<VM><A><![CDATA[x & <y> \"z\" 'é'\n$(id) `id` \\ ]]></A></VM>".encode()).vm
    assert vm.findtext("A") == "x & <y> \"z\" 'é'\n$(id) `id` \\ "


BAD = {
    "nothing": (b"", "no input"),
    "blanks": (b" \n\t", "no input"),
    "words": (b"please deploy", "neither XML nor base64"),
    "base64 with a hole": (base64.b64encode(VM)[:9] + b"!" + base64.b64encode(VM)[9:], "neither XML nor base64"),
    "base64 of words": (base64.b64encode(b"hello"), "not of XML"),
    "base64 twice": (base64.b64encode(base64.b64encode(VM)), "not of XML"),
    "NUL": (b"<VM>\0</VM>", "NUL"),
    "UTF-16": (VM.decode().encode("utf-16-le"), "NUL"),
    "Latin-1": ("<VM><NAME>é</NAME></VM>".encode("latin-1"), "UTF-8"),
    "Latin-1, declared": (b'<?xml version="1.0" encoding="latin-1"?>' + "<VM>é</VM>".encode("latin-1"), "UTF-8"),
    "control character": (b"<VM><NAME>\x1b[2J</NAME></VM>", "not well-formed in line 1"),
    "wrong nesting": (b"<VM><A></VM></A>", "not well-formed in line 1, column 9, inside VM/A"),
    "two roots": (VM + VM, "not well-formed"),
    "another root": (b"<HOST></HOST>", "root element is <HOST>"),
    "no machine": (ACTION % b"", "0 <VM>"),
    "two machines": (ACTION % (VM + VM), "2 <VM>"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_document(data)
    assert caught.value.subject == "standard input"


@pytest.mark.parametrize("encode", [bytes, base64.b64encode])
@pytest.mark.parametrize(
    "start", ["<VM><TEMPLATE><CONTEXT><START_SCRIPT><![CDATA[cat <<X\n", "<VM><TEMPLATE><CONTEXT><START_SCRIPT>cat\n"]
)
def test_cut_by_a_line_eot(start: str, encode: object) -> None:
    """Over ssh the document comes through a here-document; a line EOT in a value ends it."""
    data = start.encode() if encode is bytes else base64.b64encode(start.encode())
    with pytest.raises(UsageError, match=r"cut off after .* inside VM/TEMPLATE/CONTEXT/START_SCRIPT") as caught:
        read_document(data)
    assert "EOT" in caught.value.hint


@pytest.mark.parametrize("end", range(1, len(ACTION % VM)))
def test_cut_anywhere(end: int) -> None:
    with pytest.raises(UsageError):
        read_document((ACTION % VM)[:end])


DOCTYPES = {
    "billion laughs": b'<!DOCTYPE VM [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><VM>&b;</VM>',
    "file": b'<!DOCTYPE VM [<!ENTITY a SYSTEM "file:///etc/passwd">]><VM>&a;</VM>',
    "parameter entity": b'<!DOCTYPE VM [<!ENTITY % a SYSTEM "http://127.0.0.1/x"> %a;]><VM/>',
    "empty document type": b"<!DOCTYPE VM><VM/>",
    "external document type": b'<!DOCTYPE VM SYSTEM "file:///dev/zero"><VM/>',
}


@pytest.mark.parametrize("data", DOCTYPES.values(), ids=DOCTYPES.keys())
def test_document_types_are_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="document type or entities"):
        read_document(data)


def test_undefined_entity() -> None:
    with pytest.raises(UsageError, match="not well-formed"):
        read_document(b"<VM>&nbsp;</VM>")


def test_too_deep() -> None:
    depth = xml.MAX_DEPTH + 1
    with pytest.raises(UsageError, match="levels"):
        read_document(b"<VM>" + b"<a>" * depth + b"</a>" * depth + b"</VM>")


def test_too_many_elements() -> None:
    with pytest.raises(UsageError, match="elements"):
        read_document(b"<VM>" + b"<a/>" * (xml.MAX_ELEMENTS + 1) + b"</VM>")


def test_too_large() -> None:
    with pytest.raises(UsageError, match="larger than"):
        read_document(b"<VM>" + b"x" * xml.MAX_BYTES + b"</VM>")


def test_reading_stops_at_the_limit() -> None:
    """M-25: an endless writer fills no memory."""

    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1, /) -> bytes:
            assert size >= 0
            self.given += size
            return b"A" * size

    stream = Endless()
    with pytest.raises(UsageError, match="larger than"):
        read_input(stream)  # type: ignore[arg-type]
    assert stream.given <= xml.MAX_BASE64_BYTES + 1
    assert read_input(io.BytesIO(VM)) == VM


def test_long_tags_are_shortened_in_messages() -> None:
    with pytest.raises(UsageError) as caught:
        read_document(b"<" + b"V" * 5000 + b"/>")
    assert len(str(caught.value)) < 200
