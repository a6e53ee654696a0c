"""Whether this node can run OpenNebula's machines: what ``mapper-driver check`` looks at besides the doctor of ``mapper-cli``.

It only looks.
"""

from __future__ import annotations

import os
import pwd
import stat
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress

from mapper_core.doctor import Check, Status
from mapper_core.errors import CommandFailed, MapperError
from mapper_core.linux.confine import CAP_SETGID, CAP_SETUID
from mapper_core.process import find_program, run
from mapper_driver.opennebula.config import Config, find_config, load_config

SCRIPTS = "/var/tmp/one/vmm/lxd"  # noqa: S108  OpenNebula's SCRIPTS_REMOTE_DIR
ROOT_COMMAND = "mapper-driver-root"
_SECONDS = 10.0
_INSTALL = "mapper-driver install-remotes --part node"
_SYNC = "on the front-end: mapper-driver install-remotes, then: onehost sync -f"


def examine(user: str) -> tuple[Check, ...]:
    """Make all checks; one that breaks is a failed check and does not stop the others.

    :param user: OpenNebula's.
    """
    found: list[Check] = []
    config = Config()
    with suppress(MapperError):
        config = load_config(find_config(SCRIPTS, os.environ))
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        lambda: _user(user),
        lambda: _sudo(user),
        _scripts,
        _options,
        lambda: _daemon(config),
        lambda: _datastores(config, user),
        _control_groups,
        _nbd,
        _udev,
        _boot,
        _ruby,
    )
    for part in parts:
        try:
            found += part()
        except Exception as error:
            found.append(Check("check", Status.FAILED, f"cannot be made: {type(error).__name__}: {error}"))
    return tuple(found)


def _user(user: str) -> Iterator[Check]:
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        yield Check("user", Status.FAILED, f"there is no user {user}", "install the package opennebula-node")
        return
    yield Check("user", Status.OK, f"{user} ({found.pw_uid})")


def _sudo(user: str) -> Iterator[Check]:
    name, path = "sudo", f"{sysconfig.get_path('scripts')}/{ROOT_COMMAND}"
    for place in (path, os.path.realpath(path), os.path.dirname(os.path.realpath(path))):
        try:
            status = os.stat(place)
        except OSError:
            yield Check(name, Status.FAILED, f"{place} is missing", "install mapper-driver again")
            return
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield Check(
                name, Status.FAILED, f"others than root can change {place}", f"chown root {place}; chmod go-w {place}"
            )
            return
    if find_program("sudo") is None:
        yield Check(name, Status.FAILED, "is not installed", "install the package sudo")
        return
    if os.geteuid() != 0:
        yield Check(name, Status.WARNING, "not examined", "run it as root")
        return
    try:
        # it reads its configuration as another user
        argv = ("sudo", "-n", "-l", "-U", user, path)
        run(argv, timeout=_SECONDS, subject=user, capabilities=(CAP_SETUID, CAP_SETGID))
    except CommandFailed:
        yield Check(name, Status.FAILED, f"{user} may not run {path}", _INSTALL)
        return
    yield Check(name, Status.OK, f"{user} may run {path}, as root and without a password")


def _scripts() -> Iterator[Check]:
    name = "scripts"
    for script in (f"{SCRIPTS}/deploy", f"{SCRIPTS}/../../im/lxd-probes.d/vm/status/mapper.sh"):
        path = os.path.normpath(script)
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                ours = ROOT_COMMAND in file.read(4096)
        except OSError:
            yield Check(name, Status.WARNING, f"{path} is not there", _SYNC)
            return
        if not ours or not os.access(path, os.X_OK):
            yield Check(name, Status.FAILED, f"{path} is not Mapper's", _SYNC)
            return
    yield Check(name, Status.OK, f"in {os.path.normpath(f'{SCRIPTS}/../..')}")


def _options() -> Iterator[Check]:
    try:
        path = find_config(SCRIPTS, os.environ)
        config = load_config(path)
    except MapperError as error:
        yield Check("options", Status.FAILED, str(error), error.hint or "correct the lxdrc")
        return
    for warning in config.warnings:
        yield Check("options", Status.WARNING, warning, "correct the lxdrc")
    if not config.warnings:
        yield Check("options", Status.OK, path or "all defaults")


def _daemon(config: Config) -> Iterator[Check]:
    from mapper_driver.session import connect

    name = "daemon"
    try:
        client = connect(config)
        about = f"{client.server.product} {client.server.version} at {client.socket}, process {client.daemon_pid()}"
    except MapperError as error:
        yield Check(name, Status.FAILED, str(error), error.hint or "start LXD or Incus")
        return
    yield Check(name, Status.OK, about)
    try:
        pool = config.pool or client.default_pool(config.profile)
    except MapperError as error:
        yield Check("storage pool", Status.FAILED, str(error), error.hint)
        return
    yield Check("storage pool", Status.OK, f"{pool}, by the profile {config.profile}")


def _datastores(config: Config, user: str) -> Iterator[Check]:
    name, path = "datastores", config.datastore_location
    try:
        status = os.stat(path)
    except OSError as error:
        yield Check(name, Status.WARNING, f"{path}: {error.strerror}", "OpenNebula makes it with the first datastore")
        return
    owners = {0}
    with suppress(KeyError):
        owners.add(pwd.getpwnam(user).pw_uid)
    if status.st_uid not in owners or status.st_mode & stat.S_IWOTH:
        yield Check(
            name, Status.FAILED, f"others than {user} can change {path}", f"chown {user} {path}; chmod o-w {path}"
        )
        return
    yield Check(name, Status.OK, path)


def _control_groups() -> Iterator[Check]:
    from mapper_driver.lxd import cgroups

    absent, found = [], set()
    for controller in ("cpu", "memory", "io", "cpuset"):
        try:
            found.add(cgroups.version_of(controller).value)
        except MapperError:
            absent.append(controller)
    if absent:
        hint = "on the kernel's command line: cgroup_enable=memory" if "memory" in absent else ""
        yield Check(
            "control groups",
            Status.WARNING,
            f"missing: {', '.join(absent)}",
            hint or "containers are not limited there",
        )
    else:
        yield Check("control groups", Status.OK, ", ".join(sorted(found)))


def _nbd() -> Iterator[Check]:
    """Without nbd another transport is used, which the doctor tells."""
    with suppress(OSError), open("/sys/module/nbd/parameters/max_part", encoding="ascii") as file:
        if file.read().strip() == "0":
            hint = f"{_INSTALL}; when no image is mapped: rmmod nbd; modprobe nbd"
            yield Check("module nbd", Status.WARNING, "was loaded without room for partitions (max_part=0)", hint)


def _udev() -> Iterator[Check]:
    from mapper_core.linux import udev

    name, path = "udev", "/etc/udev/rules.d/59-mapper.rules"
    if not os.path.exists(udev.CONTROL):
        yield Check(name, Status.OK, "does not run here")
    elif os.path.exists(path):
        yield Check(name, Status.OK, path)
    else:
        yield Check(name, Status.WARNING, "the host reads what is on the disks of guests", _INSTALL)


def _boot() -> Iterator[Check]:
    if not os.path.isdir("/run/systemd/system"):
        return
    link = "/etc/systemd/system/multi-user.target.wants/mapper-driver-boot.service"
    if os.path.exists(link):
        yield Check("boot", Status.OK, "mapper-driver-boot.service is enabled")
    else:
        hint = "containers with boot.autostart and several disks do not come back after a boot of the host"
        yield Check("boot", Status.WARNING, "mapper-driver-boot.service is not enabled", f"{_INSTALL}: {hint}")


def _ruby() -> Iterator[Check]:
    if find_program("ruby") is None:
        yield Check(
            "program ruby", Status.WARNING, "is not installed", "OpenNebula's agent needs it: install the package ruby"
        )
    else:
        yield Check("program ruby", Status.OK, "for OpenNebula's agent")
