"""The lab itself, and the oracle for what is left in its cluster: the ground the other tests stand on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapper_rbd import bindings

from mapper_core.testing import leaks

from .cluster import LAB, MIB, Cluster, Images, run, traces

pytestmark = pytest.mark.ceph

ROOT = Path(__file__).parents[2]
DOWN = 3
SYSTEM_DIRECTORIES = ("/etc/ceph", "/run/ceph", "/var/log/ceph", "/var/lib/ceph")


@pytest.fixture
def directory(ceph_installed: None) -> Iterator[str]:
    path = f"/var/lib/mapper-lab/l{os.getpid()}"
    yield path
    run(LAB, "down", path)


def status(directory: str) -> tuple[int, str]:
    done = subprocess.run([LAB, "status", directory], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.split()[0]


def processes(directory: str) -> dict[int, str]:
    """Processes that name the directory: their numbers and programs."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(directory.encode() in word for word in argv):
                found[int(name)] = os.path.basename(os.fsdecode(argv[0]))
    return found


def listening(pids: dict[int, str]) -> set[tuple[str, int]]:
    """Addresses on which processes listen: proc(5), /proc/net/tcp and tcp6."""
    inodes = {os.readlink(fd) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add((address, int(port, 16)))
    return found


def system_files() -> list[str]:
    return [f"{path}/{name}" for top in SYSTEM_DIRECTORIES for path, _, names in os.walk(top) for name in names]


def test_life(directory: str) -> None:
    """Up and down twice each; afterwards no process, port or file is left, and none outside of the directory ever was."""
    before = system_files()
    in_use = leaks.snapshot()
    assert status(directory) == (DOWN, "down")
    run(LAB, "down", directory)
    with pytest.MonkeyPatch.context() as shell:  # variables of another cluster are none of its business
        shell.setenv("CEPH_ARGS", "--id nobody")
        shell.setenv("CEPH_KEYRING", "/nowhere")
        run(LAB, "up", directory)
    pids = processes(directory)
    assert sorted(pids.values()) == ["ceph-mon", "ceph-osd"]
    run(LAB, "up", directory)
    assert processes(directory) == pids
    assert status(directory) == (0, "up")
    ports = listening(pids)
    assert {address for address, _ in ports} == {"0100007F"}  # 127.0.0.1 as the kernel prints it, and no IPv6
    assert len(ports) == 10  # two of the monitor, four pairs of the OSD
    assert [item.kind for item in leaks.diff(in_use, leaks.snapshot(), (directory,)).items] == ["process", "process"]
    run(LAB, "down", directory)
    run(LAB, "down", directory)
    assert not leaks.diff(in_use, leaks.snapshot(), (directory,))
    assert status(directory) == (DOWN, "down")
    assert not os.path.exists(directory)
    assert processes(directory) == {}
    for _, port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is nobody's
            probe.bind(("127.0.0.1", port))
    assert system_files() == before


def test_env_is_for_a_shell(cluster: Cluster) -> None:
    """Even in one with variables of another cluster."""
    script = f'eval "$({LAB} env {shlex.quote(cluster.directory)})" && rbd info --format json $MAPPER_LAB_POOL/in-shell'
    images = Images(cluster)
    images.create("one/in-shell", 3 * MIB)
    try:
        environment = {**os.environ, "CEPH_CONF": "/nowhere", "CEPH_ARGS": "--id nobody"}
        done = subprocess.run(
            ["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        images.remove_all()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size"] == 3 * MIB
    # Ceph's own default, which nothing here changes
    assert json.loads(done.stdout)["features"] == [
        "layering",
        "exclusive-lock",
        "object-map",
        "fast-diff",
        "deep-flatten",
    ]


@pytest.mark.parametrize(
    ("user", "allowed"),
    [
        ("oneadmin", {"one", "one/ns"}),
        ("libvirt", {"one", "one/ns", "two", "two/ns"}),
        ("nobody", set()),
    ],
)
def test_keys_are_limited(cluster: Cluster, images: Images, user: str, allowed: set[str]) -> None:
    """One name is four images in two pools and their namespaces; each client sees those that it may use."""
    sizes = {"one": 1 * MIB, "one/ns": 2 * MIB, "two": 3 * MIB, "two/ns": 4 * MIB}
    for place, size in sizes.items():
        images.create(f"{place}/same", size)
    client = cluster.as_user(user)
    seen = {}
    for place in sizes:
        done = client.rbd("info", "--format", "json", f"{place}/same")
        if done.returncode == 0:
            seen[place] = json.loads(done.stdout)["size"]
        else:
            assert "Operation not permitted" in done.stderr
    assert seen == {place: sizes[place] for place in allowed}


def test_a_wrong_key_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    keyring = tmp_path / "keyring"
    other = Path(cluster.as_user("libvirt").keyring).read_text().replace("client.libvirt", "client.oneadmin")
    keyring.write_text(other)
    done = Cluster(cluster.directory, cluster.conf, "oneadmin", str(keyring), "one").rbd("ls", "one")
    assert done.returncode != 0
    assert "Permission denied" in done.stderr or "Operation not permitted" in done.stderr


def test_a_clone_reads_what_its_parent_has(images: Images, tmp_path: Path) -> None:
    file = tmp_path / "image"
    data = os.urandom(MIB) + bytes(8 * MIB) + os.urandom(4096)
    file.write_bytes(data)
    images.clone(images.upload("one/parent", file) + "@base", "two/child")
    with images.open("two/child") as child:
        assert child.read(0, len(data)) == data
        assert child.parent_info() == ("one", "parent", "base")


@pytest.mark.parametrize("daemon", ["osd", "mon"])
def test_a_stopped_daemon_comes_back_with_its_data(own_cluster: Cluster, daemon: str) -> None:
    images = Images(own_cluster)
    images.create("one/kept")
    with images.open("one/kept") as image:
        image.write(b"kept", 0)
        image.flush()
    own_cluster.lab("stop", daemon)
    assert status(own_cluster.directory) == (DOWN, "dead")
    assert len(processes(own_cluster.directory)) == 1
    with pytest.raises(bindings.rados().TimedOut), own_cluster.connection(seconds=1) as connection:
        connection.open_ioctx("one").stat("rbd_info")
    own_cluster.lab("start", daemon)
    assert status(own_cluster.directory) == (0, "up")
    with images.open("one/kept") as image:
        assert image.read(0, 4) == b"kept"


def test_a_paused_daemon_is_silent_until_it_goes_on(own_cluster: Cluster) -> None:
    with own_cluster.connection(seconds=1) as connection, connection.open_ioctx("one") as ioctx:
        ioctx.stat("rbd_info")
        own_cluster.lab("pause", "osd")
        with pytest.raises(bindings.rados().TimedOut):
            ioctx.stat("rbd_info")
        own_cluster.lab("resume", "osd")
    with own_cluster.connection() as connection, connection.open_ioctx("one") as ioctx:
        ioctx.stat("rbd_info")


def test_up_goes_on_after_a_crash(own_cluster: Cluster) -> None:
    """As after a power failure: both daemons are gone, the data are not."""
    images = Images(own_cluster)
    images.create("one/kept")
    pids = processes(own_cluster.directory)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert status(own_cluster.directory) == (DOWN, "dead")
    own_cluster.lab("up")
    assert sorted(processes(own_cluster.directory).values()) == ["ceph-mon", "ceph-osd"]
    assert "image" in " ".join(traces(own_cluster))


def test_a_daemon_that_does_not_start_says_why(own_cluster: Cluster) -> None:
    own_cluster.lab("stop", "mon")
    port = json.loads(Path(own_cluster.directory, "lab.json").read_text())["port"]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        began = time.monotonic()
        done = subprocess.run(
            [LAB, "start", "mon", own_cluster.directory], capture_output=True, text=True, timeout=90, check=False
        )
    assert done.returncode == 1
    assert "ceph-mon has ended" in done.stderr and "Address already in use" in done.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_up_can_be_interrupted(directory: str, number: signal.Signals) -> None:
    """^C takes back what was done; after a kill the next command does."""
    process = subprocess.Popen([LAB, "up", directory], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not os.path.exists(f"{directory}/osd.log") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.wait(30)
    if number == signal.SIGINT:
        assert processes(directory) == {}
        assert not os.path.exists(directory)
    else:
        assert status(directory) == (DOWN, "incomplete")
        run(LAB, "up", directory)
        assert sorted(processes(directory).values()) == ["ceph-mon", "ceph-osd"]
        assert status(directory) == (0, "up")


def test_it_deletes_only_what_is_a_lab(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.touch()
    done = subprocess.run([LAB, "down", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "left alone" in done.stderr
    assert precious.exists()


def test_the_oracle_sees_images_watchers_and_locks(cluster: Cluster, images: Images) -> None:
    before = traces(cluster)
    images.create("two/ns/seen")
    with images.open("two/ns/seen") as image:
        image.write(b"x", 0)  # takes the exclusive lock
        kinds = {line.split(" ")[0] for line in traces(cluster) - before}
        assert images.watchers("two/ns/seen") == images.lockers("two/ns/seen") != []
    assert kinds == {"image", "watcher", "lock"}
    assert images.watchers("two/ns/seen") == images.lockers("two/ns/seen") == []
    images.remove_all()
    assert traces(cluster) == before


INNER = """
import pytest
from mapper_rbd import bindings
pytestmark = pytest.mark.ceph
held = []
def test_leaves_an_image(cluster):
    assert cluster.rbd("create", "--size", "1M", "one/left").returncode == 0
def test_leaves_a_watcher(cluster):
    assert cluster.rbd("create", "--size", "1M", "one/held").returncode == 0
    connection = bindings.rados().Rados(conffile=cluster.conf, rados_id="oneadmin")
    connection.connect()
    held.extend([connection, bindings.rbd().Image(connection.open_ioctx("one"), "held")])
def test_leaves_nothing(cluster, images):
    assert cluster.rbd("ls", "one").stdout == ""
    images.create("one/fine")
"""


def test_what_a_test_leaves_in_the_cluster_fails_it(tmp_path: Path, ceph_installed: None) -> None:
    """In a run of its own. The test after it starts clean, although somebody had the image open."""
    tree = tmp_path / "tree"
    (tree / "tests" / "ceph").mkdir(parents=True)
    for file in ("conftest.py", "pyproject.toml", "tests/expected-skips.txt"):
        shutil.copy(ROOT / file, tree / file)
    for file in ("conftest.py", "cluster.py"):
        shutil.copy(ROOT / "tests" / "ceph" / file, tree / "tests" / "ceph")
    os.symlink(ROOT / "labs", tree / "labs")
    (tree / "tests" / "ceph" / "test_inner.py").write_text(INNER)
    argv = (sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--settle", "0.3", "tests")
    environment = {**os.environ, "MAPPER_TEST_SHARED_HOST": "1"}
    environment.pop("CI", None)  # with it pytest writes every message a second time
    done = subprocess.run(argv, cwd=tree, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert "3 passed, 2 errors" in done.stdout, done.stdout
    image, watcher = re.findall(r"^.*the test has left in the cluster$(?:\n.* of one/.*)+", done.stdout, re.MULTILINE)
    assert "of one/left" in image and "watcher" not in image
    assert re.search(r"watcher 127\.0\.0\.1:\S+ of one/held", watcher)
    assert not processes(str(tree))
