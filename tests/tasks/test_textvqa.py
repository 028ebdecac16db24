"""TextVQA: the normalisation of the VQA server, the accuracy over ten people, and LLaVA's prompt."""

import pytest
from task_files import rosetta, textvqa

from budgetprune.tasks import build
from budgetprune.tasks.textvqa import CONTRACTIONS, agreement, normalised


def by_id(options, **more):
    task = build("textvqa", **options, **more)
    return task, sorted(task.samples("test", 2, 0), key=lambda sample: sample.sample_id)


@pytest.mark.parametrize("answer, plain", [
    ("The Dakota", "dakota"), ("a an the", ""), ("Nothing an else", "nothing else"),
    ("two", "2"), ("None", "0"), ("ten", "10"), ("eleven", "eleven"), ("twenty one", "twenty 1"),
    ("dont", "don't"), ("don't", "don't"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"),
    ("yall'd've", "y'all'd've"), ("somebody'd", "somebodyd"), ("oclock", "o'clock"), ("Im", "im"), ("twas", "'twas"),
    ("joe's", "joe 's"), ("that's", "that 's"), ("thats", "that's"),  # 's is set apart before contractions are seen
    ("1,000", "1000"), ("a, b", "b"), ("really?", "really"),
    ("mr. t", "mr t"), ("3.5", "3.5"), ("end.", "end"), (".5", ".5"), ("u.s.a.", "usa"),
    ("t-shirt", "t shirt"), ("well - known", "well known"), ("a-b - c", "ab c"), ("rock/roll", "rock roll"),
    ("(hi)", "hi"), ("\"hi\"", "hi"), ("50%", "50%"), ("$5", "$5"), ("a&b", "a&b"), ("6:30", "6:30"),
    ("two\nwords", "2 words"), ("tab\there", "tab here"), ("  pad  ", "pad"), ("", ""),
    ("." * 32 + "x", "x"), ("." * 40 + "x", "." * 8 + "x"),
])
def test_answers_are_normalised_as_the_server_does(answer, plain):
    assert normalised(answer) == plain


def test_contractions_are_those_of_the_official_table():
    assert len(CONTRACTIONS) == 114 and len(set(CONTRACTIONS.values())) == 93
    assert CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ows'at"] == CONTRACTIONS["'ow'sat"] == "'ow's'at"


@pytest.mark.parametrize("same, score", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_the_score_is_the_mean_over_ten_people_left_out_in_turn(same, score):
    people = ["x"] * same + ["y"] * (10 - same)
    by_hand = [min(1, sum(other == "x" for j, other in enumerate(people) if j != i) / 3) for i in range(10)]
    assert agreement(same) == pytest.approx(score)
    assert agreement(same) == pytest.approx(sum(by_hand) / 10)


def test_an_answer_counts_with_all_its_spellings(tmp_path):
    task, (camera, clock) = by_id(textvqa(tmp_path))
    # dakota: 2 as "Dakota" and 2 as "the dakota"; nikon: 3; the others: 1 each
    for prediction, score in (("DAKOTA", 1), ("a dakota.", 1), ("Nikon", 0.9), ("Dakota Digital", 0.3), ("leica", 0)):
        found = task.score(prediction, camera)
        assert found == pytest.approx(score) and isinstance(found, float)
    assert task.score("10", clock) == 1 and task.score("nine", clock) == 0
    assert camera.answer == "dakota" and clock.answer == "10" and task.summary(["10"], [clock]) == {}


def test_the_prompt_is_that_of_llavas_evaluation(tmp_path):
    task, (camera, clock) = by_id(textvqa(tmp_path))
    assert camera.question == "What is the brand of this camera?\nAnswer the question using a single word or phrase."
    assert camera.image.path.name == "0a1b.jpg" and camera.sample_id == "34602"
    task, (camera, clock) = by_id(textvqa(tmp_path), ocr=rosetta(tmp_path))
    assert camera.question == ("What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL\n"
                               "Answer the question using a single word or phrase.")
    assert clock.question.splitlines()[1] == "Reference OCR token: "


def test_tokens_must_be_there_for_every_image(tmp_path):
    options = textvqa(tmp_path)
    with pytest.raises(ValueError, match="ocr must have the tokens of every image, got none of 0a1c"):
        by_id(options, ocr=rosetta(tmp_path, [{"image_id": "0a1b", "ocr_tokens": []}]))
    with pytest.raises(FileNotFoundError, match="ocr must be a file such as TextVQA_Rosetta_OCR_v0.2_val.json, got"):
        by_id(options, ocr=tmp_path / "nowhere")
