"""Training data as a map-style dataset: item i depends on the seed and i alone, so a resumed run goes on exactly."""

import numpy as np
from torch.utils.data import Dataset

from ..tasks import Task
from ..tasks.drawn import drawn
from .base_model import batch_inputs


class TaskStream(Dataset):
    """Item i is image i of the endless stream of training images that a task draws, with all its questions.

    one_question: with one of them, the first, second and third in turn. A method that looks at the text would learn
        from all that everything is asked for.

    A batch of neighbouring items is drawn at once; the loader asks for that through __getitems__.
    """

    def __init__(self, task: str | Task, processor, images: int, seed: int, one_question: bool = False):
        self.task, self.processor, self.images = drawn(task), processor, images
        self.seed, self.one_question = seed, one_question

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        return self.__getitems__([index])

    def __getitems__(self, indices):
        first, count = indices[0], len(indices)
        if list(indices) != list(range(first, first + count)):
            raise ValueError(f"indices must be consecutive, got {list(indices)}")
        drawings = self.task.draw("train", count, self.seed, start=first)
        if self.one_question:
            drawings = drawings.question(np.array(indices) % self.task.questions)
        return batch_inputs(drawings, self.processor)

    @staticmethod
    def collate(batch):
        """The batch is made whole by __getitems__."""
        return batch
