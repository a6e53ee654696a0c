"""Runs one job in a new virtual machine, which ends with this process whatever happens to it."""

from __future__ import annotations

import contextlib
import io
import os
import select
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass

from common import LabError
from image import HERE, Image

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1"  # a panic ends the machine at once
    " mitigations=off random.trust_cpu=on tsc=reliable no_timer_check cryptomgr.notests audit=0"
)


@dataclass(frozen=True)
class Put:
    """Something of the host that the job finds.

    :param source: file or directory on the host.
    :param target: absolute path in the machine.
    """

    source: str
    target: str


@dataclass(frozen=True)
class Job:
    """What to run.

    :param program: executable file on the host, and its arguments.
    :param puts: files that it needs.
    :param results: directory of the host for what it leaves in ``$RESULTS``; empty when nobody wants that.
    :param seconds: after which the machine is stopped.
    :param memory: MiB.
    :param cpus: virtual processors.
    """

    program: tuple[str, ...]
    puts: tuple[Put, ...] = ()
    results: str = ""
    seconds: float = 300.0
    memory: int = 2048
    cpus: int = 2


def run_job(image: Image, job: Job, directory: str) -> int:
    """Start a machine, forward what the job prints, unpack what it leaves, return its exit status.

    :param directory: for files of this run.
    :raises LabError: the machine ended before the job had, or took too long.
    """
    _write_input(job, f"{directory}/input.tar")
    with open(f"{directory}/qemu.log", "wb") as log:
        machine = subprocess.Popen(
            _command(image, job, directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # ^C reaches us, and we end it
            close_fds=False,  # it holds the lock of the directory
        )
    try:
        in_time = _forward(machine, time.monotonic() + job.seconds)
    finally:
        machine.kill()
        machine.wait()
    status = _unpack(f"{directory}/results.tar", job.results)
    if status is None:
        why = "the machine ended before the job had" if in_time else f"the job was not done after {job.seconds:g} s"
        raise LabError(f"{why}; the end of its console:\n{_end_of(directory)}")
    return status


def _write_input(job: Job, path: str) -> None:
    """The files of the job as a tar archive, which the machine sees as a disk."""
    arguments = " ".join("'" + argument.replace("'", "'\\''") + "'" for argument in job.program[1:])
    script = f"#!/bin/sh\nexec /lab/program {arguments}\n".encode()
    with tarfile.open(path, "w") as archive:
        archive.add(f"{HERE}/init", "lab/init")
        archive.add(os.path.realpath(job.program[0]), "lab/program")
        entry = tarfile.TarInfo("lab/job")
        entry.size, entry.mode = len(script), 0o755
        archive.addfile(entry, io.BytesIO(script))
        for put in job.puts:
            archive.add(put.source, put.target.lstrip("/"))


def _command(image: Image, job: Job, directory: str) -> list[str]:
    disk = "if=virtio,format=raw,cache=unsafe"
    return [
        "setpriv", "--pdeathsig", "KILL",
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", "q35,usb=off,vmport=off", "-cpu", "max",
        "-accel", "tcg,thread=multi,tb-size=512",
        "-smp", str(job.cpus), "-m", str(job.memory),
        "-kernel", image.kernel, "-initrd", image.initramfs, "-append", KERNEL_ARGUMENTS,
        "-drive", f"{disk},file={_escape(image.root)},snapshot=on",  # writes go to a file that has no name
        "-drive", f"{disk},file={_escape(directory)}/input.tar,readonly=on",
        "-serial", f"file:{directory}/console.log",
        "-device", "virtio-serial-pci",
        "-chardev", "file,id=output,path=/dev/stdout", "-device", "virtserialport,chardev=output,name=output",
        "-chardev", f"file,id=results,path={_escape(directory)}/results.tar",
        "-device", "virtserialport,chardev=results,name=results",
    ]  # fmt: skip


def _escape(path: str) -> str:
    return path.replace(",", ",,")


def _forward(machine: subprocess.Popen[bytes], deadline: float) -> bool:
    """Print what the job prints until the machine ends; False when the time was over first."""
    assert machine.stdout is not None
    while (left := deadline - time.monotonic()) > 0:
        if select.select([machine.stdout], [], [], left)[0]:
            piece = os.read(machine.stdout.fileno(), 65536)
            if not piece:
                return True
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
    return False


def _unpack(path: str, directory: str) -> int | None:
    """Put the results in place; return the job's exit status, ``None`` when it has none."""
    status = None
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(path) as archive:
        for entry in archive:
            name = os.path.normpath(entry.name)
            if name == "exit-status":
                file = archive.extractfile(entry)
                assert file is not None
                status = int(file.read())
            elif directory and name.startswith("results/"):
                _extract(archive, entry, os.path.join(directory, name.removeprefix("results/")))
    return status


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo, target: str) -> None:
    """Make a file or directory; other kinds are left out (the filters of tarfile came with Python 3.11.4)."""
    if entry.isdir():
        os.makedirs(target, exist_ok=True)
    elif entry.isfile():
        os.makedirs(os.path.dirname(target), exist_ok=True)
        file = archive.extractfile(entry)
        assert file is not None
        with file, open(target, "wb") as copy:
            shutil.copyfileobj(file, copy)


def _end_of(directory: str) -> str:
    lines: list[str] = []
    for name in ("console.log", "qemu.log"):
        with contextlib.suppress(OSError), open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
            lines += file.read().splitlines()[-20:]
    return "\n".join(f"    {line}" for line in lines)


def keep_logs(directory: str, target: str) -> None:
    """Copy what explains a failure."""
    os.makedirs(target, exist_ok=True)
    for name in ("console.log", "qemu.log"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(f"{directory}/{name}", target)
