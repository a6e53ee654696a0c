"""LVM's configuration text, in which the metadata of volume groups are written.

::

    vg0 {
        id = "zvCDLi-..."      # comments end with the line
        extent_size = 8192
        stripes = [
            "pv0", 0
        ]
    }
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mapper_core.errors import BadPartitionTable

Value = int | float | str | list["Value"] | dict[str, "Value"]
Section = dict[str, Value]

#: Sections in sections: group, volumes, volume, segment, and one more.
MAX_DEPTH = 8

#: Blanks and comments are taken without going back: a comment could be divided in as many ways as it has subsets of "#".
_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*+)*+(?:
      (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?)(?![A-Za-z0-9_])
    | (?P<name>[A-Za-z0-9_.+/-]+)
    | (?P<mark>[{}=\[\],])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)


def parse(content: str) -> Section:
    """Parse a whole text.

    :raises BadPartitionTable: it makes no sense; the message says where.
    """
    tokens = _tokens(content)
    return _section(tokens, "end", 0)


def _tokens(content: str) -> Iterator[tuple[str, str]]:
    position = 0
    while True:
        match = _TOKEN.match(content, position)
        if match is None:
            line = content.count("\n", 0, position) + 1
            raise BadPartitionTable(f"LVM metadata, line {line}: not understood")
        kind = str(match.lastgroup)
        yield kind, match[kind]
        if kind == "end":
            return
        position = match.end()


def _section(tokens: Iterator[tuple[str, str]], end: str, depth: int) -> Section:
    """Read what is between braces, or all."""
    if depth > MAX_DEPTH:
        raise BadPartitionTable("LVM metadata: sections are nested too deeply")
    found: Section = {}
    for kind, token in tokens:
        if kind == end or (kind == "mark" and token == end):
            return found
        if kind not in ("name", "number"):  # a section may be called 1
            break
        if token in found:
            raise BadPartitionTable(f"LVM metadata: {token[:64]} is there twice")
        mark = next(tokens)
        if mark == ("mark", "{"):
            found[token] = _section(tokens, "}", depth + 1)
        elif mark == ("mark", "="):
            found[token] = _value(tokens, *next(tokens))
        else:
            break
    raise BadPartitionTable("LVM metadata: a section does not end, or something stands where a name should be")


def _value(tokens: Iterator[tuple[str, str]], kind: str, token: str) -> Value:
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    if kind == "number":
        if len(token) > 20:
            raise BadPartitionTable("LVM metadata: a number is too long")
        return float(token) if "." in token else int(token)
    if (kind, token) != ("mark", "["):
        raise BadPartitionTable("LVM metadata: a value is missing")
    items: list[Value] = []
    for kind, token in tokens:
        if (kind, token) == ("mark", "]"):
            return items
        if (kind, token) == ("mark", ","):
            continue
        if kind not in ("string", "number"):
            break
        items.append(_value(tokens, kind, token))
    raise BadPartitionTable("LVM metadata: a list does not end")
