"""The model for VLMEvalKit, asked as its inference loop asks. The real one is on no package index."""

from functools import partial

import pytest
from hosts import ROOT
from PIL import Image

import budgetprune
from budgetprune.integrations.vlmevalkit import PrunedLlava
from budgetprune.tasks.digits import COLOURS, draw
from budgetprune.training import load_base

MODEL = str(ROOT / "budgetprune" / "checkpoints" / "digits-llava")


class Digits:
    """A dataset with what VLMEvalKit's loop uses of one."""

    dataset_name = "digits"

    def __init__(self, folder):
        canvases, names = draw("test", 4, seed=5), list(COLOURS)
        self.data = []
        for number, (image, colours) in enumerate(zip(canvases.images, canvases.colours)):
            path = folder / f"{number}.png"
            Image.fromarray(image).save(path)
            self.data += [{"path": str(path), "question": f"which digit is {names[colour]}"} for colour in colours]

    def dump_image(self, line):
        return [line["path"]]

    def build_prompt(self, line):
        return [{"type": "image", "value": line["path"]}, {"type": "text", "value": line["question"]}]


def infer_data(supported, name, dataset):
    """The calls that vlmeval.inference.infer_data makes, in its order."""
    model = supported[name]()
    assert not getattr(model, "is_api", False)
    model.set_dump_image(dataset.dump_image)
    said = []
    for line in dataset.data:
        if hasattr(model, "use_custom_prompt") and model.use_custom_prompt(dataset.dataset_name):
            message = model.build_prompt(line, dataset=dataset.dataset_name)
        else:
            message = dataset.build_prompt(line)
        said.append(model.generate(message=message, dataset=dataset.dataset_name))
    return said


@pytest.fixture
def loaded():
    return partial(PrunedLlava, MODEL, max_new_tokens=2, device="cpu")


@pytest.mark.parametrize("method, keep", [("fastv", 3), ("prumerge_plus", 6), ("none", None)])
def test_the_loop_gets_what_the_pruned_model_says(tmp_path, loaded, method, keep):
    dataset = Digits(tmp_path)
    said = infer_data({"pruned": partial(loaded, method=method, keep=keep)}, "pruned", dataset)
    model, processor = load_base(MODEL)
    expected = []
    with budgetprune.prune(model, method, keep=keep):
        for line in dataset.data:
            inputs = processor(images=[Image.open(line["path"])], text=f"<image> {line['question']}",
                               return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1]:]
            expected.append(processor.decode(tokens, skip_special_tokens=True).strip())
    assert said == expected and all(text.isdigit() for text in said)


def test_every_image_of_a_message_is_pruned_and_texts_need_none(tmp_path, loaded):
    dataset, model = Digits(tmp_path), loaded(method="uniform", keep=5)
    messages = dataset.build_prompt(dataset.data[0]) + dataset.build_prompt(dataset.data[3])
    model.generate(messages)
    assert model.pruning.plan.counts() == [5, 5]
    assert isinstance(model.generate("which digit is red"), str)


def test_a_saved_pruner_comes_from_its_folder(tmp_path, loaded):
    loaded(method="fastv", keep=6, layer=3).pruning.save_pretrained(tmp_path)
    assert loaded(pruner=str(tmp_path), keep=5).pruning.selector.layer == 3


@pytest.mark.parametrize("arguments, message", [
    ({}, "one of method and pruner must be given"),
    ({"pruner": "somewhere", "layer": 2}, r"a pruner brings its options along, got \['layer'\]"),
    ({"method": "fastv", "keep": 4, "layr": 2}, r"fastv takes the options \['layer'\], got \['layr'\]"),
])
def test_a_wrong_argument_is_named(loaded, arguments, message):
    with pytest.raises(ValueError, match=message):
        loaded(**arguments)


def test_a_video_is_refused(loaded):
    with pytest.raises(ValueError, match=r"items of type 'image' or 'text', got \{'type': 'video'"):
        loaded(method="uniform", keep=4).generate([{"type": "video", "value": "a.mp4"}])


def test_an_error_of_pruning_reaches_the_loop(tmp_path, loaded):
    def refusing():
        model = loaded(method="fastv", keep=6)
        model.model.generation_config.prefill_chunk_size = 4
        return model

    with pytest.raises(ValueError, match="prefill_chunk_size cannot be used with fastv"):
        infer_data({"pruned": refusing}, "pruned", Digits(tmp_path))
