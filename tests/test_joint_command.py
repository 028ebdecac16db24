"""budgetprune joint and train-joint."""

import json

import pytest
from typer.testing import CliRunner

from budgetprune.cli import app
from budgetprune.cost import KNOWN, joint_budget, joint_roofline_ms


def test_joint_lists_what_a_budget_pays_for_and_marks_the_policies():
    result = CliRunner().invoke(app, ["joint", "--flops", "0.5"])
    assert result.exit_code == 0, result.output
    for policy in ("balanced", "tokens", "layers"):
        pair = joint_budget(KNOWN["llava-1.5-7b"], 0.5, 64, prefix=16, policy=policy)
        row = next(line for line in result.output.splitlines() if policy in line and "of 32" in line)
        assert f"{pair.layers} of 32" in row and str(pair.keep) in row
    amount = CliRunner().invoke(app, ["joint", "--flops", "2e12", "--prefix", "20"])
    assert amount.exit_code == 0 and "20 of 32" in amount.output


def test_joint_gives_roofline_milliseconds_of_named_hardware_and_says_that_nothing_was_measured():
    plain = CliRunner().invoke(app, ["joint", "--flops", "0.5"])
    timed = CliRunner().invoke(app, ["joint", "--flops", "0.5", "--hardware", "h100"], env={"COLUMNS": "160"})
    assert timed.exit_code == 0, timed.output
    shape = KNOWN["llava-1.5-7b"]
    pair = joint_budget(shape, 0.5, 64, prefix=16, policy="balanced")
    milliseconds = joint_roofline_ms(shape, pair.keep, pair.layers, 64, "h100")
    row = next(line for line in timed.output.splitlines() if "balanced" in line and "of 32" in line)
    assert f" {milliseconds:,.2f} " in row and "not measured: H100 SXM 80 GB" in timed.output
    assert "roofline" not in plain.output
    wrong = CliRunner().invoke(app, ["joint", "--hardware", "tpu"])
    assert "hardware must be this or one of" in str(wrong.exception)


def test_a_budget_that_does_not_suffice_is_named():
    result = CliRunner().invoke(app, ["joint", "--flops", "0.01"])
    assert isinstance(result.exception, ValueError) and "flops must pay for 1 image tokens" in str(result.exception)


LAYERS, TOKENS, TUNED = "depth_config.json", "budgetprune_config.json", "tuned_model.safetensors"


@pytest.mark.parametrize("arguments, wanted", [
    (["--form", "heads", "--tune", "lora"], {LAYERS, TOKENS, TUNED}),
    (["--method", "none", "--tune", "frozen", "--share-min", "0.5"], {LAYERS}),
    (["--depth", "none"], {TOKENS, TUNED}),
])
def test_train_joint_writes_what_it_was_asked_for(tmp_path, arguments, wanted):
    result = CliRunner().invoke(app, ["train-joint", "--out", str(tmp_path), "--steps", "1", "--batch-size", "2",
                                      *arguments])
    assert result.exit_code == 0, result.output
    files = {path.name for path in tmp_path.iterdir()}
    assert wanted <= files and "train_log.jsonl" in files
    assert files & {LAYERS, TOKENS, TUNED} == wanted
    assert json.loads((tmp_path / "train_config.json").read_text())["steps"] == 1
