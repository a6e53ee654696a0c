"""The block graph that is handed to qemu: every file, every format and the end of the chain are said explicitly.

Left alone, qemu follows the names that it finds in the header of an image, and guesses formats: that is how a guest
reads a host's files (CVE-2011-3147, CVE-2013-1922, CVE-2024-32498). A graph that names each node leaves nothing to
follow: what the header says about backing and data files is overridden, also if it changed after it was inspected.
The one exception are the extents of a vmdk descriptor file, for which qemu (7.2) has no option; the plugin checks
them name by name.

Source: qemu's ``qapi/block-core.json``, ``BlockdevOptions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core.errors import UnsafePath
from mapper_core.frozen import dataclass

if TYPE_CHECKING:
    from mapper_core.model import Access, ImageInfo

#: Name of the topmost node: the one to export. The nodes below are ``disk-1``, ``disk-2`` ..., those of external data
#: files end in ``-data``, those of the files themselves in ``-file``.
ROOT_NODE = "disk"


@dataclass(frozen=True, slots=True)
class Protocol:
    """Where the bytes of an image are, if not in a file: a protocol driver of qemu.

    :param driver: its name, such as ``rbd``.
    :param options: (name, value) pairs for it. Everybody on the host can read them: no keys.
    """

    driver: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BlockNode:
    """An image with a qemu format driver, and the files below it.

    :param driver: name of qemu's format driver: ``raw``, ``qcow2``, ``vmdk`` ...
    :param filename: absolute path of the file or block device; with a ``protocol`` the name of the volume, for messages.
    :param backing: the image below; ``None``: there is none, whatever the header says.
    :param data_file: external data file of a qcow2 image; ``None``: the data is in the image.
    :param protocol: where the image is; ``None``: in a file.
    """

    driver: str
    filename: str = ""
    backing: BlockNode | None = None
    data_file: BlockNode | None = None
    protocol: Protocol | None = None


def graph_of(image: ImageInfo) -> BlockNode:
    """Return the graph of an inspected image: exactly the files that the inspector has approved."""
    from mapper_core.model import ReferenceKind

    node: BlockNode | None = None
    for layer in reversed(image.chain()):
        data = [BlockNode("raw", item.path) for item in layer.references if item.kind is ReferenceKind.DATA]
        node = BlockNode(layer.format, layer.path, backing=node, data_file=data[0] if data else None)
    assert node is not None
    return node


def to_json(node: BlockNode, access: Access) -> dict[str, object]:
    """Return the definition of a graph for ``qemu-storage-daemon --blockdev``, or for a ``json:`` file name.

    :param access: of the top image and its data file; everything below is always read-only.
    :raises UnsafePath: a path is relative or not UTF-8, and could not be handed over unchanged.
    """
    return _definition(node, ROOT_NODE, 0, access)


def to_file_name(node: BlockNode, access: Access) -> str:
    """Return the graph as a ``json:`` file name, for tools that take a file name and no ``--blockdev``.

    Unlike :func:`to_image_opts` it can say that there is no backing file without a warning. To be given without
    ``-f``: the format is inside.

    :raises UnsafePath: see :func:`to_json`.
    """
    import json

    return "json:" + json.dumps(to_json(node, access))


def to_image_opts(node: BlockNode, access: Access) -> str:
    """Return the graph in dotted keys, for ``qemu-nbd --image-opts`` and other tools that have it.

    qemu 7.2 prints a deprecation warning for the empty ``backing=`` that ends a chain, for which dotted keys have no
    other way; :func:`to_file_name` has one.

    :raises UnsafePath: see :func:`to_json`.
    """
    pairs = _flatten("", to_json(node, access))
    # each key repeats the way to its node: without what can be left out, 64 layers still fit into one argument (128 KiB)
    needless = (".node-name", "file.read-only")
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs if not key.endswith(needless))


def _definition(node: BlockNode, root: str, depth: int, access: Access) -> dict[str, object]:
    from mapper_core.model import Access

    name = f"{root}-{depth}" if depth else root
    read_only = access is Access.READ_ONLY
    definition: dict[str, object] = {"driver": node.driver, "node-name": name, "read-only": read_only}
    if not read_only:
        definition["discard"] = "unmap"
    if node.protocol is None:
        definition["file"] = _file(node.filename, f"{name}-file", access)
    else:
        own = {"driver": node.protocol.driver, "node-name": f"{name}-file", "read-only": read_only}
        definition["file"] = {**dict(node.protocol.options), **own}
    if node.data_file is not None:
        definition["data-file"] = _definition(node.data_file, f"{name}-data", 0, access)
    if node.backing is not None:
        definition["backing"] = _definition(node.backing, root, depth + 1, Access.READ_ONLY)
    elif node.driver in _WITH_BACKING:
        definition["backing"] = None
    return definition


#: Formats whose images can name a backing file; other drivers refuse the option.
_WITH_BACKING = frozenset({"qcow", "qcow2", "qed", "vmdk"})


def _file(path: str, name: str, access: Access) -> dict[str, object]:
    from mapper_core.model import Access

    if not path.startswith("/") or "\0" in path:
        raise UnsafePath("the path of an image file must be absolute", subject=repr(path))
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UnsafePath(
            "the path is not valid UTF-8, and qemu takes no other", subject=ascii(path), hint="rename the file"
        ) from None
    # "locking": qemu takes its image lock, by which a virtual machine and we notice each other
    return {
        "driver": _protocol(path),
        "node-name": name,
        "filename": path,
        "read-only": access is Access.READ_ONLY,
        "locking": "on",
    }


def _protocol(path: str) -> str:
    """Return the protocol driver: ``file`` refuses block devices, and ``host_device`` files."""
    import os
    import stat

    try:
        return "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    except OSError:
        return "file"  # qemu will say that it is missing


def _flatten(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        pairs: list[tuple[str, str]] = []
        for key, item in value.items():
            pairs += _flatten(f"{prefix}.{key}" if prefix else key, item)
        return pairs
    if isinstance(value, bool):
        return [(prefix, "on" if value else "off")]
    return [(prefix, "" if value is None else str(value))]
