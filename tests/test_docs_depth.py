"""Every block of docs/depth.md runs."""

import re
import shlex
from pathlib import Path

import torch
from typer.testing import CliRunner

from budgetprune import tasks
from budgetprune.cli import app
from budgetprune.evaluation import record
from budgetprune.evaluation.compare import cell_label
from budgetprune.evaluation.run import prepare
from budgetprune.training import load_base

PAGE = (Path(__file__).parents[1] / "docs/depth.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@torch.no_grad()
def test_the_lines_of_python_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    model, processor = load_base()
    first, second = blocks("python")
    exec(first, {"model": model, "inputs": prepare(processor, tasks.build("digits").samples("test", 2, 0), model)})
    assert "True" in capsys.readouterr().out and not {"budget_pruner", "budget_depth"} & model._modules.keys()
    exec(second, {})


def test_the_commands_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("sh")).splitlines():
        command, *arguments = shlex.split(line)
        if "--steps" in arguments:
            arguments[arguments.index("--steps") + 1] = "1"
            arguments += ["--batch-size", "2"]
        if arguments[0] == "eval":
            arguments += ["--samples", "3", "--latency-batch", "0"]
        result = CliRunner().invoke(app, arguments)
        assert command == "budgetprune" and result.exit_code == 0, (line, result.output, result.exception)
    assert "16/3" in cell_label(*[r for r in record.read("runs/joint-eval/records.jsonl")
                                  if (r.keep, r.layers) == (16, 3)])
    assert Path("runs/joint-eval/report.html").is_file()
