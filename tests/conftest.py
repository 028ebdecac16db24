"""The seam between tests and hardware, and the model that most of them prune."""

import os
import signal
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and rich keeps what it finds when it is imported

if emulated := os.environ.get("BUDGETPRUNE_EMULATED"):  # a module that tests/simt/build.py made, in place of the real
    import importlib.util

    spec = importlib.util.spec_from_file_location("budgetprune._C", emulated)
    sys.modules["budgetprune._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["budgetprune._C"])

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in background jobs, where the tests of Ctrl-C would wait
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture
def command(monkeypatch, capfd):
    """command("eval", "--samples", 4) -> (exit code, what `budgetprune eval --samples 4` printed)."""
    from budgetprune.cli import main

    monkeypatch.setenv("COLUMNS", "250")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["budgetprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            main()
        return leave.value.code or 0, "".join(capfd.readouterr())

    return call


@pytest.fixture
def words(command):
    """As `command`, with one space between the words that were printed."""

    def call(*arguments):
        code, said = command(*arguments)
        return code, " ".join(said.replace("│", " │ ").split())

    return call


@pytest.fixture
def llava():
    from tiny import make_llava  # here, because the ops' own tests must run where there is no transformers

    return make_llava()
