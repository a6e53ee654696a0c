"""Takes a demo away, wherever it was interrupted. Can itself be interrupted, and repeated.

The order matters: first nothing works on the disks any more, then the container ends, then Mapper releases the disks, and
the files go last, when nothing is mapped or mounted from them.
"""

from __future__ import annotations

import json
import os
import time

from commands import Commands, end_orphans
from place import DemoError, Place, runtime_dir

_RELEASE_SECONDS = 60.0
_PAUSE_SECONDS = 0.2  # the kernel tells nobody when the last user of a filesystem in some mount namespace is gone


def clean_up(place: Place, commands: Commands) -> None:
    """Stop the daemon, release the disks, remove the files; the directory and its lock stay.

    :raises DemoError: something is left; the files are, too, and the call can be repeated.
    """
    problems = []
    for step in (_end_orphans, _stop_lab, _stop_looking, release):
        try:
            step(place, commands)
        except DemoError as error:  # the next ones may succeed all the same
            problems.append(str(error))
    if problems:
        raise DemoError("\n".join(problems))
    place.clear()


def _end_orphans(place: Place, _commands: Commands) -> None:
    end_orphans(place)


def _stop_lab(place: Place, commands: Commands) -> None:
    if os.path.lexists(place.lab):
        commands.lab("down")
    if os.path.lexists(f"/sys/class/net/{place.nic}"):  # LXD was killed between making it and joining it to the bridge
        commands.run("ip", "link", "del", place.nic)


def _stop_looking(place: Place, commands: Commands) -> None:
    """Unmount what was mounted with mapper-cli: as its user's wish that is nothing that reconcile would take away."""
    if os.path.lexists(place.look):
        commands.mapper("umount", place.look)


def release(place: Place, commands: Commands) -> None:
    """Let Mapper clean up after what was killed, until nothing of the demo is mapped.

    Usually that is done at once. Whatever ended just now, and programs of others whose mount namespace has a copy of our mounts,
    may hold a device a moment longer.

    :raises DemoError: naming what is left.
    """
    until = time.monotonic() + _RELEASE_SECONDS
    while True:
        done = commands.mapper("reconcile", "--json", accept=(0, 1))
        report = json.loads(done.stdout or "{}")
        left = [
            f"{problem['subject']}: {problem['outcome']}"
            for problem in report.get("problems", [])
            if _is_ours(place, problem["subject"])
        ]
        left += mapped(place, commands)
        if not left:
            return
        if time.monotonic() > until:
            raise DemoError("Mapper still has:\n" + "\n".join(left))
        time.sleep(_PAUSE_SECONDS)


def mapped(place: Place, commands: Commands) -> list[str]:
    """What Mapper has of this demo."""
    found = json.loads(commands.mapper("ls", "--json").stdout)
    disks = [disk["disk"]["source"] for disk in found["disks"]]
    trees = [tree["directory"] for tree in found["trees"]]
    return [subject for subject in (*disks, *trees) if _is_ours(place, subject)]


def _is_ours(place: Place, subject: str) -> bool:
    staging = f"{runtime_dir()}/mounts/{place.container}."
    return subject.startswith((f"{place.dir}/", staging))
