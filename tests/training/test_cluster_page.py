"""The launch lines of docs/cluster.md: every option there is one of the command, and every value one it takes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from budgetprune import cli
from budgetprune.training import run_config
from budgetprune.training.run_config import RunConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cluster.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def launched():
    """The arguments of `budgetprune train` on every line that launches it."""
    lines = "".join(blocks("sh") + blocks("sbatch")).replace("\\\n", " ").splitlines()
    return [shlex.split(re.split(r"budgetprune train ", line)[1]) for line in lines if "budgetprune train " in line]


@pytest.mark.parametrize("arguments", launched(), ids=lambda arguments: " ".join(arguments[-2:]))
def test_launch_lines_hold_options_that_there_are(arguments, monkeypatch, tmp_path):
    command = typer.main.get_command(cli.app).commands["train"]
    given = command.make_context("train", list(arguments)).params
    assert given["model"] and given["data"] and given["images"]
    monkeypatch.setattr(run_config, "find_spec", lambda name: object())
    (tmp_path / "zero3.json").write_text(blocks("json")[0])
    monkeypatch.chdir(tmp_path)
    known = {name: given[name] for name in RunConfig.__dataclass_fields__ if name in given}
    assert RunConfig(**known).fsdp is ("--fsdp" in arguments)


def test_every_way_of_launching_has_a_line():
    lines = launched()
    assert len(lines) == 5 and sum("--fsdp" in line for line in lines) == 2
    assert sum("--deepspeed" in line for line in lines) == 1
    assert json.loads(blocks("json")[0])["zero_optimization"]["stage"] == 3
    assert "srun torchrun" in blocks("sbatch")[0] and "not measured" in PAGE


def test_defaults_that_the_page_names_are_those_of_the_command():
    from budgetprune.cli_train import REAL_DEFAULTS

    assert "`--max-skipped` of them (5 %)" in PAGE and RunConfig("m", "d").max_skipped == 0.05
    assert REAL_DEFAULTS["batch_size"] == 128 and "--batch-size 128 --micro-batch 4" in PAGE
    assert RunConfig("m", "d").micro_batch == 4
