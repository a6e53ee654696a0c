"""Debian 13 with Incus as a tree of files, kept in the cache of the labs; labs/debian13.sh starts programs in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time

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
    content = hashlib.sha256(" ".join((SUITE, os.uname().machine, *PACKAGES, *UNUSED)).encode())
    path = f"{CACHE}/tree-{content.hexdigest()[:16]}"
    os.makedirs(CACHE, exist_ok=True)
    lock = os.open(CACHE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builds, the others wait until it has, or its deadline is over
        if not os.path.isdir(path):
            _build(path)
    finally:
        os.close(lock)
    return path


def _build(path: str) -> None:
    began = time.monotonic()
    print(f"building Debian 13 with Incus in {CACHE}", file=sys.stderr)
    with bootstrap.workplace(CACHE, "build-") as place:
        new = f"{place}/tree"
        bootstrap.bootstrap(new, SUITE, PACKAGES, f"{place}/log", "--variant=extract")
        for name in UNUSED:
            shutil.rmtree(f"{new}/usr/share/{name}", ignore_errors=True)
        os.chmod(new, 0o700)  # its setuid programs are for nobody
        os.rename(new, path)
    print(f"built in {time.monotonic() - began:.1f} s", file=sys.stderr)


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
