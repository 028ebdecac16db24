"""The plugin inside the real lmms-eval: a small LLaVA that was trained for it answers a task from this disk."""

from pathlib import Path

import pytest
from hosts import ROOT, declare_entry_points, python

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; make test-integrations installs and asks it")
pytest.importorskip("decord", reason="lmms-eval's llava_hf reads videos with decord, which is not installed")
import datasets
import torch
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager
from PIL import Image

import budgetprune
from budgetprune.integrations.lmms_eval import LlavaHfChat, PrunedLlavaHf, PrunedLlavaHfChat
from budgetprune.tasks.digits import COLOURS, draw

MODEL = str(ROOT / "budgetprune" / "checkpoints" / "digits-llava")
TASK = """
task: digits_local
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: generate_until
doc_to_visual: !function digits.visual
doc_to_text: !function digits.text
doc_to_target: answer
process_results: !function digits.score
generation_kwargs: {{max_new_tokens: 2}}
metric_list:
  - {{metric: accuracy, aggregation: mean, higher_is_better: true}}
metadata:
  - version: 0.0
"""
FUNCTIONS = """
def visual(doc):
    return [doc["image"].convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def score(doc, results):
    return {"accuracy": float(results[0].strip() == doc["answer"])}
"""
COMMAND = "import sys; from lmms_eval.__main__ import cli_evaluate; cli_evaluate()"


@pytest.fixture(scope="module")
def questions():
    """(image, colour, answer) of each question; few digits, because every run starts lmms-eval anew."""
    canvases, names = draw("test", 8, seed=5), list(COLOURS)
    return [(Image.fromarray(image), names[colour], str(answer))
            for image, colours, answers in zip(canvases.images, canvases.colours, canvases.answers)
            for colour, answer in zip(colours, answers)]


@pytest.fixture(scope="module")
def task(questions, tmp_path_factory) -> Path:
    """A folder for --include_path with the task digits_local in it."""
    folder = tmp_path_factory.mktemp("task")
    kinds = datasets.Features(image=datasets.Image(), question=datasets.Value("string"),
                              answer=datasets.Value("string"))
    rows = [{"image": image, "question": f"which digit is {colour}", "answer": answer}
            for image, colour, answer in questions]
    rows = datasets.Dataset.from_list(rows, features=kinds)
    datasets.DatasetDict(test=rows).save_to_disk(folder / "data")
    (folder / "digits.yaml").write_text(TASK.format(data=folder / "data"))
    (folder / "digits.py").write_text(FUNCTIONS)
    return folder


def answers(questions, method, **options) -> list[str]:
    """What the model says without lmms-eval."""
    from budgetprune.training import load_base

    model, processor = load_base(MODEL)
    said = []
    with budgetprune.prune(model, method, **options):
        for image, colour, _ in questions:
            parts = [{"type": "image"}, {"type": "text", "text": f"which digit is {colour}"}]
            text = processor.apply_chat_template([{"role": "user", "content": parts}])
            inputs = processor(images=[image], text=text, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1]:]
            said.append(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return said


def load(form=PrunedLlavaHfChat, **arguments):
    return form(pretrained=MODEL, device="cpu", dtype="float32", **arguments)


def evaluate(model, task):
    return evaluator.simple_evaluate(model=model, tasks=["digits_local"], batch_size=1, log_samples=True,
                                     task_manager=TaskManager("ERROR", include_path=str(task)))


@pytest.mark.parametrize("form", ["chat", "simple"])
def test_the_command_line_scores_what_the_pruned_model_says(questions, task, tmp_path, form):
    declare_entry_points(tmp_path)
    said = answers(questions, "fastv", keep=3, layer=1)
    expected = sum(a == answer for a, (_, _, answer) in zip(said, questions)) / len(questions)
    assert 0 < expected < 1
    result = python(COMMAND, tmp_path, "--model", "budgetprune_llava_hf", "--tasks", "digits_local", "--device", "cpu",
                    "--model_args", f"pretrained={MODEL},method=fastv,keep=3,layer=1,dtype=float32",
                    "--include_path", task, *(["--force_simple"] if form == "simple" else []))
    assert f"|accuracy|↑  |{expected:.4f}|" in result.stdout.replace(" " * 6, " " * 2), result.stdout + result.stderr


def test_every_sample_gets_the_pruned_models_answer(questions, task):
    results = evaluate(load(method="prumerge_plus", keep=6), task)
    samples = sorted(results["samples"]["digits_local"], key=lambda sample: sample["doc_id"])
    said = [sample["filtered_resps"][0] for sample in samples]
    assert [str(text).strip() for text in said] == answers(questions, "prumerge_plus", keep=6)


def test_an_error_of_pruning_ends_the_run_where_stock_code_would_score_an_empty_answer(task):
    model = load(method="fastv", keep=6)
    model.model.generation_config.prefill_chunk_size = 4
    generate = model.model.generate
    with pytest.raises(ValueError, match="prefill_chunk_size cannot be used with fastv"):
        evaluate(model, task)
    assert model.model.generate == generate
    model.generate_until = lambda requests: LlavaHfChat.generate_until(model, requests)
    assert evaluate(model, task)["results"]["digits_local"]["accuracy,none"] == 0


@pytest.mark.parametrize("arguments, message", [
    ({}, "one of method and pruner must be given, got method=None and pruner=None"),
    ({"method": "fastv", "pruner": "somewhere"}, "one of method and pruner must be given"),
    ({"pruner": "somewhere", "layer": 2}, r"a pruner brings its options along, got \['layer'\]"),
    ({"method": "fastv", "keep": 4, "layr": 2}, r"fastv takes the options \['layer'\], got \['layr'\]"),
    ({"method": "fastv"}, "keep must be given"),
])
def test_a_wrong_model_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)


def test_a_saved_pruner_comes_from_its_folder(tmp_path):
    made = load(method="fastv", keep=6, layer=3)
    made.pruning.save_pretrained(tmp_path)
    loaded = load(pruner=str(tmp_path), keep=5)
    assert loaded.pruning.selector.layer == 3
    assert loaded.model.budget_pruner.budget.counts([64]) == [5]


def test_likelihoods_of_logits_that_moved_are_refused():
    with pytest.raises(ValueError, match="scores generate_until tasks, got loglikelihood"):
        load(PrunedLlavaHf, method="uniform", keep=9).loglikelihood([])


def crops_of_any_image(name, folder):
    """A small random LLaVA-NeXT or LLaVA-OneVision that knows the digits task's words, saved with its processor."""
    import transformers as t

    from budgetprune.training.base_model import CHAT, build_base

    tokenizer = build_base()[1].tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]}, replace_extra_special_tokens=False)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    tower = {**small, "image_size": 32, "patch_size": 8}
    grids, ids = [[32, 64], [64, 32], [64, 64]], {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**small, "num_key_value_heads": 4, "vocab_size": len(tokenizer), "max_position_embeddings": 512, **ids}
    shared = {"image_token_id": tokenizer.convert_tokens_to_ids("<image>"), "image_grid_pinpoints": grids, **ids}
    image = {"size": {"height": 32, "width": 32}, "image_grid_pinpoints": grids}
    if name == "llava_next":
        config = t.LlavaNextConfig(vision_config=t.CLIPVisionConfig(**tower), text_config=t.LlamaConfig(**text),
                                   **shared)
        cls = t.LlavaNextForConditionalGeneration
        image |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        processor = t.LlavaNextProcessor(
            t.LlavaNextImageProcessor(**image), tokenizer, patch_size=8, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=CHAT)
    else:
        config = t.LlavaOnevisionConfig(
            vision_config=t.SiglipVisionConfig(**tower, vision_use_head=False), text_config=t.Qwen2Config(**text),
            video_token_id=tokenizer.convert_tokens_to_ids("<video>"), vision_feature_layer=-1,
            vision_feature_select_strategy="full", **shared)
        cls = t.LlavaOnevisionForConditionalGeneration
        processor = t.LlavaOnevisionProcessor(
            t.LlavaOnevisionImageProcessor(**image), tokenizer, t.LlavaOnevisionVideoProcessor(), num_image_tokens=16,
            vision_feature_select_strategy="full", chat_template=CHAT)
    torch.manual_seed(3)
    model = cls(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.mark.parametrize("method, keep", [("visionzip", 4), ("fastv", 0.25)])
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_the_other_models_of_llava_hf_are_pruned_too(questions, task, tmp_path, name, method, keep):
    if name == "llava_onevision":
        pytest.importorskip("torchvision", reason="LLaVA-OneVision's processor needs torchvision")
    crops_of_any_image(name, tmp_path)
    pruned = PrunedLlavaHfChat(pretrained=str(tmp_path), device="cpu", dtype="float32", method=method, keep=keep)
    model, pruning, processor, said = pruned.model, pruned.pruning, pruned._image_processor, []  # all gone behind it
    assert model.config.model_type == name
    samples = sorted(evaluate(pruned, task)["samples"]["digits_local"], key=lambda sample: sample["doc_id"])
    (kept,) = pruning.plan.counts()
    for image, colour, _ in questions:
        parts = [{"type": "image"}, {"type": "text", "text": f"which digit is {colour}"}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        inputs = processor(images=[image], text=text, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1]:]
        said.append(processor.tokenizer.decode(tokens, skip_special_tokens=True))
    assert [sample["filtered_resps"][0] for sample in samples] == said and any(said)
    assert kept == 4 if method == "visionzip" else kept > 4
