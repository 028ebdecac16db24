"""Training samples by their position in the run: whatever process asks, and however often a run was cut off."""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from .chat import Chat
from .collate import collate
from .conversations import BadSample, open_image, read_conversation
from .order import Order
from .records import Records

MOST_TRIES = 100


class Items:
    """What is trained on, of the rows of a set: all turns of a row at once, or with `one_question` each by itself.

    with_text: also rows without an image, which only a trained language model learns from.
    """

    def __init__(self, records: Records, *, one_question: bool, with_text: bool):
        times = records.answers if one_question else np.ones(len(records), dtype=np.int64)
        rows = np.repeat(np.arange(len(records)), times)
        starts = np.repeat(np.cumsum(times) - times, times)
        self.rows, self.answers = rows, np.arange(len(rows)) - starts if one_question else None
        seen = records.has_image[rows]
        numbers = np.arange(len(rows))
        self.images, self.texts = numbers[seen], numbers[~seen] if with_text else numbers[:0]
        self.left_out = 0 if with_text else int((~seen).sum())


class ConversationStream(Dataset):
    """Item p is the sample at position p of the run. One that cannot be read is replaced by the next of its kind.

    Nothing is drawn here but by `order`, so p gives the same sample in every process, and after every restart.
    """

    def __init__(self, records: Records, items: Items, order: Order, chat: Chat, images: Path | None, positions: int):
        self.records, self.items, self.order, self.chat = records, items, order, chat
        self.images, self.positions = images, positions

    def __len__(self):
        return self.positions

    def __getitem__(self, position: int) -> dict:
        """inputs: forward arguments of one row. position. images: of the row. skipped: what could not be read.

        ValueError: so many in a row cannot be read that the data, or `images`, is not what was meant.
        """
        skipped = []
        for item in self.order.tries(position):
            try:
                inputs, images = self._read(item)
            except BadSample as error:
                skipped.append({"position": position, **self._named(item), "reason": str(error)})
                if len(skipped) == MOST_TRIES:
                    break
            else:
                return {"inputs": inputs, "position": position, "images": images, "skipped": skipped}
        raise ValueError(f"data must hold samples that can be read, got {len(skipped)} in a row that cannot; the last, "
                         f"{skipped[-1]['id']}: {skipped[-1]['reason']}")

    def _read(self, item: int):
        try:
            conversation = read_conversation(self.records[self.items.rows[item]])
            if self.items.answers is not None:
                conversation = conversation.only(int(self.items.answers[item]))
            images = [open_image(image, self.images) for image in conversation.images]
            return self.chat(conversation, images), len(images)
        except BadSample:
            raise
        except Exception as error:  # a broken file, or a chat template that refuses the roles: no row ends the run
            raise BadSample(f"the row cannot be read: {type(error).__name__}: {error}") from error

    def _named(self, item: int) -> dict:
        """How the row is found again: its id, where it has one, and its number in the file."""
        number = int(self.items.rows[item])
        named = {"row": number} if self.items.answers is None else {"row": number,
                                                                    "question": int(self.items.answers[item])}
        try:
            row = self.records[number]
        except Exception:  # which is the reason that is told
            row = None
        own = row.get("id") if isinstance(row, dict) else None
        return {"id": str(number) if own is None else str(own), **named}

    def collate(self, samples: list[dict]) -> dict:
        """Forward arguments, and beside them samples: (position, image) of every image, and skipped."""
        tokenizer = self.chat.processor.tokenizer
        pad = next((n for n in (tokenizer.pad_token_id, tokenizer.eos_token_id) if n is not None), 0)
        batch = collate([sample["inputs"] for sample in samples], pad)
        batch["samples"] = [[sample["position"], image] for sample in samples for image in range(sample["images"])]
        batch["skipped"] = [entry for sample in samples for entry in sample["skipped"]]
        return batch
