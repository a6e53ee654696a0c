"""The inspector: a qcow2 image and the chain below it, without any external program."""

from __future__ import annotations

import shlex
from dataclasses import replace

from mapper_core.errors import UnsupportedFormat
from mapper_core.frozen import dataclass
from mapper_core.imagefile import ImageFile
from mapper_core.model import ImageInfo, Reference, ReferenceKind
from mapper_core.references import Walk
from mapper_qcow2.fields import Header, Incompatible, read_header
from mapper_qcow2.tables import check_length

_SECTOR = 512


@dataclass(frozen=True, slots=True)
class _Layer:
    """One image of the chain, closed again."""

    info: ImageInfo
    image: ImageFile
    backing_name: bytes = b""
    backing_format: str = ""


def inspect_image(path: str, allowed_dirs: tuple[str, ...]) -> ImageInfo:
    """Inspect an image with all that it refers to.

    :param allowed_dirs: directories besides the image's own in which those files may lie.
    :raises MapperError: one of the classes for a bad, missing or forbidden image or reference; nothing else, whatever
        the image contains.
    """
    walk = Walk(allowed_dirs)
    with walk.open_top(path) as image:
        layers = [_read_layer(image, walk)]
    while layers[-1].backing_name:
        above = layers[-1]
        with walk.follow(above.backing_name, above.image, ReferenceKind.BACKING) as (name, image):
            reference = Reference(ReferenceKind.BACKING, name, image.path, above.backing_format)
            layers[-1] = replace(
                above, info=replace(above.info, references=(*above.info.references, reference)), backing_name=b""
            )
            layers.append(_read_raw(image) if above.backing_format == "raw" else _read_layer(image, walk))
    info = layers[-1].info
    for layer in reversed(layers[:-1]):
        info = replace(layer.info, backing=info)
    return info


def _read_layer(image: ImageFile, walk: Walk) -> _Layer:
    header = read_header(image)
    backing_format = _backing_format(image, header) if header.backing_name else ""
    check_length(image, header)
    references: tuple[Reference, ...] = ()
    file_size = image.size
    if header.data_file:
        data, data_size = _follow_data_file(image, header, walk)
        references = (data,)
        file_size += data_size
    info = ImageInfo(
        path=image.path,
        format="qcow2",
        variant=f"v{header.version}",
        virtual_size=header.size // _SECTOR * _SECTOR,  # qemu cuts off what is left of a sector, too
        file_size=file_size,
        references=references,
        detail=_detail(header),
    )
    return _Layer(info, image, header.backing_name, backing_format)


def _read_raw(image: ImageFile) -> _Layer:
    """Take a raw backing file as it is: its guest decided what its first bytes look like (S-01)."""
    size = -(-image.size // _SECTOR) * _SECTOR
    return _Layer(ImageInfo(path=image.path, format="raw", virtual_size=size, file_size=image.size), image)


def _backing_format(image: ImageFile, header: Header) -> str:
    declared = header.backing_format.decode("ascii", "replace")
    if declared in ("raw", "qcow2"):
        return declared
    name = shlex.quote(header.backing_name.decode(errors="replace"))
    rebase = f"qemu-img rebase -u -f qcow2 -F FORMAT -b {name} {shlex.quote(image.path)}"
    if not declared:
        # to look at the first bytes is what CVE-2013-1922 was
        raise UnsupportedFormat(
            "the image does not say which format its backing file has, and guessing would be unsafe",
            subject=image.path,
            hint=f"say it, with raw or qcow2 for FORMAT: {rebase}",
        )
    raise UnsupportedFormat(
        f"a backing file of the format {declared!r} is not supported",
        subject=image.path,
        hint=f"raw and qcow2 are; convert the backing file, then: {rebase}",
    )


def _follow_data_file(image: ImageFile, header: Header, walk: Walk) -> tuple[Reference, int]:
    with walk.follow(header.data_file, image, ReferenceKind.DATA) as (name, data):
        if header.data_file_raw and data.size < header.size:
            raise data.truncated(f"external data of {image.path}", header.size)
        return Reference(ReferenceKind.DATA, name, data.path, "raw"), data.size


def _detail(header: Header) -> tuple[tuple[str, str], ...]:
    detail = [
        ("cluster size", str(header.cluster_size)),
        ("compression", header.compression),
        ("refcount bits", str(header.refcount_bits)),
    ]
    if header.snapshots:
        detail.append(("internal snapshots", str(header.snapshots)))
    if header.lazy_refcounts:
        detail.append(("lazy refcounts", "yes"))
    if Incompatible.DIRTY in header.features:
        detail.append(("refcounts", "out of date, qemu repairs them when it opens the image for writing"))
    if Incompatible.EXTENDED_L2 in header.features:
        detail.append(("extended L2", "yes"))
    if header.data_file:
        detail.append(("data file", "raw" if header.data_file_raw else "clusters"))
    return tuple(detail)
