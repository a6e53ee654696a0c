"""OpenNebula's actions on a real daemon: what each costs of its own, without the time in the daemon's API."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
VM = 1
_DONE = re.compile(r"done in ([0-9.]+) s, ([0-9.]+) s of that in the daemon")

if TYPE_CHECKING:
    from tests.lxd.frontend import Answer, Frontend


@dataclass
class Samples:
    """What was measured of one action, seconds for each call.

    :param own: of the whole script, the start of Python included, without the daemon's API.
    :param daemon: in the daemon's API.
    :param processor: processor time of the script and of all that it has started and waited for.
    """

    own: list[float] = field(default_factory=list)
    daemon: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def measure(directory: Path, rounds: int, product: str = "lxd") -> dict[str, Samples]:
    """Play a machine's life so often; returns what each action took, by its name.

    :param directory: for datastores, on a disk.
    :param product: ``lxd`` or ``incus``.
    """
    sys.path.insert(0, str(ROOT))
    from tests.lxd.frontend import Frontend

    lab, command = f"/run/mapper-lab/bench{os.getpid()}", ROOT / "labs" / product
    found: dict[str, Samples] = defaultdict(Samples)
    with ExitStack() as undo:
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([command, "up", lab], **quiet)  # type: ignore[call-overload]
        undo.callback(subprocess.run, [command, "down", lab], **quiet)  # type: ignore[arg-type]
        exports = subprocess.run([command, "env", lab], capture_output=True, text=True, check=True).stdout
        bridge = re.findall(r"MAPPER_LAB_BRIDGE=(\S+)", exports)[0]
        one = Frontend(
            directory,
            f"{lab}/{product}/unix.socket",
            VM,
            options=":save:\n  :suspend: freeze\n  :stop: refuse\n",
            size={"CPU": "0.5", "MEMORY": 128, "VCPU": 1},
        )
        _disks(one, _images())
        _life(one, bridge, defaultdict(Samples), undo)  # does not count
        for _ in range(rounds):
            _life(one, bridge, found, undo)
    return found


def _life(one: Frontend, bridge: str, times: dict[str, Samples], undo: ExitStack) -> None:
    name, node = one.deploy_id, "node1"

    def call(action: str, *parameters: str, **named: object) -> str:
        return _timed(times[action], lambda: one.act(action, *parameters, **named))  # type: ignore[arg-type]

    _timed(times["deploy"], one.deploy)
    undo.callback(one.act, "cancel", name, node)  # nothing is left to do, as a rule
    call("poll", name, node)
    one.disks[2] = {**_disk(2, 16), "ATTACH": "YES"}
    call("attach_disk", name, one.path("disk.2"), "sdc", "2", "COPY", lcm_state=17)
    call("detach_disk", name, one.path("disk.2"), "sdc", "2", lcm_state=17)
    del one.disks[2]
    mac = "02:00:0a:01:00:02"
    one.nics[0] = {"NIC_ID": 0, "MAC": mac, "BRIDGE": bridge, "TARGET": "one-1-0", "VN_MAD": "dummy", "ATTACH": "YES"}
    call("attach_nic", name, mac, bridge, "-", "dummy", "one-1-0", lcm_state=25)
    call("prereconfigure", name, "hdb", lcm_state=25)
    call("reconfigure", name, "hdb", one.path(f"disk.{one.context_id}"), lcm_state=25)
    call("detach_nic", name, mac, lcm_state=25)
    one.nics.clear()
    one.size["MEMORY"] = 256 - int(str(one.size["MEMORY"])) // 2
    call("resize", name, lcm_state=66)
    size = int(str(one.disks[1]["SIZE"]))
    one.disks[1] |= {"SIZE": size + 16, "SIZE_PREV": size, "RESIZE": "YES"}
    call("resize_disk", name, "1", str(size + 16), "COPY", node, lcm_state=62)
    del one.disks[1]["RESIZE"]
    one.disks[1]["ORIGINAL_SIZE"] = size + 16
    snapshot = call("snapshot_create", name, "0", lcm_state=24)
    call("snapshot_revert", name, snapshot, lcm_state=24)
    call("snapshot_delete", name, snapshot, lcm_state=24)
    checkpoint = one.path("checkpoint")
    call("save", name, checkpoint, node, lcm_state=6)
    call("restore", checkpoint, node, name, lcm_state=21)
    call("reboot", name, node)
    call("reset", name, node)
    call("shutdown", name, node, lcm_state=12)
    answer = one.deploy()
    assert answer.status == 0, answer.stderr
    call("cancel", name, node)


def _timed(samples: Samples, act: Callable[[], Answer]) -> str:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    answer = act()
    total, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if answer.status != 0:
        raise RuntimeError(answer.stderr)
    samples.daemon.append(float(_DONE.findall(answer.stderr)[0][1]))
    samples.own.append(total - samples.daemon[-1])
    samples.processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return answer.info


def _images() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mapper_lab_images", ROOT / "labs" / "images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _disks(one: Frontend, images: ModuleType) -> None:
    """A system with a partition table, a btrfs that can grow, one to be attached, the context; all are qcow2."""
    from mapper_core.testing import disks
    from mapper_core.testing.disks import Part

    one.vm_dir.mkdir(parents=True)
    images.build_system(str(one.vm_dir / "disk.0"))
    for number, part in ((1, Part("btrfs", 256)), (2, Part("ext4", 16))):
        raw = disks.make_filesystem(one.vm_dir / "raw", part)
        disks.convert(raw, "qcow2", one.vm_dir / f"disk.{number}")
        raw.unlink()
    images.build_context(str(one.vm_dir / f"disk.{one.context_id}"))
    one.disks |= {0: _disk(0, 130), 1: _disk(1, 256)}


def _disk(number: int, size: int) -> dict[str, object]:
    common = {"DISK_TYPE": "FILE", "TYPE": "FILE", "FORMAT": "qcow2", "READONLY": "NO", "TARGET": f"sd{'abc'[number]}"}
    return {**common, "DISK_ID": number, "SIZE": size, "ORIGINAL_SIZE": size}
