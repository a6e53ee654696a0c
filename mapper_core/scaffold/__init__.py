"""A new project for a format plugin: everything but the function that reads the format's header.

The files of the project are the templates in ``project/``, in which a few words between ``@`` are replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile

from mapper_core.errors import AlreadyExists, NotFound, UsageError
from mapper_core.frozen import dataclass
from mapper_core.hookspecs import API_VERSION

#: Template -> file of the project.
FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "gitignore.txt": ".gitignore",
    "ci.yml.txt": ".github/workflows/ci.yml",
    "module.py.txt": "src/@PACKAGE@/__init__.py",
    "typed.txt": "src/@PACKAGE@/py.typed",
    "conformance.py.txt": "tests/test_conformance.py",
}
#: Names of distributions of Mapper's own that are no plugins: mapper-core ...
RESERVED = ("core", "driver", "cli")
MAX_NAME = 32


@dataclass(frozen=True, slots=True)
class Project:
    """A project to be written.

    :param format: name of the format.
    :param directory: absolute path; it does not exist yet.
    :param core_version: of mapper-core, for which it is made.
    """

    format: str
    directory: str
    core_version: str

    @property
    def distribution(self) -> str:
        """Name of the distribution."""
        return f"mapper-{self.format.replace('_', '-')}"

    @property
    def package(self) -> str:
        """Name of the package."""
        return f"mapper_{self.format}"

    def files(self) -> dict[str, str]:
        """The project: content by path."""
        words = {
            "@FORMAT@": self.format,
            "@DISTRIBUTION@": self.distribution,
            "@PACKAGE@": self.package,
            "@CLASS@": "".join(part.capitalize() for part in self.format.split("_")),
            "@VERSIONS@": _compatible(self.core_version),
            "@API@": str(API_VERSION),
        }
        found = {}
        for template, path in FILES.items():
            with open(f"{os.path.dirname(__file__)}/project/{template}", encoding="utf-8") as file:
                text = file.read()
            for word, value in words.items():
                text, path = text.replace(word, value), path.replace(word, value)
            found[path] = text
        return found


def check_name(name: str) -> None:
    """Make sure that a format can have a name: it becomes part of those of a package and of a distribution.

    :raises UsageError: it cannot.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > MAX_NAME:
        raise UsageError(
            "this is no name for a format",
            subject=name,
            hint=f"lower-case letters, digits and single underscores, a letter first, at most {MAX_NAME}: vhdx, cow_2",
        )
    if name in RESERVED:
        raise UsageError(f"mapper-{name} is a distribution of Mapper itself", subject=name, hint="choose another name")


def write(project: Project) -> tuple[str, ...]:
    """Write a project, all of it or nothing.

    :returns: paths of its files, in the directory.
    :raises AlreadyExists: there is something of that name; nothing is ever overwritten.
    :raises NotFound: the directory in which it is to be does not exist.
    :raises OSError: it cannot be written.
    """
    parent = os.path.dirname(project.directory)
    if os.path.lexists(project.directory):
        raise _exists(project.directory)
    files = project.files()
    try:
        work = tempfile.mkdtemp(prefix=".mapper-new-", dir=parent)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("there is no such directory", subject=parent, hint="make it first") from None
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, work, ignore_errors=True)
        for path, text in files.items():
            os.makedirs(os.path.dirname(f"{work}/{path}"), exist_ok=True)
            with open(f"{work}/{path}", "x", encoding="utf-8") as file:
                file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(work, 0o777 & ~umask)
        try:
            os.mkdir(project.directory)  # only one can
        except FileExistsError:
            raise _exists(project.directory) from None
        undo.callback(os.rmdir, project.directory)
        os.rename(work, project.directory)  # over an empty directory
        undo.pop_all()
    return tuple(files)


def _exists(path: str) -> AlreadyExists:
    return AlreadyExists("exists already", subject=path, hint="choose another directory; nothing is overwritten")


def _compatible(version: str) -> str:
    """Return the requirement for all releases with the same API as this: ``>=0.1,<0.2``; from 1.0 on ``>=1.2,<2``."""
    major, minor = (int(number) for number in version.split(".")[:2])
    return f">={major}.{minor},<{major}.{minor + 1}" if major == 0 else f">={major}.{minor},<{major + 1}"
