"""TextVQA: questions about text in the image, each answered by ten people."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .base import Task
from .files import SHORT, FromFiles, Question, field_of, folder, load_json

PEOPLE = 10
MARKS = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}}
ARTICLES = {"a", "an", "the"}
ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
MORE_APOSTROPHES = """
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've
""".split()
# Every contraction by how it is written with one apostrophe left out. The one that loses its own is the official
# table's slip, and kept. Its forms with a capital I are not here: all text is in lower case by then.
CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:i] + word[i + 1:]: word for word in ONE_APOSTROPHE + MORE_APOSTROPHES
    for i, character in enumerate(word) if character == "'"}


@dataclass(frozen=True)
class TextVqa(FromFiles, Task):
    """Reading in images: the VQA accuracy over ten people's answers, as M4C's evaluator and LLaVA's script have it.

    Args:
        annotations: TextVQA_0.5.1_val.json: {"data": [...]} of question_id, image_id, question and ten answers.
        images: TextVQA's folder train_images, which has the images of train and val, named by image_id.
        ocr: TextVQA_Rosetta_OCR_v0.2_val.json, whose tokens then stand behind each question as "Reference OCR token:".
            LLaVA-1.5's published figure has them; None: the model reads for itself.
        suffix: what stands behind each question, on a line of its own.

    Data: Singh et al., Towards VQA Models That Can Read, CVPR 2019.
    """

    annotations: Path
    images: Path
    ocr: Path | None = None
    suffix: str = SHORT

    name: ClassVar[str] = "textvqa"

    def read(self) -> Iterator[Question]:
        entries = self._data("annotations", self.annotations, "a file such as TextVQA_0.5.1_val.json")
        images = folder("images", self.images, "the folder train_images of TextVQA")
        tokens = None if self.ocr is None else {
            field_of(entry, "image_id", str, f"ocr {self.ocr}"): field_of(entry, "ocr_tokens", list, f"ocr {self.ocr}")
            for entry in self._data("ocr", self.ocr, "a file such as TextVQA_Rosetta_OCR_v0.2_val.json")}
        for number, entry in enumerate(entries):
            where = f"annotations {self.annotations}, data[{number}]"
            image = field_of(entry, "image_id", str, where)
            answers = field_of(entry, "answers", list, where)  # the test split has none
            if len(answers) != PEOPLE or not all(isinstance(answer, str) for answer in answers):
                raise ValueError(f"{where}: 'answers' must be {PEOPLE} strings, got {answers!r}")
            text = field_of(entry, "question", str, where).capitalize()
            if tokens is not None:
                if image not in tokens:
                    raise ValueError(f"ocr must have the tokens of every image, got none of {image} in {self.ocr}")
                text += f"\nReference OCR token: {', '.join(map(str, tokens[image]))}"
            people = Counter(map(normalised, answers))
            yield Question(str(field_of(entry, "question_id", (int, str), where)), images / f"{image}.jpg", text,
                           people.most_common(1)[0][0], {"people": dict(people)})

    @staticmethod
    def _data(option, path, expected):
        return field_of(load_json(option, path, expected), "data", list, f"{option} {path}")

    def score(self, prediction, sample) -> float:
        return agreement(sample.about["people"].get(normalised(prediction), 0))


def agreement(same: int, people: int = PEOPLE) -> float:
    """VQA accuracy of an answer that `same` of `people` gave: min(1, matches / 3), with each of them left out in turn.

    For ten people 0, 0.3, 0.6, 0.9 and 1.
    """
    if not same:
        return 0.0
    return (same * min(1.0, (same - 1) / 3) + (people - same) * min(1.0, same / 3)) / people


def normalised(answer: str) -> str:
    """An answer as the evaluation server compares it: lower case, without articles and marks, numbers up to ten as
    digits, contractions with their apostrophes.

    A mark with a space on either side anywhere in the text goes, another becomes a space. Full stops go unless a digit
    is behind them; the original stops after 32 of them, where it hands a flag over as a count.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for mark in MARKS:
        plain = plain.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=32)
    words = (NUMBERS.get(word, word) for word in plain.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
