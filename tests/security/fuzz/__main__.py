"""``python -m tests.security.fuzz READER CORPUS [--seconds N]``: fuzz one reader.

CORPUS is a directory: inputs that reach something new are kept there, and those of an earlier run are gone on with. A
finding ends the run with another status than 0; its input is in the directory as ``crash-*``, ``timeout-*`` or
``oom-*``. Needs atheris (https://github.com/google/atheris), whose output is that of libFuzzer.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import atheris

from .readers import READERS

#: One input may take this long, seconds, and the process this much memory, MiB: far more than any sane reader needs.
INPUT_SECONDS = 5
MEMORY_MIB = 1024


def main() -> None:
    """Run libFuzzer, which ends the process itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz")
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    reader = READERS[options.reader]
    options.corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=list(reader.modules), enable_loader_override=False):
        for seed in reader.seeds():
            (options.corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
            reader.check(seed)  # imports what is to be instrumented
    arguments = (
        f"-max_total_time={options.seconds}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={options.corpus}/",
        "-max_len=65536",
        "-print_final_stats=1",
        "-verbosity=0",
        str(options.corpus),
    )
    atheris.Setup([sys.argv[0], *arguments], reader.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
