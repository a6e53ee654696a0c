"""One viewer: an X server for its connection, a terminal, and a command in the container.

Runs in a process of its own, with the connection as standard input. Only the command in the container is root's: the X
server reads what comes from the network, xterm what comes from the guest, so both have a user id that nobody else has, no
capabilities, and a directory that is theirs. xterm is given an open pseudo-terminal (its option ``-S``) instead of a command.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import resource
import secrets
import select
import signal
import struct
import sys
import syslog
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator

from mapper_core.errors import MapperError
from mapper_core.linux.confine import confinement
from mapper_core.process import require_program
from mapper_driver.console.definition import PASSWORD_BYTES, Console, read

#: User ids of sessions: far above those of people, services and containers. One of them for each process id.
FIRST_UID = 0x7E000000

#: Seconds until the X server is there.
START_SECONDS = 30

#: Size of a character in pixels: the font "fixed" that is built into the X server.
CELL = (6, 13)
#: Around the text, pixels.
BORDER = 2

XSERVER = "Xtigervnc"
TERMINAL = "xterm"
PASSWD = "tigervncpasswd"  # noqa: S105 (a program)
#: All programs, and the Debian package of each.
PROGRAMS = ((XSERVER, "tigervnc-standalone-server"), (PASSWD, "tigervnc-tools"), (TERMINAL, "xterm"))

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def show(console: Console, connection: int) -> None:
    """Serve one viewer until it goes, the command ends, or something fails.

    :param connection: the connected socket; it is closed when this returns.
    """
    uid = FIRST_UID + os.getpid()
    with contextlib.ExitStack() as undo:
        own = undo.enter_context(
            tempfile.TemporaryDirectory(prefix="mapper-console-")
        )  # others may not even enter /run/mapper
        os.chown(own, uid, uid)
        cookie, password = f"{own}/cookie", f"{own}/password"
        _write(cookie, _authority(secrets.token_bytes(16)), uid)
        if console.password:
            _write(password, _obfuscated(console.password), uid)
        children = undo.enter_context(_children())
        display = _start_xserver(console, connection, cookie, password if console.password else "", uid, children)
        os.close(connection)
        master, slave = pty.openpty()
        columns, rows = (
            (pixels - 2 * BORDER) // cell for pixels, cell in zip((console.width, console.height), CELL, strict=True)
        )
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        tty.setraw(slave)
        environment = {**_ENVIRONMENT, "DISPLAY": f":{display}", "XAUTHORITY": cookie, "HOME": own}
        children.start(
            _terminal(columns, rows, os.ttyname(slave), master), environment, _unprivileged(uid, own), (master,)
        )
        os.close(master)
        _skip_window_id(slave)
        environment = {**_ENVIRONMENT, "TERM": "xterm", "HOME": "/root", **dict(console.environment)}
        children.start(console.argv, environment, lambda: _controlling(slave), (slave,))
        os.close(slave)
        children.wait_for_one()


def _start_xserver(console: Console, connection: int, cookie: str, password: str, uid: int, children: _Children) -> int:
    """Start the X server on the connection, and wait until it takes clients; return the number of its display."""
    reader, writer = os.pipe()
    security = ("-SecurityTypes", "VncAuth", "-PasswordFile", password) if password else ("-SecurityTypes", "None")
    argv = (
        XSERVER, "-inetd", "-displayfd", str(writer), "-auth", cookie, "-nolisten", "tcp", "-noreset",
        "-geometry", f"{console.width}x{console.height}", "-depth", "24", *security,
        "-AlwaysShared", "-AcceptSetDesktopSize=0", "-IdleTimeout", str(console.timeout), "-desktop", console.container,
    )  # fmt: skip

    def prepare() -> None:
        os.dup2(connection, 0)
        os.dup2(connection, 1)
        _unprivileged(uid, os.path.dirname(cookie))()

    children.start(argv, {**_ENVIRONMENT, "HOME": os.path.dirname(cookie)}, prepare, (writer,))
    os.close(writer)
    with open(reader, "rb", buffering=0) as answer:
        text, until = b"", time.monotonic() + START_SECONDS
        while not text.endswith(b"\n"):
            if not select.select([answer], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"{XSERVER} was not ready after {START_SECONDS} s")
            piece = answer.read(16)
            if not piece:
                raise ConnectionError(f"{XSERVER} ended before it was ready")
            text += piece
    return int(text)


def _terminal(columns: int, rows: int, name: str, master: int) -> tuple[str, ...]:
    """A terminal on the whole screen, on an open pseudo-terminal; what the guest writes can steer nothing but its picture."""
    return (
        TERMINAL, f"-S{name.rpartition('/')[2]}/{master}", "-geometry", f"{columns}x{rows}+0+0", "-b", str(BORDER),
        "+sb", "-bw", "0", "-fn", "fixed", "-bg", "black", "-fg", "gray90", "-sl", "0",
        "-xrm", "*allowWindowOps: false", "-xrm", "*allowFontOps: false", "-xrm", "*allowTitleOps: false",
        "-xrm", "*allowTcapOps: false", "-xrm", "*allowColorOps: false", "-xrm", "*allowMouseOps: false",
        "-xrm", "*printerCommand: ", "-xrm", "*omitTranslation: popup-menu,fullscreen,default,keypress-no",
    )  # fmt: skip


def _skip_window_id(slave: int) -> None:
    """With ``-S`` xterm begins by writing the number of its window and a newline, as if they had been typed."""
    until = time.monotonic() + START_SECONDS
    while select.select([slave], [], [], max(0.0, until - time.monotonic()))[0]:
        if os.read(slave, 1) in (b"\n", b"\r", b""):
            return
    raise TimeoutError(f"{TERMINAL} was not ready after {START_SECONDS} s")


def _controlling(slave: int) -> None:
    """Make the pseudo-terminal the one of this session, with the modes of a new one."""
    modes = termios.tcgetattr(slave)
    modes[0] = termios.ICRNL | termios.IXON
    modes[1] = termios.OPOST | termios.ONLCR
    modes[3] = termios.ISIG | termios.ICANON | termios.ECHO | termios.ECHOE | termios.ECHOK | termios.IEXTEN
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(slave, number)


def _unprivileged(uid: int, directory: str) -> Callable[[], None]:
    """Return what takes everything away that a process of root's has: user id, groups, capabilities."""
    confine = confinement(())

    def drop() -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        confine()
        resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, 512 << 20))
        os.chdir(directory)

    return drop


class _Children:
    """Processes of the session; all end with it."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}  # pid -> pidfd

    def start(
        self,
        argv: tuple[str, ...],
        environment: dict[str, str],
        prepare: Callable[[], None],
        keep: tuple[int, ...],
    ) -> None:
        """Start a program in a session of its own.

        :param prepare: is called in the new process.
        :param keep: descriptors that it inherits.
        """
        program = require_program(argv[0]) if "/" not in argv[0] else argv[0]
        for fd in keep:
            os.set_inheritable(fd, True)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                prepare()
                os.execve(program, argv, environment)  # noqa: S606
            finally:
                os._exit(127)
        for fd in keep:
            os.set_inheritable(fd, False)
        self.pids[pid] = os.pidfd_open(pid)

    def wait_for_one(self) -> None:
        """Wait until one of them ends."""
        select.select(list(self.pids.values()), [], [])

    def end(self) -> None:
        """End all, and wait for it."""
        for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            for pidfd in self.pids.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
            until = time.monotonic() + seconds
            for pid, pidfd in list(self.pids.items()):
                if select.select([pidfd], [], [], max(0.0, until - time.monotonic()))[0]:
                    os.waitpid(pid, 0)
                    os.close(pidfd)
                    del self.pids[pid]


@contextlib.contextmanager
def _children() -> Iterator[_Children]:
    children = _Children()
    try:
        yield children
    finally:
        children.end()


def _write(path: str, content: bytes, uid: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        os.write(fd, content)
        os.fchown(fd, uid, uid)
    finally:
        os.close(fd)


def _authority(cookie: bytes) -> bytes:
    """A file of Xauthority(3) whose one entry fits every display."""
    fields = (b"", b"", b"MIT-MAGIC-COOKIE-1", cookie)
    return b"\xff\xff" + b"".join(struct.pack(">H", len(item)) + item for item in fields)


def _obfuscated(password: str) -> bytes:
    """A password in the form in which TigerVNC reads it, made by its own tool (vncpasswd(1))."""
    given, to_tool = os.pipe()
    from_tool, taken = os.pipe()
    with _children() as children:

        def prepare() -> None:
            os.dup2(given, 0)
            os.dup2(taken, 1)
            _unprivileged(FIRST_UID + os.getpid(), "/")()

        children.start((PASSWD, "-f"), dict(_ENVIRONMENT), prepare, ())
        os.close(given)
        os.close(taken)
        os.write(to_tool, password.encode()[:PASSWORD_BYTES] + b"\n")
        os.close(to_tool)
        with open(from_tool, "rb") as answer:
            content = answer.read(64)
    if len(content) < PASSWORD_BYTES:
        raise ValueError(f"{PASSWD} did not take the password")
    return content


def main() -> int:
    """``python -m mapper_driver.console.viewer FILE``, with the connection as standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    syslog.openlog("mapper-console", syslog.LOG_PID, syslog.LOG_DAEMON)
    connection = os.dup(0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    try:
        console = read(sys.argv[1])
        if console is not None:
            show(console, connection)
    except (MapperError, OSError, ValueError) as error:
        syslog.syslog(syslog.LOG_ERR, f"{sys.argv[1]}: {error}")  # nobody else listens to this process
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
