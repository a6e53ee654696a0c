"""The demonstration, step by step. Whoever wants to know how Mapper is used can read it here."""

from __future__ import annotations

import json
import os
import re
import shlex
import time

import machine
from cleanup import clean_up
from commands import Commands
from console import Console
from place import BIN, DEFAULT_DIR, ROOT, DemoError, Place, runtime_dir

#: What is written inside, by whom, and in which disk it has to be afterwards: below which directory of its tree.
_WRITTEN = (
    ("/root/written", 0, 0, "root/written"),
    ("/home/user/written", 1000, 0, "home/user/written"),
    ("/data/written", 0, 1, "written"),
)
_TREES = ("/", "/boot", "/home", "/data", "/context")
_ATTEMPTS = 5
_COUNT_SECONDS = 10  # for processes that are ending, and loop devices that go with their last user


class Story:
    """One demonstration.

    :param lock_fd: the lock of its directory.
    """

    def __init__(self, place: Place, lock_fd: int, commands: Commands, console: Console) -> None:
        self._place = place
        self._lock_fd = lock_fd
        self._commands = commands
        self._console = console
        self._before = ""
        self._is_counted = False
        self._began = time.monotonic()

    # --- acts -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From nothing to a container that runs and has been looked at.

        :raises DemoError: a step failed.
        """
        self._console.headline("A partitioned disk image becomes a running LXD container, and leaves nothing behind.")
        if self._place.is_used():
            with self._console.step("clean up after an earlier demo that was killed"):
                clean_up(self._place, self._commands)
        self._count_before()
        self._start_lxd()
        self._build_images()
        self._deploy()
        self._look_inside()

    def keep(self) -> None:
        """Leave the container running, and say how to look at it."""
        with open(self._place.kept, "w", encoding="utf-8") as file:
            json.dump({"before": self._before}, file)
        lab = f"{ROOT}/labs/lxd"
        self._console.line(f"""
The container keeps running. To look at it:
  eval "$({shlex.join((lab, "env", self._place.lab))})"
  lxc list
  lxc exec {self._place.container} -- sh
  {BIN}/mapper-cli ls
  findmnt -R {runtime_dir()}/mounts
To end it: scripts/demo --down{self._dir_option()}""")

    def resume(self) -> None:
        """Go on with a demo that was kept.

        :raises DemoError: there is none; what a killed one has left is removed.
        """
        try:
            with open(self._place.kept, encoding="utf-8") as file:
                self._before = json.load(file)["before"]
        except FileNotFoundError:
            return

    def end(self) -> None:
        """From the running container to nothing.

        :raises DemoError: a step failed, or something is left.
        """
        if self._before:
            self._shut_down()
            self._look_into_images()
            with self._console.step("stop LXD, remove the files"):
                self._commands.lab("down")
                self._place.remove()
            self._count()
        else:
            self._clean_up()
        self._console.headline(f"done in {time.monotonic() - self._began:.1f} s")

    def undo(self) -> bool:
        """Clean up after an interrupted or failed demo, and count; return whether nothing is left."""
        try:
            if self._place.owns(self._lock_fd):
                self._clean_up()
            if self._before and not self._is_counted:
                self._count()
        except DemoError as error:
            self._console.line(f"error: {error}")
            return False
        return True

    # --- steps ----------------------------------------------------------------------------------------

    def _count_before(self) -> None:
        with self._console.step("look at what is in use on this host"):
            done = self._commands.run(f"{BIN}/python", "-m", "mapper_core.testing.leaks", "snapshot")
            self._before = done.stdout
            self._console.say(f"{len(json.loads(self._before)['items'])} mounts, devices, daemons and files")

    def _start_lxd(self) -> None:
        with self._console.step("start a private LXD daemon"):
            self._commands.lab("up")
            about = json.loads(self._lxc("query", "/1.0"))["environment"]
            self._console.say(f"LXD {about['server_version']}, process {about['server_pid']}, in {self._place.lab}")

    def _build_images(self) -> None:
        with self._console.step("build the disks and the description of a virtual machine"):
            os.makedirs(self._place.vm_dir, mode=0o700)
            built = self._commands.run(f"{ROOT}/labs/image", "demo", self._place.vm_dir)
            for number, name in enumerate(("system.qcow2", "data.raw", "context.iso")):
                os.rename(f"{self._place.vm_dir}/{name}", self._place.disk(number))
            system = json.loads(built.stdout)["system"]
            machine.describe(self._place, self._bridge())
            say = self._console.say
            parts = ", ".join(f"{part['mount']} ({part['filesystem']})" for part in system["partitions"])
            say(f"disk.0, qcow2 with GPT: {parts}")
            say("  its fstab:")
            for line in system["fstab"].splitlines()[1:]:
                say(f"    {line}")
            say("disk.1, raw, one ext4 filesystem; disk.2, the context ISO")
            say(f"in {self._place.vm_dir}")
            say(f"what oned sends to the node: {self._place.vm_xml}")

    def _deploy(self) -> None:
        with self._console.step("run OpenNebula's script deploy"):
            done = machine.deploy(self._place, self._commands)
            if done.stdout != f"{self._place.container}\n":
                raise DemoError(f"deploy printed {done.stdout!r} instead of the name of the container")
            self._say_times("deploy", done.stderr)
            for line in self._commands.mapper("ls").stdout.splitlines():
                self._console.say(line)

    def _look_inside(self) -> None:
        with self._console.step("look at the container from inside"):
            self._show_mounts()
            self._show_owners()
            self._write_files()

    def _shut_down(self) -> None:
        with self._console.step("run OpenNebula's script shutdown"):
            done = machine.shutdown(self._place, self._commands)
            self._say_times("shutdown", done.stderr)

    def _look_into_images(self) -> None:
        with self._console.step("look into the images: the files are there, root's are root's"):
            os.makedirs(self._place.look, mode=0o700, exist_ok=True)
            for number, kind in ((0, "qcow2"), (1, "raw")):
                disk = self._place.disk(number)
                self._commands.mapper("mount", "--read-only", "-f", kind, disk, self._place.look)
                for path, owner, where, below in _WRITTEN:
                    if where == number:
                        self._show_written(path, owner, f"{self._place.look}/{below}")
                self._commands.mapper("umount", self._place.look)

    def _count(self) -> None:
        """Count what is in use and was not before.

        :raises DemoError: something is.
        """
        with self._console.step("count what is in use now and was not before"):
            scope: list[str] = []
            if os.environ.get("MAPPER_TEST_SHARED_HOST") == "1":
                scope = ["--scope", self._place.dir, "--scope", runtime_dir()]
            done = self._commands.run(
                *(f"{BIN}/python", "-m", "mapper_core.testing.leaks", "diff", "/dev/stdin"),
                *("--wait", str(_COUNT_SECONDS), *scope),
                text=self._before,
                accept=(0, 1),
            )
            self._is_counted = True
            self._console.say(done.stdout)
            if done.status != 0:
                raise DemoError("something is left in use; see: mapper-cli ls, mapper-cli doctor, mapper-cli reconcile")

    # --- looking --------------------------------------------------------------------------------------

    def _show_mounts(self) -> None:
        seen = {}
        for line in self._inside("cat", "/proc/mounts").splitlines():
            source, target, fstype, options, *_ = line.split(" ")
            seen[target] = f"{target:10} {source:15} {fstype:6} {options}"
        for target in _TREES:
            if target not in seen:
                raise DemoError(f"{target} is not mounted in the container")
            self._console.say(seen[target])

    def _show_owners(self) -> None:
        inside, outside, count = self._inside("cat", "/proc/self/uid_map").split()[:3]
        if outside == "0":
            raise DemoError("the container is privileged")
        self._console.say(f"its user {inside} is user {outside} of the host, and so on ({count}): it is unprivileged")
        paths = ("/etc/fstab", "/boot/config", "/data/data.txt", "/context/context.sh")
        for line in self._inside("stat", "-c", "%u:%g %n", *paths, "/home/user/hello.txt").splitlines():
            owner, path = line.split(" ", 1)
            if owner != ("1000:1000" if path.startswith("/home/user/") else "0:0"):
                raise DemoError(f"{path} belongs to {owner} in the container")
            self._console.say(f"{path:22} belongs to {owner} inside")
        found = os.stat(f"{self._place.staged_root}/etc/fstab")
        self._console.say(f"/etc/fstab belongs to {found.st_uid}:{found.st_gid} on the host, in the idmapped tree")

    def _write_files(self) -> None:
        for path, user, _, _ in _WRITTEN:
            text = f"user {user} wrote this into {os.path.dirname(path)}"
            script = f"echo {shlex.quote(text)} >{path}"
            self._lxc(
                "exec", self._place.container, "--user", str(user), "--group", str(user), "--", "sh", "-c", script
            )
            self._console.say(f"wrote {path} as user {user}")

    def _show_written(self, path: str, user: int, where: str) -> None:
        text = self._commands.run("cat", where).stdout.strip()
        owner = self._commands.run("stat", "-c", "%u:%g", where).stdout.strip()
        if owner != f"{user}:{user}":
            raise DemoError(f"{path} belongs to {owner} in the image, and not to {user}")
        self._console.say(f"{path:20} {owner:10} {text}")

    def _clean_up(self) -> None:
        with self._console.step("clean up: stop LXD, release the disks, remove the files"):
            clean_up(self._place, self._commands)
            self._place.remove()

    # --- helpers --------------------------------------------------------------------------------------

    def _inside(self, *argv: str) -> str:
        """What a command that only looks prints inside. On a busy machine LXD up to 5.0 sometimes loses all of it
        (canonical/lxd#11422): then it is asked again.
        """
        for _ in range(_ATTEMPTS):
            if printed := self._lxc("exec", self._place.container, "--", *argv):
                return printed
        raise DemoError(f"lxc exec {self._place.container} -- {shlex.join(argv)}: printed nothing {_ATTEMPTS} times")

    def _lxc(self, *arguments: str) -> str:
        lab = self._place.lab
        return self._commands.run("lxc", *arguments, LXD_DIR=f"{lab}/lxd", LXD_CONF=f"{lab}/client").stdout

    def _bridge(self) -> str:
        exports = self._commands.lab("env").stdout
        found = re.search(r"^export MAPPER_LAB_BRIDGE=(.*)$", exports, re.MULTILINE)
        return "".join(shlex.split(found[1])) if found else ""

    def _say_times(self, action: str, stderr: str) -> None:
        for line in stderr.splitlines():
            self._console.say(line.removeprefix(f"INFO: {action}: "))

    def _dir_option(self) -> str:
        return "" if self._place.dir == DEFAULT_DIR else f" --dir {shlex.quote(self._place.dir)}"
