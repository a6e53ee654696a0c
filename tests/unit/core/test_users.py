"""Who holds a mapping, and what those are told who want it released."""

from __future__ import annotations

import pytest

from mapper_core import users

pytestmark = pytest.mark.unit

STAGED = "/run/mapper/mounts"


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("tree:/mnt",), "mapper-cli umount /mnt"),
        (("tree:/mnt", "tree:/srv/a tree"), "mapper-cli umount /mnt '/srv/a tree'"),
        (("tree:/mnt", "backup"), "mapper-cli umount /mnt; then let its other holders release it"),
        (("lxd:one-3", f"tree:{STAGED}/x"), "let its holder release it"),
        (("pid:1",), "let its holder release it"),
    ],
)
def test_the_command_is_named_where_a_command_releases_it(names: tuple[str, ...], hint: str) -> None:
    """Trees that a program has mounted for itself are not for the administrator to take away."""
    assert users.how_to_release(names, STAGED) == hint
