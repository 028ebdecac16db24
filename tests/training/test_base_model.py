"""The digits LLaVA: a real LLaVA in its parts, fed the same by batch and by processor, and good at its task."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from budgetprune.tasks import build
from budgetprune.tasks.digits import COLOURS, draw
from budgetprune.training import base_model, base_training, batch_inputs, build_base, find_base, held_out, load_base

BUNDLED = base_model.CHECKPOINTS / "digits-llava"


@pytest.fixture(scope="module")
def untrained():
    return build_base(seed=0)


@pytest.fixture(scope="module")
def bundled():
    return load_base(BUNDLED)


def prompts(canvases, turns):
    """The text of the first `turns` questions, the last one unanswered, as a user would write it."""
    names = list(COLOURS)
    for colours, answers in zip(canvases.colours, canvases.answers):
        asked = [f"which digit is {names[c]} {a} </s>" for c, a in zip(colours[:turns], answers)]
        yield " ".join(["<image>", *asked])[:-len(" 0 </s>")]


# ---- the model


def test_the_model_is_a_small_llava_of_the_usual_form(untrained):
    model, processor = untrained
    assert type(model).__name__ == "LlavaForConditionalGeneration" and type(processor).__name__ == "LlavaProcessor"
    assert 400_000 < model.num_parameters() < 600_000
    config = model.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.image_token_id == processor.image_token_id
    assert config.text_config.vocab_size == len(processor.tokenizer) == 24


def test_the_seed_alone_draws_the_weights_and_torch_s_generator_is_left_alone(untrained):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    same, other = build_base(seed=0)[0], build_base(seed=1)[0]
    assert torch.equal(before, torch.get_rng_state())
    weights = untrained[0].state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in same.state_dict().items())
    assert not torch.equal(weights["lm_head.weight"], other.state_dict()["lm_head.weight"])


def test_tokenizer_reads_a_prompt_word_by_word(untrained):
    tokenizer = untrained[1].tokenizer
    words = tokenizer.convert_ids_to_tokens(tokenizer("<image> Which digit is RED 7 </s> car")["input_ids"])
    assert words == ["<s>", "<image>", "which", "digit", "is", "red", "7", "</s>", "<unk>"]
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(["7", "</s>"]), skip_special_tokens=True) == "7"
    assert tokenizer.padding_side == "left"


def test_processor_puts_one_placeholder_per_patch(untrained):
    model, processor = untrained
    sample = build("digits").samples("test", 1, 0)[0]
    inputs = processor(text=f"<image> {sample.question}", images=sample.image, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 69) and set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert model(**inputs).logits.shape == (1, 69, 24)


def test_chat_template_writes_the_plain_prompt(untrained):
    processor = untrained[1]
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which digit is red"}]}]
    written = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert written.split() == "<image> which digit is red".split()
    turn += [{"role": "assistant", "content": "7"}, {"role": "user", "content": "which digit is blue"}]
    written = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert written.split() == "<image> which digit is red 7 </s> which digit is blue".split()


# ---- batches


def test_batch_pixels_are_those_of_the_processor_bit_for_bit(untrained):
    canvases = draw("test", 5, 1)
    mine = batch_inputs(canvases, untrained[1])["pixel_values"]
    for kind in (np.asarray, Image.fromarray):
        theirs = untrained[1](text=["<image>"] * 5, images=[kind(image) for image in canvases.images],
                              return_tensors="pt")["pixel_values"]
        assert torch.equal(mine, theirs)


def test_batch_ids_are_those_of_the_tokenized_text(untrained):
    canvases = draw("train", 6, 2)
    mine = batch_inputs(canvases, untrained[1])
    for turns in (1, 2, 3):
        theirs = untrained[1](text=list(prompts(canvases, turns)), images=list(canvases.images), return_tensors="pt")
        assert torch.equal(mine["input_ids"][:, :theirs["input_ids"].shape[1]], theirs["input_ids"])
    assert mine["input_ids"].shape == (6, 83) and bool(mine["attention_mask"].all())


@pytest.mark.parametrize("learn_end", [False, True])
def test_labels_are_the_answers_and_if_wanted_their_ends(untrained, learn_end):
    canvases = draw("train", 6, 3)
    inputs = batch_inputs(canvases, untrained[1], learn_end=learn_end)
    learnt = inputs["labels"] != -100
    assert torch.equal(inputs["labels"][learnt], inputs["input_ids"][learnt])
    words = untrained[1].tokenizer.convert_ids_to_tokens(inputs["labels"][learnt].tolist())
    end = ["</s>"] if learn_end else []
    assert words == [word for answer in canvases.answers.ravel() for word in [str(answer), *end]]


def test_the_first_question_of_a_sequence_is_the_question_asked_alone(untrained):
    model, processor = untrained
    canvases = draw("test", 4, 4)
    inputs = batch_inputs(canvases, processor)
    alone = processor(text=list(prompts(canvases, 1)), images=list(canvases.images), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[:, :69], model(**alone).logits)


# ---- loading


def test_load_base_takes_the_path_then_the_own_training_then_the_package(tmp_path, monkeypatch, caplog, bundled):
    own, given = tmp_path / "own", tmp_path / "given"
    monkeypatch.setattr(base_model, "user_base_dir", lambda task: own)
    assert find_base() == (BUNDLED, "bundled")
    for seed, place in ((1, own), (2, given)):
        for part in build_base(seed=seed):
            part.save_pretrained(place)
    assert find_base() == (own, "cache") and find_base(given) == (given, "given")
    with caplog.at_level(logging.INFO, "budgetprune"):
        model, processor = load_base()
    assert "cache" in caplog.text and str(own) in caplog.text
    assert torch.equal(model.lm_head.weight, build_base(seed=1)[0].lm_head.weight)
    assert not model.training and processor.tokenizer.padding_side == "left"


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json, model.safetensors"):
        load_base(tmp_path)


# ---- the bundled model


def ask(model, processor, samples, **options):
    inputs = processor(text=[f"<image> {s.question}" for s in samples], images=[s.image for s in samples],
                       return_tensors="pt")
    out = model.generate(**inputs, **options)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)


def test_bundled_model_answers_held_out_digits_in_text(bundled):
    task = build("digits")
    samples = task.samples("test", 96, 123)
    answers = ask(*bundled, samples, max_new_tokens=1)
    assert np.mean([task.score(answer, sample) for answer, sample in zip(answers, samples)]) > 0.9


def test_bundled_model_stops_after_the_digit(bundled):
    samples = build("digits").samples("test", 24, 124)
    assert ask(*bundled, samples, max_new_tokens=8) == ask(*bundled, samples, max_new_tokens=1)


def test_bundled_model_answers_alike_behind_padding(bundled):
    model, processor = bundled
    samples = build("digits").samples("test", 24, 125)
    texts = [f"<image> {s.question}" for s in samples]
    texts[::3] = [f"<image> {a.question} {a.answer} </s> {b.question}" for a, b in zip(samples[::3], samples[1::3])]
    images = [s.image for s in samples]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    assert inputs["attention_mask"][:, 0].tolist() == [1, 0, 0] * 8
    padded = processor.batch_decode(model.generate(**inputs, max_new_tokens=1)[:, -1:])
    for answer, text, image in zip(padded, texts, images):
        alone = processor(text=text, images=image, return_tensors="pt")
        assert answer == processor.decode(model.generate(**alone, max_new_tokens=1)[0, -1:])


def test_bundled_model_answers_a_second_question_in_conversation(bundled):
    model, processor = bundled
    canvases = draw("test", 64, 128)
    inputs = batch_inputs(canvases, processor)
    with torch.no_grad():
        named = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits[:, :-1].argmax(-1)
    asked = inputs["labels"][:, 1:] != -100
    right = (named == inputs["labels"][:, 1:])[asked].view(64, 3).float().mean(0)
    assert (right > 0.9).all()


def test_bundled_log_is_that_of_the_bundled_weights(bundled):
    log = (BUNDLED / "train_log.jsonl").read_text().splitlines()
    start, end = json.loads(log[0]), json.loads(log[-1])
    assert start["event"] == "start" and end["event"] == "end" and end["step"] == start["vision_steps"] + start["steps"]
    assert end["accuracy"] >= 0.95
    # the same stream as the log's, a quarter of it: within 4 standard errors
    again = held_out(*bundled, images=256, seed=base_training.TEST_SEED + 1)["accuracy"]
    assert again == pytest.approx(end["accuracy"], abs=4 * (0.05 * 0.95 / 768) ** 0.5)


def test_bundled_model_needs_the_image(bundled):
    samples = build("digits").samples("test", 96, 126)
    blank = [type(s)(np.zeros_like(s.image), s.question, s.answer, None, s.image_id) for s in samples]
    answers = ask(*bundled, blank, max_new_tokens=1)
    assert np.mean([answer == sample.answer for answer, sample in zip(answers, samples)]) < 0.3


def test_bundled_cls_attends_to_the_digits(bundled):
    model, canvases = bundled[0], draw("test", 64, 127)
    tower = model.model.vision_tower
    with torch.no_grad():
        states = tower(torch.from_numpy(canvases.pixel_values()), output_hidden_states=True).hidden_states
        block = tower.encoder.layers[-1]
        q, k = (part(block.layer_norm1(states[-2])).unflatten(-1, (4, 16)).transpose(1, 2)
                for part in (block.self_attn.q_proj, block.self_attn.k_proj))
        cls = (q[:, :, :1] @ k.transpose(-1, -2) / 4).softmax(-1).mean(1)[:, 0, 1:]
    chosen = cls.topk(12, 1).indices.numpy()
    found = np.mean([np.isin(kept, patches).mean() for kept, patches in
                     zip(chosen, canvases.relevant().reshape(64, -1))])
    assert found > 0.6  # 12 of 64 at random find 0.19


def test_bundled_files_are_small():
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 3_000_000


def test_a_stream_of_one_question_each_asks_them_in_turn():
    from budgetprune.training.data import TaskStream

    _, processor = load_base()
    whole, one = (TaskStream("digits", processor, 8, 3, one_question=one).__getitems__([2, 3, 4, 5])
                  for one in (False, True))
    assert torch.equal(whole["pixel_values"], one["pixel_values"])
    assert one["input_ids"].shape == (4, 1 + 64 + 6) and ((one["labels"] != -100).sum(1) == 1).all()
    for row, index in enumerate([2, 3, 4, 5]):
        start = 65 + 6 * (index % 3)
        assert one["input_ids"][row, 65:].tolist() == whole["input_ids"][row, start:start + 6].tolist()
        assert one["labels"][row, 65:].tolist() == whole["labels"][row, start:start + 6].tolist()
