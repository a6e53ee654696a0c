"""A line of JSON for each call, for whoever collects logs: what was done on what, how it ended, and how long each step took."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping

from mapper_driver.opennebula.framing import Log

#: Overrides the directory; for tests.
ENVIRONMENT = "MAPPER_LOG_DIR"
DIRECTORY = "/var/log/mapper"


def write(log: Log, arguments: tuple[str, ...], error: BaseException | None, seconds: float, daemon: float) -> None:
    """Append the line.

    :param arguments: of the script; long ones (a copy of the XML) are left out.
    :param error: why it failed; ``None``: it did not.
    :param seconds: of the whole call.
    :param daemon: of that in the daemon.
    :raises OSError: it cannot be written.
    """
    record = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "action": log.action,
        "arguments": [word for word in arguments if len(word) <= 256],
        "result": "ok" if error is None else type(error).__name__,
        "message": "" if error is None else str(error),
        "seconds": round(seconds, 4),
        "daemon_seconds": round(daemon, 4),
        "steps": [{"name": name, "seconds": round(took, 4)} for name, took in log.steps],
        "log": [{"severity": severity, "text": text} for severity, text in log.said],
        "one_version": log.version,
    }
    append(json.dumps(record), os.environ)


def append(line: str, environment: Mapping[str, str]) -> None:
    """One write, so that lines of calls at the same time do not mix (:manpage:`write(2)`, ``O_APPEND``)."""
    directory = environment.get(ENVIRONMENT) or DIRECTORY
    os.makedirs(directory, mode=0o750, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{directory}/driver.json", flags, 0o640)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)
