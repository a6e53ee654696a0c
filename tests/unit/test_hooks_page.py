"""The reference of the hooks: every hook has a text, an example that runs and a test, and the page is what it would be now."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pluggy
import pytest

import mapper_core
from mapper_core import Access, Attachment, Disk, ImageInfo, MapOptions, hookspecs
from mapper_core.resources import PluginResource

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "plugin-api.md").read_text(encoding="utf-8")
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
DISK = Disk("/srv/disk.vhdx", "vhdx")

#: What a hook is called with.
ARGUMENTS: dict[str, object] = {
    "disk": DISK,
    "image": ImageInfo(DISK.source, "vhdx", 1 << 20, 1 << 20),
    "options": MapOptions(Access.READ_WRITE),
    "transports": MagicMock(),
    "attachment": Attachment("/dev/loop0", "loop"),
    "device": "/dev/loop0",
    "resource": PluginResource("vhdx.lock", (("cookie", "7"),)),
    "resources": (PluginResource("vhdx.volume", (("volume", "v"),)),),
    "header": b"vhdxfile",
    "name": "before",
    "size": 1 << 20,
    "sector_size": 512,
    "read": lambda offset, length: b"LABELONE"[:length],
}
#: What the examples have from elsewhere: programs that are not run here, and libraries that do not exist.
ELSEWHERE = ("run", "my_cluster", "my_volumes", "my_header", "cluster", "pool", "image", "mapper_vhdx")


@pytest.fixture(scope="module")
def script() -> Iterator[types.ModuleType]:
    spec = importlib.util.spec_from_file_location("hooks_page", ROOT / "scripts" / "hooks_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hooks_page"] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["hooks_page"]


def test_there_are_hooks(script: types.ModuleType) -> None:
    assert [hook.name for hook in script.hooks()] == HOOKS
    assert {"map", "unmap", "inspect", "discover_partitions"} <= set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_lacks_nothing(script: types.ModuleType, name: str) -> None:
    [hook] = [hook for hook in script.hooks() if hook.name == name]
    assert hook.lacks() == []


def test_the_page_is_what_it_would_be_now(script: types.ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(script.hooks()), "run scripts/hooks_page.py"


def test_what_is_missing_would_be_noticed(script: types.ModuleType) -> None:
    def new(disk: Disk) -> None:
        pass

    assert script.Hook.of("new", new).lacks() == ["a description", "an example", "a test"]
    new.__doc__ = "Do it.\n\n:param disc: which.\n\nExample::\n\n    x\n"
    assert script.Hook.of("map", new).lacks() == ["an argument disc, which is described"]


@pytest.mark.parametrize("name", HOOKS)
def test_an_example_runs(script: types.ModuleType, name: str) -> None:
    """It takes arguments that the hook has, uses names that exist, and ends without an exception."""
    [hook] = [hook for hook in script.hooks() if hook.name == name]
    module = types.ModuleType("example")
    module.__dict__.update({name: getattr(mapper_core, name) for name in mapper_core.__all__})
    module.__dict__.update({name: MagicMock() for name in ELSEWHERE})
    exec(compile(hook.example, f"example of {name}", "exec"), module.__dict__)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    caller = getattr(manager.hook, name)
    assert [call.plugin for call in caller.get_hookimpls()] == [module]
    caller(**{argument: ARGUMENTS[argument] for argument in hook.signature.parameters})


def test_the_change_log_knows_every_hook() -> None:
    log = API[API.index("## Change log") :]
    assert set(HOOKS) <= set(re.findall(r"`(\w+)`", log))
    assert f"### {hookspecs.API_VERSION} " in log


def test_what_is_said_of_a_plugin_is_what_the_page_says() -> None:
    """The messages of the table, but for names and numbers."""
    source = (ROOT / "mapper_core" / "registry.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", API, re.MULTILINE)
    assert len(rows) >= 9
    for row in rows:
        for part in re.split(r"\d+(?:, this mapper-core has \d+)?|\.\.\.|MAPPER_BLOCK_PLUGINS|unmap|: ", row):
            assert part.strip(" ;") in source, row


def test_every_module_that_plugins_may_use_exists() -> None:
    table = re.findall(r"^\| `(mapper_core[\w.]*)` \|", API, re.MULTILINE)
    assert "mapper_core.imagefile" in table
    for name in table:
        assert importlib.util.find_spec(name) is not None
