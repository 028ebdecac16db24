"""Sparing tokens and layers on the digits task: the small LLaVA trained so, and how often it is right at a budget."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..cost import JointChoice, VlmShape, joint_budget
from ..tasks.digits import QUESTIONS, TOKENS, draw
from .base_model import TEST_SEED, TURN, digits_batch_inputs, load_base
from .data import DigitsStream
from .joint import spend, train_joint
from .joint_config import JointConfig

CHOICE_SEED = 4  # of the images, drawn from the digits of training, on which pairs are compared


def train_digits_joint(out, config: JointConfig, *, base=None, resume: bool = True, tell: Callable | None = None):
    """(model, processor) of the digits LLaVA, trained into `out` or loaded from there, pruned, everything kept."""
    model, processor = load_base(base)
    dataset = DigitsStream(processor, config.steps * config.batch_size, config.seed + 1, one_question=True)
    train_joint(model, dataset, out, config, resume=resume, tell=tell)
    return model, processor


@torch.no_grad()
def rights(model: nn.Module, processor, *, split: str = "test", images: int = 256, seed: int = TEST_SEED,
           batch: int = 128) -> list[bool]:
    """Whether each question about `images` images, asked in a prompt of its own, is answered rightly."""
    right, was_training = [], model.training
    model.eval()
    for start in range(0, images, batch):
        canvases = draw(split, min(batch, images - start), seed, start=start)
        inputs = digits_batch_inputs(canvases, processor, device=model.device)
        for question in range(QUESTIONS):
            logits = model(**prompts(inputs, question), logits_to_keep=1).logits
            answers = inputs["input_ids"][:, 1 + TOKENS + TURN * question + TURN - 2]
            right += (logits[:, -1].argmax(-1) == answers).tolist()
    model.train(was_training)
    return right


def prompts(inputs: dict, question: int) -> dict:
    """Of the batch of digits_batch_inputs, the prompts that ask its question number `question`."""
    first = 1 + TOKENS + TURN * question
    ids = inputs["input_ids"]
    ids = torch.cat([ids[:, : 1 + TOKENS], ids[:, first:first + TURN - 2]], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": inputs["pixel_values"]}


def chosen(model: nn.Module, processor, config: JointConfig, share: float, *, images: int = 64) -> JointChoice:
    """The pair that spends `share` best on images made of training's digits. ValueError: it pays for none."""
    shape = VlmShape.from_config(model.config)
    scheduler = model.budget_depth.scheduler if config.depth else None
    prefix = shape.decoder.layers if scheduler is None else scheduler.prefix
    pairs = config.pairs(shape, share, prefix)
    if len(pairs) == 1:
        return pairs[0]
    table = measured(model, processor, pairs, images)
    return joint_budget(shape, share, config.text_tokens, prefix=prefix, accuracy=table)


def measured(model: nn.Module, processor, pairs: Sequence[JointChoice], images: int) -> dict[tuple[int, int], float]:
    """{(K, n): accuracy} on images made of training's digits."""
    table = {}
    for pair in pairs:
        spend(model, pair)
        right = rights(model, processor, split="train", images=images, seed=CHOICE_SEED)
        table[pair.keep, pair.layers] = sum(right) / len(right)
    return table
