"""The options of the node."""

from __future__ import annotations

from pathlib import Path

import pytest
from mapper_driver.opennebula.config import ENVIRONMENT, Config, Logging, Vnc, find_config, load_config, parse_config

from mapper_core.errors import NotFound, Refused, UsageError

pytestmark = pytest.mark.unit

SYMBOLS = b"""
# as OpenNebula ships it
:vnc:
  :command: /bin/login
  :width: 1024
  :height: 768
  :timeout: 60
:filesystem: xfs
:datastore_location: /srv//one/datastores/
"""


@pytest.mark.parametrize(
    "data", [SYMBOLS, SYMBOLS.replace(b" :", b" ").replace(b"\n:", b"\n")], ids=["symbols", "plain"]
)
def test_lxdrc(data: bytes) -> None:
    config = parse_config(data, "lxdrc")
    assert config == Config(
        vnc=Vnc("/bin/login", 1024, 768, 60), filesystem="xfs", datastore_location="/srv/one/datastores"
    )


def test_our_own_options() -> None:
    config = parse_config(
        b"pool: fast\nprofile: one\nstart_timeout: 5\nstop_timeout: 2.5\nsocket: /run/incus.socket\ntransport: nbd\n"
        b"default_format: raw\nallowed_dirs: [/srv/backing//]\n"
        b"security:\n  allow: [nesting]\n  raw_allow: [limits.memory, linux.sysctl.net.*]\n",
        "lxdrc",
    )
    assert (config.pool, config.profile, config.start_timeout, config.stop_timeout) == ("fast", "one", 5.0, 2.5)
    assert (config.socket, config.transport, config.default_format) == ("/run/incus.socket", "nbd", "raw")
    assert config.allowed_dirs == ("/srv/backing",)
    assert config.security.allow == ("nesting",)
    assert config.security.raw_allow == ("limits.memory", "linux.sysctl.net.*")
    assert config.warnings == ()


@pytest.mark.parametrize("data", [b"", b"# nothing\n", b"---\n", b":vnc:\n", b"security:\n"])
def test_defaults(data: bytes) -> None:
    assert parse_config(data, "lxdrc") == Config()


def test_unknown_options_are_named() -> None:
    config = parse_config(b":containers: /x\nvnc:\n  colour: red\n4: x\nwarnings: x\n", "/etc/lxdrc")
    assert config.warnings == (
        "/etc/lxdrc: unknown option 'containers' is ignored",
        "/etc/lxdrc: unknown option '4' is ignored",
        "/etc/lxdrc: unknown option 'warnings' is ignored",
        "/etc/lxdrc: unknown option 'vnc.colour' is ignored",
    )


WRONG = {
    "not YAML": (b"a: [1,\nb: }", "not YAML in line"),
    "a tag that makes objects": (b"pool: !!python/object/apply:os.system [id]", "not YAML in line 1"),
    "binary": (b"\x00\x01", "not YAML"),
    "a date that is none": (b"filesystem: 2020-13-45", "it is not YAML"),
    "very deep": (b"[" * 5000, "it is not YAML"),
    "a list": (b"- a\n- b\n", "the content must be a list of options"),
    "a word": (b"hello", "the content must be a list of options"),
    "vnc is a word": (b":vnc: yes please", "vnc must be a list of options"),
    "width": (b":vnc:\n  :width: wide", "vnc.width is 'wide', expected a whole number"),
    "width true": (b":vnc:\n  :width: true", "vnc.width is 'True', expected a whole number"),
    "width 0": (b":vnc:\n  :width: 0", "vnc.width is '0', expected a whole number of at least 1"),
    "command": (b":vnc:\n  :command: [a, b]", "vnc.command is"),
    "command with a line end": (b':vnc:\n  :command: "a\\n-5900"', "vnc.command is"),
    "filesystem": (b":filesystem: ext4 -F", "filesystem is 'ext4 -F', expected a plain name"),
    "relative location": (
        b":datastore_location: datastores",
        "datastore_location is 'datastores', expected an absolute",
    ),
    "location that leaves": (b":datastore_location: /a/../b", "datastore_location is"),
    "dirs not a list": (b"allowed_dirs: /srv", "allowed_dirs is '/srv', expected a list"),
    "dirs relative": (b"allowed_dirs: [srv]", "allowed_dirs is 'srv', expected an absolute path"),
    "timeout": (b"stop_timeout: -1", "stop_timeout is '-1', expected a number of seconds"),
    "timeout infinite": (b"stop_timeout: .inf", "stop_timeout is 'inf'"),
    "timeout nan": (b"stop_timeout: .nan", "stop_timeout is 'nan'"),
    "pool": (b"pool: a/b", "pool is 'a/b', expected a plain name"),
    "pool a number": (b"pool: 7", "pool is '7', expected one line of text"),
    "security": (b"security:\n  allow: [root]", "security.allow is 'root', expected privileged or nesting"),
    "allow all": (b"security:\n  raw_allow: ['*']", r"security.raw_allow is '\*', expected a key"),
    "twice": (b":pool: a\npool: b\n", "option 'pool' is given twice"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_config(data, "/etc/lxdrc")
    assert caught.value.subject == "/etc/lxdrc" and str(caught.value).startswith("/etc/lxdrc: ")


def test_beside_the_scripts(tmp_path: Path) -> None:
    scripts = tmp_path / "vmm" / "lxd"
    scripts.mkdir(parents=True)
    assert find_config(str(scripts), {}) == ""
    assert load_config("") == Config()
    file = tmp_path / "etc" / "vmm" / "lxd" / "lxdrc"
    file.parent.mkdir(parents=True)
    file.write_bytes(b":filesystem: xfs\n")
    assert find_config(str(scripts), {}) == str(file)
    assert load_config(str(file)).filesystem == "xfs"


def test_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_bytes(b"pool: fast\n")
    assert load_config(find_config("/nowhere", {ENVIRONMENT: str(file)})).pool == "fast"
    with pytest.raises(NotFound, match=ENVIRONMENT):
        find_config("/nowhere", {ENVIRONMENT: str(tmp_path / "absent")})


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read it"):
        load_config(str(tmp_path))
    large = tmp_path / "large"
    large.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(UsageError, match="larger than"):
        load_config(str(large))


def test_the_file_of_the_nodes_administrator_goes_before_that_of_the_front_end(tmp_path: Path) -> None:
    beside = tmp_path / "etc" / "vmm" / "lxd" / "lxdrc"
    beside.parent.mkdir(parents=True)
    beside.write_bytes(b"pool: theirs\n")
    scripts, node = str(tmp_path / "vmm" / "lxd"), tmp_path / "lxdrc"
    assert find_config(scripts, {}, str(node)) == str(beside)
    node.write_bytes(b"pool: mine\n")
    node.chmod(0o644)
    assert find_config(scripts, {}, str(node)) == str(node)
    node.chmod(0o666)
    with pytest.raises(Refused, match="others than root may write"):
        find_config(scripts, {}, str(node))
    node.unlink()
    node.symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="cannot read it: No such file"):
        find_config(scripts, {}, str(node))


def test_what_is_logged_besides() -> None:
    assert parse_config(b"pool: x", "lxdrc").log == Logging(durations=False, json=False)
    assert parse_config(b":log:\n  :durations: true\n  :json: true\n", "lxdrc").log == Logging(
        durations=True, json=True
    )
    with pytest.raises(UsageError, match=r"log\.json is '1', expected true or false"):
        parse_config(b"log: {json: 1}", "lxdrc")
    [warning] = parse_config(b"log: {colour: red}", "lxdrc").warnings
    assert "log.colour" in warning
