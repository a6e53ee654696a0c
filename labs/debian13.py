"""Debian 13 with Incus as a tree of files, kept in the cache of the labs; labs/debian13.sh starts programs in it."""

from __future__ import annotations

import os
import shutil

import bootstrap
from common import run

SUITE = "trixie"
#: Incus for containers only, and of Debian's essential packages those whose programs it or LXC calls. Nothing is configured:
#: no program of the tree runs while it is built.
PACKAGES = (
    *("incus-base", "incus-client"),
    *(
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "grep",
        "gzip",
        "libc-bin",
        "mount",
        "tar",
        "util-linux",
    ),
)
CACHE = bootstrap.cache("incus")
UNUSED = ("doc", "info", "locale", "man")


def tree() -> str:
    """Path of the tree, which is built first when it is not there (12 s and the download of 75 MB).

    :raises LabError: it cannot be built.
    """
    return bootstrap.kept_tree(CACHE, "Debian 13 with Incus", (SUITE, *PACKAGES, *UNUSED), _build)


def _build(new: str, log: str) -> None:
    bootstrap.bootstrap(new, SUITE, PACKAGES, log, "--variant=extract")
    for name in UNUSED:
        shutil.rmtree(f"{new}/usr/share/{name}", ignore_errors=True)


def clean() -> None:
    """Remove the tree, those of other versions of this file, and what a build that was killed has left.

    :raises LabError: it is being built.
    """
    for directory in (CACHE, *bootstrap.workplaces(CACHE, "build-")):
        if os.path.isdir(directory):
            run("flock", "--wait", "30", directory, "true", seconds=35)  # mmdebstrap ends a moment after who called it
    shutil.rmtree(CACHE, ignore_errors=True)
    for directory in (CACHE, os.path.dirname(CACHE)):
        if os.path.isdir(directory) and not os.listdir(directory):
            os.rmdir(directory)
