"""One self-contained CUDA source from csrc/, for compilers that are handed a text (NVRTC, CuPy).

A cache that hashes the text it is given, and not the headers that the text includes, would serve a stale kernel after
an edit. With the headers inlined the text is the whole truth.
"""

import re
from functools import lru_cache
from pathlib import Path

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


@lru_cache(None)
def csrc():
    """Where the sources are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    inside = package / "csrc"
    return inside if inside.is_dir() else package.parent / "csrc"


def flatten(name, folder=None):
    """The text of csrc/<name> with each `#include "..."` replaced, once, by the file it names.

    `#line` keeps the compiler's messages in terms of the original files. What is not in csrc stays an include: it is
    the emulator's, for which ptx.cuh asks where no GPU's compiler reads it.
    """
    folder, seen = Path(folder) if folder is not None else csrc(), set()

    def lines_of(file):
        if file in seen:
            return
        seen.add(file)
        yield f'#line 1 "{file}"'
        for number, line in enumerate((folder / file).read_text(encoding="utf-8").splitlines(), 1):
            if (found := INCLUDE.match(line)) and (folder / found[1]).is_file():
                yield from lines_of(found[1])
                yield f'#line {number + 1} "{file}"'
            else:
                yield "" if line.strip() == "#pragma once" else line

    return "\n".join(lines_of(name)) + "\n"
