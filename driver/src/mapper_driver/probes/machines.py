"""What the probes say about containers: ``vm/status``, ``vm/monitor``, and for import those that were made by hand.

Each is one request to the daemon, however many containers there are, and one answer: a container that vanishes meanwhile, or of
which something cannot be read, is left out and breaks nothing (N-01).
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mapper_core.mapping import Mapper
from mapper_driver import monitor, ownership
from mapper_driver.lxd import glance, placement
from mapper_driver.lxd.blockio import BlockIo, Whose
from mapper_driver.lxd.glance import Glance
from mapper_driver.lxd.model import Instance, Status
from mapper_driver.monitor import MachineState, Work
from mapper_driver.opennebula.protocol import knows_wild
from mapper_driver.probes import changes
from mapper_driver.probes.changes import History, Seen, machine_id
from mapper_driver.probes.memory import keep, kept, path_of


def status(
    mapper: Mapper, sockets: Sequence[str], host_id: int, one_version: str, sync_seconds: float
) -> tuple[str, tuple[Instance, ...]]:
    """``vm/status``: the states that have changed, once in a while all; and the machines that are off and still have their disks.

    :param host_id: OpenNebula's number of this node.
    :raises LxdUnavailable: nothing can be said; containers may well run while their daemon does not.
    """
    busy, mark = ownership.locked(mapper), _mark(mapper)
    found = glance.configurations(sockets)
    busy |= ownership.locked(mapper)
    now, path = time.time(), path_of(mapper, f"status-{host_id}")
    before = _history(path)
    seen = [Seen(item.instance.name, _state(item, busy, now)) for item in found if _is_shown(item, one_version)]
    if mark != _mark(mapper):  # an action came or went while the daemon looked: believe no end that it may have seen
        seen = [Seen(item.container, _unless_ended(item, before)) for item in seen]
    text, history = changes.report(before, seen, busy, now, sync_seconds)
    keep(path, history.to_json())
    ours = (
        item.instance for item in found if item.instance.status is Status.STOPPED and item.instance.name not in busy
    )
    return text, tuple(item for item in ours if os.path.exists(placement.record_path(mapper.runtime, item.name)))


def usage(mapper: Mapper, sockets: Sequence[str], host_id: int, one_version: str) -> str:
    """``vm/monitor``: what the running containers use."""
    found, now, path = glance.states(sockets), time.monotonic(), path_of(mapper, f"cpu-{host_id}")
    before, after = _samples(path), {}
    disks, lines = BlockIo.find(), []
    for item in found:
        if item.state is None or item.state.status is not Status.RUNNING or not _is_shown(item, one_version):
            continue
        name, state = item.instance.name, item.state
        if state.cpu_ns is not None:
            after[name] = [state.pid, state.cpu_ns, now]
        cpu = percent(before.get(name), after.get(name))
        whose = Whose.OPENNEBULA if machine_id(name) >= 0 else Whose.HAND
        used = monitor.attributes(monitor.usage(state, cpu, disks.of(state.pid, whose)))
        text = "".join(f'{key}="{value}"\n' for key, value in used.items())
        encoded = base64.b64encode(text.encode()).decode()
        lines.append(f'VM = [ ID="{machine_id(name)}", DEPLOY_ID="{name}", MONITOR="{encoded}" ]\n')
    keep(path, {"samples": after})
    return "".join(lines)


def percent(before: Any, after: Any) -> float | None:
    """Processor time between two looks, percent of one processor; ``None`` when they do not fit (N-04).

    :param before: first process, nanoseconds of processor time, monotonic seconds; as :func:`usage` keeps it.
    """
    with contextlib.suppress(TypeError, ValueError):
        (pid, spent, then), (pid_now, spent_now, now) = before, after
        if pid == pid_now and spent_now >= spent and now > then:
            share: float = (spent_now - spent) / (now - then) / 1e7
            return round(share, 2)
    return None


def wild(found: Sequence[Glance]) -> Iterator[str]:
    """For ``host/system`` before 7.0: containers that OpenNebula could import."""
    for item in found:
        instance = item.instance
        if machine_id(instance.name) >= 0 or not instance.all_config:
            continue
        template = "".join(f"{key}={value}\n" for key, value in template_of(item).items())
        encoded = base64.b64encode(template.encode()).decode()
        yield f'VM = [ ID=-1, DEPLOY_ID="{instance.name}", VM_NAME="{instance.name}", IMPORT_TEMPLATE="{encoded}" ]\n'


def template_of(item: Glance) -> dict[str, str]:
    """A template for a container; what it does not limit gets OpenNebula's smallest (N-06)."""
    config, name = item.instance.all_config, item.instance.name
    allowance = config.get("limits.cpu.allowance", "")
    share = allowance.removesuffix("%")
    cpu = int(share) / 100 if share != allowance and share.isascii() and share.isdigit() and len(share) < 7 else 0.5
    vcpu = config.get("limits.cpu", "")
    state = monitor.machine_state(item.instance, Work.NONE, time.time()) or MachineState.RUNNING
    return {
        "NAME": f'"{name}"',
        "CPU": f'"{cpu or 0.01}"',
        "VCPU": f'"{_processors(vcpu)}"',
        "MEMORY": f'"{_mebibytes(config.get("limits.memory", ""))}"',
        "HYPERVISOR": '"lxd"',
        "DEPLOY_ID": f'"{name}"',
        "IMPORT_VM_ID": f'"{name}"',
        "IMPORT_STATE": f'"{state.value}"',
        "OS": f'[ ARCH="{item.instance.architecture}" ]',
    }


_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _mebibytes(limit: str) -> int:
    digits = limit.rstrip("kKMGTiB")
    factor = _UNITS.get(limit[len(digits) :], 1 if limit == digits else 0)
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else 0
    return max(number * factor >> 20, 1) if number * factor else 512


def _processors(limit: str) -> int:
    """``2``; ``3-3`` and ``0,2-4`` name them."""
    if limit.isascii() and limit.isdigit() and len(limit) < 6:
        return max(int(limit), 1)
    count = 0
    with contextlib.suppress(ValueError):
        for part in limit.split(","):
            first, _, last = part.partition("-")
            count += max(int(last or first) - int(first) + 1, 0)
    return max(count, 1)


def _is_shown(item: Glance, one_version: str) -> bool:
    return machine_id(item.instance.name) >= 0 or knows_wild(one_version)


def _state(item: Glance, busy: frozenset[str], now: float) -> MachineState | None:
    """Its state; ``None`` as well for one that vanished while the daemon looked: that is then an error without a description."""
    instance = item.instance
    if not instance.all_config:
        return None
    return monitor.machine_state(instance, Work.UNDER_WAY if instance.name in busy else Work.NONE, now)


def _unless_ended(item: Seen, before: History) -> MachineState | None:
    last = before.known.get(item.container)
    changed = last is None or last.state is not item.state
    return None if changed and item.state is not MachineState.RUNNING else item.state


def _mark(mapper: Mapper) -> int:
    """Changes whenever an action has begun or ended."""
    try:
        return os.stat(mapper.runtime.locks).st_mtime_ns
    except FileNotFoundError:
        return 0


def _history(path: str) -> History:
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):
        return History.from_json(kept(path))
    return History()


def _samples(path: str) -> dict[str, Any]:
    found = kept(path).get("samples")
    return found if isinstance(found, dict) else {}
