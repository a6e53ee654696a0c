"""Real daemons for the tests of this folder, LXD and Incus, and small systems to run in them.

What uses the fixture ``lab``, ``client`` or ``product`` runs once with each daemon; ``-k "not incus"`` leaves one out.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import pytest
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd import hook, placement
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import InstanceSpec
from mapper_driver.lxd.placement import Placement

from mapper_core.linux import idmap, mountinfo, mounts
from mapper_core.mapping import Mapper
from mapper_core.model import IdMap
from mapper_core.runtime import ENVIRONMENT, Runtime
from mapper_core.tree import mounted

from .machine import Machine, ok
from .one import One
from .plug import Plug

if TYPE_CHECKING:
    from .host import Host

ROOT = Path(__file__).parents[2]
#: What each daemon calls itself; its command in labs/ has the same name.
PRODUCTS = ("lxd", "incus")
Test = TypeVar("Test", bound=Callable[..., object])


def lxd_is_enough(test: Test) -> Test:
    """For tests of what is decided before a daemon is asked, or in which it makes no difference which it is. They run
    beside those that run with both daemons (``scripts/test``).
    """
    marks = (pytest.mark.lxd_only, pytest.mark.parametrize("product", ["lxd"], indirect=True, scope="session"))
    for mark in marks:
        test = mark(test)
    return test


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def command(product: str) -> str:
    """The command that starts and stops labs with a daemon."""
    return str(ROOT / "labs" / product)


@dataclass(frozen=True)
class Lab:
    """A daemon of the lab."""

    product: str
    directory: str

    @property
    def socket(self) -> str:
        return f"{self.directory}/{self.product}/unix.socket"

    @property
    def variables(self) -> dict[str, str]:
        """What ``labs/... env`` exports."""
        lines = run(command(self.product), "env", self.directory).splitlines()
        return dict(shlex.split(line)[1].split("=", 1) for line in lines)

    def lxc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the daemon's own client, lxc(1) or incus(1)."""
        variables = self.variables
        argv = [*shlex.split(variables["MAPPER_LAB_CLIENT"]), *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LXD_", "INCUS_"))}
        environment = kept | variables
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=100, check=False)


def run_lab(product: str, name: str, *options: str) -> Iterator[Lab]:
    directory = f"/run/mapper-lab/{name}{os.getpid()}"
    run(command(product), "up", directory, *options)
    try:
        yield Lab(product, directory)
    finally:
        run(command(product), "down", directory)


@pytest.fixture(scope="session", params=PRODUCTS)
def product(request: pytest.FixtureRequest) -> str:
    """A daemon that this host has or can be given: LXD from Debian 12, Incus from Debian 13."""
    name = str(request.param)
    if name == "incus":  # building takes a while, and can fail where there is no network
        built = subprocess.run([command(name), "build"], capture_output=True, text=True, timeout=900, check=False)
        if built.returncode != 0:
            pytest.skip(f"Incus is missing: {built.stderr.strip()}")
    elif shutil.which(name) is None:
        pytest.skip("LXD is missing: run scripts/setup")
    return name


@pytest.fixture(scope="session")
def lab(product: str) -> Iterator[Lab]:
    """A daemon: LXD in the mount namespace of the tests, as Debian's is; Incus in one of its own."""
    yield from run_lab(product, "t")


@pytest.fixture(scope="session")
def private_lab() -> Iterator[Lab]:
    """LXD in a mount namespace of its own, as the snap's is."""
    yield from run_lab("lxd", "p", "--private-mounts")


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
def staging(tmp_path: Path) -> Iterator[Path]:
    """A directory for staged trees, as the product has it: mode 0700, and mounts in it reach no other namespace."""
    directory = tmp_path / "staging"
    directory.mkdir(0o700)
    run("mount", "--bind", "--make-private", str(directory), str(directory))
    yield directory
    run("umount", str(directory))


@pytest.fixture
def staged(images: ModuleType, tmp_path: Path, staging: Path) -> Iterator[Staged]:
    """A staged system: nosuid, nodev."""
    system, home = str(tmp_path / "root.img"), str(tmp_path / "home.img")
    images.build_bare(system)
    images.build_data(home, files={"greeting": "hello\n"})
    with ExitStack() as undo:
        tree = staging / "tree"
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


@dataclass(frozen=True)
class MakeContainer:
    """Creates containers as the driver does: without files, then its tree is staged with its map of ids."""

    runtime: Runtime
    directory: Path
    undo: ExitStack

    def __call__(self, client: LxdClient, name: str, tree: str, **config: str) -> Container:
        self.undo.callback(placement.forget, self.runtime, name)
        created = client.create(InstanceSpec(name, config=config))
        self.undo.callback(client.delete, name)
        rootfs, daemon = client.rootfs(created), client.daemon_pid()
        placement.prepare_rootfs(rootfs, daemon)
        command = hook.command(self.runtime, name, daemon)
        client.set_config(name, {"raw.lxc": f"lxc.hook.pre-start = {command}"})
        ids = client.idmap(name)
        if ids is not None:
            tree = self.map_owners(tree, name, ids)
            client.keep_owners(name)
        container = self.place(client, name, rootfs, tree)
        self.undo.callback(_stop, client, name)
        return container

    def place(self, client: LxdClient, name: str, rootfs: str, tree: str) -> Container:
        """Write the record of a staged tree."""
        wanted = placement.describe(name, rootfs, tree)
        self.undo.callback(placement.unplace, wanted, client.daemon_pid())
        placement.write(self.runtime, wanted)
        return Container(client, wanted, self.runtime)

    def map_owners(self, tree: str, name: str, ids: IdMap) -> str:
        """Stage an idmapped clone of a tree beside it."""
        target = self.directory / name
        target.mkdir()
        with ExitStack() as closing:
            owners = idmap.user_namespace(ids)
            closing.callback(os.close, owners)
            clone = mounts.clone_tree(tree, recursive=True)
            closing.callback(os.close, clone)
            mounts.set_attributes(clone, recursive=True, userns_fd=owners)
            target_fd = os.open(target, os.O_PATH)
            closing.callback(os.close, target_fd)
            mounts.attach(clone, target_fd)
        self.undo.callback(run, "umount", "--recursive", str(target))
        return str(target)


def _stop(client: LxdClient, name: str) -> None:
    with suppress(InstanceNotFound):
        client.stop(name)


@pytest.fixture
def make_container(runtime_dir: Path, staging: Path) -> Iterator[MakeContainer]:
    with ExitStack() as undo:
        yield MakeContainer(Runtime(str(runtime_dir)), staging, undo)


@pytest.fixture
def plug(
    request: pytest.FixtureRequest, lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path
) -> Iterator[Plug]:
    """A machine that runs, with the number ``VM`` of the module; at the end nothing of it may be left, whatever was attached."""
    machine = Machine.build(One(tmp_path, lab.socket), client, images, request.module.VM)
    machine.set_up()
    try:
        yield Plug(machine)
    finally:
        machine.tear_down()


@pytest.fixture
def host(product: str, images: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A node of its own; at the end nothing of its machines may be left."""
    from .host import Host  # which imports this module

    monkeypatch.syspath_prepend(str(ROOT / "labs"))
    import containers_daemon  # type: ignore[import-not-found]
    import containers_model  # type: ignore[import-not-found]

    lab = Lab(product, f"/run/mapper-lab/b{os.getpid()}")
    run(command(product), "up", lab.directory)
    undo = ExitStack()
    undo.callback(run, command(product), "down", lab.directory)
    runtime = Path(lab.directory) / "host" / "mapper"  # where a daemon sees it that has a root directory of its own
    runtime.mkdir(0o700, parents=True)
    monkeypatch.setenv(ENVIRONMENT, str(runtime))
    found = Host(lab, containers_daemon, containers_model, images, One(tmp_path, lab.socket))
    monkeypatch.setenv("MAPPER_STATE_DIR", found.state["MAPPER_STATE_DIR"])
    with undo:
        yield found
        for instance in found.client.instances():
            found.client.stop(instance.name)
            machine = Machine(found.one, found.client, int(instance.name[4:]), "")
            vm = found.one.vm_xml(machine.id, "", deployed=True)
            ok(found.one.end(machine.id, vm, **found.state))
        mapper = Mapper.open()
        assert mounted.records(mapper) == () and mapper.journal.ids() == ()
        assert mapper.runtime.root == str(runtime)
