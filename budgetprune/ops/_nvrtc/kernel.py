"""A kernel of csrc/ as Python calls it: its parameters, its instantiations, and its launch through CuPy."""

from functools import lru_cache
from threading import Lock

import numpy as np
import torch

from . import headers
from .compile import code_of

ELEMENT = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16", torch.float64: "double"}
HALVES = ("__half", "__nv_bfloat16")
SINGLES = ("float", *HALVES)  # elements of 4 bytes or fewer
FLOATS = (*SINGLES, "double")

# How a parameter that is passed by value lies in memory. A pointer is the integer that Tensor.data_ptr() gives.
LAYOUT = {"bool": np.dtype(np.bool_), "i32": np.dtype(np.int32), "u32": np.dtype(np.uint32), "i64": np.dtype(np.int64),
          "float": np.dtype(np.float32), "double": np.dtype(np.float64)}
POINTER = np.dtype(np.uint64)
UNASKED_SHARED = 16 * 1024  # dynamic shared memory that any kernel may have beside its static, without asking


def structure(name, **fields):
    """Declares a C struct of these fields, by their C types in order: "i32", "i64[3]", "i32*". Returns its maker."""
    LAYOUT[name] = layout = np.dtype([(field, *_layout_of(kind)) for field, kind in fields.items()], align=True)

    def make(**values):
        if wrong := set(fields) ^ set(values):
            raise TypeError(f"{name} takes {', '.join(fields)}; missing or too much: {', '.join(sorted(wrong))}")
        made = np.zeros((), layout)
        for field, value in values.items():
            made[field] = _address(value) if fields[field].endswith("*") else value
        return made

    return make


def _layout_of(kind):
    if kind.endswith("*"):
        return (POINTER,)
    element, _, count = kind.rstrip("]").partition("[")
    return (LAYOUT[element], (int(count),)) if count else (LAYOUT[element],)


def _address(value):
    return 0 if value is None else value.data_ptr() if isinstance(value, torch.Tensor) else value


class Kernel:
    """`__global__` function `name` of csrc/`source`.

    parameters: the C types of its parameters, "const" left out: "T*, i32*, i64".
    variants: every tuple of template arguments it may be launched with; () for a plain function.
    """

    every = []

    def __init__(self, source, name, parameters, variants=((),)):
        self.source, self.name, self.parameters = source, name, [p.strip() for p in parameters.split(",")]
        self.variants = [variant if isinstance(variant, tuple) else (variant,) for variant in variants]
        for kind in self.parameters:
            if not kind.endswith("*") and kind not in LAYOUT:
                raise TypeError(f"{name}: no layout is known for a parameter of type {kind}")
        Kernel.every.append(self)

    def expression(self, variant):
        """The C++ name of one instantiation."""
        arguments = ", ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in variant)
        return f"budgetprune::{self.name}" + (f"<{arguments}>" if variant else "")

    def pack(self, arguments):
        """Arguments as CuPy passes them by value, each of exactly its parameter's size."""
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, got {len(arguments)}")
        return tuple(map(_by_value, self.parameters, arguments))

    def launch(self, variant, device, grid, block, arguments, shared=0):
        """Puts the kernel on torch's current stream of `device`. grid and block: an int or a tuple of up to three."""
        if variant not in self.variants:
            raise ValueError(f"{self.expression(variant)} is not among the instantiations of {self.source}")
        if not set(HALVES).isdisjoint(variant) and headers.half_headers() is None:
            raise headers.HalvesUnavailable
        _launcher(self, variant, device)(grid, block, self.pack(arguments), shared)

    def __repr__(self):
        return f"{self.source}: {self.name}({', '.join(self.parameters)})"


def _by_value(kind, value):
    if kind.endswith("*"):
        return POINTER.type(_address(value))
    layout = LAYOUT[kind]
    return value if isinstance(value, np.ndarray) and value.dtype == layout else layout.type(value)


class Chip:
    """What torch and CuPy know about a GPU. The tests put another in its place."""

    def __init__(self):
        import cupy
        from cupy.cuda import nvrtc

        self.cupy, self.nvrtc = cupy, nvrtc

    def capability(self, device):
        return torch.cuda.get_device_capability(device)

    def processors(self, device):
        return torch.cuda.get_device_properties(device).multi_processor_count

    def most_shared(self, device):
        runtime = self.cupy.cuda.runtime
        return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index)

    def capturing(self):
        return torch.cuda.is_current_stream_capturing()

    def load(self, code, device):
        with self._current(device):
            return self.cupy.RawModule(path=str(code.path)).get_function(code.symbol)

    def allow_shared(self, function, device, shared):
        with self._current(device):
            function.max_dynamic_shared_size_bytes = shared

    def run(self, function, device, grid, block, arguments, shared):
        with self._current(device), self._stream(device):
            function(grid, block, arguments, shared_mem=shared)

    def _current(self, device):
        return self.cupy.cuda.Device(device.index)

    def _stream(self, device):
        stream = torch.cuda.current_stream(device)
        if hasattr(self.cupy.cuda.Stream, "from_external"):
            return self.cupy.cuda.Stream.from_external(stream)
        return self.cupy.cuda.ExternalStream(stream.cuda_stream)  # CuPy before 14


@lru_cache(None)
def chip():
    return Chip()


@lru_cache(None)
def processors(device):
    """How many streaming multiprocessors the GPU has."""
    return chip().processors(device)


@lru_cache(None)
def most_shared(device):
    """Bytes of shared memory that the GPU grants to one block that asks: 99 KB on some, up to 227 KB."""
    return chip().most_shared(device)


class _Launcher:
    """One instantiation, loaded on one device."""

    def __init__(self, kernel, variant, device):
        expression = kernel.expression(variant)
        if chip().capturing():
            raise RuntimeError(f"{expression} is not compiled yet, and a CUDA graph is being captured: "
                               "call the op once with these shapes and dtypes before the capture")
        self.chip, self.device, self.asked = chip(), device, UNASKED_SHARED
        code = code_of(self.chip.nvrtc, kernel.source, expression, self.chip.capability(device))
        self.function = self.chip.load(code, device)

    def __call__(self, grid, block, arguments, shared):
        if shared > self.asked:
            self.chip.allow_shared(self.function, self.device, shared)
            self.asked = shared
        self.chip.run(self.function, self.device, _three(grid), _three(block), arguments, shared)


_launchers, _compiling = {}, Lock()


def _launcher(kernel, variant, device):
    found = _launchers.get((kernel, variant, device))
    if found is None:
        with _compiling:  # one thread compiles, the others wait for it
            found = _launchers.get((kernel, variant, device))
            if found is None:
                found = _launchers[kernel, variant, device] = _Launcher(kernel, variant, device)
    return found


def _three(size):
    return (size, 1, 1) if isinstance(size, int) else (*size, 1, 1)[:3]


def ceil_div(a, b):
    return -(-a // b)


def forget():
    """Drops all that was loaded; for tests that change the chip."""
    _launchers.clear()
    processors.cache_clear()
    most_shared.cache_clear()


def check(condition, message):
    """The guards of memory that the C++ ops have, for calls of torch.ops that no face has checked."""
    if not condition:
        raise RuntimeError(message)
