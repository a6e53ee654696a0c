"""Locks on objects of RADOS: what the class ``lock`` of the storage daemons is asked, and what it answers.

librados takes locks; its Python binding can neither list nor break them, so these two messages are written and read here.
Source: Ceph's ``src/cls/lock/cls_lock_ops.h``, ``cls_lock_types.h``, ``src/include/encoding.h``, ``src/msg/msg_types.h``; the
kernel has the same in ``net/ceph/cls_lock_client.c``.
"""

from __future__ import annotations

import struct

from mapper_core.errors import MapperError
from mapper_core.frozen import dataclass

#: ``LOCK_EXCLUSIVE``; the other is ``LOCK_SHARED``, 2.
_EXCLUSIVE = 1

#: ``CEPH_ENTITY_TYPE_CLIENT``.
_CLIENT = 8


@dataclass(frozen=True, slots=True)
class Locker:
    """Who holds a lock.

    :param client: number of the client that took it; its connection may be gone, the lock stays.
    :param cookie: which of its locks.
    :param description: for people.
    """

    client: int
    cookie: str
    description: str


@dataclass(frozen=True, slots=True)
class LockInfo:
    """A lock: free when there are no lockers."""

    exclusive: bool
    lockers: tuple[Locker, ...]


def encode_get_info(lock: str) -> bytes:
    """Return the request ``cls_lock_get_info_op``."""
    return _versioned(_string(lock))


def encode_break(lock: str, locker: Locker) -> bytes:
    """Return the request ``cls_lock_break_op``."""
    return _versioned(_string(lock) + struct.pack("<Bq", _CLIENT, locker.client) + _string(locker.cookie))


def decode_info(data: bytes) -> LockInfo:
    """Understand the answer ``cls_lock_get_info_reply``.

    :raises MapperError: it is none.
    """
    try:
        reply = _Reader(data).versioned()
        lockers = tuple(_locker(reply) for _ in range(reply.number("<I")))
        return LockInfo(reply.number("<B") == _EXCLUSIVE, lockers)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MapperError(f"the list of lock holders cannot be understood: {error}", subject=data[:64].hex()) from error


def _locker(reply: _Reader) -> Locker:
    key = reply.versioned()
    _kind, client = key.number("<B"), key.number("<q")
    cookie = key.string()
    value = reply.versioned()
    value.skip(8)  # when it expires
    _skip_address(value)
    return Locker(client, cookie, value.string())


def _skip_address(reader: _Reader) -> None:
    """``entity_addr_t``: with a length since version 10, before that a fixed structure."""
    if reader.number("<B"):
        reader.versioned()
    else:
        reader.skip(3 + 4 + 128)


class _Reader:
    """Reads Ceph's encoding: little endian, strings and structures with their length."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        piece = self._data[self._at : self._at + length]
        if len(piece) != length:
            raise IndexError("it is too short")
        self._at += length
        return piece

    def skip(self, length: int) -> None:
        """Pass over some bytes."""
        self.take(length)

    def number(self, form: str) -> int:
        """Return the next number, see :mod:`struct`."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def string(self) -> str:
        """Return the next string."""
        return self.take(self.number("<I")).decode()

    def versioned(self) -> _Reader:
        """Return the next structure (``ENCODE_START``); fields that newer versions have at its end are left out."""
        self.skip(2)  # version, oldest version that it is compatible with
        return _Reader(self.take(self.number("<I")))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _versioned(content: bytes) -> bytes:
    return struct.pack("<BBI", 1, 1, len(content)) + content
