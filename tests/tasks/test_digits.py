"""The digits task: its registry, what a canvas shows, where it shows it, and that nothing leaks into the test split."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from budgetprune.tasks import Sample, Task, available, build, digits
from budgetprune.tasks.digits import COLOURS, PATCH, TOKENS, draw, glyphs, glyphs_of, placements


def block(image, relevant):
    """The 16 x 16 pixels of the digit whose four patches are `relevant`."""
    row, col = divmod(relevant[0], 8)
    return image[row * PATCH:row * PATCH + 16, col * PATCH:col * PATCH + 16]


def new_task(label):
    return type("Made", (Task,), {"name": label, "samples": lambda *_: [], "score": lambda *_: True})


# ---- registry


def test_registry_lists_digits_and_builds_it_with_options():
    assert "digits" in available() and list(available()) == sorted(available())
    assert build("digits", noise=0.5).noise == 0.5


def test_unknown_task_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="task must be one of .*digits.*got 'digit'"):
        build("digit")


def test_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="colour"):
        build("digits", colour="red")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="must be new, but 'digits' is Digits"):
        new_task("digits")


@pytest.mark.parametrize("label", ["Digits", "two words", "", None, 3])
def test_a_name_is_lower_case_letters_digits_and_underscores(label):
    with pytest.raises(ValueError, match=r"\[a-z0-9_\]\+"):
        new_task(label)


def test_a_refused_task_is_not_listed():
    before = available()
    with pytest.raises(ValueError):
        new_task("No")
    assert available() == before


def test_importing_tasks_loads_neither_torch_nor_sklearn():
    code = ("import sys, budgetprune.tasks as t; t.build('digits');"
            "print([m for m in ('torch', 'sklearn', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# ---- samples


def test_sample_takes_a_pil_image_and_refuses_what_is_no_rgb_image():
    rest = {"question": "q", "answer": "a", "relevant": None, "image_id": "0"}
    assert Sample(image=Image.new("RGB", (4, 4)), **rest).foreground is None
    with pytest.raises(TypeError, match="PIL RGB image, got Image"):
        Sample(image=Image.new("L", (4, 4)), **rest)
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got float64 \[4, 4, 3\]"):
        Sample(image=np.zeros((4, 4, 3)), **rest)


def test_same_seed_gives_same_samples_and_another_seed_others():
    task = build("digits")
    first, again, other = task.samples("test", 9, 5), task.samples("test", 9, 5), task.samples("test", 9, 6)
    assert all((a.image == b.image).all() and a.question == b.question and a.relevant == b.relevant
               for a, b in zip(first, again))
    assert all((a.image != b.image).any() for a, b in zip(first, other))


def test_fewer_samples_are_a_prefix_of_more():
    task = build("digits")
    few, many = task.samples("train", 7, 1), task.samples("train", 300, 1)
    assert (len(few), len(many)) == (7, 300)
    assert all((a.image == b.image).all() and a.question == b.question and a.image_id == b.image_id
               for a, b in zip(few, many))


def test_no_samples_are_no_samples():
    assert build("digits").samples("test", 0, 0) == []


def test_three_questions_in_a_row_ask_about_one_image_in_three_colours():
    samples = build("digits").samples("test", 30, 2)
    for start in range(0, 30, 3):
        three = samples[start:start + 3]
        assert len({s.image_id for s in three}) == 1 and len({s.question for s in three}) == 3
        assert set().union(*(s.relevant for s in three)) == set(three[0].foreground)
        assert len(three[0].foreground) == 12
    assert len({s.image_id for s in samples}) == 10


@pytest.mark.parametrize("arguments, error, words", [
    (("validation", 3, 0), ValueError, "split must be one of train, test, got 'validation'"),
    (("test", -1, 0), ValueError, "count must be at least 0, got -1"),
    (("test", 3, -1), ValueError, "seed must be at least 0, got -1"),
    (("test", 3.0, 0), TypeError, "count must be an int, got float"),
    (("test", 3, True), TypeError, "seed must be an int, got bool"),
])
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        build("digits").samples(*arguments)
    with pytest.raises(error, match=words):
        draw(*arguments)


def test_noise_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"noise must be in \[0, 1\], got 2"):
        build("digits", noise=2)


# ---- what a canvas shows


def test_the_relevant_patches_hold_the_answer_in_the_asked_colour():
    ink, labels = glyphs()
    for sample in build("digits", noise=0).samples("train", 60, 3):
        paint = np.array(COLOURS[sample.question.split()[-1]])
        seen = block(sample.image, sample.relevant) / paint  # without noise, the ink itself up to the rounding to bytes
        same = np.abs(ink[..., None] - seen).max((1, 2, 3)) < 0.51 / 26
        assert same.sum() == 1 and str(labels[same.argmax()]) == sample.answer


def test_noise_changes_nothing_but_what_is_darker():
    clean, noisy = draw("test", 40, 4, noise=0), draw("test", 40, 4, noise=0.25)
    bright = clean.images > 64
    assert (clean.images[bright] == noisy.images[bright]).all() and noisy.images[~bright].max() == 64


def test_all_ink_lies_in_the_foreground_and_every_digit_has_some_in_each_row_of_patches():
    for sample in build("digits", noise=0).samples("test", 60, 5):
        patches = sample.image.reshape(8, PATCH, 8, PATCH, 3).swapaxes(1, 2).reshape(TOKENS, -1).max(1)
        assert set(np.flatnonzero(patches)) <= set(sample.foreground)
        top_left, top_right, low_left, low_right = (patches[p] for p in sample.relevant)
        assert max(top_left, top_right) > 0 and max(low_left, low_right) > 0


def test_patch_labels_are_zero_exactly_on_the_background():
    canvases = draw("train", 50, 6)
    labels = canvases.on_patches(canvases.answers)
    assert labels.shape == (50, TOKENS) and ((labels > 0).sum(1) == 12).all()
    for image, question in np.ndindex(50, 3):
        patches = canvases.relevant()[image, question]
        assert (labels[image, patches] == canvases.answers[image, question] + 1).all()
        assert patches.tolist() == [patches[0] + step for step in (0, 1, 8, 9)]


def test_placements_are_all_and_only_those_without_overlap():
    cover = {8 * r + c: 1 << 8 * r + c | 1 << 8 * r + c + 1 | 1 << 8 * r + c + 8 | 1 << 8 * r + c + 9
             for r in range(7) for c in range(7)}
    wanted = {(a, b, c) for a, b, c in combinations(sorted(cover), 3)
              if (cover[a] | cover[b] | cover[c]).bit_count() == 12}
    assert {tuple(sorted(map(int, row))) for row in placements()} == wanted and len(placements()) == len(wanted)


def test_every_place_colour_and_answer_comes_up_about_equally_often():
    canvases = draw("train", 3000, 7)
    # 9000 draws: 900 of each digit and 1500 of each colour are expected, 5 standard deviations are 142 and 177
    assert np.abs(np.bincount(canvases.answers.ravel(), minlength=10) - 900).max() < 142 + 45  # glyphs: 9.7..10.3 %
    assert np.abs(np.bincount(canvases.colours.ravel(), minlength=6) - 1500).max() < 177
    assert all((np.bincount(canvases.colours[:, q], minlength=6) > 350).all() for q in range(3))  # in any position
    assert len(np.unique(canvases.corners)) == 49
    assert np.corrcoef(canvases.corners[:, 0], canvases.corners[:, 2])[0, 1] == pytest.approx(0, abs=0.15)


def test_no_test_digit_is_ever_drawn_in_training():
    train, test = set(glyphs_of("train").tolist()), set(glyphs_of("test").tolist())
    assert not train & test and len(train) + len(test) == len(glyphs()[1]) == 1797
    ink = glyphs()[0]
    for split, allowed in (("train", train), ("test", test)):
        canvases = draw(split, 30, 8, noise=0)
        for image, question in np.ndindex(30, 3):
            paint = np.array(list(COLOURS.values()))[canvases.colours[image, question]]
            seen = block(canvases.images[image], canvases.relevant()[image, question]) / paint
            assert int(np.abs(ink[..., None] - seen).sum((1, 2, 3)).argmin()) in allowed


# ---- the stream


@pytest.mark.parametrize("start, count", [(0, 1), (1, 63), (63, 2), (64, 64), (100, 130), (200, 0)])
def test_a_stream_is_the_same_from_wherever_it_is_read(start, count):
    whole, part = draw("test", 256, 9), draw("test", count, 9, start=start)
    for name in ("images", "colours", "answers", "corners"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[start:start + count]), name


def test_splits_and_seeds_are_different_streams():
    assert not np.array_equal(draw("train", 8, 1).corners, draw("test", 8, 1).corners)
    assert not np.array_equal(draw("train", 8, 1).corners, draw("train", 8, 2).corners)


def test_samples_and_batches_show_the_same_pixels():
    samples, canvases = build("digits").samples("test", 200, 11), draw("test", 67, 11)
    for index, sample in enumerate(samples):
        image, question = divmod(index, 3)
        assert np.array_equal(sample.image, canvases.images[image])
        assert sample.answer == str(canvases.answers[image, question])
        assert sample.relevant == tuple(canvases.relevant()[image, question])


# ---- score


@pytest.mark.parametrize("prediction, right", [
    ("7", True), (" 7\n", True), ("7 </s>", True), ("It is 7.", True), ("77", False), ("7 or 1", False), ("1", False),
    ("", False), ("seven", False), ("red digit", False), ("17", False), ("7 1", False), ("\u0667", False),
])
def test_score_wants_the_one_digit_and_no_other(prediction, right):
    sample = Sample(np.zeros((4, 4, 3), np.uint8), "which digit is red", "7", None, "0")
    assert build("digits").score(prediction, sample) is right


def test_module_names_the_geometry_it_draws():
    canvases = draw("test", 2, 0)
    assert canvases.images.shape == (2, digits.SIZE, digits.SIZE, 3) and canvases.images.dtype == np.uint8
    assert build("digits").patch_size == digits.SIZE // digits.GRID == PATCH
    pixels = canvases.pixel_values()
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == np.float32 and -1 <= pixels.min() < pixels.max() <= 1
