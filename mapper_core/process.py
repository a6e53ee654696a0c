"""Running external programs: the only module that imports ``sh``.

A command is an argument list, never a shell string. It runs with a minimal environment in the C locale, as a rule without
standard input, with a deadline after which its whole process group is killed, and with at most ``limit`` bytes of
output kept. What it wrote to its standard error becomes part of the error. Of root's capabilities it has those that
it needs, see :mod:`mapper_core.linux.confine`.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import signal
import sys
import types
from typing import TYPE_CHECKING, Any

from mapper_core.errors import CommandFailed, DeadlineExceeded, KernelError, ToolMissing, UsageError
from mapper_core.frozen import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where programs are looked for. The caller's PATH is not trusted: this code runs as root.
SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

#: Debian packages of the programs that are used, for the hint when one is missing.
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "mkfs.ext4": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
}

#: How long a program that was killed may take to end, seconds. One that waits for a device whose storage is gone does not.
KILL_SECONDS = 5

#: Output that is kept per stream, bytes. More is read and thrown away, so that a chatty program never blocks.
DEFAULT_LIMIT = 1 << 20


class Lifetime(enum.Enum):
    """How long a program may live."""

    OURS = "it is killed when this process is"
    OWN = "until it has done what it was told, also when this process is killed"
    DISK = "it leaves a daemon running that serves a disk, also when the session of the user ends"


@dataclass(frozen=True, slots=True)
class Output:
    """What a successful command wrote."""

    stdout: bytes
    stderr: bytes


def find_program(name: str) -> str | None:
    """Return the absolute path of a program, or ``None`` when it is not installed."""
    for directory in SEARCH_PATH:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    return None


def require_program(name: str) -> str:
    """Return the absolute path of a program.

    :raises ToolMissing: with the name of the package that has it.
    """
    path = find_program(name)
    if path is None:
        package = PACKAGES.get(name, "")
        hint = f"install the package {package}" if package else f"install {name}"
        raise ToolMissing(f"the program {name} is not installed", subject=name, hint=hint)
    return path


def run(
    argv: tuple[str, ...],
    *,
    timeout: float,
    subject: str = "",
    accept: tuple[int, ...] = (0,),
    limit: int = DEFAULT_LIMIT,
    stdin: int | None = None,
    inherit: tuple[int, ...] = (),
    capabilities: tuple[int, ...] = (),
    writes: tuple[str, ...] | None = None,
    lifetime: Lifetime = Lifetime.OWN,
) -> Output:
    """Run a program and wait for it.

    :param argv: program name (without a path) and its arguments; neither may be empty or contain NUL.
    :param timeout: seconds after which the process group is killed.
    :param subject: the object the command works on, for the error.
    :param accept: exit statuses that count as success.
    :param limit: bytes kept of each of stdout and stderr.
    :param stdin: its standard input; ``None``: nothing.
    :param inherit: descriptors that stay open in the program, besides its standard streams.
    :param capabilities: what it needs of root's, besides reading and writing the files of others.
    :param writes: all files that it may change, where the kernel can see to that (:mod:`mapper_core.linux.landlock`);
        ``None``: any.
    :param lifetime: of the program, should it not end before this process.
    :raises ToolMissing: the program is not installed.
    :raises KernelError: it cannot be started, or not with so few rights.
    :raises CommandFailed: it ended with another status, or by a signal.
    :raises DeadlineExceeded: it did not end in time; it has been killed, as far as the kernel lets that happen.
    """
    for argument in argv:
        if not isinstance(argument, str) or "\0" in argument:
            raise UsageError(f"invalid argument for {argv[0]}: {argument!r}", subject=subject)
    if not argv or not argv[0]:
        raise UsageError("empty command", subject=subject)
    program = require_program(argv[0])

    with _signals_later():
        from mapper_core.linux import cgroup, landlock
        from mapper_core.linux.confine import CAP_DAC_OVERRIDE, confinement, end_with_this_process

        sh = _load_sh()
        confine = confinement((CAP_DAC_OVERRIDE, *capabilities))
        end = end_with_this_process() if lifetime is Lifetime.OURS else None

    out, err = _Kept(limit), _Kept(limit)
    command: Any = None
    is_late = False
    try:
        with open(os.devnull, "rb") as nothing, _rules(writes) as rules, _signals_later():

            def restrict() -> None:
                if lifetime is Lifetime.DISK:
                    cgroup.enter()
                confine()
                if rules is not None:
                    landlock.restrict(rules)
                if end is not None:
                    end()

            command = sh.Command(program)(
                *argv[1:],
                _env={"PATH": ":".join(SEARCH_PATH), "LC_ALL": "C", "LANG": "C", "HOME": "/"},
                _in=nothing if stdin is None else stdin,
                _out=out.write,
                _err=err.write,
                _tty_out=False,
                _new_session=True,
                _ok_code=list(accept),
                _no_pipe=True,
                _pass_fds=set(inherit),
                _preexec_fn=restrict,
                _bg=True,
                _bg_exc=False,
            )
        # not `_timeout`: with it sh (2.4) polls in steps of 100 ms, which every short command would pay
        is_late = not _ends_within(command.pid, timeout)
        if is_late and not _killed(command):
            raise DeadlineExceeded(
                f"{argv[0]} did not finish within {timeout:g} s, and cannot even be killed: it waits in the kernel",
                subject=subject,
                hint="a storage does not answer; the process ends when that is back, or has failed",
            )
        command.wait()
    except sh.ForkException as error:  # whatever stands between fork and exec; its text is a traceback
        raise KernelError(f"{argv[0]} cannot be started: {_last_line(str(error).encode())}", subject=subject) from None
    except sh.ErrorReturnCode as error:
        if is_late:
            raise DeadlineExceeded(
                f"{argv[0]} did not finish within {timeout:g} s and was killed",
                subject=subject,
                hint=_last_line(err.data),
            ) from None
        raise CommandFailed(argv, error.exit_code, err.data.decode(errors="replace"), subject=subject) from None
    except BaseException:  # a signal handler of the caller: whoever undoes things must not race against the program
        if command is not None and not is_late and _killed(command):
            with contextlib.suppress(sh.ErrorReturnCode, ChildProcessError):
                command.wait()
        raise
    return Output(bytes(out.data), bytes(err.data))


def _killed(command: Any) -> bool:
    """Kill a program's process group; ``False`` when it does not end even so."""
    with contextlib.suppress(ProcessLookupError):
        command.kill_group()
    return _ends_within(command.pid, KILL_SECONDS)


def _ends_within(pid: int, seconds: float) -> bool:
    """Wait for the end of a child; its exit status stays to be asked for."""
    import select

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(fd)


@contextlib.contextmanager
def _rules(writes: tuple[str, ...] | None) -> Iterator[int | None]:
    """The rules for a program that may change only these files, as a descriptor; ``None`` without any."""
    from mapper_core.linux import landlock

    rules = None if writes is None else landlock.only_these(writes)
    try:
        yield rules
    finally:
        if rules is not None:
            os.close(rules)


@functools.cache
def _load_sh() -> Any:
    """Import ``sh`` without the half of it that is never used here: 20 ms instead of 75 (sh 2.4, Python 3.11).

    Only import statements *in sh* are answered differently, and only in a copy of the module that is ours: for everybody
    else ``sh`` and ``asyncio`` are what they always were. It works because the ``__builtins__`` in the globals of a module
    are those that its code uses (Python reference, "Builtins and restricted execution").
    """
    import builtins
    import importlib.machinery
    import importlib.util

    found = importlib.util.find_spec("sh")
    if found is None or not isinstance(found.loader, importlib.machinery.SourceFileLoader):
        import sh  # installed in a way of its own (zip, frozen): as it is

        return sh
    spec = importlib.util.spec_from_file_location(f"{__name__}.sh", found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import_for_sh}
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return sys.modules[spec.name]  # sh replaces itself there


def _import_for_sh(
    name: str, outer: Any = None, inner: Any = None, names: tuple[str, ...] | None = (), level: int = 0
) -> Any:
    """Answer an import statement of ``sh``; see :func:`__import__`."""
    if name == "asyncio":
        return _LateAsyncio()
    if name == "platform":  # only to ask for the name of the system: 2 ms
        return types.SimpleNamespace(system=lambda: os.uname().sysname)
    if name == "importlib" and names == ("metadata",):  # only to fill sh.__version__: 15 ms
        return types.SimpleNamespace(metadata=types.SimpleNamespace(version=lambda _distribution: ""))
    return __import__(name, outer, inner, names or (), level)


class _LateAsyncio:
    """``asyncio`` as sh sees it: loaded when sh is awaited, which never happens here. 30 ms."""

    def __getattr__(self, name: str) -> Any:
        import asyncio

        return getattr(asyncio, name)

    def get_running_loop(self) -> Any:
        """Sh asks this for every command; who has never loaded asyncio has no loop."""
        if "asyncio" not in sys.modules:
            raise RuntimeError("no running event loop")
        return self.__getattr__("get_running_loop")()

    def Queue(self, *arguments: Any, **keywords: Any) -> Any:
        """Is imported by name, but only used by ``async for``."""
        return self.__getattr__("Queue")(*arguments, **keywords)


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Hold back Python's signal handlers for the block.

    A handler that raises between fork and exec would leave a program running that nobody knows yet. Handlers, unlike
    blocked signals, are not inherited by the program (:manpage:`execve(2)`). Only the main thread runs handlers.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda caught, _frame: held.append(caught))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for caught in held:
        signal.raise_signal(caught)


class _Kept:
    """A sink for ``sh`` that keeps the first ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    def write(self, chunk: bytes | str) -> None:
        """Take one piece of output."""
        if isinstance(chunk, str):
            chunk = chunk.encode(errors="replace")
        room = self._limit - len(self.data)
        if room > 0:
            self.data += chunk[:room]


def _last_line(data: bytes | bytearray) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
