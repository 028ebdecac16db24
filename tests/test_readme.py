"""Every block of README runs, and every number in it is made from the committed results."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conversation_files import digits_rows

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# A reader has minutes, a test has seconds: the same commands with less to do.
SMALLER = {"train": ["--steps", "2", "--batch-size", "4"], "eval": ["--samples", "2", "--latency-batch", "0"],
           "ablate": ["--seeds", "1", "--steps", "1", "--set", "batch_size=2", "--samples", "6", "--workers", "1"]}
NOT_OURS = ("pip ", "make ")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_python_blocks_run_one_after_the_other(monkeypatch, tmp_path):
    import transformers

    import budgetprune
    from budgetprune import tasks
    from budgetprune.evaluation.run import prepare
    from budgetprune.tasks.digits import draw
    from budgetprune.training import batch_inputs, load_base

    monkeypatch.chdir(tmp_path)
    small, processor = load_base()
    real = transformers.LlavaForConditionalGeneration.from_pretrained

    def from_pretrained(name, **options):
        return load_base()[0] if name == "llava-hf/llava-1.5-7b-hf" else real(name, **options)

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "from_pretrained", from_pretrained)
    scope = {"inputs": prepare(processor, tasks.build("digits").samples("test", 2, 0), small),
             "batch": batch_inputs(draw("train", 2, 0), processor)}
    assert len(blocks("python")) == 4
    for block in blocks("python"):
        exec(block.replace("keep=144", "keep=16"), scope)
        if "budget_pruner" in scope["model"]._modules:
            budgetprune.unprune(scope["model"])
    assert scope["kept"].shape == (2, 192) and (tmp_path / "my-pruner").is_dir()


def test_shell_blocks_run(monkeypatch, tmp_path, capfd):
    from budgetprune.cli import main
    from budgetprune.evaluation import load
    from budgetprune.training import load_base

    monkeypatch.chdir(tmp_path)
    digits_rows(tmp_path)
    (tmp_path / "data.json").rename("llava_v1_5_mix665k.json")
    (tmp_path / "images").rename("data")
    real = load.load_model
    monkeypatch.setattr(load, "load_model", lambda name, dtype=None:
                        load_base() if name == "llava-hf/llava-1.5-7b-hf" else real(name, dtype))
    ran = 0
    for line in "".join(blocks("sh")).splitlines():
        command = line.split("#")[0].strip()
        if not command or command.startswith(NOT_OURS):
            continue
        arguments = shlex.split(command)
        assert arguments[0] == "budgetprune"
        if arguments[1] == "compare":  # two runs of one's own
            for name in arguments[2:]:
                shutil.copytree("runs/eval", name)
        small = ["--workers", "0", "--k-max", "64"] if "--data" in arguments else []  # the model here has no more
        monkeypatch.setattr(sys, "argv", arguments + SMALLER.get(arguments[1], []) + small)
        try:
            main()
        except SystemExit as leave:
            assert not leave.code, f"{command}: {capfd.readouterr()}"
        ran += 1
    assert ran >= 6 and (tmp_path / "runs/eval/report.html").is_file()


def test_every_public_name_stands_in_the_table_of_names():
    import budgetprune

    table = README.read_text().split("| `budgetprune.` | |")[1].split("Every docstring")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert sorted(re.findall(r"`(\w+)`", first)) == sorted(budgetprune.__all__)


def test_make_knows_the_targets_that_readme_names():
    targets = re.findall(r"\bmake ([a-z-]+)", README.read_text())
    assert {"demo", "test", "bench"} <= set(targets)
    for target in set(targets):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_generated_blocks_are_what_the_results_say():
    code = ("import sys; sys.path.insert(0, 'benchmarks'); from readme import PAGES;"
            "print(*[page.name for page, made in PAGES.items() if made(page.read_text()) != page.read_text()])")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not result.stdout.strip(), f"{result.stdout.strip()}: run python benchmarks/readme.py"


def test_the_links_of_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("word", ["TODO", "coming soon"])
def test_readme_promises_nothing(word):
    assert word.lower() not in README.read_text().lower()
