"""Who holds a mapping, by the name that is written into the journal.

``cli`` is whoever types commands, ``pid:N`` ends with its process, ``tree:DIRECTORY`` with the tree on that directory. Whoever has
another prefix is asked about by the module that a package has registered for it, see :mod:`mapper_core.reconcile`.
"""

from __future__ import annotations

import os

#: In whose name ``mapper-cli map`` maps.
CLI = "cli"

_PROCESS = "pid:"
_TREE = "tree:"


def this_process() -> str:
    """The name for what is mapped for as long as this process lives; reconcile releases it if the process is killed."""
    return f"{_PROCESS}{os.getpid()}"


def process_of(user: str) -> int | None:
    """The process id in a name; ``None`` when it is not the name of a process."""
    number = user.removeprefix(_PROCESS)
    return int(number) if number != user and number.isdigit() else None


def of_tree(directory: str) -> str:
    """The name under which a tree holds its disk.

    :param directory: real path of the directory it is mounted on.
    """
    return f"{_TREE}{directory}"


def tree_of(user: str) -> str | None:
    """The directory in a name; ``None`` when it is not the name of a tree."""
    return user.removeprefix(_TREE) if user.startswith(_TREE) else None


def how_to_release(names: tuple[str, ...], staged: str) -> str:
    """The hint for somebody in whose way those are who hold a mapping.

    :param staged: directory in which trees are mounted for programs, which take them away themselves.
    """
    import shlex

    trees = [directory for name in names if (directory := tree_of(name)) and os.path.dirname(directory) != staged]
    if not trees:
        return "let its holder release it"
    command = f"mapper-cli umount {shlex.join(trees)}"
    return command if len(trees) == len(names) else f"{command}; then let its other holders release it"


def living(names: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the processes that have ended: they were killed before they could let go."""
    if not any(name.startswith(_PROCESS) for name in names):
        return names
    from mapper_core.linux import process_info

    return tuple(name for name in names if (pid := process_of(name)) is None or process_info.is_running(pid))
