"""What an LVM configuration means for our devices."""

from __future__ import annotations

import pytest

from mapper_core.doctor import Status
from mapper_core.doctor.lvm import filter_patterns, judge, rejects

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "text",
    [
        'devices {\n  global_filter = [ "r|^/dev/(nbd|loop|rbd)|", "a|.*|" ]\n}',
        'global_filter=["r|/dev/nbd.*|",\n "r|/dev/loop.*|", "a/.*/"]',
        'global_filter = "r/.*/"',
        'global_filter = [ "a|^/dev/sd|", "r|.*|" ]',
        'global_filter = [ "a|.*|" ]\n# the local file is read later\nglobal_filter = [ "r(/dev/nbd)", "r{/dev/loop}" ]',
        "  use_devicesfile = 1\n",
    ],
)
def test_a_filter_that_keeps_lvm_away(text: str) -> None:
    assert judge(text).status is Status.OK


@pytest.mark.parametrize(
    "text",
    [
        "",
        '# global_filter = [ "r|.*|" ]',
        '  filter = [ "r|.*|" ]',
        'global_filter = [ "a|.*|", "r|^/dev/nbd|" ]',
        'global_filter = [ "r|^/dev/nbd|" ]',
        "use_devicesfile = 0",
    ],
)
def test_m17_a_configuration_that_lets_lvm_open_our_devices(text: str) -> None:
    check = judge(text)
    assert check.status is Status.WARNING
    assert "/dev/loop0" in check.detail and "global_filter" in check.hint


def test_the_first_pattern_that_matches_decides() -> None:
    patterns = filter_patterns('global_filter = [ "a|^/dev/loop0$|", "r|^/dev/loop|" ]')
    assert patterns == ("a|^/dev/loop0$|", "r|^/dev/loop|")
    assert not rejects(patterns, "/dev/loop0")
    assert rejects(patterns, "/dev/loop1")
    assert not rejects(patterns, "/dev/sda")


def test_a_pattern_that_is_no_pattern_is_passed_over() -> None:
    assert not rejects(("r", "x|a|", "r|(|"), "/dev/nbd0")
