"""A clean Debian 12 as a tree of files, kept in the cache of the labs; labs/debian12.sh starts programs in copies of it."""

from __future__ import annotations

import argparse
import os

import bootstrap

SUITE = "bookworm"
CACHE = bootstrap.cache("debian12")


def tree(packages: list[str]) -> str:
    """Path of a tree with some packages, installed as apt does, and those that they depend on; built when it is not there.

    :raises LabError: it cannot be built.
    """

    def build(new: str, log: str) -> None:
        unused = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale")]
        unused += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-include=/usr/share/doc/mapper/*"]
        bootstrap.bootstrap(new, SUITE, packages, log, "--variant=apt", *unused)

    return bootstrap.kept_tree(CACHE, "Debian 12", (SUITE, *packages), build)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="print the path of a tree of Debian 12 with these packages")
    parser.add_argument("packages", nargs="+")
    print(os.path.abspath(tree(parser.parse_args().packages)))
