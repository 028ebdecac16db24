"""Every block of docs/evaluation.md runs, on files made by hand and the digits LLaVA."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import task_files

from budgetprune.cli import main
from budgetprune.evaluation.lmms import BENCHMARKS
from budgetprune.training.base_model import CHECKPOINTS

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
MODEL = CHECKPOINTS / "digits-llava"
SMALL = {"llava-hf/llava-1.5-7b-hf": str(MODEL), "64,128,192": "4,8", "64": "4", "fastv@64": "fastv@4",
         "visionzip@64": "visionzip@4"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


class Reached(Exception):
    """The command came as far as the test wants it to."""


@pytest.fixture
def command(monkeypatch, capfd):
    """A line of the page, whoever launches it, without timing and with short answers -> (exit code, what was said)."""
    def call(line):
        arguments = [SMALL.get(word, word) for word in shlex.split(line)]
        arguments = arguments[arguments.index("budgetprune"):]
        if arguments[1] == "eval":
            arguments += ["--latency-batch", "0", "--new-tokens", "2"]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setenv("COLUMNS", "250")
        with pytest.raises((SystemExit, Reached)) as leave:
            main()
        said = capfd.readouterr()
        return getattr(leave.value, "code", "reached") or 0, said.out + said.err
    return call


def test_the_blocks_of_evaluation_run(command, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("pope", "gqa"):
        Path(name).mkdir()
        task_files.MAKE[name](Path(name))
    task_files.pope(Path("pope"), name="coco_pope_random.json")
    Path("coco").mkdir()
    Path("pope/val2014").rename("coco/val2014")
    loaded = []

    def load(self, *arguments, **options):
        loaded.append(arguments[0])
        raise Reached

    monkeypatch.setattr("budgetprune.integrations.lmms_run.find_spec", lambda name: object())
    monkeypatch.setattr("budgetprune.integrations.lmms_run.LmmsEval.__init__", load)
    ran = 0
    for line in "".join(blocks("sh")).splitlines():
        if "runs/later" in line:
            shutil.copytree("runs/all", "runs/later")
        code, said = command(line)
        assert code == ("reached" if "lmms:" in line else 0), said
        ran += 1
    assert ran == 8 and loaded == [str(MODEL)] * 2
    assert "pope:coco_pope_random, digits-llava, 4 questions" in command(blocks("sh")[0])[1]
    assert Path("runs/all/compare.html").exists() and Path("runs/all/compare.json").exists()
    (block,) = blocks("python")
    exec(block, {})
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("(4.0, 8.0) {'visionzip': ") and len(lines) > 1


def test_every_benchmark_of_lmms_eval_has_its_row():
    for name, bench in BENCHMARKS.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `lmms:{name}` |")]
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[3] == f"`{bench.task}`" and (bench.image is None or cells[6] == f"by `{bench.image}`")
        assert ("VQA accuracy" in cells[4]) == bench.graded
        assert bench.scale != 100 or "times 100" in cells[5]
