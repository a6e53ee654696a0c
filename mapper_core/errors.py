"""Every failure that a person can meet, one class each.

A :class:`MapperError` says what failed (``message``), on which object (``subject``), and what to do next
(``hint``). Programs read ``exit_code`` (the process exit status of ``mapper-cli`` and ``mapper-driver``) or
the class name, which is the stable name in ``--json`` output. Nothing here imports anything: the module is
loaded on every start.

Exit codes are grouped by what the caller can do about them, see ``docs/exit-codes.md``.
"""

from __future__ import annotations


class MapperError(Exception):
    """Base of all expected failures.

    :param message: one sentence: what failed and why, in lower case, without a final full stop.
    :param subject: the object it failed on: a path, a device, a container, an option.
    :param hint: what the reader can do next; empty when there is nothing to advise.
    """

    exit_code = 1

    def __init__(self, message: str, *, subject: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.hint = hint

    def __str__(self) -> str:
        if self.subject and self.subject not in self.message:
            return f"{self.subject}: {self.message}"
        return self.message

    def to_json(self) -> dict[str, str | int]:
        """The error as ``--json`` prints it."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "subject": self.subject,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


# --- 2: the request itself is wrong -------------------------------------------------------------------


class UsageError(MapperError):
    """Is raised when an argument or option makes no sense."""

    exit_code = 2


# --- 3: something that was named is not there ---------------------------------------------------------


class NotFound(MapperError):
    """Base: a named thing does not exist."""

    exit_code = 3


class ProcessGone(NotFound):
    """Is raised when a process has ended, or there never was one of that id."""


class ImageNotFound(NotFound):
    """Is raised when the image file or volume does not exist."""


class BackingFileMissing(NotFound):
    """Is raised when a file that an image refers to (backing file, extent, data file) does not exist."""


class SnapshotMissing(NotFound):
    """Is raised when a disk has no snapshot of that name."""


class PluginMissing(NotFound):
    """Is raised when no usable plugin is installed for the requested format."""


class PluginFault(MapperError):
    """Is raised when a plugin breaks its contract: an unexpected exception or a return value that makes no sense."""


class NotMapped(NotFound):
    """Is raised when a question about a mapping is asked and there is none (unmapping it is a success)."""


# --- 4: the image cannot be used as it is -------------------------------------------------------------


class BadImage(MapperError):
    """Base: the content of an image, table or fstab is wrong."""

    exit_code = 4


class FormatMismatch(BadImage):
    """Is raised when the declared format is not the one found in the file."""


class UnsupportedFormat(BadImage):
    """Is raised for a recognised format or variant that is not handled, such as a gzip stream."""


class TruncatedImage(BadImage):
    """Is raised when an image is shorter than its own header says."""


class CorruptImage(BadImage):
    """Is raised when the header or the metadata of an image contradicts itself."""


class BadPartitionTable(BadImage):
    """Is raised when a GPT or MBR is damaged, overlapping or points outside of the device."""


class PartitionBeyondDevice(BadPartitionTable):
    """Is raised when a partition ends behind the last sector of the device."""


class BadFstab(BadImage):
    """Is raised when a line of the image's fstab cannot be understood or resolved within the disk."""


class UnknownFilesystem(BadImage):
    """Is raised when a filesystem is not recognised, not on the allow-list, or not known to this kernel."""


class NoRootFound(BadImage):
    """Is raised when no partition of a disk looks like a root filesystem."""


class AmbiguousRoot(BadImage):
    """Is raised when more than one partition looks like the root filesystem and no hint decides."""


# --- 5: in use ----------------------------------------------------------------------------------------


class Busy(MapperError):
    """Is raised when another process works on the same disk now; try again later."""

    exit_code = 5


class DeviceBusy(Busy):
    """Is raised when a device cannot be released because something still holds it."""


class ImageInUse(Busy):
    """Is raised when the image is used by somebody else: another mapping, a virtual machine."""


class InUseElsewhere(ImageInUse):
    """Is raised when another host, or a client that we do not know, uses a disk of a cluster."""


class MappedDifferently(Busy):
    """Is raised when a disk is mapped already, but with other options (read-only, transport)."""


# --- 6: this host or this format cannot do that -------------------------------------------------------


class NotSupported(MapperError):
    """Is raised when a format or transport lacks the capability that was asked for."""

    exit_code = 6


class ToolMissing(NotSupported):
    """Is raised when a program that is needed is not installed."""


class TransportUnavailable(NotSupported):
    """Is raised when no transport, or not the forced one, works on this host."""


class NoRoomToGrow(NotSupported):
    """Is raised when a partition is to grow and something follows it."""


# --- 7: refused for safety ----------------------------------------------------------------------------


class Refused(MapperError):
    """Base: the operation would be unsafe and is not done."""

    exit_code = 7


class ForbiddenReference(Refused):
    """Is raised when an image refers to a file outside of the directories that the caller allows."""


class UnsafePath(Refused):
    """Is raised when a path of the image would lead out of the image, or is not what it must be."""


class ReadOnlyImage(Refused):
    """Is raised when write access is asked for an image that can only be read."""


class AlreadyExists(Refused):
    """Is raised when something that is to be made exists already; nothing is ever overwritten."""


# --- 8, 9, 10: the host -------------------------------------------------------------------------------


class NoFreeDevice(MapperError):
    """Is raised when the host has no free loop or nbd device."""

    exit_code = 8


class DeadlineExceeded(MapperError):
    """Is raised when an operation did not finish in its time."""

    exit_code = 9


class StateCorrupt(MapperError):
    """Is raised when the journal is damaged or written by a newer version."""

    exit_code = 10


class NeedsRoot(MapperError):
    """Is raised when the caller lacks the privilege for it; 77 is EX_NOPERM of sysexits.h."""

    exit_code = 77


class AccessDenied(MapperError):
    """Is raised when a storage refuses its user, or a file may not be read; 77 is EX_NOPERM of sysexits.h."""

    exit_code = 77


class KernelError(MapperError):
    """Is raised when a system call fails for a reason that has no class of its own.

    :param errno: the number, see :manpage:`errno(3)`.
    """

    def __init__(self, message: str, *, errno: int = 0, subject: str = "", hint: str = "") -> None:
        super().__init__(message, subject=subject, hint=hint)
        self.errno = errno


class DaemonRefused(MapperError):
    """Is raised when a daemon of qemu answers a command with an error."""


class CommandFailed(MapperError):
    """Is raised when an external program ends with an error.

    :param argv: the command as it was run.
    :param status: its exit status; negative: the signal that ended it.
    :param stderr: what it wrote to its standard error.
    """

    def __init__(self, argv: tuple[str, ...], status: int, stderr: str, *, subject: str = "", hint: str = "") -> None:
        name = argv[0].rsplit("/", 1)[-1]
        why = stderr.strip().splitlines()
        reason = why[-1] if why else "it printed no reason"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"{name} {how}: {reason}", subject=subject, hint=hint)
        self.argv = argv
        self.status = status
        self.stderr = stderr
