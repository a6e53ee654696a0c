"""Commands that run inside of an instance."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from mapper_driver.errors import InstanceNotFound, InstanceNotRunning, LxdFailed
from mapper_driver.lxd import glance
from mapper_driver.lxd.connection import OPERATION_SECONDS
from mapper_driver.lxd.glance import Piece
from mapper_driver.lxd.model import ExecResult, Status, check_name
from mapper_driver.lxd.reader import Reader


class Commands(Reader):
    """What runs in an instance on our behalf."""

    def execute(self, name: str, argv: Sequence[str], *, deadline_seconds: float = OPERATION_SECONDS) -> ExecResult:
        """Run a command inside, without standard input, and return what it wrote.

        :raises InstanceNotRunning: the container does not run.
        """
        if self.state(name).status is not Status.RUNNING:
            raise InstanceNotRunning("the instance does not run", subject=name)
        body = {"command": list(argv), "wait-for-websocket": False, "interactive": False, "record-output": True}
        what = "run a command in the instance"
        answer = self._connection.send(self._node(name).exec.post, what, name, json=body)
        done = self._connection.wait(answer, what, name, lambda: False, deadline_seconds).get("metadata") or {}
        outputs = done.get("output") or {}
        texts = []
        for number in ("1", "2"):
            node = self._connection.api
            for part in str(outputs.get(number, "")).removeprefix("/1.0/").split("/"):
                node = node[part]
            if number not in outputs:
                texts.append(b"")
                continue
            texts.append(self._connection.get(node, "read the output of the command", name, is_api=False).content)
            with contextlib.suppress(LxdFailed, InstanceNotFound):
                self._connection.send(node.delete, "remove the output of the command", name)
        return ExecResult(int(done.get("return", -1)), texts[0], texts[1])

    def begin(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> str:
        """Start a command inside and do not wait for it; its output is recorded.

        :returns: what :meth:`output` wants to know.
        :raises InstanceNotRunning: the container does not run.
        """
        if self.state(name).status is not Status.RUNNING:
            raise InstanceNotRunning("the instance does not run", subject=name)
        body = {
            "command": list(argv),
            "environment": dict(environment),
            "wait-for-websocket": False,
            "interactive": False,
            "record-output": True,
        }
        answer = self._connection.send(
            self._node(name).exec.post, "run a command in the instance", name, json=body
        ).json()
        return str(answer["operation"]).rsplit("/", 1)[-1]

    def output(self, name: str, command: str, stream: str, wanted: str) -> Piece:
        """A part of what a command of :meth:`begin` has written up to now: a guest can write any amount.

        :param stream: ``stdout`` or ``stderr``.
        :param wanted: which part, see :func:`~mapper_driver.lxd.glance.piece`.
        """
        return self._find_output(name, command, stream, wanted)[1]

    def forget_output(self, name: str, command: str) -> None:
        """Remove what was recorded."""
        for stream in ("stdout", "stderr"):
            parts, _ = self._find_output(name, command, stream, "0-0")
            node = self._node(name)
            for part in parts:
                node = node[part]
            with contextlib.suppress(LxdFailed, InstanceNotFound):
                self._connection.send(node.delete, "remove the output of the command", name)

    def _find_output(self, name: str, command: str, stream: str, wanted: str) -> tuple[tuple[str, ...], Piece]:
        """Newer daemons have a directory for it."""
        file = f"exec_{command}.{stream}"
        for parts in (("logs", "exec-output", file), ("logs", file)):
            path = "/".join(("/1.0/instances", check_name(name), *parts))
            found = glance.piece(self.socket, path, wanted)
            if found is not None:
                return parts, found
        return ("logs", file), Piece(b"", 0)
