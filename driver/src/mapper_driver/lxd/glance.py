"""One look at all containers: one request, without pylxd. And a look into a file, of which only a part is wanted.

A probe is started every few seconds, on nodes with hundreds of containers. pylxd costs 0.1 s of processor time at each start and
asks what the daemon can do before anything else; for one GET that is most of the work.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mapper_core.errors import DeadlineExceeded
from mapper_driver.errors import LxdFailed, LxdUnavailable
from mapper_driver.lxd import answers
from mapper_driver.lxd.model import Instance, InstanceState

SECONDS = 30.0
#: What 500 containers answer is 3 MB.
MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Glance:
    """A container as it was at one moment.

    :param state: ``None`` when it was not asked for, or the container vanished while the daemon looked.
    """

    instance: Instance
    state: InstanceState | None


#: Of a part of a file, also of a daemon that sends all of it.
_PIECE_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes .*/([0-9]{1,18})")  # of an empty file: bytes 0--1/0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file.

    :param total: size of the file, bytes.
    """

    data: bytes
    total: int


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_range: str
    data: bytes


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def configurations(sockets: Sequence[str]) -> tuple[Glance, ...]:
    """All containers with their configuration and status. See :func:`states`."""
    return _glances(get(sockets, "/1.0/instances?recursion=1"))


def states(sockets: Sequence[str]) -> tuple[Glance, ...]:
    """All containers, also with what they use.

    :param sockets: the first that answers is asked.
    :raises LxdUnavailable: no daemon answers.
    :raises LxdFailed: it refuses.
    :raises DeadlineExceeded: it takes too long.
    """
    return _glances(get(sockets, "/1.0/instances?recursion=2"))


def profiles(sockets: Sequence[str]) -> tuple[str, ...]:
    """Names of the profiles; errors as for :func:`states`."""
    found = get(sockets, "/1.0/profiles")
    return tuple(str(path).partition("?")[0].rsplit("/", 1)[-1] for path in found or ())


def get(sockets: Sequence[str], path: str) -> Any:
    """What a GET request answers; errors as for :func:`states`."""
    tried = []
    for name in sockets:
        try:
            return _ask(name, path)
        except LxdUnavailable as error:
            tried.append(error.message)
    raise LxdUnavailable(
        f"no LXD or Incus daemon answers ({'; '.join(tried)})",
        hint="start the daemon, or name its socket in the lxdrc",
    )


def piece(name: str, path: str, wanted: str) -> Piece | None:
    """A part of a file; ``None`` when there is no such file.

    :param name: path of the daemon's socket.
    :param path: of the file in the API.
    :param wanted: numbers of the first and the last byte, ``0-99``; or ``-100`` for the last hundred (RFC 9110, section 14).
    :raises LxdUnavailable: the daemon does not answer.
    :raises LxdFailed: it sends no parts.
    :raises DeadlineExceeded: it takes too long.
    """
    answer = _request(name, path, {"Range": f"bytes={wanted}"}, _PIECE_BYTES)
    found = _CONTENT_RANGE.fullmatch(answer.content_range)
    if answer.status == 206 and found is not None:
        return Piece(answer.data, int(found[1]))
    if answer.status == 200 and not answer.data:  # an empty one has no parts
        return Piece(b"", 0)
    if answer.status in (200, 206):
        raise LxdFailed(f"the daemon does not send the part {wanted} of {path}", subject=name)
    return None


def _ask(name: str, path: str) -> Any:
    answer = _request(name, path, {}, MAX_BYTES)
    try:
        content = json.loads(answer.data)
        if answer.status != 200:
            raise LxdFailed(f"the daemon refuses GET {path}: {content.get('error') or answer.status}", subject=name)
        return content["metadata"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LxdFailed(f"the daemon's answer to GET {path} cannot be understood", subject=name) from error


def _request(name: str, path: str, headers: Mapping[str, str], limit: int) -> _Answer:
    connection = _UnixConnection(name, SECONDS)
    try:
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        return _Answer(answer.status, answer.headers.get("Content-Range", ""), answer.read(limit + 1))
    except TimeoutError as error:
        raise DeadlineExceeded(f"the daemon does not answer within {SECONDS:g} s", subject=name) from error
    except (OSError, http.client.HTTPException) as error:
        raise LxdUnavailable(f"{name}: {getattr(error, 'strerror', None) or error}", subject=name) from error
    finally:
        connection.close()


def _glances(items: Any) -> tuple[Glance, ...]:
    return tuple(
        Glance(answers.instance(item, ""), answers.state(item["state"]) if item.get("state") else None)
        for item in items or ()
        if item.get("type", "container") == "container"
    )
