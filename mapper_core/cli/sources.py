"""What the words of the command line refer to: files, devices, volumes, mappings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mapper_core.errors import UnsupportedFormat, UsageError
from mapper_core.model import Disk

if TYPE_CHECKING:
    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments
    from mapper_core.mapping import Mapper
    from mapper_core.registry import Registry


def disk_from(arguments: Arguments, registry: Registry, output: Output, name: str | None = None) -> Disk:
    """Return the disk that the caller declares; without a declared format the plugins are asked, and that is said.

    :param name: the image, instead of ``arguments.image``.
    :raises ImageNotFound: there is no such image.
    :raises UnsupportedFormat: no plugin, or more than one, recognises it; it is an archive.
    :raises UsageError: a directory of ``--allow-dir`` is none.
    """
    image = arguments.image if name is None else name
    allowed = tuple(_directory(directory) for directory in arguments.allow_dir)
    if arguments.format is not None:
        source = source_of(image, arguments.format, registry)
        return Disk(source, arguments.format, allowed, tuple(arguments.option))
    from mapper_core import formats, policy
    from mapper_core.identity import identify

    real = identify(Disk(os.path.abspath(image), "")).source
    header = policy.read_header(real)
    if formats.is_packed(packed := formats.identify(header)):
        hint = formats.refusal("", header, real).hint
        raise UnsupportedFormat(f"is no disk image but packed with {packed}", subject=real, hint=hint)
    found = registry.recognize(header, real)
    output.note(f"{image} looks like {found}; --format {found} is safer, since a guest can forge the content")
    return Disk(os.path.abspath(image), found, allowed, tuple(arguments.option))


def source_of(image: str, declared: str, registry: Registry) -> str:
    """Return an absolute path, or the name of a volume as it is.

    A name is that of a volume when the plugin of the declared format has names of its own (hook ``identify``), and when nothing
    of that name is here and the declared format is not one of files.
    """
    from mapper_core import formats

    if registry.can(declared, "identify"):
        return image
    if image.startswith(("/", "./", "../")) or os.path.lexists(image) or declared in (formats.RAW, *formats.KNOWN):
        return os.path.abspath(image)
    return image


def existing_target(mapper: Mapper, name: str) -> str:
    """Return what :meth:`Mapper.find` and :meth:`Mapper.unmap` understand: a path, an id or the name of a volume."""
    if name.startswith(("/", "./", "../")) or os.path.lexists(name):
        return os.path.abspath(name)
    if name in mapper.journal.ids() or any(record.disk.source == name for record in mapper.journal.records()):
        return name
    return os.path.abspath(name)


def _directory(path: str) -> str:
    if not os.path.isdir(path):
        raise UsageError("is not a directory", subject=path, hint="--allow-dir takes an existing directory")
    return os.path.realpath(path)
