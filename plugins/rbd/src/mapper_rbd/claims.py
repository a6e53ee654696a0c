"""Who has an image: two hosts that write it destroy it (C-09).

Each mapping of ours holds locks on the header object of its image, as long as it exists, with or without a connection:

- ``mapper``: exclusive for writing, shared for reading. Not ``rbd_lock``, which librbd itself takes and hands around between the
  clients of an image with the feature exclusive-lock: with that feature alone a second host waits for its turn and then writes.
- ``mapper.client``: shared, taken when the image is open; its description is the address under which the cluster knows the
  client, so that others recognise its watch, and can shut it out.

Snapshots never change: a mapping of one excludes nobody, and has the second lock only.

Clients that know nothing of these locks (a virtual machine, ``rbd map``) watch the header. So a watch that belongs to no lock
refuses the image too. A watch of a client that died stays until the cluster forgets it (30 s); a notification tells which is
which: living clients answer, and it ends at once when the last of the dead ones is forgotten.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import secrets
import time
from typing import Any

from mapper_core.errors import DeadlineExceeded, InUseElsewhere
from mapper_core.frozen import dataclass
from mapper_core.model import Access
from mapper_rbd import cls_lock
from mapper_rbd.cls_lock import Locker, LockInfo
from mapper_rbd.session import Volume, number_of

LOCK = "mapper"
CLIENT_LOCK = "mapper.client"

#: Shared holders of a lock must agree on a tag.
_TAG = "mapper"

#: How long the cluster remembers the watch of a dead client (osd_client_watch_timeout, 30 s), and a little more, seconds.
FORGET_SECONDS = 40


class Use(enum.Enum):
    """What a mapping does with the image."""

    WRITE = "rw"
    READ = "ro"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Claim:
    """One mapping, as its locks name it.

    :param host: which host has it, see :mod:`mapper_rbd.host`.
    :param boot: in which boot of it.
    :param mapping: its key in the journal of that host.
    :param token: no other claim has it.
    """

    use: Use
    host: str
    boot: str
    mapping: str
    token: str

    @property
    def cookie(self) -> str:
        """The claim as text."""
        return "/".join((self.use.value, self.host, self.boot, self.mapping, self.token))


def new(access: Access, snapshot: str, host: str, boot: str, mapping: str) -> Claim:
    """Return a new claim."""
    use = Use.WRITE if access is Access.READ_WRITE else Use.READ
    return Claim(Use.SNAPSHOT if snapshot else use, host, boot, mapping, secrets.token_hex(8))


def parse(cookie: str) -> Claim | None:
    """Return the claim that a cookie stands for; ``None`` when somebody else wrote it."""
    parts = cookie.split("/")
    try:
        return Claim(Use(parts[0]), *parts[1:])
    except (TypeError, ValueError):
        return None


# --- taking -------------------------------------------------------------------------------------------------


def take(volume: Volume, claim: Claim, *, seconds: int | None = None) -> None:
    """Take the image, before it is opened for use.

    A lock of this host from an earlier boot is one that a crash left behind, and is replaced when nobody watches the image.

    :param seconds: after which the lock ends by itself; ``None``: it stays until it is released or broken.
    :raises InUseElsewhere: another host, or a client that we do not know, has it.
    """
    if claim.use is not Use.SNAPSHOT and not _try_lock(volume, claim, seconds):
        held = info(volume, LOCK)
        stale = [locker for locker in held.lockers if is_stale(locker, claim)]
        if len(stale) < len(held.lockers):
            raise _held(volume, [locker for locker in held.lockers if locker not in stale])
        _refuse_watchers(volume, claim)
        for locker in stale:
            _break(volume, LOCK, locker)
        if not _try_lock(volume, claim, seconds):
            raise _held(volume, list(info(volume, LOCK).lockers))
    _refuse_watchers(volume, claim)


def is_stale(locker: Locker, claim: Claim) -> bool:
    """Say whether a lock is one that a crash of the claim's own host left behind."""
    other = parse(locker.cookie)
    return other is not None and other.host == claim.host and other.boot != claim.boot


def _try_lock(volume: Volume, claim: Claim, seconds: int | None) -> bool:
    ioctx, cookie = volume.ioctx, claim.cookie
    # for people, who see it in: rados lock info
    text = f"{claim.use.value} by {claim.host} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
    try:
        if claim.use is Use.WRITE:
            ioctx.lock_exclusive(volume.header, LOCK, cookie, text, seconds)
        else:
            ioctx.lock_shared(volume.header, LOCK, cookie, _TAG, text, seconds)
    except Exception as error:
        if number_of(error) in (errno.EBUSY, errno.EEXIST):
            return False
        raise
    return True


def _held(volume: Volume, lockers: list[Locker]) -> InUseElsewhere:
    texts = ", ".join(f"{locker.description or locker.cookie} (client.{locker.client})" for locker in lockers)
    return InUseElsewhere(
        f"the image is held: {texts or 'somebody took its lock at this moment'}",
        subject=str(volume.name),
        hint=f"release it there; if that host is dead and stays dead: mapper-cli break-lock {volume.name} -f rbd",
    )


def _refuse_watchers(volume: Volume, claim: Claim) -> None:
    """Make sure that no client has the image open that might write, or that might read what we write.

    :raises InUseElsewhere: one has.
    """
    if claim.use is Use.SNAPSHOT or not unknown_watchers(volume, claim):
        return
    wait_for_dead(volume)
    if left := unknown_watchers(volume, claim):
        raise InUseElsewhere(
            f"other clients have the image open: {', '.join(sorted(left))}",
            subject=str(volume.name),
            hint=f"a virtual machine, or a device mapped by hand on that host? see: rbd status {volume.name}",
        )


def wait_for_dead(volume: Volume) -> None:
    """Wait until all watchers that do not answer are forgotten by the cluster; living ones answer at once."""
    with contextlib.suppress(DeadlineExceeded):
        try:
            # an empty notification is that of the first librbd: "look at the header again"
            volume.ioctx.notify(volume.header, "", FORGET_SECONDS * 1000)
        except Exception as error:
            if number_of(error) != errno.ETIMEDOUT:
                raise


def unknown_watchers(volume: Volume, claim: Claim) -> frozenset[str]:
    """Addresses of watchers that do not belong to readers of ours, whom a claim need not mind."""
    harmless = {Use.SNAPSHOT} if claim.use is Use.WRITE else {Use.SNAPSHOT, Use.READ}
    known = {
        locker.description
        for locker in info(volume, CLIENT_LOCK).lockers
        if (other := parse(locker.cookie)) is not None and other.use in harmless
    }
    return watchers(volume) - known


def watchers(volume: Volume) -> frozenset[str]:
    """Addresses of all clients that watch the image."""
    return frozenset(watcher["addr"] for watcher in volume.image.watchers_list())


def publish(volume: Volume, claim: Claim, before: frozenset[str]) -> None:
    """Say which watcher belongs to a claim, now that the image is open.

    :param before: those who watched before it was opened. With more than one new watcher nobody can tell, and nothing is said:
        then others take it for a stranger, which is safe.
    """
    new_watchers = watchers(volume) - before
    if len(new_watchers) == 1:
        volume.ioctx.lock_shared(volume.header, CLIENT_LOCK, claim.cookie, _TAG, *new_watchers)


# --- giving back --------------------------------------------------------------------------------------------


def release(volume: Volume, claim: Claim) -> None:
    """Give back the locks of a claim, whichever connection took them. What is not there is released.

    A client that was killed has not said goodbye: the image cannot be removed, and nobody else can have it, until the cluster
    forgets its watch. That is waited for.
    """
    own = {locker.description for locker in info(volume, CLIENT_LOCK).lockers if locker.cookie == claim.cookie}
    if own & watchers(volume):
        wait_for_dead(volume)
    for lock in (CLIENT_LOCK, LOCK):
        for locker in info(volume, lock).lockers:
            if locker.cookie == claim.cookie:
                _break(volume, lock, locker)


def break_all(volume: Volume) -> None:
    """Shut out the clients of all who hold the image, then take their locks away.

    Those of readers too: the lock of one that is dead keeps everybody from writing. Mappings of snapshots keep theirs.
    """
    held = info(volume, LOCK)
    cookies = {locker.cookie for locker in held.lockers}
    clients = [locker for locker in info(volume, CLIENT_LOCK).lockers if locker.cookie in cookies]
    for address in sorted(_to_fence(volume, held, clients)):
        volume.session.client.blocklist_add(address, 0)
    for lock, lockers in ((CLIENT_LOCK, clients), (LOCK, held.lockers)):
        for locker in lockers:
            _break(volume, lock, locker)


def _to_fence(volume: Volume, held: LockInfo, clients: list[Locker]) -> set[str]:
    """Addresses of the clients of those who hold the lock: as they said, and whoever holds librbd's own lock."""
    found = {locker.description for locker in clients}
    if held.exclusive and held.lockers:
        own = volume.image.list_lockers()  # {} or [] without any
        found |= {address for _client, _cookie, address in (own or {}).get("lockers", ())}
    return found


def info(volume: Volume, lock: str) -> LockInfo:
    """Who holds a lock of the image."""
    _, answer = volume.ioctx.execute(volume.header, "lock", "get_info", cls_lock.encode_get_info(lock), 1 << 16)
    return cls_lock.decode_info(answer)


def _break(volume: Volume, lock: str, locker: Locker) -> None:
    ioctx: Any = volume.ioctx
    try:
        ioctx.execute(volume.header, "lock", "break_lock", cls_lock.encode_break(lock, locker))
    except Exception as error:
        if number_of(error) != errno.ENOENT:
            raise
