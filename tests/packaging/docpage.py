"""Follows a page of the documentation as a reader would: types its commands, writes its files, compares what is printed.

- ``console``: lines that begin with ``$`` or ``#`` are typed into one shell, those between are what they print. ``...`` stands
  for anything; numbers of devices and with a decimal point, and the width of columns, do not matter. ``console exit=1``: the
  last one fails.
- ``LANGUAGE file=PATH``: the text is this file; with ``append`` its end, with ``replace=NAME`` the function NAME in it.
- Other blocks are only shown, and are found in what the reader has (``LANGUAGE`` alone), see :meth:`Reader.shown`.
"""

from __future__ import annotations

import ast
import os
import re
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

#: The longest command, seconds.
DEADLINE = 280
_END = "end-of-command-7f3a"


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    language: str
    attributes: dict[str, str]
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found, text = [], page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)?([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        words = (word.partition("=") for word in match[2].split())
        attributes = {name: value for name, _, value in words}
        found.append(Block(match[1] or "", attributes, match[3], text[: match.start()].count("\n") + 1))
    return found


class Reader:
    """Somebody who follows a page.

    :param directory: where, an empty one.
    :param environment: of the shell.
    """

    def __init__(self, page: Path, directory: Path, environment: dict[str, str]) -> None:
        self.page = page
        self.directory = directory
        self.unseen: list[Block] = []
        self._shell = subprocess.Popen(
            ("bash", "--norc"), cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.kill()
        self._shell.communicate()

    def follow(self) -> int:
        """Do all that the page says; return the number of commands typed."""
        typed = 0
        for block in blocks(self.page):
            if block.language == "console":
                typed += self._type(block)
            elif "file" in block.attributes:
                self._write(block)
            else:
                self.unseen.append(block)
        return typed

    def _type(self, block: Block) -> int:
        steps = re.findall(r"^[$#] (.*)\n((?:(?![$#] ).*\n)*)", block.text, re.MULTILINE)
        for number, (command, expected) in enumerate(steps, start=1):
            output, status = self._run(command)
            where = f"{self.page.name}:{block.line}: {command}"
            wanted = int(block.attributes.get("exit", 0)) if number == len(steps) else 0
            assert status == wanted, f"{where}\nended with {status}\n{output}"
            assert matches(output, expected), f"{where}\n--- the page says\n{expected}--- it prints\n{output}"
        return len(steps)

    def _run(self, command: str) -> tuple[str, int]:
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null; printf '\\n%s %d\\n' {_END} $?\n".encode())
        self._shell.stdin.flush()
        output, until = b"", time.monotonic() + DEADLINE
        while not (end := re.search(rb"\n" + _END.encode() + rb" (\d+)\n$", output)):
            ready, _, _ = select.select([self._shell.stdout], [], [], max(0, until - time.monotonic()))
            assert ready, f"{command}: not done after {DEADLINE} s\n{output.decode()}"
            piece = os.read(self._shell.stdout.fileno(), 1 << 16)
            assert piece, f"{command}: the shell has ended\n{output.decode()}"
            output += piece
        return output[: end.start()].decode(errors="replace"), int(end[1])

    def _write(self, block: Block) -> None:
        path = Path(self._run("pwd")[0].strip()) / block.attributes["file"]
        if "append" in block.attributes:
            before = path.read_text(encoding="utf-8")
            path.write_text(f"{before.rstrip()}\n\n\n{block.text}", encoding="utf-8")
        elif name := block.attributes.get("replace"):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            functions = [node for node in ast.parse("".join(lines)).body if isinstance(node, ast.FunctionDef)]
            [function] = [node for node in functions if node.name == name]
            lines[function.lineno - 1 : function.end_lineno] = [block.text]
            path.write_text("".join(lines), encoding="utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")

    def shown(self, block: Block) -> bool:
        """Whether a block that is only shown is part of a file of the project."""
        files = (
            path for path in self.directory.rglob("*") if path.suffix in (".py", ".toml") and "venv" not in path.parts
        )
        return any(block.text in path.read_text(encoding="utf-8") for path in files)


def matches(output: str, expected: str) -> bool:
    """Compare what was printed with what a page says."""
    pattern = ".*".join(re.escape(part) for part in _plain(expected).split("..."))
    return re.fullmatch(pattern, _plain(output), re.DOTALL) is not None


def _plain(text: str) -> str:
    text = re.sub(r"/dev/(loop|nbd)\d+", r"/dev/\1N", text)
    text = re.sub(r"\b\d+\.\d+(?=\b|s)", "#.#", text)
    text = re.sub(r"={3,}", "===", text)
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line)
