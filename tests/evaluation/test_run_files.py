"""Published tasks from end to end: any family, images of any size, scores in between, and answers one by one."""

import json

import numpy as np
import pytest
import task_files
import torch
from families import FAMILIES, make_inputs, make_model
from stub_processor import StubProcessor

from budgetprune import tasks
from budgetprune.evaluation import answers, pictures, record
from budgetprune.evaluation.run import EvalConfig, evaluate, prepare, prompt, scored

QUICK = {"latency_batch": 0, "images": 0, "new_tokens": 2}


@pytest.fixture(scope="module")
def loaded():
    return {name: make_model(name) for name in ("llava", "llava_next", "qwen2_5_vl")}


@pytest.fixture
def ask(loaded, tmp_path):
    """ask(family, task, config) -> records; the task's files lie in tmp_path, the run in tmp_path/run."""
    def call(name, task, config, **options):
        processor = StubProcessor(name, loaded[name])
        return evaluate(loaded[name], processor, task, tmp_path / "run", config, model_name=name, **options)
    return call


@pytest.fixture
def sized(tmp_path):
    """TextVQA's two questions on images of different size: 2 x 2 and 4 x 3 tokens of Qwen's."""
    options = task_files.textvqa(tmp_path)
    task_files.images(options["images"], "0a1b.jpg", size=(28, 28))
    task_files.images(options["images"], "0a1c.jpg", size=(42, 56))
    return tasks.build("textvqa", **options)


def test_pope_gives_metrics_and_every_answer(ask, tmp_path):
    task = tasks.build("pope", **task_files.pope(tmp_path))
    config = EvalConfig(["none", "uniform", "fastv"], [4, 0.5], samples=None, batch=3, **QUICK)
    cells = ask("llava", task, config)
    assert [(r.method, r.keep) for r in cells] == [
        ("none", 16), ("uniform", 4), ("uniform", 8), ("fastv", 4), ("fastv", 8)]
    said, samples = answers.read(tmp_path / "run"), task.samples("test", 4, 0)
    assert set(said) == {r.key() for r in cells}
    for r in cells:
        assert (r.task, r.samples, r.method_options) == ("pope:coco_pope_popular", 4, {})
        assert r.prefill_flops > 0
        own = said[r.key()]
        assert list(own) == [sample.sample_id for sample in samples]
        assert r.accuracy == sum(a.score for a in own.values()) / 4
        assert r.metrics == task.summary([a.prediction for a in own.values()], samples)
        assert all(a.score is task.score(a.prediction, s) for a, s in zip(own.values(), samples))
    assert record.read(tmp_path / "run" / "records.jsonl") == cells


def test_a_second_run_asks_nothing_and_beginning_anew_keeps_the_old(ask, tmp_path):
    task = tasks.build("pope", **task_files.pope(tmp_path))
    config = EvalConfig(["none", "uniform"], [4, 0.25], samples=100, **QUICK)
    ask("llava", task, config)
    files = [tmp_path / "run" / name for name in ("records.jsonl", "answers.jsonl")]
    before = [file.read_bytes() for file in files]
    ask("llava", task, config)
    assert [file.read_bytes() for file in files] == before
    ask("llava", task, config, resume=False)
    assert [file.with_name(f"{file.name}.old").read_bytes() for file in files] == before


def test_two_files_of_one_task_are_two_tasks(ask, tmp_path):
    config = EvalConfig(["uniform"], [4], samples=None, **QUICK)
    for name in ("coco_pope_popular.json", "coco_pope_random.json"):
        ask("llava", tasks.build("pope", **task_files.pope(tmp_path, name=name)), config)
    assert [r.task for r in record.read(tmp_path / "run" / "records.jsonl")] == [
        "pope:coco_pope_popular", "pope:coco_pope_random"]


def test_images_of_any_size_take_fractions_and_counts(ask, sized, tmp_path):
    config = EvalConfig(["none", "divprune", "fastv", "prumerge"], [0.25, 6, None], samples=None, batch=2,
                        latency_batch=2, new_tokens=2)
    cells = ask("qwen2_5_vl", sized, config)
    found = {(r.method, *r.method_options.items(), r.keep): r.kept_mean for r in cells}
    quarter = ("fraction", 0.25)  # of 4 and of 12 tokens: 1 and 3; six are four of the smaller image
    own = next(r for r in cells if r.method_options == {"count": "own"})
    assert found == {("none", 8): 8, ("divprune", quarter, 2): 2, ("divprune", 6): 5, ("fastv", quarter, 2): 2,
                     ("fastv", 6): 5, ("prumerge", quarter, 2): 2, ("prumerge", 6): 5,
                     ("prumerge", ("count", "own"), own.keep): own.kept_mean}
    for r in cells:
        assert r.prefill_flops > 0 and r.prefill_ms > 0 and r.latency_batch == 2
        assert (r.layer_mean is not None) == (r.method == "fastv")
    # Layers 0 and 1 of four see all 8 on average, the others 2.
    assert next(r for r in cells if r.method == "fastv").layer_mean == 5
    before = (tmp_path / "run" / "records.jsonl").read_text()
    assert ask("qwen2_5_vl", sized, config) == cells and (tmp_path / "run" / "records.jsonl").read_text() == before
    shots = pictures.read(tmp_path / "run")
    assert {p.grid for p in shots} == {(2, 2), (4, 3)} and len(shots) == 2 * len(cells)
    assert all(p.image.startswith("images/textvqa-0a1") for p in shots)


def test_the_report_draws_fractions_as_one_curve(ask, sized, tmp_path):
    from budgetprune.evaluation import write_report
    from budgetprune.evaluation.summary import group_records

    config = EvalConfig(["none", "divprune"], [0.25, 0.5], samples=None, latency_batch=0, new_tokens=2)
    (group,) = group_records(ask("qwen2_5_vl", sized, config))
    assert [(curve.label, [p.keep for p in curve.points]) for curve in group.curves] == [("divprune", [2, 4])]
    assert group.full.keep == 8 and write_report(tmp_path / "run").stat().st_size > 10_000


def test_scores_in_between_have_a_mean_and_an_interval(ask, sized, tmp_path, monkeypatch):
    monkeypatch.setattr(StubProcessor, "batch_decode", lambda self, rows, **_: ["nikon"] * len(rows))
    (cell,) = ask("qwen2_5_vl", sized, EvalConfig(["none"], [], samples=None, **QUICK))
    assert cell.accuracy == pytest.approx(0.45) and cell.ci95 == (0, pytest.approx(1))  # 0.9 and 0 of two questions
    assert cell.metrics is None
    assert [json.loads(line)["score"] for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()] in (
        [pytest.approx(0.9), 0.0], [0.0, pytest.approx(0.9)])


@pytest.mark.parametrize("method, keep", [("none", 1.0), ("divprune", 0.3), ("fastv", 0.3)])
@pytest.mark.parametrize("name, size", [("llava_next", (56, 30)), ("qwen2_5_vl", (42, 70))])
def test_flops_of_images_of_any_size_are_what_torch_counts(loaded, ask, tmp_path, name, size, method, keep):
    """The mean over images in different numbers of crops, or of different size; within one per cent."""
    from torch.utils.flop_counter import FlopCounterMode

    import budgetprune

    options = task_files.gqa(tmp_path)
    task_files.images(options["images"], "n161313.jpg", size=(28, 28))
    task_files.images(options["images"], "n235859.jpg", size=size)
    task, model = tasks.build("gqa", **options), loaded[name]
    (cell,) = ask(name, task, EvalConfig([method], [keep], samples=None, **QUICK))
    counted = []
    model.set_attn_implementation("eager")
    try:
        for sample in task.samples("test", 2, 0):
            inputs = prepare(StubProcessor(name, model), [sample], model)
            if method == "none":
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    model(**inputs, logits_to_keep=1)
            else:
                with budgetprune.prune(model, method, keep=keep):
                    with torch.no_grad(), FlopCounterMode(display=False) as counter:
                        model(**inputs, logits_to_keep=1)
            counted.append(counter.get_total_flops())
    finally:
        model.set_attn_implementation("sdpa")
    assert counted[0] != counted[1]
    assert cell.prefill_flops == pytest.approx(sum(counted) / 2, rel=0.01)


def test_llava_next_is_asked_with_its_own_processor(loaded, tmp_path):
    """Its tokens for an image, from the image's size, are those that the model has features for."""
    from families import IMAGE, PINPOINTS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaNextProcessor, PreTrainedTokenizerFast
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    named = {0: "<pad>", 1: "<s>", IMAGE: "<image>", 127: "<unk>"}
    words = Tokenizer(models.WordLevel({named.get(n, f"w{n}"): n for n in range(128)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
                                        additional_special_tokens=["<image>"], padding_side="left")
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
                                        image_grid_pinpoints=PINPOINTS)
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for part in m.content %}{{ '<image> ' if part.type == 'image' else "
                      "part.text }}{% endfor %}{% endfor %}")
    options = task_files.gqa(tmp_path)
    task_files.images(options["images"], "n161313.jpg", size=(28, 28), mode="RGB")
    task_files.images(options["images"], "n235859.jpg", size=(56, 30), mode="RGB")
    config = EvalConfig(["none", "visionzip", "fastv"], [0.3, 5], samples=None, batch=2, **QUICK)
    cells = evaluate(loaded["llava_next"], processor, tasks.build("gqa", **options), tmp_path / "run", config,
                     model_name="next")
    assert all(r.prefill_flops > 0 and r.kept_mean == 5 for r in cells if r.keep == 5 and not r.method_options)
    assert [r.method_options for r in cells] == [{}, {"fraction": 0.3}, {}, {"fraction": 0.3}, {}]
    assert cells[0].kept_mean > cells[1].kept_mean > 5


def test_a_cell_cut_off_before_its_record_is_written_whole_again(ask, tmp_path, monkeypatch):
    task = tasks.build("gqa", **task_files.gqa(tmp_path))
    config = EvalConfig(["uniform"], [4], samples=None, **QUICK)
    real = record.append

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        ask("llava", task, config)
    monkeypatch.setattr(record, "append", real)
    path = tmp_path / "run" / "answers.jsonl"
    path.write_text(path.read_text() + '{"cell": ["gqa')
    with pytest.warns(UserWarning, match="cut off a torn last line"):
        (cell,) = ask("llava", task, config)
    assert len(path.read_text().splitlines()) == 4 and {k: len(v) for k, v in answers.read(path.parent).items()} == {
        cell.key(): 2}


class AnyProcessor(StubProcessor):
    """Inputs of any family, whatever the images show."""

    def __call__(self, text, images, return_tensors, padding):
        return make_inputs(self.name, self.model, words=(4,) * len(text), images=(1,) * len(text))[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_evaluated_at_fractions(name, tmp_path):
    model, task = make_model(name), tasks.build("pope", **task_files.pope(tmp_path))
    config = EvalConfig(["none", "divprune", "dart"], [0.5], samples=None, batch=2, latency_batch=0, new_tokens=2)
    full, before, inside = evaluate(model, AnyProcessor(name, model), task, tmp_path / "run", config, model_name=name)
    assert full.kept_mean > before.kept_mean and full.kept_mean > inside.kept_mean
    assert [r.keep for r in (full, before, inside)] == [round(r.kept_mean) for r in (full, before, inside)]
    assert full.prefill_flops > inside.prefill_flops > before.prefill_flops > 0
    assert inside.kept_mean < inside.layer_mean < full.kept_mean and before.layer_mean is None
    assert "budget_pruner" not in model._modules


@pytest.mark.parametrize("given, score", [(True, True), (np.True_, True), (0, False), (np.float32(0.5), 0.5), (1.0, 1.0)
                                          ])
def test_a_score_is_plain_and_within_0_and_1(given, score, monkeypatch):
    task = tasks.build("pope", annotations="a", images="b")
    monkeypatch.setattr(type(task), "score", lambda *_: given)
    found = scored(task, "", None)
    assert found == score and type(found) is type(score)
    monkeypatch.setattr(type(task), "score", lambda *_: 1.5)
    with pytest.raises(ValueError, match=r"Pope.score must be in \[0, 1\], got 1.5"):
        scored(task, "", None)


def test_images_are_read_again_for_every_cell_and_never_held(ask, loaded, tmp_path):
    from budgetprune.evaluation.prompts import Prompts

    task = tasks.build("pope", **task_files.pope(tmp_path))
    processor = StubProcessor("llava", loaded["llava"])
    prompts = Prompts(processor, task.samples("test", 4, 0), loaded["llava"], 3)
    assert not processor.images
    assert [[len(batch["input_ids"]) for batch in prompts] for _ in range(2)] == [[3, 1], [3, 1]]
    assert len(processor.images) == 8 and all(image.mode == "RGB" for image in processor.images)
    assert len(prompts.timed(32)["input_ids"]) == 3 and len(prompts.timed(2)["input_ids"]) == 2


def test_all_samples_of_a_task_without_end_are_refused(ask):
    with pytest.raises(ValueError, match="samples must be a count for task digits, which has no end"):
        ask("llava", tasks.build("digits"), EvalConfig(["none"], [], samples=None, **QUICK))


@pytest.mark.parametrize("budgets, match", [([0.0], r"budgets must be in \(0, 1\] where they are fractions, got 0.0"),
                                            ([1.5], r"budgets must be in \(0, 1\] where they are fractions, got 1.5")])
def test_fractions_beyond_the_image_are_refused(budgets, match):
    with pytest.raises(ValueError, match=match):
        EvalConfig(["uniform"], budgets)


def test_fractions_are_counts_where_every_image_has_as_many_tokens():
    config = EvalConfig(["none", "uniform"], [0.25, 16, 0.001, 1.0])
    assert config.cells(64) == [("none", 64), ("uniform", 16), ("uniform", 1), ("uniform", 64)]
    assert config.cells(None) == [("none", None), *(("uniform", keep) for keep in (0.25, 16, 0.001, 1.0))]


def test_a_processor_without_a_chat_form_puts_the_question_behind_the_image():
    class Plain:
        chat_template, image_token = None, "<image>"

    assert prompt(Plain(), "What?") == "<image>What?"


def test_floating_inputs_take_the_models_dtype(loaded, tmp_path):
    task, model = tasks.build("gqa", **task_files.gqa(tmp_path)), loaded["llava"]
    model.to(torch.bfloat16)
    try:
        inputs = prepare(StubProcessor("llava", model), task.samples("test", 1, 0), model)
    finally:
        model.to(torch.float32)
    assert inputs["pixel_values"].dtype == torch.bfloat16 and inputs["input_ids"].dtype == torch.int64
