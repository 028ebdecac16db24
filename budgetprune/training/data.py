"""Training data as a map-style dataset: item i depends on the seed and i alone, so a resumed run goes on exactly."""

import numpy as np
from torch.utils.data import Dataset

from ..tasks.digits import draw
from .base_model import digits_batch_inputs


class DigitsStream(Dataset):
    """Item i is image i of the endless stream of training canvases, with its three questions.

    one_question: with one of them, the first, second and third in turn. A method that looks at the text would learn
        from three that everything is asked for.

    A batch of neighbouring items is drawn at once; the loader asks for that through __getitems__.
    """

    def __init__(self, processor, images: int, seed: int, one_question: bool = False):
        self.processor, self.images, self.seed, self.one_question = processor, images, seed, one_question

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        return self.__getitems__([index])

    def __getitems__(self, indices):
        first, count = indices[0], len(indices)
        if list(indices) != list(range(first, first + count)):
            raise ValueError(f"indices must be consecutive, got {list(indices)}")
        canvases = draw("train", count, self.seed, start=first)
        if self.one_question:
            canvases = canvases.question(np.array(indices) % canvases.answers.shape[1])
        return digits_batch_inputs(canvases, self.processor)

    @staticmethod
    def collate(batch):
        """The batch is made whole by __getitems__."""
        return batch
