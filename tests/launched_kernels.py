"""Every kernel that ops/_nvrtc launches, and what ptxas says of compiled ones; for the tests of both compilers."""

import importlib
import pkgutil
import re

from budgetprune.ops import _nvrtc
from budgetprune.ops._nvrtc.kernel import Kernel
from budgetprune.ops._nvrtc.source import csrc

for module in pkgutil.iter_modules(_nvrtc.__path__):
    importlib.import_module(f"{_nvrtc.__name__}.{module.name}")

KERNELS = list(Kernel.every)

DECLARATION = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(([^)]*)\)")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'(.*?)Used (\d+) registers([^\n]*)", re.DOTALL)


def declared():
    """{(file, kernel): its parameters' types without const} of every __global__ in csrc/*.cuh."""
    found = {}
    for path in sorted(csrc().glob("*.cuh")):
        text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        kernels = DECLARATION.findall(text)
        assert len(kernels) == len(re.findall(r"__global__\s+void", text)), f"{path.name}: a kernel is not understood"
        for name, parameters in kernels:
            found[path.name, name] = [_type_of(one) for one in re.split(r",(?![^<]*>)", parameters)]
    return found


def _type_of(parameter):
    words = re.sub(r"\b(const|typename)\b", "", parameter).strip()
    kind = re.sub(r"\s*(\*?)\s*\w+$", r"\1", words) if re.search(r"[\s*>]\w+$", words) else words
    return re.sub(r"\s+", " ", kind).replace(" *", "*").replace("< ", "<").strip()


def resources(log):
    """[(mangled kernel, arch, registers, bytes of static shared memory, bytes spilled)] from what ptxas -v says."""
    found = []
    for name, arch, between, registers, rest in ENTRY.findall(log):
        spilled = sum(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", between))
        shared = re.search(r"(\d+) bytes smem", rest)
        found.append((name, arch, int(registers), int(shared[1]) if shared else 0, spilled))
    return found


def table(rows):
    """Rows of `resources` as text, the names readable."""
    lines = [f"{'kernel':<72} {'arch':<7} {'registers':>9} {'shared':>7} {'spilled':>7}"]
    lines += [f"{readable(name):<72} {arch:<7} {registers:>9} {shared:>7} {spilled:>7}"
              for name, arch, registers, shared, spilled in sorted(rows)]
    return "\n".join(lines)


def readable(mangled):
    """The kernel's name and template arguments, of a name mangled as g++ and nvcc do."""
    inner = re.match(r"_ZN11budgetprune(\d+)", mangled)
    if not inner:
        return mangled
    rest = mangled[inner.end():]
    name, rest = rest[:int(inner[1])], rest[int(inner[1]):]
    return name + _arguments(rest)


def written(kernel, variant):
    """As `readable` writes it: bools and enumerators as their numbers."""
    return kernel.name + (f"<{', '.join(_number(argument) for argument in variant)}>" if variant else "")


def _number(argument):
    if "::" not in str(argument):
        return str(int(argument)) if isinstance(argument, bool) else str(argument)
    _, enum, name = argument.split("::")
    source = "".join(path.read_text(encoding="utf-8") for path in csrc().glob("*.cuh"))
    names = re.search(rf"enum class {enum}\b[^{{]*{{([^}}]*)}}", source)[1]
    return str([one.strip() for one in names.split(",")].index(name))


def _arguments(rest):
    if not rest.startswith("I"):
        return ""
    simple = {"f": "float", "d": "double", "h": "unsigned char", "j": "unsigned int"}
    found, at = [], 1
    while rest[at] != "E":
        if literal := re.match(r"L(?:NS_\d+[A-Za-z]+E|[ib])(\d+)E", rest[at:]):
            found.append(literal[1])
            at += literal.end()
        elif word := re.match(r"(\d+)", rest[at:]):
            start = at + word.end()
            found.append(rest[start:start + int(word[1])])
            at = start + int(word[1])
        else:
            found.append(simple.get(rest[at], rest[at]))
            at += 1
    return f"<{', '.join(found)}>"
