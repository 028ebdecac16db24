"""One self-contained CUDA source from csrc/, for compilers that are handed a text (NVRTC, CuPy).

CuPy's disk cache hashes the text it is given and not the headers that the text includes, so a stale kernel could be
served after an edit. With the headers inlined the text is the whole truth.
"""

import re
from pathlib import Path

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


def csrc():
    """Where the sources are."""
    return Path(__file__).parents[1] / "csrc"


def flatten(name, folder=None):
    """The text of csrc/<name> with each `#include "..."` replaced, once, by the file it names.

    `#line` keeps the compiler's messages in terms of the original files.
    """
    folder, seen = Path(folder) if folder is not None else csrc(), set()

    def lines_of(file):
        if file in seen:
            return
        seen.add(file)
        yield f'#line 1 "{file}"'
        for number, line in enumerate((folder / file).read_text(encoding="utf-8").splitlines(), 1):
            if found := INCLUDE.match(line):
                yield from lines_of(found[1])
                yield f'#line {number + 1} "{file}"'
            else:
                yield "" if line.strip() == "#pragma once" else line

    return "\n".join(lines_of(name)) + "\n"
