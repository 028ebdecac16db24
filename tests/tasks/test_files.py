"""What the tasks of published benchmarks share: lazy images, subsets, clear errors, options from a command line."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from task_files import MAKE, POPE, gqa, pope, scienceqa, textvqa

from budgetprune.tasks import ImageFile, Task, base, build, parse_options
from budgetprune.tasks.digits import Digits

FILES = pytest.mark.parametrize("name", MAKE)


@FILES
def test_samples_open_their_images_only_when_asked_and_as_rgb(name, tmp_path, monkeypatch):
    task = build(name, **MAKE[name](tmp_path))
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    samples = task.samples("test", task.size, 0)
    assert len(samples) == task.size and not opened
    assert all(isinstance(sample.image, ImageFile) for sample in samples)
    assert samples[0].picture().mode == "RGB" and samples[0].picture().size == (12, 8) and len(opened) == 2


@FILES
def test_a_subset_is_drawn_by_the_seed_and_a_smaller_one_is_its_prefix(name, tmp_path):
    task = build(name, **MAKE[name](tmp_path))

    def ids(count, seed):
        return [sample.sample_id for sample in task.samples("test", count, seed)]

    assert ids(1, 3) == ids(task.size, 3)[:1] and ids(task.size, 3) == ids(10_000, 3)
    assert sorted(ids(task.size, 0)) == sorted(ids(task.size, 1))
    assert len({tuple(ids(task.size, seed)) for seed in range(20)}) > 1
    assert task.samples("test", 0, 0) == []
    with pytest.raises(ValueError, match="split must be one of test, got 'train'"):
        task.samples("train", 1, 0)


@FILES
def test_a_missing_file_is_named_with_its_option(name, tmp_path):
    options = MAKE[name](tmp_path)
    with pytest.raises(FileNotFoundError, match=r"annotations must be .*\.json.*, got .*nowhere, which is no file"):
        build(name, **options | {"annotations": tmp_path / "nowhere"}).samples("test", 1, 0)
    with pytest.raises(FileNotFoundError, match="images must be the folder .*, got .*nowhere, which is no folder"):
        build(name, **options | {"images": tmp_path / "nowhere"}).samples("test", 1, 0)


@FILES
def test_missing_images_are_an_error_before_any_is_opened(name, tmp_path):
    options = MAKE[name](tmp_path)
    shutil.rmtree(tmp_path / {"pope": "val2014", "textvqa": "train_images"}.get(name, "images"))
    (tmp_path / {"pope": "val2014", "textvqa": "train_images"}.get(name, "images")).mkdir()
    task = build(name, **options)
    with pytest.raises(FileNotFoundError, match=r"images must hold what annotations name: \d images of \d questions "
                                                r"are missing, the first is .*\.(jpg|png)"):
        task.samples("test", task.size, 0)


@FILES
def test_a_file_that_is_not_json_and_one_without_questions_are_refused(name, tmp_path):
    options = MAKE[name](tmp_path)
    Path(options["annotations"]).write_text("question_id,text\n1,what\n")
    with pytest.raises(ValueError, match="must be one JSON object|is not JSON"):
        build(name, **options).samples("test", 1, 0)
    empty = {"pope": "\n", "textvqa": '{"data": []}', "scienceqa": '{"5": {"image": null}}', "gqa": "{}"}[name]
    Path(options["annotations"]).write_text(empty)
    (tmp_path / "pid_splits.json").write_text('{"test": ["5"]}')
    with pytest.raises(ValueError, match="annotations must hold questions, got none in"):
        build(name, **options).samples("test", 1, 0)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    options = pope(tmp_path)
    for entry in POPE:
        (options["images"] / entry["image"]).write_text("no image")
    with pytest.raises(ValueError, match=r"COCO_val2014_0+1\.jpg cannot be read as an image"):
        ImageFile(options["images"] / POPE[0]["image"]).open()


def test_two_questions_of_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match="annotations must name every question by an id of its own"):
        build("pope", **pope(tmp_path, [POPE[0], POPE[0]])).samples("test", 1, 0)


@pytest.mark.parametrize("make, change, words", [
    (pope, [{"question_id": 1, "image": "a.jpg", "text": "?"}], "line 1 must have 'label', got only 'question_id'"),
    (pope, [{**POPE[0], "label": "maybe"}], "line 1: 'label' must be yes or no, got 'maybe'"),
    (pope, [POPE[0], {**POPE[1], "image": 7}], "line 2: 'image' must be str, got 7"),
    (pope, [[1]], "line 1 must be a JSON object, got list"),
    (textvqa, [{"question_id": 1, "image_id": "a", "question": "q"}], r"data\[0\] must have 'answers'"),
    (textvqa, [{"question_id": 1, "image_id": "a", "question": "q", "answers": ["x"] * 9}],
     r"data\[0\]: 'answers' must be 10 strings"),
    (gqa, [1], "annotations must be one JSON object of questions by their ids, got a list"),
    (gqa, {"1": {"question": "q", "imageId": "n1"}}, "question 1 must have 'answer', got only 'question', 'imageId'"),
    (gqa, {"1": "q"}, "question 1 must be a JSON object, got str"),
    (scienceqa, {"5": {"image": "image.png", "choices": ["a"], "answer": 0}}, "problem 5: 'choices' must be two to 5"),
    (scienceqa, {"5": {"image": "image.png", "choices": ["a", "b"], "answer": 2}},
     "problem 5: 'answer' must be the number of a choice, 0 to 1, got 2"),
    (scienceqa, {"4": {}}, "annotations must have all problems of .*pid_splits.json, got no '5'"),
    (scienceqa, [], "annotations must be one JSON object, got a list"),
])
def test_what_is_wrong_with_an_entry_is_named(make, change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        build(make.__name__, **make(tmp_path, change)).samples("test", 1, 0)


@FILES
def test_images_have_names_that_may_be_files_and_the_same_for_one_image(name, tmp_path):
    task = build(name, **MAKE[name](tmp_path))
    samples = task.samples("test", task.size, 0)
    assert all(re.fullmatch(rf"{name}-[\w.-]+", sample.image_id) for sample in samples)
    assert len({sample.image_id for sample in samples}) == len({sample.image for sample in samples}) == 2


@FILES
def test_the_suffix_is_an_option_and_may_be_empty(name, tmp_path):
    options = MAKE[name](tmp_path)
    first = build(name, **options).samples("test", 1, 0)[0].question
    plain = build(name, **options, suffix="").samples("test", 1, 0)[0].question
    other = build(name, **options, suffix="Be brief.").samples("test", 1, 0)[0].question
    assert first.startswith(plain + "\nAnswer ") and other == plain + "\nBe brief."


# ---- options and labels


def test_a_label_has_the_file_and_what_is_asked_otherwise_but_no_folder(tmp_path):
    assert build("pope", **pope(tmp_path)).label == "pope:coco_pope_popular"
    assert build("pope", **pope(tmp_path), suffix="Hm.").label == "pope:coco_pope_popular,suffix=Hm."
    assert build("scienceqa", annotations="p.json", images="there", subset="val").label == "scienceqa:p,subset=val"
    assert build("textvqa", annotations="v.json", images="i", ocr="a/o.json").label == "textvqa:v,ocr=o"
    assert build("digits").label == "digits" and build("digits", noise=0.5).label == "digits,noise=0.5"


def test_options_may_be_strings_and_need_no_file_before_samples_do():
    task = build("pope", annotations="a.json", images="b")
    assert (task.annotations, task.images) == (Path("a.json"), Path("b"))


def test_options_of_a_command_line_become_what_the_task_takes():
    assert parse_options("pope", ["annotations=a=b.json", "suffix="]) == {"annotations": Path("a=b.json"), "suffix": ""}
    assert parse_options("scienceqa", ["pid_splits=p.json"]) == {"pid_splits": Path("p.json")}
    assert parse_options("digits", ["noise=0.5"]) == {"noise": 0.5} and parse_options("digits", []) == {}


@pytest.mark.parametrize("name, texts, words", [
    ("pope", ["annotations"], "task-option must be key=value with a key out of annotations, images, suffix, got"),
    ("pope", ["=x"], "task-option must be key=value"),
    ("pope", ["images=a", "images=b"], "task-option images must be given once, got it twice"),
    ("digits", ["noise=loud"], "task-option noise must be a number, got 'loud'"),
    ("chess", [], "task must be one of digits, gqa, pope, scienceqa, shapes, textvqa, got 'chess'"),
])
def test_wrong_options_of_a_command_line_are_named(name, texts, words):
    with pytest.raises(ValueError, match=words):
        parse_options(name, texts)


def test_unknown_and_missing_options_list_the_known_ones():
    with pytest.raises(TypeError, match="task pope has no option annotation; its options: annotations, images, suffix"):
        build("pope", annotation="x")
    with pytest.raises(TypeError, match="task pope needs the option images; its options: annotations, images, suffix"):
        build("pope", annotations="x")


def test_a_task_of_ones_own_has_a_plain_label_no_end_and_no_summary(monkeypatch):
    monkeypatch.setattr(base, "_TASKS", dict(base._TASKS))

    class Own(Task):
        name = "own_of_test_files"
        samples, score = Digits.samples, Digits.score

    assert (Own().label, Own().size, Own().summary([], [])) == ("own_of_test_files", None, {})


