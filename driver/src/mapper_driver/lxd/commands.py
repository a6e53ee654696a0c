"""Commands that run inside of an instance."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from mapper_driver.errors import InstanceNotFound, InstanceNotRunning, LxdFailed
from mapper_driver.lxd.connection import OPERATION_SECONDS
from mapper_driver.lxd.model import ExecResult, Status
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
