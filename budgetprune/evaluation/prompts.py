"""Questions and images as a model takes them, batch by batch."""

from collections.abc import Iterator, Sequence

from torch import nn

from ..tasks import ImageFile, Sample


class Prompts:
    """The batches of an evaluation, made anew for every cell: the pixels of thousands of images fit no memory.

    Images that lie in memory anyhow are made ready once. share: (number, of how many) processes; each has every so
    many-th batch, and the batches are those that one process alone would make, so that the answers are the same too.
    """

    def __init__(self, processor, samples: Sequence[Sample], model: nn.Module, batch: int, share=(0, 1)):
        self.processor, self.samples, self.model, self.batch = processor, samples, model, batch
        self.share, self.ready = share, None
        if not any(isinstance(sample.image, ImageFile) for sample in samples):
            self.ready = list(self._made())

    def __iter__(self) -> Iterator[dict]:
        return self._made() if self.ready is None else iter(self.ready)

    @property
    def numbers(self) -> range:
        """Which of all batches these are."""
        number, count = self.share
        return range(number, -(-len(self.samples) // self.batch), count)

    def _made(self):
        for start in (number * self.batch for number in self.numbers):
            yield prepare(self.processor, self.samples[start:start + self.batch], self.model)

    def timed(self, count: int) -> dict:
        """The first `count` prompts, or the first batch where that has fewer."""
        return prepare(self.processor, self.samples[:min(count, self.batch)], self.model)


def prepare(processor, samples: Sequence[Sample], model: nn.Module) -> dict:
    """Prompts and images of `samples` as forward arguments, left-padded, on the model's device and in its dtype."""
    prompts = [prompt(processor, sample.question) for sample in samples]
    inputs = processor(text=prompts, images=[sample.picture() for sample in samples], return_tensors="pt", padding=True)
    return {name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()}


def prompt(processor, question: str) -> str:
    """The question about one image, in the processor's own chat form, or behind the image where it has none."""
    if getattr(processor, "chat_template", "") is None:  # PaliGemma's
        return f"{processor.image_token}{question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
