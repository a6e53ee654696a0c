"""What the probes say about the node: ``host/system`` (what it has) and ``host/monitor`` (what it uses)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mapper_core.mapping import Mapper
from mapper_driver.lxd import cgroups, glance
from mapper_driver.opennebula.protocol import knows_wild
from mapper_driver.probes import machines
from mapper_driver.probes.memory import keep, kept, path_of


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Since the boot, of all processors together, clock ticks (:manpage:`proc_stat(5)`)."""

    idle: int
    total: int


def system(sockets: Sequence[str], one_version: str) -> str:
    """``host/system``: what does not change, and containers that could be imported.

    :raises LxdUnavailable: a node whose daemon does not answer is of no use.
    """
    values = {
        "HYPERVISOR": "lxd",
        "ARCH": os.uname().machine,
        "HOSTNAME": quoted(os.uname().nodename),
        "MODELNAME": quoted(_cpuinfo("model name") or os.uname().machine),
        "TOTALCPU": str((os.cpu_count() or 1) * 100),
        "CPUSPEED": str(_megahertz()),
        "TOTALMEMORY": str(memory_of(_read("/proc/meminfo")).get("MemTotal", 0)),
        "CGROUPS_VERSION": "1" if cgroups.version_of("memory") is cgroups.Version.V1 else "2",
        "LXD_PROFILES": quoted(" ".join(glance.profiles(sockets))),
    }
    importable = machines.wild(glance.configurations(sockets)) if knows_wild(one_version) else ()
    return _lines(values) + "".join(importable)


def usage(mapper: Mapper, host_id: int) -> str:
    """``host/monitor``: what is used now; of the processors since the last look, at the first one since the boot."""
    now, path = cpu_time(_read("/proc/stat")), path_of(mapper, f"host-{host_id}")
    last = kept(path).get("cpu")
    before = CpuTime(*last) if isinstance(last, list) and len(last) == 2 else CpuTime(0, 0)
    keep(path, {"cpu": [now.idle, now.total]})
    total = (os.cpu_count() or 1) * 100
    free = free_cpu(before, now, total)
    memory = memory_of(_read("/proc/meminfo"))
    available = memory.get("MemAvailable", 0)
    received, sent = traffic_of(_read("/proc/net/dev"))
    return _lines(
        {
            "HYPERVISOR": "lxd",
            "USEDMEMORY": str(memory.get("MemTotal", 0) - available),
            "FREEMEMORY": str(available),
            "FREECPU": str(free),
            "USEDCPU": str(total - free),
            "NETRX": str(received),
            "NETTX": str(sent),
        }
    )


def cpu_time(text: str) -> CpuTime:
    """``/proc/stat``: time of the guests is part of that of user and nice."""
    numbers = [int(word) for word in text.splitlines()[0].split()[1:9]]
    return CpuTime(numbers[3] + numbers[4], sum(numbers))


def free_cpu(before: CpuTime, now: CpuTime, total: int) -> int:
    """Percent of one processor that was free between two looks."""
    passed = now.total - before.total
    if passed <= 0 or now.idle < before.idle:
        return total
    return min(round(total * (now.idle - before.idle) / passed), total)


def memory_of(text: str) -> dict[str, int]:
    """``/proc/meminfo``, KiB."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: int(rest.split()[0]) for name, _, rest in pairs if rest.split()[:1] and rest.split()[0].isdigit()}


def traffic_of(text: str) -> tuple[int, int]:
    """``/proc/net/dev``: bytes received and sent by the network cards; what goes through bridges is counted at them."""
    received = sent = 0
    for line in text.splitlines():
        name, found, rest = line.partition(":")
        if found and os.path.exists(f"/sys/class/net/{name.strip()}/device"):
            numbers = rest.split()
            received += int(numbers[0])
            sent += int(numbers[8])
    return received, sent


def quoted(text: str) -> str:
    """A value of OpenNebula's templates."""
    return '"' + "".join(character for character in text if character.isprintable() and character not in '"\\') + '"'


def _megahertz() -> int:
    try:
        return int(_read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")) // 1000
    except (OSError, ValueError):
        return round(float(_cpuinfo("cpu MHz") or 0))


def _cpuinfo(name: str) -> str:
    pairs = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())
