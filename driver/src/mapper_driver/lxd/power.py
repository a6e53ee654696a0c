"""Starting and stopping instances, with deadlines and the reason when it fails."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from mapper_core.errors import DeadlineExceeded
from mapper_core.linux import process_info
from mapper_driver.errors import (
    InstanceNotFound,
    InstanceNotRunning,
    InstanceRunning,
    InstanceStartFailed,
    LxdFailed,
)
from mapper_driver.lxd import monitors
from mapper_driver.lxd.connection import OPERATION_SECONDS
from mapper_driver.lxd.model import InstanceState, Status
from mapper_driver.lxd.reader import Reader

_LOG_LINES = 8
_END_SECONDS = 10.0


class Power(Reader):
    """What changes whether an instance runs."""

    def start(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> InstanceState:
        """Start an instance and return its state.

        :raises InstanceRunning: it runs already.
        :raises InstanceStartFailed: it did not start, or ended at once.
        """
        if self.state(name).status is Status.RUNNING:
            raise InstanceRunning("the instance runs already", subject=name)
        try:
            self._set_state(name, {"action": "start"}, Status.RUNNING, deadline_seconds)
        except LxdFailed as error:
            self._wait_for_monitors(name)
            raise InstanceStartFailed(error.message, log=self._log_tail(name), subject=name) from error
        state = self.state(name)
        if state.status is not Status.RUNNING:
            raise InstanceStartFailed("the instance ended at once", log=self._log_tail(name), subject=name)
        return state

    def shutdown(self, name: str, *, grace_seconds: float, deadline_seconds: float = OPERATION_SECONDS) -> None:
        """Ask the guest to shut down. Nothing happens when it is stopped.

        :raises DeadlineExceeded: it still runs after ``grace_seconds``.
        """
        request = {"action": "stop", "force": False, "timeout": max(1, round(grace_seconds))}
        try:
            self._end(name, request, grace_seconds + deadline_seconds)
        except LxdFailed as error:
            hint = "stop it by force"
            text = f"the guest did not shut down within {grace_seconds:g} s"
            raise DeadlineExceeded(text, subject=name, hint=hint) from error

    def stop(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> None:
        """Stop an instance by force. Nothing happens when it is stopped."""
        self._end(name, {"action": "stop", "force": True, "timeout": -1}, deadline_seconds)

    def restart(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> InstanceState:
        """Stop by force and start again.

        :raises InstanceNotRunning: it does not run.
        """
        if self.state(name).status is not Status.RUNNING:
            raise InstanceNotRunning("the instance does not run", subject=name)
        self.stop(name, deadline_seconds=deadline_seconds)
        return self.start(name, deadline_seconds=deadline_seconds)

    def freeze(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> None:
        """Let no process of an instance run any more; its memory, disks and devices stay. Nothing happens when it is so.

        :raises InstanceNotRunning: it does not run.
        """
        status = self.state(name).status
        if status is Status.FROZEN:
            return
        if status not in (Status.RUNNING, Status.FREEZING):
            raise _not_running(name, status)
        self._set_state(name, {"action": "freeze"}, Status.FROZEN, deadline_seconds)

    def unfreeze(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> None:
        """Let a frozen instance go on. Nothing happens when it runs.

        :raises InstanceNotRunning: it is neither frozen nor does it run.
        """
        if self.state(name).status is Status.FREEZING:
            self.freeze(name, deadline_seconds=deadline_seconds)  # nothing else leads out of it
        status = self.state(name).status
        if status is Status.RUNNING:
            return
        if status is not Status.FROZEN:
            raise _not_running(name, status)
        self._set_state(name, {"action": "unfreeze"}, Status.RUNNING, deadline_seconds)

    def _set_state(self, name: str, request: dict[str, Any], wanted: Status, deadline_seconds: float) -> None:
        what = f"{request['action']} the instance"
        answer = self._connection.send(self._node(name).state.put, what, name, json=request)
        self._connection.wait(answer, what, name, lambda: self.state(name).status is wanted, deadline_seconds)

    def _end(self, name: str, request: dict[str, Any], deadline_seconds: float) -> None:
        """Stop, and wait for the end of LXC's monitor too: until then it holds the container's mount namespace open."""
        state = self.state(name)
        if state.status is Status.STOPPED:
            return
        monitor = monitors.of_init(state.pid)
        try:
            self._set_state(name, request, Status.STOPPED, deadline_seconds)
        except LxdFailed:
            if self.state(name).status is not Status.STOPPED:
                raise
        if monitor is not None:
            process_info.wait_gone(monitor.pid, monitor.start_time, deadline_seconds)

    def _wait_for_monitors(self, name: str) -> None:
        """Let a failed start come to its end; until then Incus 6.0 answers "running" or "Invalid PID"."""
        for monitor in monitors.of_container(f"{os.path.dirname(self.socket)}/containers", name):
            with contextlib.suppress(DeadlineExceeded):
                process_info.wait_gone(monitor.pid, monitor.start_time, _END_SECONDS)

    def _log_tail(self, name: str) -> tuple[str, ...]:
        with contextlib.suppress(LxdFailed, InstanceNotFound):
            node = self._node(name).logs["lxc.log"]
            log = self._connection.get(node, "read the log of the instance", name, is_api=False)
            return tuple(log.content.decode(errors="replace").splitlines()[-_LOG_LINES:])
        return ()


def _not_running(name: str, status: Status) -> InstanceNotRunning:
    return InstanceNotRunning(f"the instance is {status.value.lower() or 'changing its state'}", subject=name)
