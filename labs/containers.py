#!/usr/bin/python3
"""Starts and stops a private, real {title} daemon for tests and the demo.

    labs/{name} up     [DIR]            start it (does nothing when it runs already)
    labs/{name} env    [DIR]            print shell exports: eval "$(labs/{name} env)"
    labs/{name} status [DIR]            one line; exit status 0: up, 3: not up
    labs/{name} down   [DIR]            stop containers and daemon, remove everything
{more}
Needs root, and no systemd. Several labs can run side by side in different directories. DIR defaults to
/run/mapper-lab/{name}: a unix socket path must be shorter than 108 bytes (unix(7)), which a directory below a deep
checkout or a pytest temporary directory would not leave room for, and /run disappears with the daemon at a reboot.

Only the standard library of /usr/bin/python3 (3.11) is used: the lab has to work before any environment exists.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace

import containers_daemon as daemons
import containers_traces as traces
import debian13
from common import NOT_RUNNING, SUN_PATH_MAX, LabError, ignore_interrupts, locked, run
from containers_model import INCUS, LXD, PRODUCTS, Lab, Product

INCUS_HELP = """\
    labs/incus build                   build the Debian 13 that it runs in, unless it is there
    labs/incus clean                   remove that

Incus and its client come from Debian 13: a tree of its packages is built once, into incus/ of the labs' cache
($MAPPER_LAB_CACHE, or .mapper-lab in this tree), and is the root directory of the daemon.
"""


def up(directory: str, product: Product, private_mounts: bool) -> int:
    """Start the lab, or clean up the rests of a dead one and start it."""
    lab = Lab.load(directory, product)
    if lab is not None and daemons.daemon_alive(lab):
        print(f"already up: pid {lab.pid}, {product.prefix}_DIR={lab.home}", file=sys.stderr)
        return 0
    lab = Lab(directory, product.name)
    if len(f"{lab.home}/run/seccomp.socket") > SUN_PATH_MAX:
        raise LabError(f"{directory}: too long for the path of a unix socket, take a shorter directory")
    require_programs(product)
    if os.path.lexists(directory):
        down(directory, product)
    tree = debian13.tree() if product is INCUS else ""
    began = time.monotonic()
    with contextlib.ExitStack() as undo:
        undo.callback(clean_up, directory, product)
        for path in (lab.home, lab.root) if tree else (lab.home,):
            os.makedirs(path, mode=0o711)
        os.chmod(directory, 0o711)
        keep = tuple(path for path in traces.of_liblxc(lab) if os.path.isdir(path))
        mount_cgroups = not traces.cgroup_mounts()
        bridge = "mlab" + hashlib.sha256(directory.encode()).hexdigest()[:8]  # IFNAMSIZ: 15 characters
        lab = replace(lab, bridge=bridge, cgroup_mounted=mount_cgroups, tree=tree, keep=keep)
        lab.save()
        if mount_cgroups:
            run("mount", "-t", "cgroup2", "none", traces.CGROUP_ROOT)
        try:
            run("ip", "link", "add", bridge, "type", "bridge")
            run("ip", "link", "set", bridge, "up")
        except LabError as error:
            print(f"no network bridge, containers get no NIC: {error}", file=sys.stderr)
            lab = replace(lab, bridge="")
            lab.save()
        lab = daemons.start_daemon(lab, private_mounts)
        daemons.request(lab, "POST", "/1.0/storage-pools", {"name": "default", "driver": "dir"})
        root = {"type": "disk", "path": "/", "pool": "default"}
        daemons.request(lab, "PATCH", "/1.0/profiles/default", {"devices": {"root": root}})
        undo.pop_all()
    took = time.monotonic() - began
    print(f"up in {took:.1f} s: pid {lab.pid}, {product.prefix}_DIR={lab.home}", file=sys.stderr)
    return 0


def down(directory: str, product: Product) -> int:
    """Undo `up`, whatever state it is in. Does nothing when there is no lab."""
    lab = Lab.load(directory, product)
    if lab is None:
        lab = Lab(directory, product.name)
        known = {os.path.basename(lab.home), os.path.basename(lab.root)}
        if os.path.lexists(directory) and not known.issuperset(os.listdir(directory)):
            raise LabError(f"{directory} is not a lab: it has no lab.json, and is left alone")
    owner = daemons.socket_owner(lab)  # killed between the start of the daemon and its record
    if owner and owner != lab.pid:
        lab = replace(lab, pid=owner, starttime=daemons.starttime(owner))
    containers_dir = f"{lab.home}/containers"
    containers = os.listdir(containers_dir) if os.path.isdir(containers_dir) else []
    daemons.stop_daemon(lab)
    daemons.kill_left_over(lab)
    traces.unmount_below(directory)
    if left := traces.mounts_below(directory):  # never delete through a mount: it could be somebody's data
        raise LabError(f"still mounted, nothing is deleted: {', '.join(left)}")
    if lab.bridge and os.path.isdir(f"/sys/class/net/{lab.bridge}"):
        for port in os.listdir(f"/sys/class/net/{lab.bridge}/brif"):  # of a container that was killed while it started
            with contextlib.suppress(LabError):  # gone with its container's network namespace meanwhile
                run("ip", "link", "del", port)
        run("ip", "link", "del", lab.bridge)
    traces.remove_cgroups(containers)
    for path in traces.of_liblxc(lab):
        if path not in lab.keep:
            with contextlib.suppress(OSError):  # not empty: another daemon uses it
                os.rmdir(path)
    if lab.cgroup_mounted:
        with contextlib.suppress(LabError):
            run("umount", traces.CGROUP_ROOT)
    if os.path.lexists(directory):
        shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        os.rmdir("/run/mapper-lab")
    return 0


def clean_up(directory: str, product: Product) -> None:
    """Take a half-started lab down; a second ^C does not interrupt that."""
    ignore_interrupts()
    down(directory, product)


def env(directory: str, product: Product) -> int:
    """Print what a shell needs to use the lab."""
    lab = Lab.load(directory, product)
    if lab is None or not daemons.daemon_alive(lab):
        raise LabError(f"no lab is up in {directory}: labs/{product.name} up {directory}")
    common = {"MAPPER_LAB_BRIDGE": lab.bridge, "MAPPER_LAB_CLIENT": shlex.join(lab.client)}
    for name, value in (lab.variables | common).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def status(directory: str, product: Product) -> int:
    """Print one line about the lab."""
    lab = Lab.load(directory, product)
    if lab is None:
        print(f"down {directory}")
        return NOT_RUNNING
    if not daemons.daemon_alive(lab):
        print(f"dead {directory} (its daemon {lab.pid} is gone; labs/{product.name} down cleans up)")
        return NOT_RUNNING
    try:
        listed = daemons.request(lab, "GET", "/1.0/instances?recursion=1&all-projects=true")["items"]
    except (OSError, LabError, http.client.HTTPException) as error:
        print(f"starting or stuck {directory} pid {lab.pid} ({error})")
        return NOT_RUNNING
    running = [one for one in listed if one["status"] == "Running"] if isinstance(listed, list) else []
    print(f"up {directory} pid {lab.pid}, {len(running)} containers running")
    return 0


def require_programs(product: Product) -> None:
    """Say at once all that is missing."""
    missing = sorted({package for program, package in product.needs if shutil.which(program) is None})
    if missing:
        raise LabError(f"programs are missing: apt-get install --no-install-recommends {' '.join(missing)}")


def build() -> int:
    """Build what the daemon runs in, unless it is there."""
    require_programs(INCUS)
    print(debian13.tree())
    return 0


def clean() -> int:
    """Remove the cached tree, unless a lab runs in it."""
    labs = (Lab.load(os.path.dirname(home), INCUS) for home in daemons.running(INCUS))
    users = [lab.dir for lab in labs if lab is not None and os.path.dirname(lab.tree) == debian13.CACHE]
    if users:
        raise LabError(f"a lab of labs/incus runs: {', '.join(users)}")
    debian13.clean()
    return 0


def main() -> int:
    """Run one command; the first argument, from labs/lxd or labs/incus, says which daemon it is about."""
    product = PRODUCTS[sys.argv[1]]
    commands = ["up", "env", "status", "down"] + (["build", "clean"] if product is INCUS else [])
    more = f"\n{INCUS_HELP}" if product is INCUS else ""
    parser = argparse.ArgumentParser(
        prog=f"labs/{product.name}",
        description=(__doc__ or "").format(name=product.name, title=product.title, more=more),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands)
    parser.add_argument("dir", nargs="?", default=f"/run/mapper-lab/{product.name}", metavar="DIR")
    if product is LXD:
        parser.add_argument(
            "--private-mounts", action="store_true", help="up: a mount namespace of its own, as a snap's daemon has"
        )
    options = parser.parse_args(sys.argv[2:])
    if os.geteuid() != 0:
        parser.error("must run as root")
    directory = os.path.realpath(options.dir)  # LXC refuses paths with symbolic links in them
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.command == "up":
            with locked(directory):
                return up(directory, product, getattr(options, "private_mounts", False))
        if options.command == "down":
            with locked(directory):
                return down(directory, product)
        if options.command in ("build", "clean"):
            return build() if options.command == "build" else clean()
        return env(directory, product) if options.command == "env" else status(directory, product)
    except (LabError, OSError) as error:
        print(f"labs/{product.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
