"""Real qemu programs given our block graph: strange names arrive, and headers are overruled."""

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapper_core.model import Access
from mapper_core.testing.images import qcow2
from mapper_core.transports.blockgraph import BlockNode, to_file_name, to_image_opts, to_json

pytestmark = pytest.mark.root

MIB = 1 << 20
Server = Callable[[BlockNode, Access, Path], tuple[str, ...]]
NAMES = [
    "plain",
    "with space",
    "comma,,,driver=nbd,",
    "equals=sign",
    "'single' and \"double\"",
    "-leading-dash",
    "back\\slash\\n",
    "ünïcödé 磁盘 🖴",
    "per%cent {json} $HOME `id`",
    "json:{}",
    "nbd:host",
    "*?[x]",
    "new\nline",
]


@pytest.fixture(params=NAMES)
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> BlockNode:
    """Three images; the headers name files that would give other bytes."""
    directory = tmp_path / str(request.param)
    directory.mkdir()
    node: BlockNode | None = None
    (directory / "base").write_bytes(b"\1" * MIB)
    node = BlockNode("raw", f"{directory}/base")
    (tmp_path / "evil").write_bytes(b"\xee" * MIB)
    for name in ("middle", "top"):
        path = directory / name
        path.write_bytes(qcow2(backing=str(tmp_path / "evil").encode(), backing_format=b"raw"))
        node = BlockNode("qcow2", str(path), backing=node)
    return node


def qemu_io(target: tuple[str, ...], *commands: str) -> None:
    argv = ("qemu-io", *(part for command in commands for part in ("-c", command)), *target)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "verification failed" not in done.stdout


@contextmanager
def daemon(*argv: str) -> Iterator[str]:
    """Start a daemon that keeps its files in the directory that is the last argument; yield its address; end it."""
    directory = Path(argv[-1])
    subprocess.run(argv[:-1], check=True, capture_output=True, timeout=60)
    pid = int((directory / "pid").read_text())
    try:
        yield f"nbd+unix:///disk?socket={directory}/s"
    finally:
        fd = os.pidfd_open(pid)
        for _ in range(30):  # see mapper_core.transports.daemon.stop
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            if select.select([fd], [], [], 1)[0]:
                break
        else:
            pytest.fail("the daemon did not end")
        os.close(fd)


def storage_daemon(node: BlockNode, access: Access, directory: Path) -> tuple[str, ...]:
    import json

    writable = "on" if access is Access.READ_WRITE else "off"
    return (
        *("qemu-storage-daemon", "--daemonize", "--pidfile", f"{directory}/pid"),
        *("--blockdev", json.dumps(to_json(node, access))),
        *("--nbd-server", f"addr.type=unix,addr.path={directory}/s"),
        *("--export", f"nbd,id=e,node-name=disk,name=disk,writable={writable}", str(directory)),
    )


def nbd_server(node: BlockNode, access: Access, directory: Path) -> tuple[str, ...]:
    read_only = ("--read-only",) if access is Access.READ_ONLY else ()
    return (
        *("qemu-nbd", "--fork", "--persistent", f"--pid-file={directory}/pid", f"--socket={directory}/s"),
        *("--cache=none", "--discard=unmap", "-x", "disk", *read_only),
        *("--image-opts", to_image_opts(node, access), str(directory)),
    )


@pytest.mark.parametrize("server", [storage_daemon, nbd_server])
def test_a_chain_with_strange_names(chain: BlockNode, server: Server, tmp_path: Path) -> None:
    """S-02: what the headers name is never opened."""
    directory = tmp_path / "daemon"
    directory.mkdir()
    assert chain.backing is not None
    before = Path(chain.backing.filename).read_bytes()
    with daemon(*server(chain, Access.READ_WRITE, directory)) as uri:
        qemu_io(("-f", "raw", uri), "read -P 1 0 1M", "write -P 2 64k 64k", "flush", "read -P 2 64k 64k")
    with daemon(*server(chain, Access.READ_ONLY, directory)) as uri:
        qemu_io(("-r", "-f", "raw", uri), "read -P 2 64k 64k", "read -P 1 128k 64k")
        with pytest.raises(AssertionError):
            qemu_io(("-f", "raw", uri), "write -P 3 0 64k")
    assert Path(chain.backing.filename).read_bytes() == before


def test_the_file_name_form(chain: BlockNode) -> None:
    qemu_io((to_file_name(chain, Access.READ_WRITE),), "read -P 1 0 1M", "write -P 2 64k 64k")
    qemu_io(("-r", to_file_name(chain, Access.READ_ONLY)), "read -P 2 64k 64k")


@pytest.mark.parametrize("form", ["json", "options"])
def test_a_chain_that_ends_where_we_say(tmp_path: Path, form: str) -> None:
    """S-02: the header goes on to a host file, the graph does not."""
    (tmp_path / "disk").write_bytes(qcow2(backing=b"/etc/passwd", backing_format=b"raw"))
    node = BlockNode("qcow2", f"{tmp_path}/disk")
    opts = ("--image-opts", to_image_opts(node, Access.READ_ONLY))
    qemu_io(("-r", *(opts if form == "options" else (to_file_name(node, Access.READ_ONLY),))), "read -P 0 0 64k")


@pytest.mark.parametrize("form", ["json", "options"])
def test_a_data_file_that_we_name(tmp_path: Path, form: str) -> None:
    """S-03: the header names a host file as the place of the data, the graph another."""
    (tmp_path / "disk").write_bytes(qcow2(data_file=b"/etc/passwd"))
    (tmp_path / "data").write_bytes(bytes(MIB))
    node = BlockNode("qcow2", f"{tmp_path}/disk", data_file=BlockNode("raw", f"{tmp_path}/data"))
    opts = ("--image-opts", to_image_opts(node, Access.READ_WRITE))
    target = opts if form == "options" else (to_file_name(node, Access.READ_WRITE),)
    before = Path("/etc/passwd").read_bytes()
    qemu_io(target, "write -P 7 0 64k", "read -P 7 0 64k")
    assert (tmp_path / "data").read_bytes()[:65536] == b"\7" * 65536
    assert Path("/etc/passwd").read_bytes() == before


@pytest.mark.parametrize("depth", [2, 64])
def test_deep_chains(tmp_path: Path, depth: int) -> None:
    (tmp_path / "0").write_bytes(b"\1" * MIB)
    node = BlockNode("raw", f"{tmp_path}/0")
    for number in range(1, depth):
        (tmp_path / f"{number}").write_bytes(qcow2())
        node = BlockNode("qcow2", f"{tmp_path}/{number}", backing=node)
    qemu_io(("-r", to_file_name(node, Access.READ_ONLY)), "read -P 1 0 1M")
    qemu_io(("-r", "--image-opts", to_image_opts(node, Access.READ_ONLY)), "read -P 1 0 1M")


def test_raw_bytes_that_look_like_an_image_stay_bytes(tmp_path: Path) -> None:
    """S-01: a guest wrote a qcow2 header into its raw disk."""
    content = qcow2(backing=b"/etc/shadow").ljust(MIB, b"\0")
    (tmp_path / "disk").write_bytes(content)
    node = BlockNode("raw", f"{tmp_path}/disk")
    name = to_file_name(node, Access.READ_ONLY)
    subprocess.run(("qemu-img", "convert", "-O", "raw", name, f"{tmp_path}/flat"), check=True, timeout=60)
    assert (tmp_path / "flat").read_bytes() == content


def test_a_block_device(tmp_path: Path) -> None:
    """qemu's file driver refuses block devices."""
    (tmp_path / "disk").write_bytes(qcow2().ljust(MIB, b"\0"))
    device = subprocess.run(
        ("losetup", "--find", "--show", f"{tmp_path}/disk"), check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()
    try:
        node = BlockNode("qcow2", device)
        assert '"driver": "host_device"' in to_file_name(node, Access.READ_ONLY)
        qemu_io((to_file_name(node, Access.READ_WRITE),), "write -P 5 0 64k", "read -P 5 0 64k")
    finally:
        subprocess.run(("losetup", "--detach", device), check=True, timeout=60)


def test_qemu_locks_the_image(tmp_path: Path) -> None:
    """A second writer is turned away, which is how a running virtual machine is noticed."""
    (tmp_path / "disk").write_bytes(qcow2())
    node = BlockNode("qcow2", f"{tmp_path}/disk")
    directory = tmp_path / "d"
    directory.mkdir()
    with daemon(*storage_daemon(node, Access.READ_WRITE, directory)):
        done = subprocess.run(
            ("qemu-io", "-c", "write 0 64k", to_file_name(node, Access.READ_WRITE)),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode != 0
        assert '" lock' in done.stderr
