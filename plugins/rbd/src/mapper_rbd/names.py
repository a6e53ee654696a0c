"""Names of volumes: ``pool/image``, ``pool/namespace/image``, each with ``@snapshot`` at its end or without."""

from __future__ import annotations

from mapper_core.errors import UsageError
from mapper_core.frozen import dataclass


@dataclass(frozen=True, slots=True)
class VolumeName:
    """An image of a pool, or one of its snapshots.

    :param namespace: of RBD; empty for the pool's default.
    :param snapshot: empty for the image itself.
    """

    pool: str
    image: str
    namespace: str = ""
    snapshot: str = ""

    def __str__(self) -> str:
        names = (self.pool, self.namespace, self.image) if self.namespace else (self.pool, self.image)
        return "/".join(names) + (f"@{self.snapshot}" if self.snapshot else "")


def parse(source: str) -> VolumeName:
    """Understand the name of a volume.

    :raises UsageError: it has another form, or control characters in it.
    """
    path, at, snapshot = source.partition("@")
    parts = path.split("/")
    whole = len(parts) in (2, 3) and all(parts) and "@" not in snapshot and bool(snapshot) == bool(at)
    if not whole or "/" in snapshot or not source.isprintable():
        raise UsageError(
            "is not the name of an RBD image",
            subject=ascii(source)[1:-1],
            hint="write POOL/IMAGE or POOL/NAMESPACE/IMAGE, and @SNAPSHOT behind it for a snapshot",
        )
    namespace = parts[1] if len(parts) == 3 else ""
    return VolumeName(parts[0], parts[-1], namespace, snapshot)
