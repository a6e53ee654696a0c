"""Filesystems that stand still for a moment (FIFREEZE and FITHAW, include/uapi/linux/fs.h).

A frozen filesystem stays frozen when the process that froze it ends, and everybody who writes to it hangs. So another
process, the guard, freezes and thaws: it thaws when it is told to, when the process that wanted it is gone (killed, too),
and when the time is up. It is in a session of its own and ignores the signals that end programs. Whoever kills both at once
(by their control group, for example) leaves the filesystems frozen: the journal says so, and ``reconcile`` thaws them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from collections.abc import Iterator

from mapper_core.errors import Busy, DeadlineExceeded, KernelError, MapperError, NotSupported
from mapper_core.linux import forked
from mapper_core.linux.filesystems import OpenFilesystem
from mapper_core.linux.syscalls import call, kernel_error

_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878

#: What the guard says.
_FROZEN, _FAILED, _THAWED, _LATE = b"F", b"E", b"T", b"L"

#: How long thawing may take, seconds.
_THAW_SECONDS = 30


@contextlib.contextmanager
def frozen(filesystems: tuple[OpenFilesystem, ...], *, seconds: float) -> Iterator[None]:
    """Flush filesystems and let nobody write to them until the end of the block.

    Those that cannot be written, or whose type cannot be frozen for lack of a journal or a driver, are flushed only.

    :param seconds: after which they are thawed, whether or not the block has come to its end.
    :raises Busy: somebody else has frozen one.
    :raises DeadlineExceeded: the time was up before; what was done in the block may have seen writes.
    :raises KernelError: for all else; nothing is frozen then.
    """
    for filesystem in filesystems:
        call("syncfs", filesystem.fd)  # most of the work, while they can still be written
    alive_read, alive_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = forked.fork()
    if pid == 0:
        _guard([filesystem.fd for filesystem in filesystems], alive_read, report_write, seconds)
    os.close(alive_read)
    os.close(report_write)
    told: bytes | None = b""
    try:
        try:
            _check(_heard(report_read, seconds), filesystems)
            yield
        finally:
            os.close(alive_write)  # this is what tells the guard
            told = _last_word(report_read)
    finally:
        os.close(report_read)
        if told is not None:  # else it hangs in the kernel, and thaws when it comes back from there
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if told == b"":  # somebody has killed it
            thaw(filesystems)
    if told != _THAWED:
        raise DeadlineExceeded(f"the filesystems stood still for {seconds:g} s, and had to go on before it was done")


def thaw(filesystems: tuple[OpenFilesystem, ...]) -> bool:
    """Let filesystems be written again; ``False`` when none was frozen."""
    done = [_thaw(filesystem.fd) for filesystem in filesystems]
    return any(done)


def _guard(fds: list[int], alive: int, report: int, seconds: float) -> None:
    """Be the guard; never returns."""
    held: list[int] = []
    try:
        forked.close_all_but(*fds, alive, report)
        os.setsid()
        deadline = time.monotonic() + seconds
        for position, fd in enumerate(fds):
            try:
                fcntl.ioctl(fd, _FIFREEZE, 0)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EROFS):
                    continue
                os.write(report, _FAILED + b"%d %d" % (position, error.errno or 0))
                return
            held.append(fd)
        os.write(report, _FROZEN)
        poll = select.poll()
        poll.register(alive, select.POLLIN)  # readable at its end: when the other side is closed, by whatever
        in_time = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for fd in reversed(held):
            _thaw(fd)
        held.clear()
        os.write(report, _THAWED if in_time else _LATE)
    finally:
        for fd in reversed(held):
            _thaw(fd)
        os._exit(0)


def _check(answer: bytes | None, filesystems: tuple[OpenFilesystem, ...]) -> None:
    if answer == _FROZEN:
        return
    if answer is None:
        raise DeadlineExceeded("the filesystems could not be frozen in time: the device may hang")
    if not answer.startswith(_FAILED):
        raise KernelError("the process that freezes the filesystems was killed")
    position, number = map(int, answer[1:].split())
    raise _freeze_error(filesystems[position], number)


def _freeze_error(filesystem: OpenFilesystem, number: int) -> MapperError:
    if number == errno.EBUSY:
        return Busy(
            f"somebody else has frozen the {filesystem.type} filesystem of {filesystem.device}",
            subject=filesystem.device,
            hint="a backup program may be at work; else: fsfreeze --unfreeze",
        )
    if number == errno.ENOTTY:
        return NotSupported(f"{filesystem.type} cannot be frozen", subject=filesystem.device)
    error = OSError(number, os.strerror(number))
    return kernel_error(error, f"cannot freeze {filesystem.type}", subject=filesystem.device)


def _heard(report: int, seconds: float) -> bytes | None:
    """What the guard says within a time; empty when it is dead, ``None`` when it says nothing."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    return os.read(report, 64) if poll.poll(seconds * 1000) else None


def _last_word(report: int) -> bytes | None:
    """As :func:`_heard`, the last thing that it says."""
    word: bytes | None = b""
    while piece := _heard(report, _THAW_SECONDS):
        word = piece[-1:]
    return word if piece == b"" else None


def _thaw(fd: int) -> bool:
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError:
        return False  # EINVAL: it is not frozen
    return True
