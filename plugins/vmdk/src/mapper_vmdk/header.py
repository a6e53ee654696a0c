"""The inspector: a vmdk image with its extents and its parents, without any external program."""

from __future__ import annotations

import os
from dataclasses import replace

from mapper_core.errors import ForbiddenReference
from mapper_core.formats import HEADER_SIZE, refusal
from mapper_core.frozen import dataclass
from mapper_core.imagefile import ImageFile
from mapper_core.model import ImageInfo, Reference, ReferenceKind
from mapper_core.references import Walk
from mapper_vmdk import descriptor, sparse
from mapper_vmdk.descriptor import Descriptor, Extent

_SECTOR = sparse.SECTOR

#: createType of descriptor files -> type of all its extents.
_SPLIT_TYPES = {"monolithicFlat": "FLAT", "twoGbMaxExtentFlat": "FLAT", "twoGbMaxExtentSparse": "SPARSE"}

#: Older qemu (7.2.22 of Debian 12 no longer) cuts a longer descriptor off when it writes the new CID into it, which is at
#: the first write to the disk.
_SAFE_DESCRIPTOR_BYTES = 20 * _SECTOR

_CONVERT = "convert it with: qemu-img convert -f vmdk -O qcow2, or with VMware's vmware-vdiskmanager -t 0"


@dataclass(frozen=True, slots=True)
class _Layer:
    """One image of the chain, closed again."""

    info: ImageInfo
    image: ImageFile
    descriptor: Descriptor


def inspect_image(path: str, allowed_dirs: tuple[str, ...]) -> ImageInfo:
    """Inspect an image with all that it refers to.

    :param allowed_dirs: directories besides the image's own in which those files may lie.
    :raises MapperError: one of the classes for a bad, missing or forbidden image or reference; nothing else, whatever
        the image contains.
    """
    walk = Walk(allowed_dirs)
    with walk.open_top(path) as image:
        layers = [_read_layer(image, walk)]
    while layers[-1].descriptor.parent_cid is not None:
        above = layers[-1]
        with walk.follow(above.descriptor.parent_name, above.image, ReferenceKind.BACKING) as (name, image):
            parent = _read_layer(image, walk)
            reference = Reference(ReferenceKind.BACKING, name, image.path, "vmdk")
        if parent.descriptor.cid != above.descriptor.parent_cid:
            raise above.image.corrupt(
                f"its parent {parent.image.path} was written to after the image was made: their content ids differ",
                "restore the parent as it was; what is in the image does not fit to the one that is there",
            )
        layers[-1] = replace(above, info=replace(above.info, references=(reference, *above.info.references)))
        layers.append(parent)
    info = layers[-1].info
    for layer in reversed(layers[:-1]):
        info = replace(layer.info, backing=info)
    return info


def _read_layer(image: ImageFile, walk: Walk) -> _Layer:
    first = image.read_start(_SECTOR)
    if first.startswith(sparse.MAGIC):
        return _read_sparse(image)
    if first.startswith(b"COWD"):
        raise image.unsupported("an ESX server sparse disk (COWD) is not supported", _CONVERT)
    if first.startswith(descriptor.START):
        return _read_split(image, walk)
    raise refusal("vmdk", image.read_start(HEADER_SIZE), image.path)


def _read_sparse(image: ImageFile) -> _Layer:
    """Read an image in one sparse file, with the descriptor inside.

    What the descriptor calls its only extent does not matter: it is this file, whatever its name is now (M-24).
    """
    header = sparse.read_header(image)
    text = sparse.read_descriptor(image, header)
    if not text:
        raise image.unsupported(
            "this is one extent of an image in several files", "map the small text file beside it, the descriptor"
        )
    described = descriptor.parse(text, image)
    if described.create_type not in ("monolithicSparse", "streamOptimized"):
        raise image.unsupported(f"the image type {described.create_type} is not supported in a sparse file", _CONVERT)
    if header.compressed != (described.create_type == "streamOptimized"):
        raise image.corrupt(f"the image type {described.create_type} and the compression flag contradict each other")
    if [extent.type for extent in described.extents] != ["SPARSE"]:
        raise image.corrupt("the embedded descriptor must describe exactly one sparse extent")
    info = ImageInfo(
        path=image.path,
        format="vmdk",
        variant=described.create_type,
        virtual_size=header.capacity * _SECTOR,
        file_size=image.size,
        writable=header.writable,
        detail=(
            ("grain size", str(header.grain * _SECTOR)),
            ("version", str(header.version)),
            ("closed cleanly", "yes" if header.clean else "no"),
        ),
    )
    return _Layer(info, image, described)


def _read_split(image: ImageFile, walk: Walk) -> _Layer:
    """Read a descriptor file and look at every file that it names."""
    if image.size > descriptor.MAX_BYTES:
        raise image.unsupported(f"the descriptor has {image.size} bytes, more than {descriptor.MAX_BYTES}")
    # when qemu shortens the content id, the text ends earlier, and what was its end stays behind the zero byte
    text, _, leftover = image.read(0, image.size, "descriptor").partition(b"\0")
    if b"\nRW " in leftover:
        raise image.corrupt("the descriptor is damaged: a zero byte cuts its extents off")
    described = descriptor.parse(text, image)
    extent_type = _SPLIT_TYPES.get(described.create_type)
    if extent_type is None:
        raise image.unsupported(f"the image type {described.create_type} is not supported", _CONVERT)
    if not described.extents:
        raise image.corrupt("the descriptor names no extents")  # qemu 7.2 aborts on it
    if described.create_type == "monolithicFlat" and len(described.extents) != 1:
        raise image.corrupt("a monolithicFlat image has exactly one extent")
    if extent_type == "FLAT" and described.parent_cid is not None:
        raise image.corrupt("a flat image cannot have a parent")
    references: list[Reference] = []
    size, writable = image.size, len(text) < _SAFE_DESCRIPTOR_BYTES
    for extent in described.extents:
        if extent.type != extent_type:
            raise image.unsupported(f"an extent of type {extent.type} in a {described.create_type} image", _CONVERT)
        reference, extent_size, extent_writable = _read_extent(extent, image, walk)
        references.append(reference)
        size += extent_size
        writable = writable and extent_writable
    sectors = sum(extent.sectors for extent in described.extents)
    if sectors * _SECTOR >= 1 << 63:
        raise image.corrupt(f"the size of {sectors} sectors is out of range")
    info = ImageInfo(
        path=image.path,
        format="vmdk",
        variant=described.create_type,
        virtual_size=sectors * _SECTOR,
        file_size=size,
        references=tuple(references),
        writable=writable,
        detail=(("extents", str(len(references))),),
    )
    return _Layer(info, image, described)


def _read_extent(extent: Extent, image: ImageFile, walk: Walk) -> tuple[Reference, int, bool]:
    """Check one extent; return the reference, the size of its file, and whether it can be written.

    qemu opens these files by their names, so only a plain name in the image's own directory is accepted.
    """
    if b"/" in extent.name or extent.name in (b".", b".."):
        raise ForbiddenReference(
            f"its extent {extent.name!a} is not a plain file name",
            subject=image.path,
            hint=f"the extents of an image must lie beside it, in {os.path.dirname(image.path)}",
        )
    with walk.follow(extent.name, image, ReferenceKind.EXTENT) as (name, file):
        if extent.type == "FLAT":
            if extent.offset is None:
                raise image.corrupt(f"the flat extent {name!r} has no offset")
            end = (extent.offset + extent.sectors) * _SECTOR
            if end > file.size:
                raise file.truncated(f"extent of {image.path}", end)
            return Reference(ReferenceKind.EXTENT, name, file.path, "raw"), file.size, True
        first = file.read_start(_SECTOR)
        if not first.startswith(sparse.MAGIC):
            raise refusal("vmdk", file.read_start(HEADER_SIZE), file.path)
        if extent.offset is not None:
            raise image.corrupt(f"the sparse extent {name!r} has an offset")
        header = sparse.read_header(file)
        if header.compressed:
            raise file.unsupported("a compressed extent of a split image is not supported", _CONVERT)
        if header.capacity != extent.sectors:
            raise file.corrupt(f"has {header.capacity} sectors, but the descriptor says {extent.sectors}")
        return Reference(ReferenceKind.EXTENT, name, file.path, "vmdk"), file.size, header.writable
