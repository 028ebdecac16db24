"""A pruned LLaVA for VLMEvalKit, which knows its models by a dictionary, `supported_VLM`, and not by entry points.

Nothing of VLMEvalKit is imported: it asks a model for generate(message, dataset), use_custom_prompt and set_dump_image,
and all three are here.
"""

import torch
from PIL import Image

from .arguments import check_arguments, prune_as_asked


class PrunedLlava:
    """LLaVA-1.5 of transformers with fewer image tokens.

    Args:
        model_path: a name or folder that LlavaForConditionalGeneration.from_pretrained knows.
        method, keep, options: as in budgetprune.prune; or pruner: a folder that save_pretrained wrote.
        max_new_tokens: longest answer; answers are greedy.
        device: default the GPU if there is one. dtype: default the checkpoint's.
    """

    INTERLEAVE = True  # images and texts stay in the order of the message
    is_api = False

    def __init__(self, model_path: str, method: str | None = None, keep=None, pruner=None, max_new_tokens: int = 512,
                 device=None, dtype="auto", **options):
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        check_arguments(method, pruner, options)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = AutoProcessor.from_pretrained(model_path)
        self.model = LlavaForConditionalGeneration.from_pretrained(model_path, dtype=dtype).to(device).eval()
        self.pruning = prune_as_asked(self.model, method, keep, pruner, options)
        self.max_new_tokens = max_new_tokens

    def use_custom_prompt(self, dataset) -> bool:
        """Prompts are the dataset's own, so that pruned and full model are asked the same."""
        return False

    def set_dump_image(self, dump_image) -> None:
        """VLMEvalKit hands over how the dataset writes its images to disk; only custom prompts would need it."""
        self.dump_image = dump_image

    @torch.inference_mode()
    def generate(self, message, dataset: str | None = None) -> str:
        """The answer to a message: a text, or a list of {"type": "image" or "text", "value": path or text}."""
        parts, images = _read(message)
        text = self.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = self.processor(images=images or None, text=text, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, temperature=None,
                                     top_p=None)
        return self.processor.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()


def _read(message) -> tuple[list[dict], list[Image.Image]]:
    """The parts of a chat turn, and its images in their order."""
    if isinstance(message, str):
        message = [{"type": "text", "value": message}]
    parts, images = [], []
    for item in [message] if isinstance(message, dict) else message:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "text":
            parts.append({"type": "text", "text": item["value"]})
        elif kind == "image":
            parts.append({"type": "image"})
            with Image.open(item["value"]) as image:
                images.append(image.convert("RGB"))
        else:
            raise ValueError(f"message must hold items of type 'image' or 'text', got {item!r}")
    return parts, images
