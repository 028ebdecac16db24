"""The shapes task: what it draws and asks, that a reader of its own answers alike, and that no answer is rarer."""

import re
from collections import Counter
from dataclasses import fields
from hashlib import sha256

import numpy as np
import pytest

from budgetprune.tasks import Sample, build
from budgetprune.tasks.shapes import OUTLINES, TRAIN_OUTLINES, Shapes, outlines
from budgetprune.tasks.shapes_scene import (
    COLOURS,
    ENDS,
    GRID,
    KINDS,
    LONGEST,
    MOST,
    NUMBERS,
    PATCH,
    PLURALS,
    SHAPES,
    TOKENS,
    WORDS,
    Layout,
    _ask_how_many,
    _ask_whether,
    _outermost,
    compose,
    covered,
)

TASK = Shapes()


@pytest.fixture(scope="module")
def drawn():
    return TASK.draw("train", 1000, 3)


def objects(scenes, image):
    """The shapes of an image, each a dict, by plain loops."""
    for number in range(MOST):
        if scenes.there[image, number]:
            shape, colour, size = (int(x) for x in scenes.kind[image, number])
            row, column = divmod(int(scenes.corner[image, number]), GRID)
            side = 1 + size
            yield {"shape": SHAPES[shape], "colour": list(COLOURS)[colour],
                   "patches": {GRID * (row + y) + column + x for y in range(side) for x in range(side)},
                   "x": column + side / 2, "y": row + side / 2}


def read(question, seen):
    """(answer, patches that it takes) of a question about the shapes `seen`, read word by word."""
    everything = set().union(*(one["patches"] for one in seen))
    if found := re.fullmatch(r"how many (\w+)( shapes)?", question):
        word = found[1]
        named = [one for one in seen if word in (one["colour"], dict(zip(SHAPES, PLURALS))[one["shape"]])]
        return str(len(named)), set().union(*(one["patches"] for one in named)) if named else everything
    if found := re.fullmatch(r"is there a( red| green| blue| yellow)? (\w+)", question):
        colour, shape = (found[1] or "").strip(), found[2]
        named = [one for one in seen if colour in ("", one["colour"]) and shape in ("shape", one["shape"])]
        return ("yes", set().union(*(one["patches"] for one in named))) if named else ("no", everything)
    what, end = re.fullmatch(r"which (shape|colour) is (\w+)", question).groups()
    axis, sign = {"leftmost": ("x", -1), "rightmost": ("x", 1), "highest": ("y", -1), "lowest": ("y", 1)}[end]
    order = sorted(seen, key=lambda one: -sign * one[axis])
    assert abs(order[0][axis] - order[1][axis]) >= 1.5, "no other may lie about as far out"
    return order[0][what], everything


# ---- questions and answers


def test_a_reader_of_its_own_comes_to_the_same_answers_and_patches(drawn):
    samples = TASK.samples("train", 3000, 3)
    for number, sample in enumerate(samples):
        seen = list(objects(drawn, number // 3))
        assert 2 <= len(seen) <= MOST
        answer, patches = read(sample.question, seen)
        assert (sample.answer, set(sample.relevant)) == (answer, patches), sample.question
        assert set(sample.foreground) == set().union(*(one["patches"] for one in seen)) >= set(sample.relevant)


def by_hand():
    """A red circle in patch 0, a blue large square in 2 3 10 11, a red cross in 63; and no fourth shape."""
    kind = np.array([[[0, 0, 0], [1, 2, 1], [3, 0, 0], [2, 3, 1], [2, 3, 1], [2, 3, 1]]])
    return Layout(np.array([[True, True, True, False, False, False]]), kind, np.array([[0, 2, 63, 30, 40, 50]]))


def text(asked):
    question = " ".join(WORDS[word] for word in asked.words[0] if word >= 0)
    return question, WORDS[asked.answer[0]], asked.needs[0].tolist()


@pytest.mark.parametrize("by_colour, value, count, question, needs", [
    (True, 0, 2, "how many red shapes", [True, False, True]), (True, 1, 0, "how many green shapes", [True, True, True]),
    (False, 1, 1, "how many squares", [False, True, False]), (False, 2, 0, "how many triangles", [True, True, True]),
])
def test_counts_of_a_scene_made_by_hand(by_colour, value, count, question, needs):
    asked = _ask_how_many(by_hand(), np.array([by_colour]), np.array([value]), np.array([count]))
    assert text(asked) == (question, str(count), needs + [False] * 3)


@pytest.mark.parametrize("end, number", [("leftmost", 0), ("rightmost", 2), ("highest", 0), ("lowest", 2)])
def test_outermost_of_a_scene_made_by_hand(end, number):
    layout = by_hand()
    where = np.array([ENDS.index(end)])
    # the small circle's centre is half a patch from the top and the large square's a whole one: not clear
    assert _outermost(layout, where).tolist() == [-1 if end == "highest" else number]
    assert covered(layout.there, layout.kind[..., 2], layout.corner)[0].nonzero()[0].tolist() == [0, 2, 3, 10, 11, 63]


def test_yes_and_no_of_a_scene_made_by_hand():
    layout, rng, said = by_hand(), np.random.default_rng(0), Counter()
    for _ in range(300):
        question, answer, needs = text(_ask_whether(rng, layout))
        said[question, answer] += 1
        if question == "is there a red cross":
            assert (answer, needs) == ("yes", [False, False, True, False, False, False])
        if answer == "no":
            assert needs == [True, True, True, False, False, False]
    yes = {"red circle", "blue square", "red cross", "red shape", "blue shape", "circle", "square", "cross"}
    assert {question.removeprefix("is there a ") for question, answer in said if answer == "yes"} == yes
    no = {question.removeprefix("is there a ") for question, answer in said if answer == "no"}
    assert {"green shape", "yellow shape", "triangle", "blue circle", "red square", "green cross"} <= no
    assert not no & yes


def test_every_image_is_asked_one_question_of_each_kind_in_any_order(drawn):
    assert (np.sort(drawn.asks, 1) == np.arange(3)).all()
    assert len(np.unique(drawn.asks, axis=0)) == 6
    assert {sample.about["kind"] for sample in TASK.samples("test", 3, 0)} == set(KINDS)


def test_no_answer_of_a_kind_is_much_more_frequent_than_the_others():
    """Who gives every form of question its most frequent answer is right as often as by chance: within four standard
    deviations and one per cent."""
    _, asked = compose(np.random.default_rng(1), 8000)
    named = dict.fromkeys(COLOURS, "C") | dict.fromkeys((*SHAPES, *PLURALS), "S") | dict.fromkeys(ENDS, "E")
    counts = {}
    for kind, one in zip(KINDS, asked):
        for words, answer in zip(one.words, one.answer):
            form = " ".join(named.get(WORDS[word], WORDS[word]) for word in words if word >= 0)
            counts.setdefault((form, kind), Counter())[WORDS[answer]] += 1
    assert {form for form, _ in counts} == {
        "is there a C S", "is there a C shape", "is there a S", "how many C shapes", "how many S", "which shape is E",
        "which colour is E"}
    for (form, kind), answers in counts.items():
        expected = 1 / {"yesno": 2, "count": len(NUMBERS), "position": len(SHAPES)}[kind]
        total = answers.total()
        assert len(answers) == round(1 / expected), form
        assert max(answers.values()) / total < expected + 4 * (expected * (1 - expected) / total) ** 0.5 + 0.01, form


def test_every_count_of_every_colour_and_form_comes_up():
    asked = compose(np.random.default_rng(2), 3000)[1][KINDS.index("count")]
    found = Counter((tuple(words), answer) for words, answer in zip(asked.words.tolist(), asked.answer.tolist()))
    assert len(found) == 8 * len(NUMBERS) and min(found.values()) > 35  # 75 of each are expected


# ---- what an image shows


def test_no_shape_covers_another_and_all_lie_inside(drawn):
    for image in range(300):
        patches = [patch for one in objects(drawn, image) for patch in one["patches"]]
        assert len(patches) == len(set(patches)) and max(patches) < TOKENS
        assert all(one["x"] <= GRID and one["y"] <= GRID for one in objects(drawn, image))


def test_ink_has_the_named_colour_and_lies_in_the_foreground():
    scenes = Shapes(clutter=0).draw("test", 60, 5)
    for image in range(60):
        pixels = scenes.images[image].reshape(GRID, PATCH, GRID, PATCH, 3).swapaxes(1, 2).reshape(TOKENS, -1, 3)
        inked = pixels.max((1, 2)) > 0
        assert not inked[~scenes.foreground()[image]].any()
        for one in objects(scenes, image):
            found = pixels[sorted(one["patches"])].reshape(-1, 3).astype(float)
            found = found[found.max(1) > 100]
            assert len(found) >= 12
            paint = np.array(COLOURS[one["colour"]])
            assert np.abs(found / found.max(1, keepdims=True) - paint / paint.max()).max() < 0.03


def test_clutter_changes_the_ground_and_not_the_scene():
    plain, full = Shapes(clutter=0).draw("train", 70, 6), Shapes(clutter=1).draw("train", 70, 6)
    for field in fields(plain):
        assert np.array_equal(getattr(plain, field.name), getattr(full, field.name)) is (field.name != "images")
    ground = full.images[~full.foreground()[:, :, None].repeat(64, 2).reshape(70, GRID, GRID, PATCH, PATCH)
                         .swapaxes(2, 3).reshape(70, 64, 64)]
    assert ground.max() > 200 and ground.std() > 30


def test_patch_labels_name_the_shape_of_each_patch_and_one_first_part_of_each(drawn):
    labels = drawn.patch_labels()
    assert list(labels) == list(drawn.classes)
    for image in range(100):
        seen = list(objects(drawn, image))
        for one in seen:
            patches = sorted(one["patches"])
            assert {labels["shape"][image, p] for p in patches} == {SHAPES.index(one["shape"]) + 1}
            assert {labels["colour"][image, p] for p in patches} == {list(COLOURS).index(one["colour"]) + 1}
            assert labels["part"][image, patches].tolist() == ([1] if len(patches) == 1 else [2, 3, 4, 5])
            assert labels["row"][image, patches].tolist() == [p // GRID + 1 for p in patches]
            assert labels["column"][image, patches].tolist() == [p % GRID + 1 for p in patches]
        assert ((labels["part"][image] == 1) | (labels["part"][image] == 2)).sum() == len(seen)
        for values in labels.values():
            assert ((values[image] > 0) == drawn.foreground()[image]).all()


def test_train_and_test_share_no_outline():
    ink = outlines()
    assert ink.shape == (2, len(SHAPES), OUTLINES, 16, 16) and ink.min() == 0 and ink.max() == 1
    flat = ink.reshape(-1, 256)
    assert len(np.unique(flat, axis=0)) == len(flat)
    assert not ink[0, :, :, 8:].any() and not ink[0, :, :, :, 8:].any()
    for split, own in (("train", slice(0, TRAIN_OUTLINES)), ("test", slice(TRAIN_OUTLINES, OUTLINES))):
        scenes, known = Shapes(clutter=0).draw(split, 40, 8), []
        for image, number in zip(*np.nonzero(scenes.there)):
            shape, _, size = scenes.kind[image, number]
            row, column = divmod(int(scenes.corner[image, number]), GRID)
            box = PATCH * (1 + size)
            seen = scenes.images[image, row * PATCH:row * PATCH + box, column * PATCH:column * PATCH + box].any(2)
            same = ((ink[size, shape, :, :box, :box] > 0) == seen).all((1, 2))
            assert same[own].any()
            known.append(same.sum() == same[own].sum())
        assert np.mean(known) > 0.8  # small outlines may be inked in the same pixels, to different degrees


def test_large_shapes_reach_into_each_row_and_column_of_their_patches():
    quarters = outlines()[1].reshape(len(SHAPES), OUTLINES, 2, 8, 2, 8).sum((3, 5))
    assert quarters.sum(2).min() > 4 and quarters.sum(3).min() > 4


# ---- the stream


@pytest.mark.parametrize("start, count", [(0, 1), (1, 63), (63, 2), (64, 64), (70, 30), (40, 0)])
def test_the_stream_is_the_same_from_wherever_it_is_read(start, count):
    whole, part = TASK.draw("test", 128, 9), TASK.draw("test", count, 9, start=start)
    for field in fields(whole):
        assert np.array_equal(getattr(part, field.name), getattr(whole, field.name)[start:start + count]), field.name


def test_splits_and_seeds_are_different_streams():
    first, split, seed = TASK.draw("train", 8, 1), TASK.draw("test", 8, 1), TASK.draw("train", 8, 2)
    assert not np.array_equal(first.corner, split.corner) and not np.array_equal(first.corner, seed.corner)


def test_what_a_caller_does_to_an_image_does_not_come_back():
    first = TASK.draw("test", 4, 11)
    before = first.images.copy()
    first.images[:] = 0
    first.there[:] = False
    assert np.array_equal(TASK.draw("test", 4, 11).images, before)


def test_fewer_samples_are_a_prefix_of_more_and_none_are_none():
    few, many = TASK.samples("train", 7, 1), TASK.samples("train", 200, 1)
    assert all((a.image == b.image).all() and (a.question, a.answer, a.image_id) == (b.question, b.answer, b.image_id)
               for a, b in zip(few, many))
    assert (len(few), len(many), TASK.samples("test", 0, 0)) == (7, 200, [])


def test_the_first_scenes_are_those_that_the_bundled_model_was_measured_on():
    """A change of what is drawn would make every figure of this task another one."""
    scenes = TASK.draw("test", 64, 0)
    assert sha256(scenes.images.tobytes()).hexdigest()[:16] == "IMAGES"
    words = scenes.asked.astype("<i8").tobytes() + scenes.said.astype("<i8").tobytes()
    assert sha256(words).hexdigest()[:16] == "WORDS"


def test_one_question_of_an_image_keeps_all_else():
    scenes, number = TASK.draw("train", 6, 4), np.array([0, 1, 2, 2, 1, 0])
    one = scenes.question(number)
    asked, said = one.turns()
    assert asked.shape == (6, 1, LONGEST) and said.shape == (6, 1, 1)
    for image, which in enumerate(number):
        assert (asked[image, 0] == scenes.asked[image, which]).all() and said[image, 0, 0] == scenes.said[image, which]
        assert (one.needed[image, 0] == scenes.needed[image, which]).all()
    assert one.images is scenes.images and one.asks[:, 0].tolist() == scenes.asks[np.arange(6), number].tolist()


@pytest.mark.parametrize("arguments, error, words", [
    (("validation", 3, 0), ValueError, "split must be one of train, test, got 'validation'"),
    (("test", -1, 0), ValueError, "count must be at least 0, got -1"),
    (("test", 3.0, 0), TypeError, "count must be an int, got float"),
])
def test_bad_arguments_are_named(arguments, error, words):
    for call in (TASK.samples, TASK.draw):
        with pytest.raises(error, match=words):
            call(*arguments)


def test_clutter_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"clutter must be in \[0, 1\], got 2"):
        build("shapes", clutter=2)


# ---- score


@pytest.mark.parametrize("answer, prediction, right", [
    ("3", "3", True), ("3", "3 </s>", True), ("3", "It is 3.", True), ("3", "3 or 4", False), ("3", "", False),
    ("yes", "Yes, there is", True), ("yes", "no", False), ("no", "yes no", False), ("no", "no", True),
    ("red", "red", True), ("red", "red blue", False),
    ("circle", "the circle.", True), ("circle", "circle square", False), ("circle", "circles", False),
])
def test_score_wants_the_one_answer_and_no_other(answer, prediction, right):
    sample = Sample(np.zeros((4, 4, 3), np.uint8), "q", answer, None, "0", about={"kind": "count"})
    assert TASK.score(prediction, sample) is right


def test_summary_is_the_accuracy_of_each_kind():
    samples = TASK.samples("test", 6, 0)
    said = [sample.answer if sample.about["kind"] == "count" else "" for sample in samples]
    said[[sample.about["kind"] for sample in samples].index("yesno")] = next(
        sample.answer for sample in samples if sample.about["kind"] == "yesno")
    assert TASK.summary(said, samples) == {"yesno": 0.5, "count": 1.0, "position": 0.0}
    assert TASK.summary([], []) == {}
