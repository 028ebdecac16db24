"""Rows of training sets as conversations, whichever of the usual forms they have; what is wrong with one is said.

Forms: LLaVA's {"image", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]};
{"images", "messages": [{"role", "content"}]}; {"images", "texts": [{"user", "assistant"}]}.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile

MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class BadSample(ValueError):
    """A row that cannot be trained on; the message says why."""


@dataclass(frozen=True)
class Turn:
    """role: system, user or assistant. parts: its texts in their order, None where an image stands."""

    role: str
    parts: tuple[str | None, ...]

    @property
    def images(self) -> int:
        return self.parts.count(None)


@dataclass(frozen=True)
class Conversation:
    """Turns of users and answers in turn, maybe behind a system's, and the images in the order they are mentioned.

    An image is a path, the bytes of a file, or a PIL image.
    """

    turns: tuple[Turn, ...]
    images: tuple

    def only(self, answer: int) -> "Conversation":
        """The question of answer number `answer`, alone, with the images that had been mentioned by then."""
        system = [turn for turn in self.turns if turn.role == "system"]
        rest = [turn for turn in self.turns if turn.role != "system"]
        if not 0 <= answer < len(rest) // 2:
            raise BadSample(f"it has {len(rest) // 2} questions with answers, and none of number {answer}")
        question, reply = rest[2 * answer:2 * answer + 2]
        before = sum(turn.images for turn in rest[:2 * answer])
        question = Turn("user", (None,) * before + question.parts)
        return Conversation((*system, question, reply), self.images[:question.images])


def read_conversation(row) -> Conversation:
    """BadSample: the row has none of the forms, its roles do not alternate, or its images are not those it mentions."""
    if not isinstance(row, dict):
        raise BadSample(f"a row must be an object, got {type(row).__name__}")
    images, turns = _images(row), _turns(row)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadSample("a system's turn must be the first")
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadSample("users and answers must take turns, and an answer be the last, got "
                        f"{', '.join(spoken) or 'none'}")
    for turn in turns:
        if turn.role != "user" and turn.images:
            raise BadSample(f"{MARK} must stand in a user's turn, got it in the {turn.role}'s")
        if turn.role == "assistant" and not "".join(turn.parts).strip():
            raise BadSample("an answer must not be empty")
    marks = sum(turn.images for turn in turns)
    if not marks and images:  # forms without marks: the images come first
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", (None,) * len(images) + turns[first].parts)
    elif marks != len(images):
        raise BadSample(f"{marks} images are mentioned, and {len(images)} are there")
    return Conversation(tuple(turns), tuple(images))


def _images(row) -> list:
    found = next((row[name] for name in ("image", "images") if row.get(name) not in (None, "", [])), [])
    found = list(found) if isinstance(found, Sequence) and not isinstance(found, (str, bytes)) else [found]
    return [_image(one) for one in found]


def _image(one):
    if isinstance(one, dict):  # how `datasets` has them undecoded
        one = one.get("bytes") or one.get("path")
    if not isinstance(one, (str, bytes, Image.Image)) or not one:
        raise BadSample(f"an image must be a path, bytes or a picture, got {type(one).__name__}")
    return one


def _turns(row) -> list[Turn]:
    name = next((name for name in ("conversations", "messages", "texts") if row.get(name)), None)
    if name is None:
        raise BadSample(f"a row must have conversations, messages or texts, got only {', '.join(row) or 'nothing'}")
    if not isinstance(row[name], list) or not all(isinstance(turn, dict) for turn in row[name]):
        raise BadSample(f"{name} must be a list of objects")
    if name == "texts":
        pairs = [(role, pair.get(role)) for pair in row[name] for role in ("user", "assistant")]
    else:
        pairs = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in row[name]]
    return [Turn(_role(role), _parts(value)) for role, value in pairs]


def _role(role) -> str:
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise BadSample(f"a turn must be from {', '.join(ROLES)}, got {role!r}")
    return ROLES[role.lower()]


def _parts(value) -> tuple[str | None, ...]:
    """A text is cut at its marks; a list of parts names its images itself."""
    if isinstance(value, str):
        texts = [text.strip() for text in value.split(MARK)]
        between = [part for text in texts for part in (None, text)][1:]
        return tuple(part for part in between if part != "") or ("",)
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise BadSample(f"a turn must be a text or a list of parts, got {type(value).__name__}")
    parts = []
    for part in value:
        if part.get("type") == "image":
            parts.append(None)
        elif isinstance(part.get("text"), str):
            parts.append(part["text"].strip())
        else:
            raise BadSample(f"a part of a turn must be an image or a text, got {part.get('type')!r}")
    return tuple(parts) or ("",)


def open_image(image, folder: Path | None) -> Image.Image:
    """RGB, read to its end. BadSample: no such file, or nothing that can be read.

    folder: where paths begin.
    """
    if isinstance(image, str):
        image = Path(folder or ".", image)
        if not image.is_file():
            raise BadSample(f"no image {image}")
    # lmms-eval and others set it for the whole process, and then half an image is trained on without a word.
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        return (source if isinstance(source, Image.Image) else Image.open(source)).convert("RGB")
    except Exception as error:  # of all kinds, by what is broken in which format
        raise BadSample(f"image {image if isinstance(image, Path) else ''} cannot be read: {error}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
