"""Completion scripts, made by shtab from the parser; formats and mapped devices are asked when the key is pressed."""

from __future__ import annotations

from mapper_core.cli import parser
from mapper_core.errors import ToolMissing
from mapper_core.transports import NAMES as TRANSPORTS

# awk and not --json: nothing on a plain host reads JSON in a shell. Not `compgen -W`, which expands its words: a tree may be
# mounted on a directory called $(reboot).
_BASH = """\
_mapper_cli_words() {
  local word
  while read -r word; do [[ $word != "$1"* ]] || printf '%s\\n' "$word"; done <<<"$2"
}
_mapper_cli_formats() {
  _mapper_cli_words "$1" "$("${COMP_WORDS[0]}" plugins 2>/dev/null | awk 'NR > 1 && $4 == "ok" { print $1 }')"
}
_mapper_cli_transports() { _mapper_cli_words "$1" "$(printf '%s\\n' @TRANSPORTS@)"; }
_mapper_cli_mapped() {
  _mapper_cli_words "$1" "$("${COMP_WORDS[0]}" ls 2>/dev/null | awk '/^\\/dev\\// { print $1 }')"
  compgen -f -- "$1"
}
_mapper_cli_trees() {
  _mapper_cli_words "$1" "$("${COMP_WORDS[0]}" ls 2>/dev/null | awk 'tree { print $1 } /^DIRECTORY / { tree = 1 }')"
  compgen -d -- "$1"
}
"""

_ZSH = """\
_mapper_cli_formats() { compadd -- ${(f)"$(mapper-cli plugins 2>/dev/null | awk 'NR > 1 && $4 == "ok" { print $1 }')"} }
_mapper_cli_transports() { compadd -- @TRANSPORTS@ }
_mapper_cli_mapped() {
  compadd -- ${(f)"$(mapper-cli ls 2>/dev/null | awk '/^\\/dev\\// { print $1 }')"}
  _files
}
_mapper_cli_trees() {
  compadd -- ${(f)"$(mapper-cli ls 2>/dev/null | awk 'tree { print $1 } /^DIRECTORY / { tree = 1 }')"}
  _files -/
}
"""


def script(shell: str) -> str:
    """Return the completion script for a shell.

    :param shell: ``bash`` or ``zsh``.
    :raises ToolMissing: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ToolMissing(
            "completion needs the Python package shtab", subject="shtab", hint="pip install shtab"
        ) from error
    preamble = {"bash": _BASH, "zsh": _ZSH}[shell].replace("@TRANSPORTS@", " ".join(TRANSPORTS))
    text: str = shtab.complete(parser.build(), shell=shell, preamble=preamble)
    return text if text.endswith("\n") else f"{text}\n"
