"""Which item of a training set comes when: a function of seed and position, so that a run goes on exactly."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


class Order:
    """An endless order of items, shuffled anew in every epoch.

    images, texts: numbers of the items with and without images. Where there are both, every `block` of positions, a
    step's samples, is of one kind: all processes then train the same parameters in the same step (as LLaVA groups them
    by modality). The last block of a kind is filled up from the beginning of its epoch.
    """

    def __init__(self, images: np.ndarray, texts: np.ndarray, block: int, seed: int):
        self.kinds, self.seed = (images, texts), seed
        if not len(images) + len(texts):
            raise ValueError("data must hold items to train on, got none")
        self.block = block if len(images) and len(texts) else len(images) + len(texts)
        self.blocks = [-(-len(kind) // self.block) for kind in self.kinds]
        self.epoch_length = sum(self.blocks) * self.block
        self._epoch = lru_cache(2)(self._drawn)

    def __getstate__(self):  # for workers that are started anew: a cache is no data
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._epoch = lru_cache(2)(self._drawn)

    def _drawn(self, epoch: int):
        """(kind of every block, its number among those of its kind, the items of each kind in their order)."""
        kinds = np.random.default_rng([self.seed, epoch, 0]).permutation(np.repeat([0, 1], self.blocks))
        number = np.where(kinds == 0, np.cumsum(kinds == 0), np.cumsum(kinds == 1)) - 1
        items = [np.random.default_rng([self.seed, epoch, 1 + kind]).permutation(self.kinds[kind]) for kind in (0, 1)]
        return kinds, number, items

    def tries(self, position: int) -> Iterator[int]:
        """The item of a position, then those that take its place, one after another: the next of its kind."""
        epoch, rest = divmod(position, self.epoch_length)
        block, within = divmod(rest, self.block)
        kinds, number, items = self._epoch(epoch)
        items, first = items[kinds[block]], number[block] * self.block + within
        for further in range(len(items)):
            yield int(items[(first + further) % len(items)])
