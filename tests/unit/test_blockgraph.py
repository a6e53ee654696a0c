"""The block graph for qemu: everything is said, nothing is left to follow."""

import json

import pytest

from mapper_core.errors import UnsafePath
from mapper_core.model import Access, ImageInfo, Reference, ReferenceKind
from mapper_core.transports.blockgraph import BlockNode, graph_of, to_file_name, to_image_opts, to_json

pytestmark = pytest.mark.unit

CHAIN = BlockNode("qcow2", "/i/top", backing=BlockNode("qcow2", "/i/middle", backing=BlockNode("raw", "/i/base")))


def _names(definition: object) -> list[str]:
    if not isinstance(definition, dict):
        return []
    own = [definition["node-name"]] if "node-name" in definition else []
    return own + [name for value in definition.values() for name in _names(value)]


def test_only_the_top_of_a_chain_is_writable() -> None:
    definition = to_json(CHAIN, Access.READ_WRITE)
    assert definition["read-only"] is False
    assert definition["discard"] == "unmap"
    middle = definition["backing"]
    assert isinstance(middle, dict)
    for node in (middle, middle["file"], middle["backing"], middle["backing"]["file"]):
        assert node["read-only"] is True
        assert "discard" not in node


def test_read_only_reaches_the_file_and_the_data_file() -> None:
    node = BlockNode("qcow2", "/i/top", data_file=BlockNode("raw", "/i/data"))
    text = json.dumps(to_json(node, Access.READ_ONLY))
    assert "false" not in text
    assert text.count('"read-only": true') == 4


def test_the_end_of_a_chain_is_said_for_formats_that_could_go_on() -> None:
    """S-02: without it qemu opens what the header names."""
    for driver in ("qcow2", "vmdk", "qed"):
        definition = to_json(BlockNode(driver, "/i/a"), Access.READ_ONLY)
        assert "backing" in definition
        assert definition["backing"] is None
    for driver in ("raw", "vdi"):
        assert "backing" not in to_json(BlockNode(driver, "/i/a"), Access.READ_ONLY)


def test_every_node_has_a_name_of_its_own_that_qemu_accepts() -> None:
    deep = BlockNode("raw", "/i/0")
    for number in range(1, 64):
        deep = BlockNode("qcow2", f"/i/{number}", backing=deep, data_file=BlockNode("raw", f"/i/d{number}"))
    names = _names(to_json(deep, Access.READ_ONLY))
    assert len(names) == len(set(names)) == 2 * 64 + 2 * 63
    assert max(len(name) for name in names) < 32
    assert names[0] == "disk"


def test_image_opts_escape_commas_and_nothing_else() -> None:
    options = to_image_opts(BlockNode("raw", "/i/a,driver=nbd ='\"-"), Access.READ_ONLY)
    assert "file.filename=/i/a,,driver=nbd ='\"-" in options
    assert options.startswith("driver=raw,")
    assert "locking=on" in options
    assert "read-only=on" in options


def test_the_file_name_form_is_the_same_graph() -> None:
    name = to_file_name(CHAIN, Access.READ_WRITE)
    assert json.loads(name.removeprefix("json:")) == to_json(CHAIN, Access.READ_WRITE)


@pytest.mark.parametrize("path", ["", "relative", "nbd://host/x", "json:{}", "-x", "/i/\udcff", "/i/a\0b"])
def test_paths_that_would_not_arrive_unchanged_are_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        to_json(BlockNode("raw", path), Access.READ_ONLY)


def test_the_graph_of_an_image_has_exactly_the_files_that_were_approved() -> None:
    base = ImageInfo(path="/i/base", format="raw", virtual_size=512, file_size=512)
    top = ImageInfo(
        path="/i/top",
        format="qcow2",
        virtual_size=512,
        file_size=512,
        references=(
            Reference(ReferenceKind.DATA, "d", "/i/data", "raw"),
            Reference(ReferenceKind.BACKING, "../whatever", "/i/base", "raw"),
        ),
        backing=base,
    )
    assert graph_of(top) == BlockNode(
        "qcow2", "/i/top", backing=BlockNode("raw", "/i/base"), data_file=BlockNode("raw", "/i/data")
    )
