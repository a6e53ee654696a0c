"""The rbd plugin passes the conformance tests of all plugins, on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapper_core import Disk
from mapper_core.testing.conformance import MakeDisk, PluginConformance

from .cluster import Cluster, Images
from .rbddisk import disk

pytestmark = pytest.mark.ceph


class TestRbd(PluginConformance):
    format = "rbd"

    @pytest.fixture
    def make_disk(self, cluster: Cluster, images: Images) -> MakeDisk:
        def make(content: Path, image: Path) -> Disk:
            return disk(cluster, images.upload(f"{cluster.pool}/{image.name}", content))

        return make
