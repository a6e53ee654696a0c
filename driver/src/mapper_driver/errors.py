"""Failures of the driver, beside those of :mod:`mapper_core.errors`; exit codes 11 to 15.

Like there, a class says what the caller can do about it, and nothing is imported that costs time.
"""

from __future__ import annotations

from mapper_core.errors import MapperError, NotFound


class InstanceNotFound(NotFound):
    """Is raised when LXD knows no instance of that name."""


# --- 11: there is no daemon to talk to ----------------------------------------------------------------


class LxdUnavailable(MapperError):
    """Is raised when no LXD or Incus daemon answers, or it stopped answering."""

    exit_code = 11


# --- 12: the instance is not in the state that the operation needs ------------------------------------


class InstanceConflict(MapperError):
    """Base: the instance is there, but not in the needed state."""

    exit_code = 12


class InstanceExists(InstanceConflict):
    """Is raised when an instance of that name exists already."""


class InstanceRunning(InstanceConflict):
    """Is raised when the instance must be stopped for that, and runs."""


class InstanceNotRunning(InstanceConflict):
    """Is raised when the instance must be running for that, and does not."""


# --- 13: the daemon said no ---------------------------------------------------------------------------


class LxdFailed(MapperError):
    """Is raised when LXD refused a request or could not carry it out; the message has LXD's reason."""

    exit_code = 13


class InstanceStartFailed(LxdFailed):
    """Is raised when an instance did not start, or ended at once.

    :param log: last lines of LXC's log of this start.
    """

    def __init__(self, message: str, *, log: tuple[str, ...] = (), subject: str = "", hint: str = "") -> None:
        super().__init__(message, subject=subject, hint=hint)
        self.log = log


# --- 14: the tree and the container do not come together ----------------------------------------------


class PlacementError(MapperError):
    """Base: the tree of a container is not where it must be, or still is where it must not be."""

    exit_code = 14


class TreeNotPlaced(PlacementError):
    """Is raised when the tree cannot be placed in the container's root directory."""


class TreeStillPlaced(PlacementError):
    """Is raised when a mount is left below a container's directory, so that it must not be deleted."""


# --- 15: the console ----------------------------------------------------------------------------------


class ConsoleUnavailable(MapperError):
    """Is raised when the console server cannot do what it was asked."""

    exit_code = 15
