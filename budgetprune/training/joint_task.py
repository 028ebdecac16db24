"""Sparing tokens and layers on a task that draws its images: its small LLaVA trained so, and how often it is right."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from ..cost import JointChoice, VlmShape, joint_budget
from ..tasks import Task
from ..tasks.drawn import drawn
from .base_model import FIRST, TEST_SEED, load_base
from .data import TaskStream
from .joint import spend, train_joint
from .joint_config import JointConfig

CHOICE_SEED = 4  # of the images of the training split on which pairs are compared


class AnswersWithEnds(TaskStream):
    """One question about each image, its answer and the end behind it to be learnt: a model whose own weights are
    trained on answers alone forgets to stop."""

    def __init__(self, task, processor, images: int, seed: int):
        super().__init__(task, processor, images, seed, one_question=True)
        self.end = processor.tokenizer.eos_token_id

    def __getitems__(self, indices):
        inputs = super().__getitems__(indices)
        ids = inputs["input_ids"]
        return inputs | {"labels": torch.where(ids == self.end, ids, inputs["labels"])}


def train_task_joint(out, config: JointConfig, *, task: str | Task = FIRST, base=None, resume: bool = True,
                     tell: Callable | None = None):
    """(model, processor) of a task's LLaVA, trained into `out` or loaded from there, pruned, everything kept."""
    task = drawn(task)
    model, processor = load_base(base, task.name)
    config = replace(config, data=task.label)
    dataset = AnswersWithEnds(task, processor, config.steps * config.batch_size, config.seed + 1)
    train_joint(model, dataset, out, config, resume=resume, tell=tell)
    return model, processor


@torch.no_grad()
def scores(model: nn.Module, processor, task: str | Task = FIRST, *, split: str = "test", images: int = 256,
           seed: int = TEST_SEED, batch: int = 128) -> list[bool | float]:
    """The score of each question about `images` images, asked in a prompt of its own, its answer generated."""
    task, was_training, found = drawn(task), model.training, []
    samples = task.samples(split, images * task.questions, seed)
    model.eval()
    for start in range(0, len(samples), batch):
        part = samples[start:start + batch]
        inputs = processor(text=[f"<image> {sample.question}" for sample in part], padding=True,
                           images=[sample.image for sample in part], return_tensors="pt").to(model.device)
        new = model.generate(**inputs, do_sample=False, max_new_tokens=task.new_tokens)
        said = processor.batch_decode(new[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        found += [task.score(reply, sample) for reply, sample in zip(said, part, strict=True)]
    model.train(was_training)
    return found


def chosen(model: nn.Module, processor, config: JointConfig, share: float, *, task: str | Task = FIRST,
           images: int = 64) -> JointChoice:
    """The pair that spends `share` best on images of the training split. ValueError: it pays for none."""
    shape = VlmShape.from_config(model.config)
    prefix = model.budget_depth.scheduler.prefix if config.depth else shape.decoder.layers
    pairs = config.pairs(shape, share, prefix)
    if len(pairs) == 1:
        return pairs[0]
    return joint_budget(shape, share, config.text_tokens, prefix=prefix,
                        accuracy=measured(model, processor, pairs, task, images))


def measured(model: nn.Module, processor, pairs: Sequence[JointChoice], task, images: int) -> dict:
    """{(K, n): accuracy} on images of the training split."""
    table = {}
    for pair in pairs:
        spend(model, pair)
        found = scores(model, processor, task, split="train", images=images, seed=CHOICE_SEED)
        table[pair.keep, pair.layers] = sum(found) / len(found)
    return table
