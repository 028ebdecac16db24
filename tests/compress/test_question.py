"""The question that a compressor hears: which words it is, and how the language model has read them."""

import pytest
import torch
from families import IMAGE, make_inputs, make_model
from tiny import make_batch, make_llava

import budgetprune
from budgetprune.models.base import family_of
from budgetprune.models.question import question_mask, question_states

PAD = 0


def asked(model, rows, labels=None, **options):
    """The words of each row's question. rows: lists of ids, padded on the left here."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    exist = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": exist}
    if labels is not None:
        inputs["labels"] = torch.tensor([[-100] * (longest - len(row)) + row for row in labels])
    mask, has_image = question_mask(model, family_of(model), inputs, **options)
    return [row[m].tolist() for row, m in zip(ids, mask)], has_image.tolist()


I = IMAGE  # noqa: E741


@pytest.mark.parametrize("row, question", [
    ([1, 5, I, I, 7, 8], [7, 8]),
    ([1, I, I, 6, I, I, 7], [7]),  # behind the last of several images
    ([1, 5, 6, I, I], []),  # the question stands before the image
    ([1, 5, 6], []),
    ([1, I, 7, 1, 8, 0, 9], [7, 8, 9]),  # BOS and padding are no words
])
def test_it_is_what_stands_behind_the_last_image(llava, row, question):
    assert asked(llava, [row, [1, I, 9]]) == ([question, [9]], [I in row, True])


def test_answers_and_what_follows_them_are_no_part_of_it(llava):
    rows = [[1, I, 7, 8, 20, 21, 9, 22], [1, I, 7, 8, 5, 5, 5, 5]]
    labels = [[-100, -100, -100, -100, 20, 21, -100, 22], [-100] * 8]
    assert asked(llava, rows, labels)[0] == [[7, 8], [7, 8, 5, 5, 5, 5]]


def test_the_users_turn_ends_where_it_is_said_to(llava):
    rows = [[1, I, 13, 7, 8, 40, 41, 20, 7, 40, 41], [1, I, 13, 40, 7, 41], [1, I, 9, 40]]
    found, _ = asked(llava, rows, turn_end=(40, 41), skip=(13,))
    assert found == [[7, 8], [40, 7, 41], [9, 40]]


def test_a_models_end_of_turn_is_no_word():
    model = make_llava()
    model.config.text_config.eos_token_id = [50, 51]
    assert asked(model, [[1, I, 7, 50, 8, 51]])[0] == [[7, 8]]


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
def test_its_state_is_that_of_the_language_models_last_word(padding):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, words=(3, 4, 7), images=(2, 0, 1), padding=padding)
    states = question_states(model, family_of(model), inputs)
    words, _ = question_mask(model, family_of(model), inputs)
    for row in (0, 2):
        text = torch.tensor([[1, *inputs["input_ids"][row][words[row]].tolist()]])
        hidden = model(input_ids=text, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(states[row], hidden[0, -1])
    assert (states[1] == 0).all(), "a row without an image is not read"


@torch.no_grad()
def test_without_a_question_it_is_bos_alone_or_nothing(llava):
    batch = {"input_ids": torch.tensor([[1, 5, 6, I, I]])}
    hidden = llava(input_ids=torch.tensor([[1]]), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(question_states(llava, family_of(llava), batch)[0], hidden[0, -1])
    llava.config.text_config.bos_token_id = None
    assert (question_states(llava, family_of(llava), batch) == 0).all()


@torch.no_grad()
def test_only_quecc_hears_it():
    batch = make_batch()
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -1] += 1
    for method in budgetprune.compressors():
        model, seen = make_llava(), []
        torch.manual_seed(0)
        budgetprune.prune(model, method, keep=4)
        model.budget_pruner.selector.register_forward_hook(lambda module, args, made, seen=seen: seen.append(made))
        model(**batch)
        model(**other)
        assert torch.equal(*seen) == (method != "quecc")


@torch.no_grad()
def test_training_hears_what_inference_will_and_never_the_answer():
    """With labels on the last two words, the tokens are those of the prompt without them."""
    model, batch = make_llava(), make_batch(text=(6, 6))
    budgetprune.prune(model, "quecc", keep=4)
    seen = []
    model.budget_pruner.selector.register_forward_hook(lambda module, args, made: seen.append(made))
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    model.train()(**batch, labels=labels)
    model.eval()(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"][:, :-2],
                 attention_mask=batch["attention_mask"][:, :-2])
    torch.testing.assert_close(*seen)


def test_nothing_is_learnt_through_the_question(llava):
    batch = make_batch(labels=True)
    batch["labels"][:, :-1] = -100
    states = question_states(llava, family_of(llava), batch)
    assert not states.requires_grad


@torch.no_grad()
def test_each_image_of_a_row_gets_its_question():
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, words=(3, 4), images=(2, 1))
    budgetprune.prune(model, "quecc", keep=4)
    seen = []
    model.budget_pruner.selector.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    model(**inputs)
    states = question_states(model, family_of(model), inputs)
    torch.testing.assert_close(seen[0], states[[0, 0, 1]])
