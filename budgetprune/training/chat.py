"""Conversations as forward arguments with labels, by the processor's own chat template.

Where an answer begins and ends is found in the text without images: the longest common beginning, token by token, of
the whole conversation and of what comes before the answer, or up to its end. The processor's ids have many tokens where
the text has one image mark; all others are the same, and the labels move over by them.
"""

import torch
from torch import Tensor

from .conversations import BadSample, Conversation

IGNORED = -100


class Chat:
    """Encodes conversations for one model.

    placeholders: ids of the image tokens. max_length: tokens of a row; longer ones lose their end, but never an image.

    ValueError: a processor without a chat template, or with one that says another thing before an answer than when
    asked for one.
    """

    def __init__(self, processor, placeholders, max_length: int):
        self.processor, self.placeholders, self.max_length = processor, frozenset(placeholders), max_length
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(f"model must have a processor with a chat template, {type(processor).__name__} has none")
        self.end = ""
        self.end = self._missing_end()

    def _missing_end(self) -> str:
        """What must be written behind an answer for the model to learn to stop; nothing where the template has it."""
        asked = [_message("user", ["budget"])]
        prompt = self._text(asked, True)
        whole = self._text([*asked, _message("assistant", ["tokens"])])
        if not whole.startswith(prompt.rstrip()) or "tokens" not in whole[len(prompt.rstrip()):]:
            raise ValueError("the chat template must begin a conversation with an answer as it does when asked for "
                             f"one, got {prompt!r} and {whole!r}: labels cannot be placed")
        behind = whole[whole.rindex("tokens") + len("tokens"):]
        return "" if behind.strip() else self.processor.tokenizer.eos_token or ""

    def __call__(self, conversation: Conversation, images: list) -> dict[str, Tensor]:
        """Forward arguments of one row, [1, L] and what the images are, with labels on the answers alone.

        BadSample: no answer fits, the images alone are too long, or the processor refuses them.
        """
        messages = [_message(turn.role, [part + self.end if turn.role == "assistant" else part for part in turn.parts])
                    for turn in conversation.turns]
        text = self._text(messages)
        short = self._ids(text)
        spans = self._spans(messages, text, short)
        try:
            inputs = self.processor(text=[text], images=images or None, return_tensors="pt",
                                    add_special_tokens=not self._has_start(text))
        except Exception as error:  # of all kinds, by what the row has that it does not expect
            raise BadSample(f"the processor refuses it: {error}") from error
        inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        ids = inputs["input_ids"]
        places = torch.tensor(self._places(short, ids[0].tolist()))
        inputs["labels"] = torch.full_like(ids, IGNORED)
        for start, stop in spans:
            inputs["labels"][0, places[start:stop]] = ids[0, places[start:stop]]
        return self._cut(inputs)

    def _text(self, messages, prompt: bool = False) -> str:
        return self.processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)

    def _has_start(self, text: str) -> bool:
        start = self.processor.tokenizer.bos_token
        return start is not None and text.startswith(start)

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=not self._has_start(text))["input_ids"]

    def _spans(self, messages, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """(first, last + 1) of the tokens of every answer, its end mark with it."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, behind = self._text(messages[:number], True), self._text(messages[:number + 1])
            answer = message["content"][0]["text"].removesuffix(self.end)
            if not (text.startswith(before.rstrip()) and text.startswith(behind.rstrip())
                    and answer in behind[len(before.rstrip()):]):
                raise BadSample(f"the chat template writes what is before answer {1 + len(spans)} differently when the "
                                "conversation goes on: labels cannot be placed")
            start, stop = _common(self._ids(before), ids), _common(self._ids(behind), ids)
            while stop > start and not self.processor.tokenizer.decode(ids[stop - 1:stop]).strip():
                stop -= 1  # line ends behind the end mark
            spans.append((start, stop))
        return spans

    def _places(self, short: list[int], long: list[int]) -> list[int]:
        """Where in `long` each token of `short` stands; an image mark stands where its first token does."""
        places, at, i = [], 0, 0
        while i < len(short):
            marks = i
            while marks < len(short) and short[marks] in self.placeholders:
                marks += 1
            words = marks
            while words < len(short) and short[words] not in self.placeholders:
                words += 1
            first, chunk = at, short[marks:words]
            for _ in range(marks - i):
                while at < len(long) and long[at] not in self.placeholders:
                    at += 1
                at += 1
            while chunk and at + len(chunk) <= len(long) and long[at:at + len(chunk)] != chunk:
                at += 1
            if at + len(chunk) > len(long):
                raise BadSample("the processor changes more of the text than its images: labels cannot be placed")
            places += [first] * (marks - i) + list(range(at, at + len(chunk)))
            at, i = at + len(chunk), words
        return places

    def _cut(self, inputs: dict) -> dict:
        """At most max_length tokens, from the beginning."""
        ids = inputs["input_ids"]
        images = torch.isin(ids[0], torch.tensor(sorted(self.placeholders))).nonzero()
        needed = int(images[-1]) + 1 if len(images) else 0
        if needed > self.max_length:
            raise BadSample(f"too long: {needed} tokens up to the end of its {len(images)} image tokens, max_length is "
                            f"{self.max_length}")
        if ids.shape[1] > self.max_length:
            shape = ids.shape
            inputs = {name: value[:, :self.max_length] if value.shape == shape else value
                      for name, value in inputs.items()}
        if not bool((inputs["labels"][:, 1:] != IGNORED).any()):
            raise BadSample(f"too long: {ids.shape[1]} tokens, and no answer within max_length {self.max_length}")
        return inputs


def _message(role: str, parts) -> dict:
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


def _common(left: list[int], right: list[int]) -> int:
    """How many tokens two lists begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
