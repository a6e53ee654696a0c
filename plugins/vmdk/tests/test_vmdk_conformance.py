"""The vmdk plugin passes the conformance tests of all plugins."""

import pytest

from mapper_core import Disk
from mapper_core.testing.conformance import ImageConformance, MakeDisk
from mapper_core.testing.disks import convert

pytestmark = pytest.mark.root


class TestVmdk(ImageConformance):
    format = "vmdk"

    @pytest.fixture
    def make_disk(self) -> MakeDisk:
        return lambda content, image: Disk(str(convert(content, "vmdk", image)), "vmdk")
