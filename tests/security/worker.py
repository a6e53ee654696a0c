"""``python -m tests.security.worker``: carries out actions of the product, each in a process of its own, and measures them.

One JSON object per line in, one out. The modules are loaded once, then each action is a fork: a hundredth of a second
instead of a start of the interpreter, and still the memory and time of a process that does nothing else. What an action
prints, and its exit status, are those of ``mapper-cli`` and ``mapper-driver``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

#: So much of what an action prints is passed on, bytes.
OUTPUT_LIMIT = 1 << 16


def main() -> None:
    """Serve until the end of the input."""
    import mapper_driver
    import mapper_qcow2
    import mapper_raw
    import mapper_vmdk

    import mapper_core
    from mapper_core.linux.syscalls import libc
    from mapper_core.registry import Registry

    for package in (mapper_core, mapper_qcow2, mapper_raw, mapper_vmdk, mapper_driver):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".testing" not in module.name and "pylxd" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    Registry.load()  # fills the caches of importlib.metadata
    libc()
    gc.freeze()  # else the collector of each fork would copy all pages
    for line in sys.stdin:
        print(json.dumps(_measured(json.loads(line))), flush=True)


def _measured(task: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be(task, out.fileno(), err.fileno())
        _, status, usage = os.wait4(pid, 0)  # with the largest of the programs that it has run and waited for
        seconds = time.monotonic() - started
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read(OUTPUT_LIMIT).decode(errors="replace"))
    return {
        "status": os.waitstatus_to_exitcode(status),
        "stdout": printed[0],
        "stderr": printed[1],
        "seconds": seconds,
        "kib": usage.ru_maxrss,
    }


def _be(task: dict[str, Any], out: int, err: int) -> None:
    """Become the action; never returns."""
    status = 99
    with suppress(BaseException):
        stdin = os.open(task.get("stdin", os.devnull), os.O_RDONLY)
        for number, fd in enumerate((stdin, out, err)):
            os.dup2(fd, number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the process ends with it
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        status = _ACTIONS[task["action"]](task)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _cli(task: dict[str, Any]) -> int:
    from mapper_core.cli.main import call

    return call(task["argv"])


def _driver(task: dict[str, Any]) -> int:
    from mapper_driver.main import main as driver

    os.environ.update(task["environ"])
    return driver(task["argv"])


def _stage(task: dict[str, Any]) -> int:
    """What ``deploy`` does with the disk that is a machine's root, and back; LXD is not asked."""
    from mapper_driver.opennebula.config import Config
    from mapper_driver.opennebula.framing import Log
    from mapper_driver.opennebula.parse import parse_vm
    from mapper_driver.opennebula.xml import read_document, read_input
    from mapper_driver.storage import Storage

    from mapper_core.errors import MapperError
    from mapper_core.mapping import Mapper
    from mapper_core.model import IdMap, IdRange

    log = Log("deploy", "6.10.5", sys.stderr)
    try:
        vm = parse_vm(read_document(read_input(sys.stdin.buffer)), task["datastores"], "raw")
        storage = Storage(Mapper.open(), vm.container, Config(), log, os.getppid(), "/var/lib/lxd")
        try:
            ids = (IdRange(0, 100000, 65536),)
            storage.stage(vm, vm.root_disk(), IdMap(ids, ids))
        finally:
            storage.release()
    except MapperError as error:
        print(json.dumps({"error": error.to_json()}), file=sys.stderr)
        return error.exit_code
    return 0


_ACTIONS = {"cli": _cli, "driver": _driver, "stage": _stage}

if __name__ == "__main__":
    main()
