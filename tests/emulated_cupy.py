"""CuPy and a GPU for tests without either: kernels are compiled by g++ and run by the emulator of tests/simt.

EmulatedNvrtc has the calls of cupy.cuda.nvrtc that ops/_nvrtc makes, and "machine code" that is a shared library. So
all of ops/_nvrtc runs as on a GPU, save the few lines of its class Chip. What is checked here and not by a GPU: each
argument has exactly the size of the kernel's parameter.
"""

import ctypes
import hashlib
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from budgetprune.ops._nvrtc import compile as compiler
from budgetprune.ops._nvrtc import headers, kernel

CXX = os.environ.get("CXX", "g++")
SIMT = Path(__file__).parent / "simt"
KEPT = Path(__file__).parents[1] / "build" / "emulated_cupy"  # libraries, by what they were made of

# One entry per instantiation: sizes of its parameters, and a launch that unpacks them.
SHELL = """
#include <utility>
template <typename... P, size_t... I>
int launch_one(void (*kernel)(P...), const unsigned* grid, const unsigned* block, size_t shared, void** arguments,
               std::index_sequence<I...>) {
  return simt::run(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared,
                   [&] { kernel(*static_cast<P*>(arguments[I])...); });
}
template <typename... P>
int launch(void (*kernel)(P...), const unsigned* grid, const unsigned* block, size_t shared, void** arguments) {
  return launch_one(kernel, grid, block, shared, arguments, std::index_sequence_for<P...>{});
}
template <typename... P>
size_t size_of_parameter(void (*)(P...), size_t at) {
  const size_t sizes[] = {sizeof(P)...};
  return at < sizeof...(P) ? sizes[at] : 0;
}
"""
ENTRY = """
#pragma GCC visibility push(default)
extern "C" int run_{n}(const unsigned* grid, const unsigned* block, size_t shared, void** arguments) {{
  return launch({expression}, grid, block, shared, arguments);
}}
extern "C" size_t size_{n}(size_t at) {{ return size_of_parameter({expression}, at); }}
#pragma GCC visibility pop
"""


class EmulatedNvrtc:
    """`together`: for the text of a source, the kernels that are worth compiling in one go."""

    class NVRTCError(RuntimeError):
        pass

    def __init__(self, together=None):
        self.together, self.programs, self.compiled = together or (lambda text: []), {}, 0

    def getVersion(self):
        return 13, 0

    def getSupportedArchs(self):
        return [80, 90]

    def createProgram(self, text, name, headers, include_names):
        self.programs[len(self.programs) + 1] = {"text": text, "log": ""}
        return len(self.programs)

    def addNameExpression(self, program, expression):
        self.programs[program]["expression"] = expression

    def compileProgram(self, program, options):
        self.compiled += 1
        text, expression = self.programs[program]["text"], self.programs[program]["expression"]
        together = self.together(text)
        expressions = together if expression in together else [expression]
        self.programs[program]["symbol"] = str(expressions.index(expression))
        source = text + SHELL + "".join(ENTRY.format(n=n, expression=e) for n, e in enumerate(expressions))
        include = [option for option in options if option.startswith("-I")]
        command = [CXX, "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden",
                   "-ffp-contract=off", "-w",
                   "-DBUDGETPRUNE_EMULATED", f"-I{SIMT}", *include, "-include", str(SIMT / "cuda_emulated.h")]
        made_of = [source, *command, *(header.read_text() for header in sorted(SIMT.rglob("*.h")))]
        library = KEPT / f"{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:24]}.so"
        if not library.exists():
            KEPT.mkdir(parents=True, exist_ok=True)
            file = library.with_suffix(f".{os.getpid()}.cpp")
            file.write_text(source)
            done = subprocess.run([*command, str(file), "-o", str(file.with_suffix(".tmp"))], check=False,
                                  capture_output=True, text=True)
            if done.returncode:
                self.programs[program]["log"] = done.stderr
                raise self.NVRTCError("g++ failed")
            file.with_suffix(".tmp").rename(library)
            file.unlink()
        self.programs[program]["library"] = library

    def getProgramLog(self, program):
        return self.programs[program]["log"]

    def getLoweredName(self, program, expression):
        return self.programs[program]["symbol"]

    def getCUBIN(self, program):
        return self.programs[program]["library"].read_bytes()

    def destroyProgram(self, program):
        del self.programs[program]["text"]


class EmulatedChip:
    """An H100 in size, with CPU memory. Takes the place of ops._nvrtc.kernel.Chip."""

    processor_count, shared = 132, 227 * 1024

    def __init__(self, nvrtc):
        self.nvrtc, self.is_capturing, self.launches = nvrtc, False, []

    def capability(self, device):
        return 9, 0

    def processors(self, device):
        return self.processor_count

    def most_shared(self, device):
        return self.shared

    def capturing(self):
        return self.is_capturing

    def load(self, code, device):
        return EmulatedFunction(code)

    def allow_shared(self, function, device, shared):
        function.most_shared = shared

    def run(self, function, device, grid, block, arguments, shared):
        self.launches.append((function.code.symbol, grid, block, shared))
        function(grid, block, arguments, shared)


class EmulatedFunction:
    def __init__(self, code):
        library = ctypes.CDLL(str(code.path))
        self.code, self.most_shared = code, 16 * 1024
        self.start, self.size = getattr(library, f"run_{code.symbol}"), getattr(library, f"size_{code.symbol}")
        self.size.restype = ctypes.c_size_t

    def __call__(self, grid, block, arguments, shared):
        assert shared <= self.most_shared, "more dynamic shared memory than was asked for"
        copies = [np.array(argument) for argument in arguments]  # by value
        for at, copy in enumerate(copies):
            assert copy.nbytes == self.size(at), f"parameter {at} takes {self.size(at)} bytes, got {copy.nbytes}"
        assert self.size(len(copies)) == 0, "too few arguments"
        pointers = (ctypes.c_void_p * len(copies))(*(copy.ctypes.data for copy in copies))
        three = ctypes.c_uint * 3
        error = self.start(three(*grid), three(*block), ctypes.c_size_t(shared), pointers)
        assert error == 0, f"launch refused with CUDA error {error}: grid {grid}, block {block}, {shared} bytes"


def _forget():
    kernel.forget()
    compiler.text_of.cache_clear()
    headers.fingerprint.cache_clear()


@contextmanager
def emulated_gpu(cache, together=None, chip=None):
    """Inside, the launchers of ops/_nvrtc take CPU tensors; compiled kernels are kept in `cache`. Gives the chip."""
    chip = chip or EmulatedChip(EmulatedNvrtc(together))
    with mock.patch.object(kernel, "chip", lambda: chip), \
            mock.patch.object(headers, "half_headers", lambda: SIMT / "include"), \
            mock.patch.dict(os.environ, BUDGETPRUNE_CACHE=str(cache)):
        _forget()
        yield chip
    _forget()


@contextmanager
def recorded_launches():
    """Nothing is compiled or run inside; the list given fills with (kernel, variant) as they are launched."""
    asked = []

    def launcher(asked_kernel, variant, device):
        asked.append((asked_kernel, variant))
        return lambda grid, block, arguments, shared: None

    with mock.patch.object(kernel, "_launcher", launcher):
        yield asked
