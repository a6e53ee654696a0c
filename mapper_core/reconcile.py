"""Clean up after crashes: everything the journal describes is either finished and wanted, or taken away.

Nothing is guessed. A record that a crash left half done is undone; a tree or a mapping whose owner is gone is
released; what is in use is left and reported. Owners speak for themselves: an entry point in the group
``mapper.owners``, named like the part of the user name before the first ``:``, is a module with ``is_alive(user: str)
-> bool`` and ``let_go(user: str) -> None``, which is called before a dead owner's trees are taken away; and, where a living owner
may have trees that it should not have, ``left_over(user: str) -> tuple[str, ...]`` with their directories and
``take_away(user: str, directory: str) -> bool``, which releases one of them.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from mapper_core import users
from mapper_core.capabilities import finish_resize
from mapper_core.errors import Busy, MapperError, PluginFault
from mapper_core.frozen import dataclass
from mapper_core.journal import Record, State
from mapper_core.linux import locks, process_info
from mapper_core.mapping import Mapper
from mapper_core.registry import installed
from mapper_core.snapshots import undo_interrupted
from mapper_core.tree import mounted
from mapper_core.tree.record import TreeRecord

OWNER_GROUP = "mapper.owners"

#: How long to wait for what is still in use although its owner is gone. The mounts of a container outlive its last process for
#: a moment: the kernel takes a mount namespace apart when nobody waits for it any more, and tells nobody when it has.
SETTLE_SECONDS = 3.0
_PAUSE_SECONDS = 0.1


class Mode(enum.Enum):
    """Whether to act."""

    REPAIR = "repair"
    DRY_RUN = "dry-run"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that was, or would be, done.

    :param kind: ``disk``, ``tree`` or ``owner``.
    :param subject: image, directory or user.
    :param outcome: what happened, for people.
    """

    kind: str
    subject: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Report:
    """What reconcile did.

    :param actions: what was put in order.
    :param problems: what could not be, and why.
    """

    actions: tuple[Action, ...]
    problems: tuple[Action, ...]


class _Attempt(Protocol):
    """Does something, or says that it would be done: kind, subject, reason, the work, and what that means."""

    def __call__(
        self, kind: str, subject: str, reason: str, repair: Callable[[], object], what: str = ..., /
    ) -> None: ...


def reconcile(mapper: Mapper, mode: Mode = Mode.REPAIR, *, settle_seconds: float = SETTLE_SECONDS) -> Report:
    """Put the whole node in order; run it as often as you like.

    :param settle_seconds: how long to try again what is in use.
    """
    until = time.monotonic() + settle_seconds
    done: tuple[Action, ...] = ()
    while True:
        report, is_busy = _one_pass(mapper, mode)  # everything is asked anew: somebody may have come back meanwhile
        done += report.actions
        if not is_busy or time.monotonic() >= until:
            return Report(done, report.problems)
        time.sleep(_PAUSE_SECONDS)


def _one_pass(mapper: Mapper, mode: Mode) -> tuple[Report, bool]:
    """Try everything once; also tell whether something was in use."""
    actions: list[Action] = []
    problems: list[Action] = []
    alive = _Owners()
    is_busy = False

    def attempt(kind: str, subject: str, reason: str, repair: Callable[[], object], what: str = "released") -> None:
        nonlocal is_busy
        if mode is Mode.DRY_RUN:
            actions.append(Action(kind, subject, f"would be {what}: {reason}"))
            return
        try:
            if repair() is False:  # there is nothing to do any more
                return
        except (MapperError, OSError) as error:
            is_busy |= isinstance(error, Busy)
            problems.append(Action(kind, subject, f"{reason}, but {error}"))
        else:
            actions.append(Action(kind, subject, f"{what}: {reason}"))

    problems.extend(Action("tree", error.subject, error.message) for error in mounted.damaged(mapper))
    for tree in mounted.records(mapper):
        if (reason := _why_tree_goes(mapper, tree, alive)) and not _is_locked(mapper, tree):
            attempt("tree", tree.directory, reason, partial(_dismantle, mapper, tree.directory))
    for owner in sorted({tree.owner for tree in mounted.records(mapper)}):
        for directory in alive.left_over(owner):
            reason = f"an interrupted action has left it, {owner} should not have it"
            attempt("tree", directory, reason, partial(alive.take_away, owner, directory))
    for key in mapper.journal.ids():
        try:
            record = mapper.journal.read(key)
            if record is not None:
                _reconcile_disk(mapper, record, alive, attempt)
        except (MapperError, OSError) as error:
            problems.append(Action("disk", key, str(error)))
    problems.extend(Action("owner", user, problem) for user, problem in alive.problems.items())
    if mode is Mode.REPAIR:
        _remove_temporary_files(mapper)
    return Report(tuple(actions), tuple(problems)), is_busy


def _dismantle(mapper: Mapper, directory: str) -> bool:
    """Take a tree away, if that is still right; ``False`` when it is not, or somebody is at it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(mounted.lock(mapper, directory))
        except Busy:
            return False
        tree, owners = mounted.find(mapper, directory), _Owners()
        # what was seen without the lock may be over: a tree that was not complete then may be in use now
        if tree is None or not _why_tree_goes(mapper, tree, owners):
            return False
        if not owners(tree.owner):
            owners.let_go(tree.owner)
        mounted.dismantle_locked(mapper, tree)
    return True


def _is_locked(mapper: Mapper, tree: TreeRecord) -> bool:
    """Whether somebody is at it."""
    try:
        with mounted.lock(mapper, tree.directory):
            return False
    except Busy:
        return True


def _why_tree_goes(mapper: Mapper, tree: TreeRecord, alive: _Owners) -> str:
    if not tree.complete:
        return "it was never finished"
    if tree.disk_id and tree.disk_id not in mapper.journal:
        return "its disk is gone"
    return "" if alive(tree.owner) else f"its owner {tree.owner} is gone"


def _reconcile_disk(mapper: Mapper, record: Record, alive: _Owners, attempt: _Attempt) -> None:
    source = record.disk.source
    if record.state != State.MAPPED or record.resize_to or record.snapshot:
        try:
            with mapper.lock(record.id):
                pass
        except Busy:
            return  # a process is at work
    if record.state != State.MAPPED:
        attempt("disk", source, f"a crash left it {record.state}", partial(mapper.repair, record.id))
    elif mapper.find(record.id) is None:
        attempt("disk", source, "its device is gone", partial(mapper.repair, record.id))
    else:
        if record.snapshot:
            undo = partial(undo_interrupted, mapper, record.id)
            attempt("disk", source, f"a crash interrupted the snapshot {record.snapshot!r}", undo, "thawed")
        if record.resize_to:
            finish = partial(finish_resize, mapper, record.id)
            attempt("disk", source, f"a crash interrupted its resize to {record.resize_to}", finish, "finished")
        for user in record.users:
            if reason := _why_user_goes(mapper, user, alive):
                is_gone = partial(_is_gone, mapper, user)
                attempt("disk", source, reason, partial(mapper.let_go, record.id, user, is_gone))


def _why_user_goes(mapper: Mapper, user: str, alive: _Owners) -> str:
    if _is_tree_without_record(mapper, user):
        return f"the tree {user} is gone"
    return "" if alive(user) else f"its user {user} is gone"


def _is_gone(mapper: Mapper, user: str) -> bool:
    return bool(_why_user_goes(mapper, user, _Owners()))


def _is_tree_without_record(mapper: Mapper, user: str) -> bool:
    directory = users.tree_of(user)
    return directory is not None and not mounted.has_record(mapper, directory)


class _Owners:
    """Asks the owners' own modules; one without a module, or that cannot be asked, is taken to be alive.

    :ivar problems: who could not be asked, and why.
    """

    def __init__(self) -> None:
        self._answers: dict[str, bool] = {}
        self.problems: dict[str, str] = {}

    def __call__(self, user: str) -> bool:
        if user not in self._answers:
            self._answers[user] = self._ask(user)
        return self._answers[user]

    def let_go(self, user: str) -> None:
        """Tell a dead owner to remove what it has built on its trees.

        :raises PluginFault: its module cannot be loaded, or has a mistake in it.
        """
        with _blaming(user):
            module = self._module(user)
            if module is not None:
                module.let_go(user)

    def left_over(self, user: str) -> tuple[str, ...]:
        """Directories of trees that a living owner should not have."""
        if not self(user) or user in self.problems:
            return ()
        try:
            module = self._module(user)
            return tuple(module.left_over(user)) if hasattr(module, "left_over") else ()
        except Exception as error:
            self.problems[user] = f"cannot be asked what it should not have: {type(error).__name__}: {error}"
            return ()

    def take_away(self, user: str, directory: str) -> bool:
        """Release one of these; ``False`` when there is nothing to do any more.

        :raises PluginFault: as for :meth:`let_go`.
        """
        with _blaming(user):
            return bool(self._module(user).take_away(user, directory))

    def _ask(self, user: str) -> bool:
        pid = users.process_of(user)
        if pid is not None:
            return process_info.is_running(pid)
        try:
            module = self._module(user)
            return module is None or bool(module.is_alive(user))
        except Exception as error:  # of a daemon that hangs, for example: nothing of others waits for that
            self.problems[user] = f"cannot be asked whether it is gone: {type(error).__name__}: {error}"
            return True

    def _module(self, user: str) -> Any:
        kind = user.partition(":")[0]
        for entry in installed(OWNER_GROUP):
            if entry.name == kind:
                return importlib.import_module(entry.module)
        return None


@contextlib.contextmanager
def _blaming(user: str) -> Iterator[None]:
    """Say that an owner's module failed when anything is raised that no caller expects."""
    try:
        yield
    except (MapperError, OSError):
        raise
    except Exception as error:
        raise PluginFault(f"its owner's module failed: {type(error).__name__}: {error}", subject=user) from error


def _remove_temporary_files(mapper: Mapper) -> None:
    """Remove half-written journal files and the locks of processes that are gone."""
    for directory in (mapper.runtime.disks, mapper.runtime.trees):
        for name in os.listdir(directory):
            match = re.fullmatch(r"\..*\.json\.([0-9]+)", name)
            if match and not process_info.is_running(int(match.group(1))):
                with contextlib.suppress(FileNotFoundError):  # another reconcile was faster
                    os.unlink(f"{directory}/{name}")
    for name in os.listdir(mapper.runtime.locks):
        path = f"{mapper.runtime.locks}/{name}"
        with contextlib.suppress(Busy), locks.try_lock(path):
            locks.remove(path)  # whoever wants it makes a new one
