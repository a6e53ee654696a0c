"""A real Ceph cluster for the tests of this folder, and an oracle for what they leave in it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import pytest

from .cluster import LAB, Cluster, Images, run, sweep, traces

PROGRAMS = ("ceph-mon", "ceph-osd", "rbd")


@pytest.fixture(scope="session")
def ceph_installed() -> None:
    """Skip, by name, where Ceph is missing."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"{', '.join(missing)}: not installed (scripts/setup does it)")


@pytest.fixture(autouse=True)
def _no_cluster_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CEPH_")]:
        monkeypatch.delenv(name)


def _lab(name: str) -> Iterator[Cluster]:
    directory = f"/var/lib/mapper-lab/{name}{os.getpid()}"
    run(LAB, "up", directory)
    try:
        yield Cluster.of(directory)
    finally:
        run(LAB, "down", directory)


@pytest.fixture(scope="session")
def cluster(ceph_installed: None) -> Iterator[Cluster]:
    """The cluster of all tests, as client.oneadmin. It is never stopped, and each test leaves it as it was."""
    yield from _lab("t")


@pytest.fixture
def own_cluster(ceph_installed: None) -> Iterator[Cluster]:
    """A cluster of this test's own, to be stopped, paused or filled. It takes 1.5 s."""
    yield from _lab("o")


@pytest.fixture
def images(cluster: Cluster) -> Iterator[Images]:
    """Makes images in the cluster of all tests; they are removed after the test."""
    made = Images(cluster)
    yield made
    made.remove_all()


@pytest.fixture(autouse=True)
def _leaves_nothing_in_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves an image, a watcher or a lock, and take that away so that the next one starts clean."""
    if "cluster" not in request.fixturenames:
        yield
        return
    cluster = request.getfixturevalue("cluster")
    before = traces(cluster)
    yield
    deadline = time.monotonic() + request.config.getoption("settle")
    while (left := traces(cluster) - before) and time.monotonic() < deadline:
        time.sleep(0.05)  # a client that was told to end needs a moment, and no event tells
    if gone := before - traces(cluster):
        pytest.fail("\n".join(["the test has taken away from the cluster", *sorted(gone)]), pytrace=False)
    if left:
        sweep(cluster, left)
        pytest.fail("\n".join(["the test has left in the cluster", *sorted(left)]), pytrace=False)
