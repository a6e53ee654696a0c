"""A real LXD daemon for the tests of this folder, and small systems to run in it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd import hook, placement
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Instance, InstanceSpec
from mapper_driver.lxd.placement import Placement

from mapper_core.errors import NotMapped
from mapper_core.linux import mountinfo, mounts
from mapper_core.runtime import Runtime

ROOT = Path(__file__).parents[2]
LAB = str(ROOT / "labs" / "lxd")


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Lab:
    """A daemon of the lab."""

    directory: str

    @property
    def socket(self) -> str:
        return f"{self.directory}/lxd/unix.socket"

    @property
    def environment(self) -> dict[str, str]:
        """For lxc(1)."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LXD_")}
        return {**kept, "LXD_DIR": f"{self.directory}/lxd", "LXD_CONF": f"{self.directory}/client"}

    def lxc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["lxc", *arguments], env=self.environment, capture_output=True, text=True, timeout=100, check=False
        )


def _lab(name: str, *options: str) -> Iterator[Lab]:
    directory = f"/run/mapper-lab/{name}{os.getpid()}"
    run(LAB, "up", directory, *options)
    try:
        yield Lab(directory)
    finally:
        run(LAB, "down", directory)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A daemon in the mount namespace of the tests, as Debian's is."""
    yield from _lab("t")


@pytest.fixture(scope="session")
def private_lab() -> Iterator[Lab]:
    """A daemon in a mount namespace of its own, as the snap's is."""
    yield from _lab("p", "--private-mounts")


@pytest.fixture
def client(lab: Lab) -> LxdClient:
    return LxdClient.connect([lab.socket])


@pytest.fixture(scope="session")
def images() -> ModuleType:
    """labs/images.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("mapper_lab_images", ROOT / "labs" / "images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Staged:
    """A system that is mounted from image files: root and, below it, /home."""

    directory: str
    images: tuple[str, str]


@pytest.fixture
def staged(images: ModuleType, tmp_path: Path) -> Iterator[Staged]:
    """A staged system, mounted as the product does it: private, nosuid, nodev, in a directory of mode 0700."""
    directory = tmp_path / "staging"
    directory.mkdir(0o700)
    system, home = str(tmp_path / "root.img"), str(tmp_path / "home.img")
    images.build_bare(system)
    images.build_data(home, files={"greeting": "hello\n"})
    with ExitStack() as undo:
        run("mount", "--bind", "--make-private", str(directory), str(directory))
        undo.callback(run, "umount", str(directory))
        tree = directory / "tree"
        tree.mkdir()
        for image, target in ((system, tree), (home, tree / "home")):
            run("mount", "-o", "loop,nosuid,nodev", image, str(target))
            undo.callback(run, "umount", str(target))
        yield Staged(str(tree), (system, home))


@dataclass(frozen=True)
class Container:
    """A container whose tree is placed by the hook."""

    client: LxdClient
    placement: Placement
    runtime: Runtime

    @property
    def name(self) -> str:
        return self.placement.container

    def run(self, *argv: str) -> str:
        done = self.client.execute(self.name, argv, deadline_seconds=20)
        assert done.status == 0, (argv, done)
        return done.stdout.decode()

    def mounts(self) -> tuple[mountinfo.MountEntry, ...]:
        """What the container's first process sees."""
        return mountinfo.entries(self.client.state(self.name).pid)


MakeContainer = Callable[..., Container]


@pytest.fixture
def make_container(runtime_dir: Path) -> Iterator[MakeContainer]:
    """Creates containers the way the driver does, and takes them away."""
    runtime = Runtime(str(runtime_dir))
    with ExitStack() as undo:

        def make(client: LxdClient, name: str, staging: str, **config: str) -> Container:
            undo.callback(_remove, client, name, runtime)
            client.create(InstanceSpec(name, config={"security.protection.delete": "true", **config}))
            instance: Instance = client.instance(name)
            rootfs, daemon = client.rootfs(instance), client.daemon_pid()
            placement.prepare_rootfs(rootfs, daemon)
            wanted = placement.describe(name, rootfs, staging, client.idmap(name))
            placement.write(runtime, wanted)
            client.set_config(name, {"raw.lxc": hook.raw_lxc(hook.command(runtime, name, daemon))})
            client.keep_owners(name)
            return Container(client, wanted, runtime)

        yield make


def _remove(client: LxdClient, name: str, runtime: Runtime) -> None:
    if client.exists(name):
        client.stop(name)
    wanted = placement.read(placement.record_path(runtime, name))
    if wanted is not None:
        placement.unplace(wanted, client.daemon_pid())
    placement.forget(runtime, name)
    hook.forget_failure(runtime, name)
    client.delete(name)


def unmount_all(directory: str) -> None:
    """Unmount what is stacked on a directory of ours."""
    for _ in mountinfo.at(directory):
        with suppress(NotMapped):
            mounts.unmount(directory)
