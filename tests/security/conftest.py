"""A canary on the host, and somebody who tries hostile images on the product while it sings."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import pytest

from mapper_core.linux import mountinfo

ROOT = Path(__file__).parents[2]
#: Directories of the host in which nothing may change, and how deep they are looked at.
HOST = (("/", 1), ("/etc", 9), ("/root", 1), ("/home", 2), ("/usr/local", 2), ("/boot", 1))


def look(directory: str, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """All that is in a directory: mode, owner, number, size, times."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if entry.is_dir(follow_symlinks=False):
            # others may make and remove files in a directory that is not looked into; its own times say no more
            yield entry.path, (found.st_mode, found.st_uid, found.st_gid, found.st_ino)
            if depth > 1:
                yield from look(entry.path, depth - 1)
        elif depth > 1 or directory != "/root":
            owner = (found.st_mode, found.st_uid, found.st_gid, found.st_ino)
            yield entry.path, (*owner, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Canary:
    """Files of the host that no image may reach.

    :param directory: in it are ``secret``, ``fstab`` and ``etc/fstab``; they look useful, and contain the secret.
    :param secret: it is found nowhere else.
    """

    directory: Path
    secret: str
    before: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def put(cls, directory: Path) -> Canary:
        """Write its files, and remember how the host looks."""
        (directory / "etc").mkdir(parents=True)
        secret = secrets.token_hex(16)
        (directory / "secret").write_text(f"{secret}\n" * 40)
        for name in ("fstab", "etc/fstab"):
            (directory / name).write_text(f"LABEL={secret} /home ext4 defaults 0 0\n")
        canary = cls(directory, secret)
        canary.before.update(canary.host())
        return canary

    def host(self) -> dict[str, tuple[int, ...]]:
        """The canary, and the host around it."""
        found = dict(look(str(self.directory), 9))
        for directory, depth in HOST:
            found |= look(directory, depth)
        return found

    def harm(self) -> list[str]:
        """What has been done to the canary itself; empty when it sings."""
        now = dict(look(str(self.directory), 9))
        known = {path: found for path, found in self.before.items() if mountinfo.is_below(path, str(self.directory))}
        mounted = [entry.target for entry in mountinfo.under(str(self.directory))]
        return [*_changed(known, now), *(f"mounted over: {path}" for path in mounted)]

    def harm_to_host(self) -> list[str]:
        """What has been changed on the host; this takes longer."""
        return _changed(self.before, self.host())


def _changed(before: dict[str, tuple[int, ...]], now: dict[str, tuple[int, ...]]) -> list[str]:
    return [f"changed: {path}" for path in sorted({*before, *now}) if before.get(path) != now.get(path)]


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    """A host with a secret."""
    return Canary.put(tmp_path / "canary")


class Report(Protocol):
    """The fixture ``report``."""

    def count(
        self, subject: str, *, cases: int = 0, runs: int = 0, refused: int = 0, leaks: int = 0, canary: int = 0
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action.

    :param error: the class of the error; empty when it succeeded.
    :param kib: the most memory that it, or a program that it started, has used.
    """

    status: int
    error: str
    stdout: str
    stderr: str
    seconds: float
    kib: int


@dataclass(frozen=True, slots=True)
class Attacker:
    """Calls the product in processes of their own."""

    requests: IO[str]
    answers: IO[str]

    def cli(self, *argv: str) -> Outcome:
        """Run ``mapper-cli``."""
        return self._ask(action="cli", argv=[*argv, "--json"])

    def stage(self, xml: Path, datastores: Path) -> Outcome:
        """Do what ``deploy`` does with the root disk of a machine."""
        return self._ask(action="stage", stdin=str(xml), datastores=str(datastores))

    def driver(self, xml: Path, environ: dict[str, str], *argv: str) -> Outcome:
        """Run ``mapper-driver``."""
        return self._ask(action="driver", stdin=str(xml), argv=argv, environ=environ)

    def _ask(self, **task: Any) -> Outcome:
        self.requests.write(json.dumps(task) + "\n")
        self.requests.flush()
        answer = json.loads(self.answers.readline())
        error = ""
        for line in answer["stderr"].splitlines():
            if line.startswith('{"error"'):
                error = json.loads(line)["error"]["type"]
        return Outcome(error=error, **answer)


@pytest.fixture
def attacker(runtime_dir: Path) -> Iterator[Attacker]:
    """Somebody with the runtime directory of this test."""
    argv = [sys.executable, "-m", "tests.security.worker"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Attacker(process.stdin, process.stdout)
        process.stdin.close()
        assert process.wait(30) == 0
