"""The command plugin: begin a project for a new format."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mapper_core.cli.output import Style

if TYPE_CHECKING:
    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments


def plugin(arguments: Arguments, output: Output) -> int:
    """Write the project and print its directory."""
    from importlib.metadata import version

    from mapper_core import scaffold
    from mapper_core.errors import AlreadyExists
    from mapper_core.registry import installed

    scaffold.check_name(arguments.name)
    for entry in installed():
        if entry.name == arguments.name:
            raise AlreadyExists(
                f"{entry.distribution} {entry.version} is a plugin for this format, and is installed",
                subject=arguments.name,
                hint="two plugins of one name exclude each other; uninstall it first, or choose another name",
            )
    directory = os.path.abspath(arguments.directory or f"mapper-{arguments.name.replace('_', '-')}")
    project = scaffold.Project(arguments.name, directory, version("mapper-core"))
    files = scaffold.write(project)
    if output.style is Style.JSON:
        output.json({"directory": directory, "distribution": project.distribution, "files": files})
        return 0
    output.line(directory)
    output.remark(f"now write virtual_size() in src/{project.package}/__init__.py; README.md says how it is tested")
    return 0
