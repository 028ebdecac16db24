"""Conversations as forward arguments: labels on the answers alone, images never cut, batches that change nothing."""

import numpy as np
import pytest
import torch
from chat_processors import CHATML, make_processor
from families import IMAGE, make_model
from PIL import Image

import budgetprune
from budgetprune.training.chat import IGNORED, Chat
from budgetprune.training.collate import collate
from budgetprune.training.conversations import BadSample, Conversation, Turn, read_conversation

FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(40, 56), picture(28, 28, 1)]
TWO = read_conversation({"images": ["a", "b"], "conversations": [
    {"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": "a cat"},
    {"from": "human", "value": "and then <image>"}, {"from": "gpt", "value": "a red dog said no"}]})
ONE = TWO.only(0)
WORDS = Conversation((Turn("user", ("what is red",)), Turn("assistant", ("a dog",))), ())


def chat_of(family, max_length=512, template=None):
    processor = make_processor(family)
    processor.chat_template = template or processor.chat_template
    return Chat(processor, [IMAGE], max_length)


def labelled(chat, row):
    """The text of every run of labels."""
    labels = row["labels"][0]
    there = (labels != IGNORED).long()
    starts = (there.diff(prepend=there.new_zeros(1)) == 1).nonzero().flatten().tolist()
    stops = (there.diff(append=there.new_zeros(1)) == -1).nonzero().flatten().tolist()
    return [chat.processor.tokenizer.decode(labels[a:b + 1]) for a, b in zip(starts, stops, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answers_with_their_ends_and_nothing_else(family):
    chat = chat_of(family)
    end = "<|im_end|>" if family == "qwen2_5_vl" else "</s>"  # the first by its template, the others by us
    for talk, images, answers in ((TWO, PICTURES, ["a cat", "a red dog said no"]), (ONE, PICTURES[:1], ["a cat"]),
                                  (WORDS, [], ["a dog"])):
        row = chat(talk, images)
        assert labelled(chat, row) == [f"{answer} {end}" for answer in answers]
        seen = row["labels"] != IGNORED
        assert torch.equal(row["labels"][seen], row["input_ids"][seen])


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_what_the_processor_makes_of_the_whole_text(family):
    chat = chat_of(family)
    messages = [{"role": turn.role, "content": [{"type": "image"} if part is None else {
        "type": "text", "text": part + (chat.end if turn.role == "assistant" else "")} for part in turn.parts]}
        for turn in TWO.turns]
    text = chat.processor.apply_chat_template(messages, tokenize=False)
    expected = chat.processor(text=[text], images=PICTURES, return_tensors="pt")
    row = chat(TWO, PICTURES)
    assert row.keys() == expected.keys() | {"labels"}
    assert all(torch.equal(value, row[name]) for name, value in expected.items())


def test_a_processor_that_wraps_its_images_in_other_tokens_keeps_the_labels():
    chat = chat_of("llava")
    a, mark, b = [4, 20, 21], IMAGE, [22, 23, 5, 24]
    short = [*a, mark, mark, *b, mark, 25]
    long = [*a, 102, mark, mark, 103, 102, mark, mark, 103, *b, 102, mark, 103, 25]
    places = chat._places(short, long)
    assert [long[place] for place in places if long[place] not in (mark, 102)] == [*a, *b, 25]
    assert places[-1] == len(long) - 1
    with pytest.raises(BadSample, match="changes more of the text than its images"):
        chat._places([*a, mark, 99], long)


def test_a_template_that_looks_back_is_refused_before_labels_are_wrong():
    looks_back = "{% if messages|length > 1 %}{{ 'chat ' }}{% endif %}" + CHATML
    with pytest.raises(ValueError, match="the chat template must begin a conversation with an answer as it does when"):
        chat_of("qwen2_5_vl", template=looks_back)
    longer = "{% if messages|length > 2 %}{{ 'chat ' }}{% endif %}" + CHATML
    chat = chat_of("qwen2_5_vl", template=longer)
    assert labelled(chat, chat(ONE, PICTURES[:1])) == ["a cat <|im_end|>"]
    with pytest.raises(BadSample, match="writes what is before answer 1 differently when the conversation goes on"):
        chat(TWO, PICTURES)


def test_a_processor_without_a_template_is_refused():
    processor = make_processor("llava")
    processor.chat_template = None
    with pytest.raises(ValueError, match="a processor with a chat template, LlavaProcessor has none"):
        Chat(processor, [IMAGE], 512)


def test_what_is_too_long_loses_its_end_but_never_an_image():
    whole = chat_of("llava")(TWO, PICTURES)
    length = whole["input_ids"].shape[1]
    last = int((whole["input_ids"][0] == IMAGE).nonzero()[-1])
    cut = chat_of("llava", length - 2)(TWO, PICTURES)
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(cut[name], whole[name][:, :length - 2])
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    with pytest.raises(BadSample, match=f"too long: {last + 1} tokens up to the end of its 32 image tokens, max_length "
                                        f"is {last}"):
        chat_of("llava", last)(TWO, PICTURES)
    with pytest.raises(BadSample, match="too long: .* no answer within max_length 21"):
        chat_of("llava", 21)(ONE, PICTURES[:1])


def test_an_image_that_the_processor_refuses_is_a_bad_sample():
    with pytest.raises(BadSample, match="the processor refuses it: absolute aspect ratio must be smaller than 200"):
        chat_of("qwen2_5_vl")(ONE, [picture(1, 400)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_of_each_row_what_the_row_alone_says(family):
    """Rows with two images, one and none, right-padded: the sum of the losses is that of the rows by themselves."""
    model, chat = make_model(family), chat_of(family)
    rows = [chat(TWO, PICTURES), chat(ONE, [picture(56, 30, 3)]), chat(WORDS, [])]
    batch = collate(rows, pad=0)
    assert batch["input_ids"].shape[0] == 3 and batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    budgetprune.prune(model, "adaptive", keep=3)
    model.train()
    model.budget_pruner.set_noise(False)
    counts = [int((row["labels"][:, 1:] != IGNORED).sum()) for row in rows]
    with torch.enable_grad():
        together = model(**batch).loss * sum(counts)
        alone = sum(model(**row).loss * count for row, count in zip(rows, counts, strict=True))
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)


def test_crops_are_filled_up_with_zeros_as_the_model_does():
    rows = [{"input_ids": torch.ones(1, 3, dtype=torch.long), "pixel_values": torch.ones(1, crops, 3, 2, 2)}
            for crops in (3, 5)]
    batch = collate(rows, pad=0)
    assert batch["pixel_values"].shape == (2, 5, 3, 2, 2)
    assert batch["pixel_values"].sum((1, 2, 3, 4)).tolist() == [36, 60] and batch["pixel_values"][0, 3:].eq(0).all()
