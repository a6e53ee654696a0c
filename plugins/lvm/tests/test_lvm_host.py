"""Volumes of the host, as far as no command of LVM is needed: names of device-mapper, and what ``lvs`` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mapper_lvm import active, tool
from mapper_lvm.names import VolumeName

from mapper_core.errors import KernelError

pytestmark = pytest.mark.unit

GROUP = "pCbdzn-cjvU-vdNY-ekY4-uEUb-B0vX-VTFg6L"
VOLUME = "7Xveje-l3O6-sJiA-30ET-ETi2-ScBB-ZJPbGH"
ROW = {
    "lv_name": "lv-one-7-0",
    "lv_uuid": VOLUME,
    "vg_uuid": GROUP,
    "lv_size": "4194304",
    "lv_active": "1",
    "lv_device_open": "0",
    "lv_layout": "linear",
    "origin": "",
    "pool_lv": "",
    "vg_extent_size": "1048576",
    "lv_tags": "",
}


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("vg-lv", VolumeName("vg", "lv")),
        ("vg--one--100-lv--one--7--0", VolumeName("vg-one-100", "lv-one-7-0")),
        ("vg---lv", VolumeName("vg-", "lv")),
        ("vg--lv", None),
        ("mapper", None),
        ("", None),
    ],
)
def test_a_name_of_device_mapper_is_divided(name: str, volume: VolumeName | None) -> None:
    assert active.divide(name) == volume


def device(directory: Path, number: int, name: str, uuid: str) -> None:
    attributes = directory / f"dm-{number}" / "dm"
    attributes.mkdir(parents=True)
    (attributes / "name").write_text(f"{name}\n")
    (attributes / "uuid").write_text(f"{uuid}\n")


def test_an_active_volume_is_found_by_its_uuids(tmp_path: Path) -> None:
    """Not by its name, which may be another by now; and not the devices below that LVM makes for the origin of a snapshot."""
    uuid = f"LVM-{GROUP}{VOLUME}".replace("-", "").replace("LVM", "LVM-")
    (tmp_path / "loop0").mkdir()
    (tmp_path / "dm-9").mkdir()  # just going
    device(tmp_path, 0, "vg-lv-real", f"{uuid}-real")
    device(tmp_path, 1, "vg-lv", f"LVM-{'0' * 64}")
    assert active.find(f"{GROUP}/{VOLUME}", str(tmp_path)) is None
    device(tmp_path, 2, "vg-renamed", uuid)
    assert active.find(f"{GROUP}/{VOLUME}", str(tmp_path)) == VolumeName("vg", "renamed")


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ("", ""),
        ("backup,mapper.revert=before", "before"),
        ("mapper.revert=", ""),
        ("mapper.revert=-f,mapper.revert=a", "a"),
        ("other.mapper.revert=a", ""),
    ],
)
def test_a_tag_names_the_snapshot_of_an_interrupted_revert(tags: str, name: str) -> None:
    report = {"report": [{"lv": [{**ROW, "lv_tags": tags}]}]}
    (volume,) = tool.parse(json.dumps(report).encode())
    assert (volume.reverting, volume.identity, volume.created) == (name, f"{GROUP}/{VOLUME}", 0)


def test_another_report_is_an_error() -> None:
    with pytest.raises(KernelError, match="not understood"):
        tool.parse(b'{"report": [{"vg": []}]}')
