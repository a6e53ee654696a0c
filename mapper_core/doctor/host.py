"""What this host can do: privilege, transports, plugins, programs, kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mapper_core.doctor.check import Check, Status
from mapper_core.errors import MapperError
from mapper_core.linux import features
from mapper_core.process import PACKAGES, find_program, run
from mapper_core.registry import BLOCK_ENVIRONMENT, INSTALL
from mapper_core.transports import NAMES, transport_named

if TYPE_CHECKING:
    from mapper_core.mapping import Mapper

#: Filesystems that images of systems use, and what is lost on a kernel without them.
_FILESYSTEMS = {
    "ext4": "most images cannot be mounted",
    "xfs": "images of RHEL and its relatives cannot be mounted",
    "btrfs": "images of SUSE and Fedora cannot be mounted",
    "squashfs": "live and snap images cannot be mounted",
    "vfat": "EFI system partitions are left out of trees, with a warning",
}
_VERSION_SECONDS = 10


def examine(mapper: Mapper) -> tuple[Check, ...]:
    """Examine the host."""
    return (
        *_privilege(),
        *_transports(),
        *_plugins(mapper),
        *(_program(name) for name in PACKAGES),
        *_kernel(),
        _filesystems(),
    )


def _privilege() -> Iterator[Check]:
    if os.geteuid() != 0:
        yield Check(
            "privilege",
            Status.WARNING,
            "not root: devices, mounts and the journal cannot be examined",
            "run it as root",
        )


def _transports() -> Iterator[Check]:
    working = []
    for name in NAMES:
        availability = transport_named(name).availability()
        if availability.works:
            working.append(name)
            yield Check(f"transport {name}", Status.OK, "works")
        else:
            yield Check(f"transport {name}", Status.WARNING, availability.reason, availability.hint)
    if "loop" not in working:
        yield Check("transports", Status.FAILED, "raw images cannot be mapped", "see the transports")
    if not {"nbd", "storage_daemon"} & set(working):
        yield Check(
            "transports", Status.FAILED, "only raw images can be mapped", "one of nbd and storage_daemon is needed"
        )


def _plugins(mapper: Mapper) -> Iterator[Check]:
    for plugin in mapper.registry.plugins:
        name, entry = f"plugin {plugin.entry.name}", plugin.entry
        if plugin.usable:
            yield Check(name, Status.OK, f"{entry.distribution} {entry.version}")
        elif BLOCK_ENVIRONMENT in plugin.problem:
            yield Check(name, Status.WARNING, plugin.problem)
        else:
            remedy = f"install a version of {entry.distribution} for this mapper-core, or uninstall it"
            yield Check(name, Status.FAILED, plugin.problem, remedy)
    if not mapper.registry.plugins:
        yield Check("plugins", Status.FAILED, "none is installed", INSTALL)


def _program(name: str) -> Check:
    path = find_program(name)
    if path is None:
        return Check(f"program {name}", Status.WARNING, "is not installed", f"install the package {PACKAGES[name]}")
    if not name.startswith("qemu-"):
        return Check(f"program {name}", Status.OK, path)
    try:
        answer = run((name, "--version"), timeout=_VERSION_SECONDS).stdout.decode(errors="replace")
    except MapperError as error:
        return Check(f"program {name}", Status.FAILED, f"{path} does not run: {error}", f"reinstall {PACKAGES[name]}")
    # "qemu-img version 7.2.22 (Debian ...)", "qemu-nbd 7.2.22 (Debian ...)"
    words = answer.partition("\n")[0].partition(" (")[0].split()
    return Check(f"program {name}", Status.OK, f"{path} {words[-1] if words else ''}".rstrip())


def _kernel() -> Iterator[Check]:
    uname = os.uname()
    yield Check("kernel", Status.OK, f"{uname.release} {uname.machine}")
    try:
        configure = features.loop_configure()
    except OSError:
        configure = None
    if configure is None:
        yield Check("kernel loop", Status.WARNING, "not examined: no free loop device can be opened")
    elif configure:
        yield Check("kernel loop", Status.OK, "LOOP_CONFIGURE works")
    else:
        yield Check("kernel loop", Status.FAILED, "LOOP_CONFIGURE is missing", "Linux 5.8 or later is needed")
    if reason := features.open_in_root():
        yield Check("kernel openat2", Status.FAILED, reason, "Linux 5.6 or later is needed")
    else:
        yield Check("kernel openat2", Status.OK, "works")
    if os.geteuid() != 0:
        return
    if reason := features.mount_api():
        yield Check("kernel mount API", Status.FAILED, reason, "Linux 5.12 or later and CAP_SYS_ADMIN are needed")
        return
    yield Check("kernel mount API", Status.OK, "fsopen, fsmount and mount_setattr work")
    yield _idmap()


def _idmap() -> Check:
    name = "kernel idmapped mounts"
    hint = "trees for unprivileged containers need them; without, LXD has to shift the owners"
    try:
        tried = features.idmapped_mounts()
    except MapperError as error:
        return Check(name, Status.WARNING, str(error), error.hint or hint)
    detail = ", ".join(
        f"{'work' if works else 'do not work'} on {fstype}" + (f" ({target})" if target else "")
        for fstype, target, works in tried
    )
    works = any(works for _, _, works in tried)
    return Check(name, Status.OK, detail) if works else Check(name, Status.WARNING, detail, hint)


def _filesystems() -> Check:
    known = features.filesystems()
    missing = frozenset(_FILESYSTEMS) - known
    loadable = features.loadable_filesystems(missing)
    absent = sorted(missing - loadable)
    detail = ", ".join(name + (" (module)" if name in loadable else "") for name in _FILESYSTEMS if name not in absent)
    if not absent:
        return Check("kernel filesystems", Status.OK, detail)
    lost = "; ".join(f"without {name} {_FILESYSTEMS[name]}" for name in absent)
    return Check("kernel filesystems", Status.WARNING, f"{detail}; missing: {', '.join(absent)}", lost)
