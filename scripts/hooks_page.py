#!/usr/bin/env python3
"""Writes docs/hooks.md, the reference of the hooks, from their specifications and from the tests that exercise them.

Usage: .venv/bin/python scripts/hooks_page.py [--check]. With ``--check`` nothing is written; exit status 1: the page is not what it
would be, 2: a hook lacks something.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mapper_core import hookspecs
from mapper_core.testing.conformance import ImageConformance

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "hooks.md"

#: Tests of hooks that the conformance tests cannot provoke, or not fully: file and function.
ELSEWHERE: dict[str, tuple[tuple[str, str], ...]] = {
    "break_lock": (("tests/ceph/test_rbd_hosts.py", "test_c09_break_lock_shuts_the_other_host_out"),),
    "check_answers": (("tests/ceph/test_rbd_faults.py", "test_c08_a_cluster_that_is_gone_at_unmap"),),
    "discover_partitions": (("tests/unit/partitions/test_discover.py", ""),),
    "identify": (("tests/ceph/test_rbd_map.py", "test_c13_a_name_that_is_given_to_another_image"),),
    "owns": (("plugins/rbd/tests/test_rbd_kernel.py", "test_a_device_of_rbd_nbd_is_that_of_its_own_server"),),
    "recognize": (("tests/unit/core/test_registry.py", "test_recognition_is_advice_and_must_be_unique"),),
    "release": (("tests/ceph/test_rbd_hosts.py", "test_a_record_of_an_earlier_boot_gives_its_lock_back"),),
}

HEAD = """\
# The hooks

<!-- Made by scripts/hooks_page.py from mapper_core/hookspecs.py; do not change it here. -->

{intro}

A hook takes any of its arguments, by name. `map` and `unmap` are required, all others optional: what a format lacks is refused with
`NotSupported`. The types are those of `mapper_core`, see [plugin-api.md](plugin-api.md#what-a-plugin-may-use). How to begin:
[write-a-plugin.md](write-a-plugin.md).

| hook | what it does |
|---|---|
{table}
"""


@dataclass
class Hook:
    """What is known about one hook."""

    name: str
    signature: inspect.Signature
    summary: str
    text: list[str]
    parameters: dict[str, str] = field(default_factory=dict)
    returns: str = ""
    raises: dict[str, str] = field(default_factory=dict)
    example: str = ""
    tests: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, function: Callable[..., object]) -> Hook:
        """Read a specification."""
        body, _, example = (inspect.getdoc(function) or "").partition("Example::")
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\n|\n(?=:)", body.strip()) if part.strip()]
        hook = cls(name, inspect.signature(function), paragraphs[0] if paragraphs else "", [])
        for paragraph in paragraphs[1:]:
            if match := re.fullmatch(r":param (\w+): (.*)", paragraph):
                hook.parameters[match[1]] = match[2]
            elif match := re.fullmatch(r":raises ([\w, ]+): (.*)", paragraph):
                hook.raises[match[1]] = match[2]
            elif match := re.fullmatch(r":returns: (.*)", paragraph):
                hook.returns = match[1]
            else:
                hook.text.append(paragraph)
        hook.example = inspect.cleandoc(example) if example else ""
        hook.tests = _tests(name)
        return hook

    def lacks(self) -> list[str]:
        """What the documentation of the hook lacks."""
        missing = [] if self.summary else ["a description"]
        missing += [] if self.example else ["an example"]
        missing += [] if self.tests else ["a test"]
        unknown = self.parameters.keys() - self.signature.parameters.keys()
        return missing + [f"an argument {name}, which is described" for name in sorted(unknown)]

    def page(self) -> str:
        """The section of the hook."""
        arguments = ", ".join(f"{item.name}: {item.annotation}" for item in self.signature.parameters.values())
        lines = [
            f"## `{self.name}`",
            "",
            "```python",
            f"def {self.name}({arguments}) -> {self.signature.return_annotation}",
        ]
        lines += ["```", "", _markdown(self.summary), ""]
        for paragraph in self.text:
            lines += [_markdown(paragraph), ""]
        facts = [f"- `{name}`: {_markdown(text)}" for name, text in self.parameters.items()]
        facts += [f"- returns: {_markdown(self.returns)}"] if self.returns else []
        facts += [f"- raises `{name}`: {_markdown(text)}" for name, text in self.raises.items()]
        lines += [*facts, ""] if facts else []
        lines += ["```python", self.example, "```", "", f"Tested by {' and '.join(self.tests)}.", ""]
        return "\n".join(lines)


def _tests(hook: str) -> list[str]:
    """What exercises a hook: the conformance tests, by what they prove, and others."""
    marks = [
        mark for name in dir(ImageConformance) for mark in getattr(getattr(ImageConformance, name), "pytestmark", ())
    ]
    topics = {mark.kwargs["topic"] for mark in marks if mark.name == "mapper_kit" and hook in mark.kwargs["hooks"]}
    proofs = "write-a-plugin.md#what-the-tests-prove"
    found = [f"the [conformance tests]({proofs}) ({', '.join(sorted(topics))})"] if topics else []
    for path, name in ELSEWHERE.get(hook, ()):
        if f"def {name or 'test_'}" not in (ROOT / path).read_text(encoding="utf-8"):
            sys.exit(f"hooks_page: there is no test {name} in {path}")
        found.append(f"`{name}` in [{path}](../{path})" if name else f"[{path}](../{path})")
    return found


def _markdown(text: str) -> str:
    """Turn what docstrings have of reStructuredText into Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: f"`{match[1]}`", text)
    return text.replace("``", "`")


def hooks() -> list[Hook]:
    """All hooks, in the order of the specifications."""
    return [
        Hook.of(name, value) for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")
    ]


def page(found: list[Hook]) -> str:
    """The whole page."""
    intro = (hookspecs.__doc__ or "").strip().split("\n\n")
    prose = [
        " ".join(part.split())
        for part in intro[1:]
        if not part.startswith((" ", "A hook may take")) and "::" not in part
    ]
    table = "\n".join(f"| [`{hook.name}`](#{hook.name}) | {_markdown(hook.summary)} |" for hook in found)
    head = HEAD.format(intro="\n\n".join(_markdown(part) for part in prose), table=table)
    return "\n".join([head, *(hook.page() for hook in found)]).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it."""
    found = hooks()
    for hook in found:
        for thing in hook.lacks():
            print(f"hooks_page: the hook {hook.name} lacks {thing}", file=sys.stderr)
            return 2
    text = page(found)
    if "--check" in sys.argv:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
