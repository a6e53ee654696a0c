"""What the demo shows: steps with ticks and durations on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

_WIDTH = 62
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Console:
    """Writes the progress.

    :param stream: where to; when its reader has gone, nothing more is written and nothing fails.
    :param verbose: show every command and its output.
    """

    def __init__(self, stream: TextIO, *, verbose: bool) -> None:
        self._stream = stream
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._terminal = terminal
        self._live = terminal and not verbose  # commands' output would tear the line that moves
        self._color = terminal and "NO_COLOR" not in os.environ
        self._unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._verbose = verbose
        self._title = ""
        self._began = 0.0
        self._details: list[str] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show a step while it runs, and how it ended."""
        self._title, self._began, self._details = title, time.monotonic(), []
        if self._verbose:
            self.line(f"--- {title}")
        self.tick()
        try:
            yield
        except BaseException:
            self._end("✗", "FAILED", "31")
            raise
        self._end("✓", "ok", "32")

    def tick(self) -> None:
        """Show that it goes on."""
        if self._live and self._title:
            seconds = time.monotonic() - self._began
            frame = _SPINNER[int(seconds * 10) % len(_SPINNER)] if self._unicode else "|/-\\"[int(seconds * 10) % 4]
            self._write(f"\r\033[K {frame} {self._title:{_WIDTH}} {seconds:5.1f} s")

    def say(self, text: str) -> None:
        """Show what a step has found, below it."""
        lines = text.splitlines()
        if self._title and not self._verbose:
            self._details += lines
        else:
            for line in lines:
                self.line(f"     {line}")

    def line(self, text: str = "") -> None:
        """Write a line."""
        self._write(f"{text}\n")

    def headline(self, text: str) -> None:
        """Write a line that stands out."""
        self.line(self._in_color(text, "1"))

    def command(self, argv: Sequence[str]) -> None:
        """Show a command before it runs."""
        if self._verbose:
            self.line(self._in_color(f"     $ {shlex.join(argv)}", "2"))

    def output(self, text: str) -> None:
        """Show what a command printed."""
        if self._verbose:
            for line in text.splitlines():
                self.line(f"     | {line}")

    def _end(self, mark: str, word: str, color: str) -> None:
        seconds = time.monotonic() - self._began
        sign = mark if self._unicode and self._terminal else f"{word:6}"
        self._write(f"{chr(13)}\033[K" if self._live else "")
        self.line(f" {self._in_color(sign, color)} {self._title:{_WIDTH}} {seconds:5.1f} s")
        self._title = ""
        for detail in self._details:
            self.line(f"     {detail}")

    def _in_color(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._color else text

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except OSError:  # nobody reads any more: what is buffered would fail again at the end
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
