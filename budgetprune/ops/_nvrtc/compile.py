"""Machine code for one kernel by NVRTC, made at its first use and kept on disk.

CuPy's own compiler call adds -ftz=true, and does not look for the half headers. Here the options are those of the build
by nvcc, so that both ways to a kernel give the same bits.
"""

import hashlib
import json
import os
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from . import headers
from .source import flatten

# Functions that launchers call stand in .cuh files too: NVRTC knows no host, and takes them as the device's.
OPTIONS = ("-std=c++17", "-default-device")


@dataclass(frozen=True)
class Code:
    """A compiled kernel. `path` holds machine code, or PTX for a GPU that is newer than this NVRTC."""

    path: Path
    symbol: str
    seconds: float


def cache_folder():
    """BUDGETPRUNE_CACHE/kernels, or the user's cache folder."""
    if asked := os.environ.get("BUDGETPRUNE_CACHE"):
        return Path(asked) / "kernels"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("budgetprune")) / "kernels"


def records(folder=None):
    """What is said about each kernel in the cache: kernel, source, target, symbol, seconds, nvrtc, bytes, sha256."""
    found = []
    for path in sorted((folder or cache_folder()).glob("*.json")):
        try:
            found.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # written by another version, or torn
    return found


@dataclass(frozen=True)
class Record:
    kernel: str
    source: str
    target: str
    symbol: str
    seconds: float
    nvrtc: str
    bytes: int
    sha256: str


@lru_cache(None)
def text_of(source):
    """csrc/<source> as NVRTC gets it, and its options. Half types are known where their headers were found."""
    folder = headers.half_headers()
    if folder is None:
        return flatten(source), OPTIONS
    return "".join(f"#include <{name}>\n" for name in headers.HALVES) + flatten(source), (*OPTIONS, f"-I{folder}")


def target_of(nvrtc, capability):
    """-arch for a GPU of (major, minor): its own, or for one that this NVRTC does not know the newest below, as PTX."""
    wanted = 10 * capability[0] + capability[1]
    known = [int(arch) for arch in nvrtc.getSupportedArchs()]
    if wanted in known:
        return f"sm_{wanted}"
    older = [arch for arch in known if arch < wanted]
    if not older:
        raise RuntimeError(f"this NVRTC makes no code for compute capability {capability[0]}.{capability[1]}, only "
                           f"from sm_{min(known)} on")
    return f"compute_{max(older)}"


def compile_text(nvrtc, text, expression, options):
    """(machine code or PTX, mangled name). RuntimeError with the compiler's words."""
    program = nvrtc.createProgram(text, "budgetprune.cu", (), ())
    try:
        nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"NVRTC cannot compile {expression} (BUDGETPRUNE_CUDA_KERNELS=reference does without): "
                               f"{error}\n{nvrtc.getProgramLog(program)}") from error
        symbol = nvrtc.getLoweredName(program, expression)
        binary = any(option.startswith("-arch=sm_") for option in options)
        code = nvrtc.getCUBIN(program) if binary else nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)
    return (code.encode() if isinstance(code, str) else bytes(code)), symbol


def code_of(nvrtc, source, expression, capability):
    """The Code of a kernel for a GPU of compute capability (major, minor), from the cache or compiled now."""
    text, options = text_of(source)
    version = ".".join(map(str, nvrtc.getVersion()))
    target = target_of(nvrtc, capability)
    flags = [option for option in options if not option.startswith("-I")]
    made_of = (text, *flags, headers.fingerprint(), expression, target, version)
    name = f"{Path(source).stem}-{target}-{_sha256(chr(0).join(made_of).encode())[:24]}"
    ending = ".cubin" if target.startswith("sm_") else ".ptx"
    if found := _load(cache_folder(), name, ending):
        return found
    start = time.perf_counter()
    code, symbol = compile_text(nvrtc, text, expression, [*options, f"-arch={target}"])
    record = Record(expression, source, target, symbol, round(time.perf_counter() - start, 4), version, len(code),
                    _sha256(code))
    return _store(name, ending, code, record)


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _load(folder, name, ending):
    try:
        record = Record(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        code = (folder / f"{name}{ending}").read_bytes()
    except (OSError, ValueError, TypeError):
        return None
    if _sha256(code) != record.sha256:
        return None
    return Code(folder / f"{name}{ending}", record.symbol, record.seconds)


def _store(name, ending, code, record):
    """Each file appears whole: two processes that compile the same kernel do not read each other's halves."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}{ending}", code)
    except OSError as error:
        folder = _of_this_process()
        warnings.warn(f"compiled kernels are not kept, for {cache_folder()} cannot be written: {error}; "
                      "BUDGETPRUNE_CACHE names another folder", stacklevel=2)
        _write(folder / f"{name}{ending}", code)
    _write(folder / f"{name}.json", json.dumps(asdict(record)).encode())
    return Code(folder / f"{name}{ending}", record.symbol, record.seconds)


@lru_cache(None)
def _unkept():
    return tempfile.TemporaryDirectory(prefix="budgetprune-")  # goes with the process


def _of_this_process():
    return Path(_unkept().name)


def _write(path, content):
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
