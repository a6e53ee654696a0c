"""The registry: one format, one plugin; a bad plugin is a named warning and stops nobody else."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import MapperError, NotSupported, PluginFault, PluginMissing, UnsupportedFormat
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.registry import EntryPoint, Registry, installed

pytestmark = pytest.mark.unit

Install = Callable[..., None]

GOOD = """
from mapper_core import Attachment, hookimpl
MAPPER_API = (1, 1)
@hookimpl
def map(disk): return Attachment("/dev/" + disk.format, "own")
@hookimpl
def unmap(): pass
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A function that installs plugins as real distributions: a module and a dist-info with an entry point each."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def install(name: str, source: str, distribution: str = "", version: str = "1.0") -> None:
        distribution = distribution or f"mapper_{name}"
        module = f"plugin_{distribution}_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[console_scripts]\nx = y:z\n\n[mapper]\n{name} = {module}\n")
        made.append(module)

    yield install
    for module in made:
        sys.modules.pop(module, None)


def _load() -> Registry:
    return Registry.load(entry for entry in installed() if entry.module.startswith("plugin_"))


def _map(registry: Registry, name: str) -> str:
    return registry.map(Disk("/x", name), None, MapOptions(Access.READ_ONLY), None).device  # type: ignore[arg-type]


def test_each_format_is_answered_by_its_own_plugin(plugins: Install) -> None:
    plugins("aa", GOOD)
    plugins("bb", GOOD)
    registry = _load()
    assert registry.formats() == ("aa", "bb")
    assert _map(registry, "aa") == "/dev/aa"
    assert _map(registry, "bb") == "/dev/bb"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        (
            "from mapper_core import something_new",
            "is made for another version of mapper-core, this one has hook API 1",
        ),
        ("import mapper_core.gone", "is made for another version of mapper-core"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("1/0", "cannot be imported: ZeroDivisionError"),
        ("x = ", "cannot be imported: SyntaxError"),
        (GOOD.replace("MAPPER_API = (1, 1)", ""), "does not declare MAPPER_API"),
        (GOOD.replace("(1, 1)", "'1'"), "does not declare MAPPER_API"),
        (GOOD.replace("(1, 1)", "(2, 3)"), "needs hook API 2"),
        (GOOD.replace("(1, 1)", "(0, 0)"), "works up to hook API 0"),
        (GOOD.replace("def unmap", "def unmapp"), "unmap"),
        (GOOD.replace("def map(disk)", "def map(disc)"), "cannot be registered"),
    ],
)
def test_a_bad_plugin_is_named_and_stops_nobody(plugins: Install, source: str, problem: str) -> None:
    plugins("bad", source)
    plugins("good", GOOD)
    registry = _load()
    assert registry.formats() == ("good",)
    assert problem in next(plugin.problem for plugin in registry.plugins if plugin.entry.name == "bad")
    with pytest.raises(PluginMissing, match="bad"):
        registry.require("bad")


def test_two_distributions_with_one_name_are_both_named_and_neither_is_used(plugins: Install) -> None:
    plugins("dup", GOOD, "first")
    plugins("dup", GOOD, "second")
    registry = _load()
    assert registry.formats() == ()
    with pytest.raises(PluginMissing, match="first, second"):
        registry.require("dup")


def test_a_plugin_can_be_blocked(plugins: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins("aa", GOOD)
    monkeypatch.setenv("MAPPER_BLOCK_PLUGINS", "zz, aa")
    with pytest.raises(PluginMissing, match="blocked"):
        _load().require("aa")


def test_a_missing_plugin_says_what_is_installed(plugins: Install) -> None:
    plugins("aa", GOOD)
    with pytest.raises(PluginMissing) as caught:
        _load().require("vhdx")
    assert "aa" in caught.value.hint
    assert "pip install ./plugins/" in caught.value.hint
    assert "pip install mapper" not in caught.value.hint, "in the index such names are other people's projects"


@pytest.mark.parametrize(
    "result", ["None", "'/dev/loop0'", "5", "Attachment(None, 'x')", "Attachment('/dev/x', '')", "exit(0)"]
)
def test_a_plugin_that_returns_nonsense_is_at_fault(plugins: Install, result: str) -> None:
    """S-13."""
    plugins("aa", GOOD.replace('Attachment("/dev/" + disk.format, "own")', result))
    with pytest.raises(PluginFault, match="aa"):
        _map(_load(), "aa")


def test_an_unexpected_exception_is_the_plugins_fault_and_ours_pass(plugins: Install) -> None:
    plugins("aa", GOOD.replace("return Attachment", "raise KeyError('boo') or Attachment"))
    plugins("bb", GOOD.replace("return Attachment", "raise NotSupported('no') or Attachment") + "\n")
    sys.modules.pop("plugin_mapper_bb_bb", None)
    with pytest.raises(PluginFault, match="KeyError"):
        _map(_load(), "aa")
    with pytest.raises(MapperError):
        _map(_load(), "bb")


def test_a_missing_capability_is_not_supported(plugins: Install) -> None:
    plugins("aa", GOOD)
    assert _load().inspect(Disk("/x", "aa")) is None
    with pytest.raises(NotSupported, match="no hook inspect"):
        _load()._ask("aa", "inspect", disk=Disk("/x", "aa"))


def test_recognition_is_advice_and_must_be_unique(plugins: Install) -> None:
    extra = "\n@hookimpl\ndef recognize(header): return header.startswith(b'AA')\n"
    plugins("aa", GOOD + extra)
    assert _load().recognize(b"AA..", "/x") == "aa"
    plugins("ab", GOOD + extra)
    with pytest.raises(UnsupportedFormat, match="aa, ab"):
        _load().recognize(b"AA..", "/x")


def test_a_known_format_without_a_plugin_is_never_taken_for_raw(plugins: Install) -> None:
    plugins("raw", GOOD)
    assert _load().recognize(b"\0" * 4096, "/x") == "raw"
    with pytest.raises(PluginMissing, match="vhdx"):
        _load().recognize(b"vhdxfile", "/x")


def test_entry_points_are_read_like_importlib_metadata_does() -> None:
    from importlib.metadata import entry_points

    theirs = {(entry.name, entry.value.split(":")[0]) for entry in entry_points(group="mapper")}
    ours = {(entry.name, entry.module) for entry in installed()}
    assert theirs == ours
    assert ("raw", "mapper_raw") in ours


def test_a_broken_metadata_file_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "odd-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(b"[mapper]\nno equals sign\n\xff")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert EntryPoint("raw", "mapper_raw", "mapper-raw", "0.1.0") in installed()
