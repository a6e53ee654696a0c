"""The commands that make whole images: image build, image convert."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from mapper_core.cli.output import Style, human_size
from mapper_core.cli.sources import disk_from, source_of
from mapper_core.errors import UsageError
from mapper_core.mapping import Mapper
from mapper_core.model import Disk

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments

#: Seconds between two updates of the progress.
_INTERVAL = 0.2


def run(arguments: Arguments, output: Output) -> int:
    """``image build`` and ``image convert``."""
    mapper = Mapper.open()
    target = Disk(
        source_of(arguments.target, arguments.target_format, mapper.registry),
        arguments.target_format,
        settings=tuple(arguments.target_option),
    )
    if arguments.action == "convert":
        size = _convert(arguments, mapper, target, output)
    else:
        size = _build(arguments, mapper, target, output)
    if output.style is Style.JSON:
        output.json({"disk": target, "size": size})
    return 0


def _convert(arguments: Arguments, mapper: Mapper, target: Disk, output: Output) -> int:
    from mapper_core.copying import convert

    source = disk_from(arguments, mapper.registry, output)
    return convert(mapper, source, target, _progress(output))


def _build(arguments: Arguments, mapper: Mapper, target: Disk, output: Output) -> int:
    from mapper_core.building import Recipe, build

    if bool(arguments.archive) == bool(arguments.suite):
        raise UsageError("say what is in the image", subject="image build", hint="either --from-tar or --suite")
    if arguments.archive and (arguments.mirror or arguments.package):
        raise UsageError("--mirror and --package are for --suite", subject="image build", hint="take them away")
    packages = tuple(arguments.package)
    recipe = Recipe(
        arguments.size, arguments.filesystem, arguments.archive, arguments.suite, arguments.mirror, packages
    )
    build(mapper, target, recipe, output.note)
    return int(arguments.size)


def _progress(output: Output) -> Callable[[int, int], None]:
    """One line that is written over and over, on a terminal; nothing elsewhere."""
    if output.style is Style.JSON or not sys.stderr.isatty():
        return lambda done, whole: None
    shown = 0.0

    def show(done: int, whole: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done < whole and now - shown < _INTERVAL:
            return
        shown = now
        end = "\n" if done == whole else ""
        sys.stderr.write(f"\r{100 * done // whole:3d} %  {human_size(done)} of {human_size(whole)}\033[K{end}")
        sys.stderr.flush()

    return show
