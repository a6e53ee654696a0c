"""Requests to LXD and Incus: the only importer of pylxd, and that inside of functions (it costs 0.1 s).

pylxd carries the requests; waiting is done here, because pylxd waits without a deadline and takes a finished operation that
the daemon has forgotten (after about 5 s) for a failure (L-13, L-14). Whenever an operation is lost or late, the caller's
look at the instance decides.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from mapper_core.errors import DeadlineExceeded
from mapper_core.linux import process_info
from mapper_driver.errors import InstanceNotFound, LxdFailed, LxdUnavailable
from mapper_driver.lxd import monitors
from mapper_driver.lxd.answers import WRITABLE

REQUEST_SECONDS = 30.0
OPERATION_SECONDS = 120.0
_MARGIN_SECONDS = 5.0  # for the answer to a request that is to take a known time

#: How daemons say that another operation on the instance is in the way (lxd/instance/operationlock).
_BUSY = ("non-reusable operation", "busy running", "operation lock")

#: How Incus answers when it has waited for an operation as long as it was asked to; LXD answers with the operation.
_LATE = "context deadline exceeded"

#: How Incus 6.0 answers when the first process of a container ends while it is looked at, for how long that can go on, and after
#: which time it is asked again when the end of the container was not to be seen.
_ENDING = "Invalid PID"
_ENDING_SECONDS = 5.0
_ENDING_LOOK_SECONDS = 0.1

#: What daemons call operations that run in an instance and do not work on it (lxd/db/operationtype).
_INSIDE = ("Executing command", "Showing console")


class Changed(LxdFailed):
    """Is raised when an object was changed by somebody else since it was read (HTTP 412)."""


class Connection:
    """A connection to one daemon.

    :ivar socket: real path of its socket.
    :ivar about: its answer to ``GET /1.0``.
    :ivar seconds: time spent in requests so far: waiting for the daemon, not our own work.
    """

    def __init__(self, path: str) -> None:
        """Connect.

        :raises LxdUnavailable: nobody answers there; the message says why.
        :raises LxdFailed: the daemon refuses us.
        """
        import socket

        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_STREAM
            ) as probe:  # before 0.1 s of import, and for a clear reason
                probe.settimeout(REQUEST_SECONDS)
                probe.connect(path)
        except OSError as error:
            raise LxdUnavailable(f"{path}: {error.strerror or error}", subject=path) from error
        from urllib.parse import quote

        import pylxd

        self.socket = os.path.realpath(path)
        self.seconds = 0.0
        url = f"http+unix://{quote(self.socket, safe='')}"
        session = pylxd.client.get_session_for_url(url)
        session.trust_env = False  # no proxy of the environment for a local socket
        session.headers["Connection"] = "close"  # pylxd would keep one connection open for each path ever asked for
        with self._talking("connect", ""):
            client = pylxd.Client(endpoint=url, session=session, timeout=REQUEST_SECONDS)
        self.api = client.api
        self.about: dict[str, Any] = client.host_info

    def get(self, node: Any, what: str, name: str, **arguments: Any) -> Any:
        """Make a GET request, again as long as it meets a container in the moment of its end. See :meth:`send`."""
        until = time.monotonic() + _ENDING_SECONDS
        while True:
            try:
                return self.send(node.get, what, name, **arguments)
            except LxdFailed as error:
                if _ENDING not in error.message or time.monotonic() > until:
                    raise
            ending = monitors.of_container(f"{os.path.dirname(self.socket)}/containers", name)  # of a list: of none
            process_info.wait_for_an_end(ending, _ENDING_LOOK_SECONDS)

    def send(self, call: Callable[..., Any], what: str, name: str, **arguments: Any) -> Any:
        """Make a request.

        :param call: method of a pylxd API node, such as ``connection.api.instances.post``.
        :param what: what it is for, completes "cannot ...".
        :param name: the instance it is about; empty for none.
        :returns: the answer, a ``requests.Response``.
        :raises InstanceNotFound: HTTP 404.
        :raises Changed: HTTP 412.
        :raises LxdFailed: every other refusal.
        :raises LxdUnavailable: the daemon is gone.
        :raises DeadlineExceeded: it does not answer.
        """
        arguments.setdefault("timeout", REQUEST_SECONDS)
        with self._talking(what, name):
            return call(**arguments)

    def wait(
        self, answer: Any, what: str, name: str, settled: Callable[[], bool], deadline_seconds: float
    ) -> dict[str, Any]:
        """Wait for the operation that a request started.

        :param settled: whether the wanted state is reached; asked when the operation is lost or late.
        :returns: the operation; empty when it is lost and ``settled``, or when there was nothing to wait for.
        :raises LxdFailed: it failed, or is lost and not ``settled``.
        :raises DeadlineExceeded: it is late and not ``settled``.
        """
        body = answer.json()
        if body.get("type") != "async":
            return {}
        operation = str(body["operation"]).rsplit("/", 1)[-1]
        return self._wait_for(operation, what, name, settled, deadline_seconds)

    def _wait_for(
        self, operation_id: str, what: str, name: str, settled: Callable[[], bool], deadline_seconds: float
    ) -> dict[str, Any]:
        node = self.api.operations[operation_id].wait
        until = time.monotonic() + deadline_seconds
        while (left := until - time.monotonic()) > 0:
            seconds = max(1, min(round(left), 60))
            try:
                done = self.get(node, what, name, params={"timeout": str(seconds)}, timeout=seconds + _MARGIN_SECONDS)
            except InstanceNotFound as error:
                if settled():
                    return {}
                raise LxdFailed(f"cannot {what}: the daemon has forgotten the operation", subject=name) from error
            except DeadlineExceeded:
                break
            except LxdFailed as error:
                if _LATE in error.message:
                    continue
                raise
            operation: dict[str, Any] = done.json().get("metadata") or {}
            code = operation.get("status_code", 0)
            if code == 200:
                return operation
            if code >= 400:
                reason = operation.get("err") or operation.get("status")
                raise LxdFailed(f"cannot {what}: {reason}", subject=name)
        if settled():
            return {}
        raise DeadlineExceeded(f"cannot {what}: not done after {deadline_seconds:g} s", subject=name)

    def change(self, node: Any, what: str, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
        """Read an instance, edit its description, write it back, until it is as wanted (L-12).

        LXD 5.0 compares the ETag before it queues the change, so of two changes at the same moment one can be lost. Therefore
        the result is read again when no other operation on the instance is under way. That does not help against a change
        that is queued later: actions of the driver on one container exclude each other by a lock of their own.

        :param edit: changes the description in place; without a change nothing is sent.
        """
        until = time.monotonic() + OPERATION_SECONDS
        while time.monotonic() < until:
            found = self.get(node, what, name)
            body = {key: found.json()["metadata"].get(key) for key in WRITABLE}
            body["config"], body["devices"] = body["config"] or {}, body["devices"] or {}
            before = (dict(body["config"]), dict(body["devices"]))
            edit(body)
            if before == (body["config"], body["devices"]):
                return
            headers = {"If-Match": found.headers.get("ETag", "")}
            try:
                answer = self.send(node.put, what, name, json=body, headers=headers)
                self.wait(answer, what, name, lambda: True, OPERATION_SECONDS)  # the next look decides
            except Changed:
                continue
            except LxdFailed as error:
                if not any(text in error.message for text in _BUSY):
                    raise
            self.settle(name, OPERATION_SECONDS)
        raise LxdFailed(f"cannot {what}: others change it all the time", subject=name)

    def settle(self, name: str, deadline_seconds: float) -> None:
        """Wait for the operations that work on an instance, whoever started them. When the time is over it returns too.

        Commands and consoles that run in it are no such work, and may take for ever.
        """
        what, until = "wait for the other operations on the instance", time.monotonic() + deadline_seconds
        found = self.get(self.api.operations, what, name, params={"recursion": "1"}).json().get("metadata") or {}
        for operation in found.get("running", ()):
            touched = (operation.get("resources") or {}).get("instances") or ()
            is_inside = operation.get("class") == "websocket" or operation.get("description") in _INSIDE
            if not is_inside and any(path.partition("?")[0].endswith(f"/{name}") for path in touched):
                with contextlib.suppress(LxdFailed, InstanceNotFound):  # its failure is the business of who started it
                    self._wait_for(operation["id"], what, name, lambda: True, max(1.0, until - time.monotonic()))

    @contextlib.contextmanager
    def _talking(self, what: str, name: str) -> Iterator[None]:
        """Count the time and give the failures their types."""
        import requests
        from pylxd import exceptions

        begun = time.monotonic()
        try:
            yield
        except exceptions.NotFound as error:
            raise InstanceNotFound(f"cannot {what}: {error}", subject=name) from error
        except exceptions.LXDAPIException as error:
            kind = Changed if error.response.status_code == 412 else LxdFailed
            raise kind(f"cannot {what}: {error}", subject=name) from error
        except requests.Timeout as error:
            raise DeadlineExceeded(f"cannot {what}: the daemon does not answer", subject=name or self.socket) from error
        except (requests.RequestException, exceptions.ClientConnectionFailed) as error:
            hint = "see whether the daemon runs"
            raise LxdUnavailable(f"cannot {what}: the daemon is gone", subject=self.socket, hint=hint) from error
        finally:
            self.seconds += time.monotonic() - begun
