"""Every block of docs runs, and says no more than the code does."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import task_files
from families import make_inputs, make_model

import budgetprune

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
MODELS = {"LlavaForConditionalGeneration": "llava", "LlavaNextForConditionalGeneration": "llava_next",
          "LlavaOnevisionForConditionalGeneration": "llava_onevision", "Qwen2VLForConditionalGeneration": "qwen2_vl",
          "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl", "Qwen3VLForConditionalGeneration": "qwen3_vl",
          "PaliGemmaForConditionalGeneration": "paligemma", "InternVLForConditionalGeneration": "internvl"}


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


class Processor:
    """Gives the inputs of one prompt that fit the small model which was loaded last."""

    loaded, lengths = None, None

    def __call__(self, **options):
        from transformers import BatchFeature

        name, model = self.loaded
        inputs, Processor.lengths = make_inputs(name, model, words=(4,), images=(1,))
        return BatchFeature(inputs)

    def apply_chat_template(self, conversation, **options):
        assert {part["type"] for part in conversation[0]["content"]} == {"image", "text"}
        return self()

    def decode(self, tokens, skip_special_tokens):
        return f"{len(tokens)} tokens"


@pytest.fixture
def small(monkeypatch):
    """from_pretrained of every class gives its small random model, and AutoProcessor what fits it."""
    import transformers

    names = []

    def loader(name):
        def from_pretrained(checkpoint, **options):
            names.append(checkpoint)
            Processor.loaded = name, make_model(name)
            return Processor.loaded[1]

        return from_pretrained

    for cls, name in MODELS.items():
        monkeypatch.setattr(getattr(transformers, cls), "from_pretrained", loader(name))
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: Processor())
    return names


def test_the_lines_of_every_family_run(small, monkeypatch, tmp_path, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 24)).save("photo.jpg")
    shared, *each = blocks("docs/families.md")
    scope, ran = {}, set()
    exec(shared.replace("=100", "=3"), scope)
    for block in each:
        exec(block.replace("keep=64", "keep=4"), scope)
        (kept,), (tokens,) = scope["model"].budget_pruner.plan.counts(), Processor.lengths
        assert kept < tokens
        ran.add(type(scope["model"]).__name__)
    assert ran == set(MODELS)
    assert capsys.readouterr().out.count("3 tokens") == len(each) - 1


def test_readme_and_docs_name_every_class_that_is_pruned_and_one_checkpoint_of_each(small):
    from budgetprune.models.base import _registry

    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs/families.md").read_text()
    for family in _registry:
        for cls in family.classes if family.__module__.startswith("budgetprune.") else ():
            assert f"`{cls}`" in readme and cls in page, cls
    rows = re.findall(r"^\| [\w.-]+ \| (`.*) \| `(\S+/\S+)` \|$", readme, re.MULTILINE)
    assert [re.findall(r"`(\w+)`", classes)[0] for classes, _ in rows] == list(MODELS)
    for _, checkpoint in rows:
        assert f'"{checkpoint}"' in page


def test_the_blocks_of_methods_run(monkeypatch, tmp_path, capsys):
    from budgetprune import tasks
    from budgetprune.cli import main
    from budgetprune.evaluation.run import prepare
    from budgetprune.training import load_base

    monkeypatch.chdir(tmp_path)
    model, processor = load_base()
    samples = tasks.build("digits").samples("test", 2, 0)
    scope = {"model": model, "processor": processor, "inputs": prepare(processor, samples, model)}
    for block in blocks("docs/methods.md"):
        exec(block, scope)
    assert scope["pruning"].model is model and "budget_pruner" not in model._modules
    for line in "".join(blocks("docs/methods.md", "sh")).splitlines():
        small = {"train": "--batch-size 4", "eval": "--samples 6 --latency-batch 0"}.get(line.split()[1], "")
        monkeypatch.setattr(sys, "argv", shlex.split(f"{line.replace('--steps 400', '--steps 2')} {small}"))
        with pytest.raises(SystemExit) as leave:
            main()
        assert not leave.value.code, capsys.readouterr()


def test_the_blocks_of_tasks_run(monkeypatch, tmp_path, capsys):
    """On files made by hand, asked of the digits LLaVA, to which the questions are unknown words."""
    from budgetprune import tasks
    from budgetprune.cli import main
    from budgetprune.training.base_model import CHECKPOINTS

    monkeypatch.chdir(tmp_path)
    asked = []
    for name, make in task_files.MAKE.items():
        (tmp_path / name).mkdir()
        options = make(tmp_path / name)
        if name == "pope":
            (tmp_path / "coco").mkdir()
            options["images"].rename("coco/val2014")
    task_files.rosetta(tmp_path / "textvqa")
    for line in "".join(blocks("docs/tasks.md", "sh")).splitlines():
        model = str(CHECKPOINTS / "digits-llava")
        arguments = [model if before == "--model" else "4,8" if value == "64,128,192" else value
                     for before, value in pairwise(["", *shlex.split(line)])]
        if "--budgets" not in arguments:
            arguments += ["--budgets", "4"]
        monkeypatch.setattr(sys, "argv", arguments + ["--latency-batch", "0", "--new-tokens", "2"])
        with pytest.raises(SystemExit) as leave:
            main()
        assert not leave.value.code, capsys.readouterr()
        asked.append(arguments[arguments.index("--task") + 1])
    assert {"digits", *asked} == set(tasks.available()) and set(asked) == {"shapes", *task_files.MAKE}
    (block,) = blocks("docs/tasks.md")
    capsys.readouterr()  # the tables of the runs
    exec(block, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0] == "none 64 +0.0000 +- 0.0000"


def test_the_blocks_of_cost_run(monkeypatch, tmp_path, capsys):
    """The run is two records made by hand."""
    from budgetprune.cli import main
    from budgetprune.evaluation import Record, append

    monkeypatch.chdir(tmp_path)
    for method, keep, ms, flops in (("none", 64, 8.0, 100), ("fastv", 16, 6.0, 50)):
        append("runs/demo/records.jsonl", Record("digits", "m", method, keep, 0.5, (0.4, 0.6), 9, 0, prefill_ms=ms,
                                                 prefill_flops=flops))
    for line in "".join(blocks("docs/cost.md", "sh")).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as leave:
            main()
        assert not leave.value.code, capsys.readouterr()
    capsys.readouterr()
    first, second = blocks("docs/cost.md")
    scope = {}
    exec(first, scope)
    assert capsys.readouterr().out.startswith("999 image tokens, ")
    assert scope["fastv"].total > scope["pruned"].total and scope["cache"] > 0 and 1 < scope["bound"] < 1000
    exec(second, {})
    assert capsys.readouterr().out == "fastv 1.50\n"


def test_every_known_model_and_every_family_whose_cost_is_known_is_named():
    from budgetprune.cost import KNOWN
    from budgetprune.cost.families.base import _registry

    page = (ROOT / "docs/cost.md").read_text()
    for name in (*KNOWN, *(kind for family in _registry for kind in family.model_types)):
        assert f"`{name}`" in page, name


def test_every_task_has_its_row_and_its_section():
    from budgetprune import tasks

    page = (ROOT / "docs/tasks.md").read_text()
    for name in set(tasks.available()) - {"digits"}:
        assert f"\n| `{name}` | " in page and f"\n### `{name}`\n" in page, name


def test_every_method_has_its_section_and_its_row():
    page, readme = (ROOT / "docs/methods.md").read_text(), (ROOT / "README.md").read_text()
    table = readme.split("<!-- generated: methods table -->")[1].split("<!-- end -->")[0]
    for name in budgetprune.methods():
        assert f"\n### `{name}`\n" in page and f"\n| `{name}` | " in table, f"{name}: run python benchmarks/readme.py"


def test_every_compressor_has_its_section_and_its_price():
    page = (ROOT / "docs/methods.md").read_text()
    prices = page.split("<!-- generated: cost table -->")[1].split("<!-- end -->")[0]
    for name in budgetprune.compressors():
        assert f"\n### `{name}`\n" in page and f"\n| `{name}` | " in prices, f"{name}: run python benchmarks/readme.py"


def test_a_new_method_comes_into_the_tables_by_itself():
    code = """if True:
    import sys; sys.path.insert(0, "benchmarks")
    from budgetprune.selectors import Selector
    from readme import ROOT, render, render_methods

    class Newest(Selector):
        '''score[n] = nothing yet.

        Somebody et al., CVPR 2031, "Newest".

        Departures: none.
        '''
        name, place, layer, merges = "newest", "llm", 3, True
        needs = frozenset({"attention"})

    print(*[line for line in render((ROOT / "README.md").read_text()).splitlines() if "`newest`" in line])
    print(render_methods((ROOT / "docs/methods.md").read_text())[-300:])
    """
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    row = ["`newest`", "Somebody et al., CVPR 2031", "in the language model, before layer 3",
           "attention of the last token", "yes", "exact from the last layer named", "yes", "", "compact"]
    assert out.startswith(f"| {' | '.join(row)} |\n")
    assert "### `newest`" in out and "**score[n] = nothing yet.**" in out and "**Departures:** none." in out


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_the_links_of_docs_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]+)?\)", page.read_text()):
        if "://" not in target:
            goal = (page.parent / target) if target else page
            assert goal.exists(), target
            heads = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
                     for head in re.findall(r"^#+ (.*)$", goal.read_text(), re.MULTILINE)] if anchor else []
            assert not anchor or anchor[1:] in heads, anchor
